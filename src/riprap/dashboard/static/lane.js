// One lane: a heading, the chart that can be walked with the keyboard, and the buttons on its axis.

import { drawBehavior, drawTraining, laneHeight, layersOf, LEFT, RIGHT, stepAt, TRAINING_HEIGHT, xScale } from "./chart.js";
import { nearest } from "./data.js";
import { openAction, openAlert, openProbes } from "./detail.js";
import { count, element, number, put, svg } from "./dom.js";
import { brush, zoomKey } from "./zoom.js";

const SHAPES = { watch: "●○", warning: "▲△", critical: "◆◇" }; // one that stands, one withdrawn
const ACTION_PIXELS = 14; // actions that are nearer to each other share a button

export function createLane(run, behavior) {
  const isTraining = behavior < 0;
  const name = isTraining ? "training" : run.data.behaviors[behavior].name;
  const badge = element("span", { class: "badge" }), facts = element("span", { class: "quiet" });
  const readout = element("p", { class: "readout quiet" });
  const height = isTraining ? TRAINING_HEIGHT : laneHeight(run.data, behavior);
  const chart = svg("svg", { height, "aria-hidden": "true" });
  const cursor = element("div", { class: "cursor", hidden: "" });
  const slider = isTraining
    ? element("div", { class: "chart", role: "img", "aria-label": "loss or reward, and learning rate of the training" })
    : element("div", { class: "chart", role: "slider", tabindex: "0", "aria-label": `evaluations of ${name}; Enter shows the probes`, "aria-valuemin": 0 });
  slider.append(chart, cursor);
  const buttons = element("div", { class: "buttons", role: "group", "aria-label": isTraining ? "alerts about the run" : `alerts and guard actions, ${name}` });
  const plot = element("div", { class: "plot" }, slider, buttons);
  const sentences = element("p", { class: "sentences" });
  const heading = element("h3", {}, isTraining ? "Training" : name);
  const node = element("section", { class: "lane" }, element("div", { class: "head" }, heading, badge, facts), sentences, plot, ...(isTraining ? [] : [readout]));
  const lane = { node, at: null, range: [0, 1] };

  const line = (signal) => run.data.lines.get(`${behavior} ${signal}`);
  const steps = () => line("score")?.steps ?? [];

  function valueAt(signal, step) {
    const own = line(signal), at = own ? own.steps.indexOf(step) : -1;
    return at < 0 ? null : own.values[at];
  }

  function describe() {
    const known = steps();
    if (!known.length) return "not evaluated yet";
    const step = lane.at === null ? known.at(-1) : known[nearest(known, lane.at)];
    const parts = [["score", "score"], ["threshold margin", "margin_low"], ["mean margin", "margin"]]
      .map(([words, signal]) => [words, valueAt(signal, step)])
      .filter(([, value]) => value !== null)
      .map(([words, value]) => `${words} ${number(value)}`);
    return [`step ${count(step)}`, ...parts, ...strongest(step)].join(", ");
  }

  // The layer that lowered or raised the mean margin most, up to a step since the evaluation before.
  function strongest(step) {
    const found = layersOf(run.data, behavior)
      .filter((own) => own.layer)
      .map((own) => [own.layer, own.values[own.steps.indexOf(step)]])
      .filter(([, value]) => value !== undefined && value !== null)
      .sort((a, b) => Math.abs(b[1]) - Math.abs(a[1]));
    return found.length ? [`most interference: ${found[0][0]} ${number(found[0][1])}`] : [];
  }

  function point(step) {
    lane.at = step;
    const known = steps(), isKnown = step !== null && known.length > 0;
    const own = known.length ? known[step === null ? known.length - 1 : nearest(known, step)] : 0;
    cursor.hidden = !isKnown || own < lane.range[0] || own > lane.range[1];
    cursor.style.left = `${xScale(slider.clientWidth, lane.range)(own)}px`;
    const text = describe();
    put(readout, text);
    for (const [key, value] of [["valuemax", known.at(-1) ?? 0], ["valuenow", own], ["valuetext", text]]) {
      slider.setAttribute(`aria-${key}`, value);
    }
  }

  function walk(event) {
    const isOfBrowser = event.ctrlKey || event.metaKey || event.altKey;
    if (isOfBrowser && !event.getModifierState("AltGraph")) return; // "[" may need AltGr
    const known = steps();
    if (!known.length) return;
    const at = lane.at === null ? known.length - 1 : nearest(known, lane.at);
    const to = { ArrowLeft: at - 1, ArrowDown: at - 1, ArrowRight: at + 1, ArrowUp: at + 1, PageDown: at - 10, PageUp: at + 10, Home: 0, End: known.length - 1 }[event.key];
    if (event.key === "Enter" || event.key === " ") openProbes(run, behavior, known[at]);
    else if (zoomKey(event.key)) return;
    else if (to !== undefined) point(known[Math.min(Math.max(to, 0), known.length - 1)]);
    else return;
    event.preventDefault();
  }

  const under = (event) => stepAt(slider.clientWidth, lane.range, event.clientX - slider.getBoundingClientRect().left);
  const wasDragged = brush(slider, under);
  if (!isTraining) {
    slider.addEventListener("pointermove", (event) => point(under(event)));
    slider.addEventListener("pointerleave", () => document.activeElement !== slider && point(null));
    slider.addEventListener("blur", () => point(null));
    slider.addEventListener("keydown", walk);
    slider.addEventListener("click", (event) => {
      const known = steps();
      if (known.length && !wasDragged()) openProbes(run, behavior, known[nearest(known, under(event))]);
    });
  }

  function drawState() {
    const own = run.data.conclusion.outcomes[behavior];
    put(badge, own?.state ?? "");
    badge.hidden = !own;
    badge.className = `badge ${(own?.state ?? "").replaceAll(" ", "-")}`;
    const interval = own?.interval ? `, 95 % interval ${own.interval.map((v) => v.toFixed(2)).join(" to ")}` : "";
    put(facts, own && own.score !== null ? `score ${number(own.score)} (floor ${number(own.floor)}; ${own.probes} probes${interval})` : "");
    put(sentences, own?.sentences ?? "");
  }

  // The last value of a line, or since when it is no number.
  function latest({ steps, values }) {
    const last = values.findLastIndex((value) => value !== null);
    return last === values.length - 1 ? number(values[last]) : `not finite since step ${count(steps[last + 1])}`;
  }

  function drawTrainingState() {
    badge.hidden = true;
    const parts = Object.entries(run.data.training).map(([name, own]) => `${name.replaceAll("_", " ")} ${latest(own)}`);
    put(facts, parts.join(", "));
  }

  function drawButtons(width) {
    const x = xScale(width, lane.range), { alerts, actions, conclusion } = run.data;
    const wanted = new Map();
    for (const own of alerts.filter((alert) => alert.behavior === behavior)) {
      const until = conclusion.withdrawn[own.id];
      const end = until === undefined ? "it stands" : `withdrawn at step ${count(until)}`;
      wanted.set(`alert ${own.id}`, {
        left: x(own.step), text: (SHAPES[own.level] ?? "●○")[until === undefined ? 0 : 1], open: () => openAlert(run, own),
        kind: `mark ${own.level}`,
        label: `${own.level} about ${isTraining ? "the run" : name} at step ${count(own.step)}; ${end}`,
      });
    }
    for (const own of isTraining ? [] : merged(actions, x)) {
      wanted.set(`action ${own.guard} ${own.applied} ${own.place}`, {
        left: x((own.step + own.end) / 2), text: own.applied ? "■" : "□", open: () => openAction(run, own), kind: "mark action",
        label: `guard ${own.guard} ${own.applied ? "changed training" : "changed nothing"}, step ${count(own.step)} to ${count(own.end)}`,
      });
    }
    for (const old of [...buttons.children]) if (!wanted.has(old.dataset.key)) old.remove();
    const known = new Map([...buttons.children].map((own) => [own.dataset.key, own]));
    for (const [key, own] of wanted) {
      let button = known.get(key);
      if (!button) {
        button = element("button", { type: "button" });
        button.dataset.key = key;
        button.addEventListener("click", () => button.open());
        buttons.append(button);
      }
      button.open = own.open;
      button.className = own.kind;
      put(button, own.text);
      for (const attribute of ["aria-label", "title"]) {
        if (button.getAttribute(attribute) !== own.label) button.setAttribute(attribute, own.label);
      }
      button.style.left = `${own.left}px`;
      button.hidden = own.left < LEFT - 1 || own.left > width - RIGHT + 1;
    }
  }

  lane.draw = (range, ranges) => {
    const width = slider.clientWidth;
    if (!width) return;
    lane.range = range;
    chart.setAttribute("width", width);
    if (isTraining) {
      drawTraining(chart, run.data, width, range);
      drawTrainingState();
    } else {
      drawBehavior(chart, run.data, behavior, width, range, ranges.get(name));
      drawState();
      point(lane.at);
    }
    drawButtons(width);
  };
  return lane;
}

function merged(actions, x) {
  const found = [], latest = new Map();
  for (const own of actions) {
    const place = Math.floor(x(own.step) / ACTION_PIXELS), key = `${own.guard} ${own.applied}`;
    const before = latest.get(key);
    if (before && before.place === place) {
      before.end = Math.max(before.end, own.end);
      before.count += own.count;
      continue;
    }
    const next = { ...own, place };
    latest.set(key, next);
    found.push(next);
  }
  return found;
}
