// The page: runs side by side, kept up to date by server-sent events.

import { addRows, createData } from "./data.js";
import { forecastEnd, marginRange } from "./chart.js";
import { fetchJson } from "./detail.js";
import { count, element, put, putMarked } from "./dom.js";
import { evalTables } from "./evals.js";
import { instructionParts } from "./instructions.js";
import { createLane } from "./lane.js";
import { shownRange, startZoom } from "./zoom.js";

const SHOWN_AT_FIRST = Number(new URLSearchParams(location.search).get("show")) || 2;
const MUCH_LONGER = 4; // runs have one axis of steps, unless one is so many times longer
const RETRY = 3000; // milliseconds, after a view that could not be read
const runs = new Map();
const main = document.getElementById("main");
let server = "", planned = false;

function connect() {
  const source = new EventSource("/events");
  const connection = document.getElementById("connection");
  source.onopen = () => put(connection, "live");
  source.onerror = () => {
    put(connection, "connection lost; trying again");
    if (source.readyState === EventSource.CLOSED) setTimeout(connect, RETRY);
  };
  source.onmessage = (event) => receive(JSON.parse(event.data));
}

function receive(message) {
  if (message.runs) begin(message);
  else if (message.run) addRun(message.run, true);
  else change(message);
}

function begin(message) {
  if (server && server !== message.server) {
    location.reload();
    return;
  }
  const isFirst = server === "";
  server = message.server;
  const late = message.runs.length - SHOWN_AT_FIRST;
  message.runs.forEach((own, place) => {
    const known = runs.get(own.key);
    if (!known) addRun(own, isFirst ? place >= late : true);
    else if (known.isShown && known.data?.version !== own.version) load(known);
  });
}

function addRun(own, isShown) {
  if (runs.has(own.key)) return;
  const box = element("input", { type: "checkbox", id: `show-${own.key}` });
  const run = { ...own, box, data: null, isShown: false, lanes: [], isLoading: false, isStale: false };
  run.node = runNode(run);
  runs.set(own.key, run);
  box.addEventListener("change", () => show(run, box.checked));
  document.getElementById("runs").prepend(
    element("li", {}, box, element("label", { for: box.id }, own.name)),
  );
  show(run, isShown);
}

function show(run, isShown) {
  run.isShown = run.box.checked = isShown;
  run.node.hidden = !isShown;
  if (isShown && !run.node.isConnected) main.prepend(run.node);
  if (isShown) load(run);
  const shown = [...runs.values()].filter((own) => own.isShown).length;
  document.getElementById("chooser").hidden = runs.size < 2;
  document.getElementById("empty").hidden = shown > 0;
  document.getElementById("zoom").hidden = !shown;
  put(document.getElementById("empty"), runs.size ? "No run is chosen." : document.getElementById("empty").textContent);
  put(document.getElementById("chosen"), `Runs: ${count(shown)} of ${count(runs.size)} shown`);
  main.classList.toggle("many", shown > 1);
  plan();
}

async function load(run) {
  if (run.isLoading) {
    run.isStale = true;
    return;
  }
  run.isLoading = true;
  try {
    do {
      run.isStale = false;
      run.missed = [];
      run.data = createData(await fetchJson(`/runs/${run.key}`));
      for (const message of run.missed) step(run, message);
    } while (run.isStale);
    run.error = "";
  } catch (error) {
    run.error = error.message;
    setTimeout(() => run.isShown && load(run), RETRY);
  } finally {
    run.isLoading = false;
  }
  plan();
}

function change(message) {
  const run = runs.get(message.key);
  if (!run?.isShown) return;
  if (run.isLoading) run.missed.push(message);
  else if (!run.data || !step(run, message)) load(run);
  plan();
}

// Adds a change to a run's data; false: one before it was missed.
function step(run, message) {
  if (message.version <= run.data.version) return true;
  if (message.restart || message.version !== run.data.version + 1) {
    run.isStale = true;
    return false;
  }
  addRows(run.data, message);
  return true;
}

