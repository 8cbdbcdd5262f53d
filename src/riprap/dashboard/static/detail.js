// What opens: an alert with its causes and effects, a guard's action, the probes at one step.

import { count, element } from "./dom.js";

const dialog = document.getElementById("detail");
const title = document.getElementById("detail-title");
const body = document.getElementById("detail-body");
let asked = 0;

document.getElementById("close").addEventListener("click", () => dialog.close());
dialog.addEventListener("click", (event) => {
  if (event.target === dialog) dialog.close();
});

export async function fetchJson(address) {
  const response = await fetch(address);
  const text = await response.text();
  if (response.ok) return JSON.parse(text);
  let message = text;
  try {
    message = JSON.parse(text).error;
  } catch (error) {
    if (!(error instanceof SyntaxError)) throw error;
  }
  throw new Error(message);
}

async function open(heading, address, show) {
  const mine = asked += 1;
  title.textContent = heading;
  body.replaceChildren(element("p", {}, "loading"));
  if (!dialog.open) dialog.showModal();
  try {
    const found = await fetchJson(address);
    if (mine === asked) body.replaceChildren(...show(found));
  } catch (error) {
    if (mine === asked) body.replaceChildren(element("p", { class: "error" }, error.message));
  }
}

export function openAlert(run, alert) {
  const name = alert.behavior < 0 ? "the run" : run.data.behaviors[alert.behavior].name;
  const level = alert.level[0].toUpperCase() + alert.level.slice(1);
  open(`${level} alert about ${name}, step ${count(alert.step)}`, `/runs/${run.key}/alerts/${alert.id}`, (found) => {
    const forecast = found.forecast ? [`Forecast of the break: ${found.forecast}.`] : [];
    const parts = [
      ["Signal", found.signal, "No reading is recorded with this alert."],
      ["Alert", [found.alert, ...forecast, `Detector: ${found.detector.replaceAll("_", " ")}.`], ""],
      ["Action", found.action, "No guard acted while the alert stood."],
      ["Effect", found.effect.filter((text) => text), ""],
    ];
    const list = element("ol", { class: "chain" });
    for (const [heading, texts, otherwise] of parts) {
      const item = element("li", {}, element("h3", {}, heading));
      for (const text of texts.length ? texts : [otherwise]) item.append(element("p", {}, text));
      list.append(item);
    }
    if (!found.probes) return [list];
    return [list, element("h3", {}, "Probes at the alert"), ...probeParts(found.probes)];
  });
}

export function openAction(run, action) {
  const stood = run.data.alerts.filter((own) => {
    const until = run.data.conclusion.withdrawn[own.id] ?? Infinity;
    return own.step <= action.end && until >= action.step;
  });
  asked += 1;
  title.textContent = `Guard ${action.guard}`;
  const when = action.step === action.end ? `at step ${count(action.step)}` : `from step ${count(action.step)} to ${count(action.end)}`;
  const times = action.count === 1 ? "once" : `${count(action.count)} times`;
  const did = action.applied ? "changed training" : "looked and changed nothing";
  body.replaceChildren(element("p", {}, `It ${did} ${times}, ${when}.`));
  body.append(element("h3", {}, stood.length ? "Alerts that stood then" : "No alert stood then."));
  for (const own of stood.slice(-20)) {
    const name = own.behavior < 0 ? "the run" : run.data.behaviors[own.behavior].name;
    const button = element("button", { type: "button", class: "link" }, `${own.level} about ${name}, step ${count(own.step)}`);
    button.addEventListener("click", () => openAlert(run, own));
    body.append(element("p", {}, button));
  }
  if (!dialog.open) dialog.showModal();
}

const GROUPS = [
  ["broke", "passed at the start, fail now"],
  ["failed", "failed at the start, fail now"],
  ["recovered", "failed at the start, pass now"],
  ["passed", "pass, as at the start"],
];

export function openProbes(run, behavior, step) {
  const name = run.data.behaviors[behavior].name;
  open(`Probes of ${name}`, `/runs/${run.key}/probes/${behavior}/${step}`, probeParts);
}

function probeParts(found) {
  const counts = found.counts, fail = counts.broke + counts.failed;
  const all = fail + counts.recovered + counts.passed;
  const parts = [
    element("p", { class: "lead" }, `At step ${count(found.step)}, ${fail} of ${all} probes fail; ${counts.broke} of them passed at step ${count(found.start)}.`),
  ];
  if (!found.has_texts) parts.push(element("p", { class: "quiet" }, "The record has no texts of these probes: they are numbered."));
  if (found.answered.length) {
    const steps = found.answered.map(count).join(", ");
    parts.push(element("p", { class: "quiet" }, `The first words of the model's answers are recorded at the start, at the first alert of each level and at the end: here at ${found.answered.length === 1 ? "step" : "steps"} ${steps}.`));
  }
  let isFirst = true;
  GROUPS.forEach(([kind, words]) => {
    const probes = found.groups[kind];
    if (!probes.length) return;
    const own = element("details", isFirst ? { open: "" } : {});
    isFirst = false;
    const more = counts[kind] > probes.length ? `; the first ${probes.length}` : "";
    own.append(element("summary", {}, `${counts[kind]} ${words}${more}`), probeTable(probes, found));
    parts.push(own);
  });
  parts.push(element("h3", {}, "Rows to blame for the fall"), element("p", {}, found.rows.sentences));
  if (found.rows.rows.length) parts.push(rowTable(found.rows.rows));
  return parts;
}

function rowTable(rows) {
  const head = ["row of the training data", ...(rows.some((own) => own.share) ? ["share of the fall"] : [])];
  const cells = rows.map((own) => element("tr", {},
    element("td", {}, own.name, own.prompt ? element("p", {}, own.prompt) : null,
      own.response ? element("p", { class: "answer" }, element("span", { class: "when" }, "answer to learn: "), own.response) : null),
    head.length > 1 ? element("td", { class: "number" }, own.share) : null));
  return table("rows to blame", head, cells);
}

function table(name, head, rows) {
  const heads = head.map((text) => element("th", { scope: "col" }, text));
  return element("div", { class: "table", tabindex: "0", role: "region", "aria-label": name },
    element("table", {}, element("thead", {}, element("tr", {}, ...heads)), element("tbody", {}, ...rows)));
}

function probeTable(probes, found) {
  const head = ["probe", `margin, step ${count(found.start)}`, `margin, step ${count(found.step)}`];
  const rows = probes.map((own) => {
    const first = element("td", {}, own.text ?? `probe ${own.index + 1}`);
    for (const said of own.answers ?? []) {
      const when = said.step === said.until ? `step ${count(said.step)}` : `steps ${count(said.step)} to ${count(said.until)}`;
      first.append(element("p", { class: "answer" }, element("span", { class: "when" }, `${when}: `), said.text));
    }
    const before = element("td", { class: "number" }, own.before ?? "");
    return element("tr", {}, first, before, element("td", { class: "number" }, own.margin));
  });
  return table("probes", head, rows);
}

