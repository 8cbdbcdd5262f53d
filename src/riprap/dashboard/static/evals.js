// Evals of a run's base and checkpoints: a table for each task.

import { element } from "./dom.js";

const COLUMNS = { model: "model", value: "value", interval: "95 % interval", rows: "rows", judge: "judge", change: "change from base" };

export function evalTables({ tables, notes }) {
  if (!tables.length && !notes.length) return [];
  const worse = tables.filter((table) => table.cells.some((cell) => cell.is_worse)).map((table) => table.task);
  const summary = worse.length ? `Evals: worse than in the base: ${worse.join(", ")}` : `Evals: ${tables.length} ${tables.length === 1 ? "task" : "tasks"}`;
  return [
    element("summary", {}, summary),
    ...tables.flatMap(evalTable),
    ...notes.map((note) => element("p", { class: "quiet" }, note)),
  ];
}

function evalTable({ task, metric, lower_is_better, cells }) {
  const good = `${metric}; ${lower_is_better ? "low" : "high"} is good`;
  const head = element("tr", {}, ...Object.values(COLUMNS).map((name) => element("th", { scope: "col" }, name)));
  const rows = cells.map((cell) => element("tr", { class: cell.is_worse ? "worse" : null },
    ...Object.entries(COLUMNS).map(([key, name]) => element("td", { "data-label": name }, cell[key]))));
  return [
    element("h3", {}, task, " ", element("span", { class: "quiet" }, good)),
    element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows)),
  ];
}
