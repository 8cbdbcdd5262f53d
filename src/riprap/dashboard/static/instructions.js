// Instructions of fast–slow training: those in use, those that were, and those that were rejected.

import { drawRewards } from "./chart.js";
import { count, element, number, svg } from "./dom.js";

const EVALUATED = { id: "instruction", text: "text", parent: "parent", reward: "mean reward in its last cycle", cycles: "cycles that evaluated it" };
const REJECTED = { cycle: "cycle", text: "text", parent: "parent", reward: "reward on the minibatch", before: "reward of the parent" };
const NOTE = "Blue: the cycle kept the instruction; a line joins the rewards of the same one. Each cycle has other problems and newer weights, so rewards of different cycles differ by these too.";

// `width`: of the figure, in pixels.
export function instructionParts(found, width) {
  if (!found) return [];
  const { sentence, population, dropped, rejected } = found;
  const parts = [
    ["In use, the best first", EVALUATED, population],
    ["Evaluated, and not in use", EVALUATED, dropped],
    ["Rejected after a minibatch", REJECTED, rejected],
  ];
  const chart = svg("svg", { width, role: "img", "aria-label": "mean reward of each instruction in each cycle" });
  drawRewards(chart, found, width);
  return [
    element("summary", {}, `Instructions: ${count(population.length)} in use`),
    element("p", {}, sentence),
    chart,
    element("p", { class: "quiet" }, NOTE),
    ...parts.filter(([, , rows]) => rows.length).flatMap(([name, columns, rows]) => [
      element("h3", {}, name), table(columns, rows),
    ]),
  ];
}

function table(columns, rows) {
  const head = element("tr", {}, ...Object.values(columns).map((name) => element("th", { scope: "col" }, name)));
  const lines = rows.map((row) => element("tr", {},
    ...Object.entries(columns).map(([key, name]) => element("td", { "data-label": name }, shown(key, row[key])))));
  return element("table", {}, element("thead", {}, head), element("tbody", {}, ...lines));
}

function shown(key, value) {
  if (key === "text") return value || "(none: the problem as it is)";
  if (key === "parent" && value === null) return "none: given";
  if (key === "reward" || key === "before") return value === null ? "not scored" : number(value);
  return String(value);
}