function runNode(run) {
  const parts = {
    state: element("span", { class: "badge" }), line: element("p", { class: "first", "aria-live": "polite" }),
    title: element("p", { class: "quiet" }), weights: element("p", {}), numbers: element("dl", { class: "numbers" }),
    advice: element("p", { class: "advice" }), limits: element("p", {}),
    error: element("p", { class: "error", role: "alert" }), pages: element("p", { class: "pages" }), evals: element("details", { class: "evals" }), instructions: element("details", { class: "evals instructions" }), lanes: element("div", { class: "lanes" }),
  };
  run.parts = parts;
  parts.limited = element("details", {}, element("summary", {}, "What this does not tell"), parts.limits);
  const heading = element("h2", { id: `run-${run.key}` }, run.name);
  return element("article", { "aria-labelledby": heading.id },
    element("div", { class: "bar" }, heading, parts.state), parts.title, parts.error, parts.line,
    parts.weights, parts.numbers, parts.advice, parts.limited, parts.pages, parts.evals, parts.instructions, parts.lanes);
}

function plan() {
  if (planned) return;
  planned = true;
  requestAnimationFrame(() => {
    planned = false;
    draw();
  });
}

function draw() {
  const shown = [...runs.values()].filter((run) => run.isShown);
  const known = shown.filter((run) => run.data);
  const longest = Math.max(1, ...known.map((run) => forecastEnd(run.data)));
  const ranges = new Map();
  for (const { data } of known) {
    data.behaviors.forEach(({ name }, behavior) => {
      const own = marginRange(data, behavior), all = ranges.get(name) ?? own;
      ranges.set(name, [Math.min(all[0], own[0]), Math.max(all[1], own[1])]);
    });
  }
  for (const run of shown) {
    const own = run.data ? Math.max(1, forecastEnd(run.data)) : 1;
    drawRun(run, shownRange(own * MUCH_LONGER < longest ? own : longest, longest), ranges);
  }
}

function drawRun(run, range, ranges) {
  const { parts, data } = run;
  put(parts.error, run.error ?? "");
  parts.error.hidden = !run.error;
  parts.limited.hidden = parts.state.hidden = !data;
  if (!data) {
    put(parts.title, run.error ? "" : "reading the record");
    return;
  }
  const { line, weights, numbers, advice, limits, finished } = data.conclusion;
  put(parts.state, finished ? "ended" : "training");
  parts.state.className = `badge ${finished ? "" : "live"}`;
  const more = data.n_alerts > data.alerts.length ? `; the first ${count(data.alerts.length)} of ${count(data.n_alerts)} alerts are shown` : "";
  put(parts.title, `${data.title ? `${data.title}, ` : ""}step ${count(data.last_step)}${more}`);
  put(parts.line, line);
  put(parts.weights, weights);
  parts.weights.hidden = !weights;
  putMarked(parts.advice, advice);
  put(parts.limits, limits);
  const shownNumbers = JSON.stringify(numbers);
  if (run.shownNumbers !== shownNumbers) {
    run.shownNumbers = shownNumbers;
    parts.numbers.replaceChildren(...Object.entries(numbers).map(([name, text]) =>
      element("div", {}, element("dt", {}, name), element("dd", {}, text))));
  }
  const pages = JSON.stringify(data.pages);
  if (run.shownPages !== pages) {
    run.shownPages = pages;
    parts.pages.replaceChildren(...data.pages.map(([place, kind]) =>
      element("a", { href: `/runs/${run.key}/pages/${place}`, target: "_blank", rel: "noopener" }, kind)));
  }
  const evals = JSON.stringify(data.evals);
  if (run.shownEvals !== evals) {
    run.shownEvals = evals;
    parts.evals.replaceChildren(...evalTables(data.evals));
    parts.evals.hidden = !parts.evals.childElementCount;
  }
  const width = parts.lanes.clientWidth, instructions = JSON.stringify([width, data.conclusion.instructions]);
  if (run.shownInstructions !== instructions) {
    run.shownInstructions = instructions;
    parts.instructions.replaceChildren(...instructionParts(data.conclusion.instructions, width));
    parts.instructions.hidden = !parts.instructions.childElementCount;
  }
  const names = JSON.stringify(data.behaviors);
  if (run.shownBehaviors !== names) {
    run.shownBehaviors = names;
    run.lanes = [-1, ...data.behaviors.keys()].map((behavior) => createLane(run, behavior));
    parts.lanes.replaceChildren(...run.lanes.map((lane) => lane.node));
  }
  for (const lane of run.lanes) lane.draw(range, ranges);
}

startZoom(plan);
new ResizeObserver(plan).observe(main);
connect();
