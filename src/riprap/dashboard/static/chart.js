// Lanes: what one behavior, or the training, did over the steps.

import { count, number, svg } from "./dom.js";

export const LEFT = 52, RIGHT = 12;
const SCORE = { top: 30, height: 70 }, MARGIN = { top: 144, height: 150 }, AXIS = 30;
const LAYERS = { room: 34, height: 120, row: 12, least: 3 }; // of the rows of layers, below the margins
export const TRAINING_HEIGHT = 140;
const REWARDS_HEIGHT = 170;
const MAX_DOTS = 80;
const NO_LOSS = "The record has no loss of the training.";

export function ticks(low, high, wanted) {
  const rough = (high - low) / wanted || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const size = [1, 2, 5, 10].find((m) => m * power >= rough) * power;
  const found = [];
  for (let at = Math.ceil(low / size); at * size <= high; at += 1) found.push(at * size);
  return found;
}

function scale(low, high, from, to) {
  return (value) => Math.round((from + ((value - low) / (high - low || 1)) * (to - from)) * 10) / 10;
}

// `range`: first and last step that are shown.
export const xScale = (width, range) => scale(range[0], range[1], LEFT, width - RIGHT);
export const stepAt = (width, range, x) => range[0] + ((x - LEFT) / (width - RIGHT - LEFT)) * (range[1] - range[0]);

export const layersOf = (data, behavior) => [...data.layers.values()].filter((own) => own.behavior === behavior);

function layersHeight(count) {
  return count ? LAYERS.room + count * Math.max(LAYERS.least, Math.min(LAYERS.row, LAYERS.height / count)) : 0;
}

export const laneHeight = (data, behavior) => MARGIN.top + MARGIN.height + layersHeight(layersOf(data, behavior).length) + AXIS;

function path(points) {
  // null: a gap
  return points.map((own, i) => (own ? `${i && points[i - 1] ? "L" : "M"}${own[0]} ${own[1]}` : "")).join("");
}

function line(steps, values, x, y, kind, range) {
  const points = steps.map((step, i) => [x(step), values[i] === null ? null : y(values[i])]);
  const group = svg("g", { class: kind });
  group.append(svg("path", { d: path(points.map((own) => (own[1] === null ? null : own))), class: "line" }));
  const shown = points.filter((point, i) => point[1] !== null && steps[i] >= range[0] && steps[i] <= range[1]);
  if (shown.length <= MAX_DOTS) {
    for (const [cx, cy] of shown) group.append(svg("circle", { cx, cy, r: 2.2 }));
  }
  return group;
}

function yAxis(values, y, label, width) {
  const group = svg("g", { class: "axis" });
  for (const value of values) {
    group.append(
      svg("line", { x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value), class: "grid" }),
      svg("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, number(value)),
    );
  }
  const title = svg("text", { x: 0, y: label.y, class: "title" }, label.text);
  group.append(title);
  return group;
}

function xAxis(width, range, y, name = "step") {
  const x = xScale(width, range), group = svg("g", { class: "axis" });
  group.append(svg("line", { x1: LEFT, x2: width - RIGHT, y1: y, y2: y, class: "base" }));
  for (const step of ticks(range[0], range[1], Math.max(2, Math.floor(width / 110)))) {
    if (step % 1) continue;
    const anchor = x(step) > width - RIGHT - 24 ? "end" : "middle"; // a wide number stays inside
    const at = anchor === "end" ? width : x(step);
    group.append(svg("text", { x: at, y: y + 16, "text-anchor": anchor }, count(step)));
  }
  group.append(svg("text", { x: 0, y: y + 16, class: "title" }, name));
  return group;
}

function alertLines(alerts, x, top, bottom) {
  const group = svg("g", {});
  for (const own of alerts) {
    const at = x(own.step);
    group.append(svg("line", { x1: at, x2: at, y1: top, y2: bottom, class: `rule ${own.level}` }));
  }
  return group;
}

export function marginRange(data, behavior) {
  const band = data.bands.get(behavior), low = data.lines.get(`${behavior} margin_low`);
  const mean = data.lines.get(`${behavior} margin`);
  const known = [0];
  for (const list of [band?.low, band?.high, low?.values, mean?.values]) {
    for (const value of list ?? []) if (value !== null) known.push(value);
  }
  const least = known.reduce((a, b) => Math.min(a, b)), most = known.reduce((a, b) => Math.max(a, b));
  const room = (most - least || 1) * 0.05;
  return [least - room, most + room];
}

export function forecastEnd(data) {
  const last = data.last_step || 1;
  let end = last;
  for (const own of data.forecasts.values()) {
    if (own.margin > 0) {
      end = Math.max(end, own.step + (own.forecast_high ?? own.forecast_low ?? 0));
    }
  }
  return Math.min(end, last * 1.4 + 1);
}

function cone(forecast, x, y, last) {
  const near = forecast?.forecast_low ?? null;
  if (near === null || !(forecast.margin > 0)) return null;
  const { step, margin } = forecast;
  const far = step + (forecast.forecast_high ?? Math.max(last - step, near)), corners = [[step, margin], [step + near, 0], [far, 0]];
  if (forecast.forecast_high === null) corners.push([far, margin]); // it may as well stay
  const points = corners.map(([a, b]) => `${x(a)},${y(b)}`).join(" ");
  return svg("polygon", { points, class: "cone" });
}

function clipped(id, width, height) {
  const area = { x: LEFT - 3, y: 0, width: width - LEFT - RIGHT + 6, height };
  return [svg("clipPath", { id }, svg("rect", area)), svg("g", { "clip-path": `url(#${id})` })];
}

// Rows of what each layer did to the mean margin, per step: one cell from an evaluation to the next.
function layerRows(layers, x, top, width) {
  const height = (layersHeight(layers.length) - LAYERS.room) / layers.length;
  const cells = layers.map(({ steps, values }) => steps.map((step, i) => {
    const from = i ? steps[i - 1] : Math.max(0, step - 1);
    return { from, step, pace: values[i] === null ? 0 : values[i] / Math.max(1, step - from) };
  }));
  const most = cells.flat().reduce((a, b) => Math.max(a, Math.abs(b.pace)), 0) || 1;
  const group = svg("g", {});
  cells.forEach((row, place) => {
    for (const { from, step, pace } of row) {
      const left = x(from), y = top + place * height;
      group.append(svg("rect", { x: left, y, width: Math.max(1, x(step) - left), height: Math.max(1, height - 1),
        class: pace < 0 ? "down" : "up", "fill-opacity": Math.round(100 * Math.sqrt(Math.abs(pace) / most)) / 100 }));
    }
  });
  return group;
}

// Draws the panels of one behavior: its score, its margins with their forecast, and its layers.
// `span`: the smallest and the largest margin.
export function drawBehavior(node, data, behavior, width, range, span) {
  const x = xScale(width, range), height = laneHeight(data, behavior);
  const yScore = scale(0, 1, SCORE.top + SCORE.height, SCORE.top);
  const bottom = MARGIN.top + MARGIN.height;
  const y = scale(span[0], span[1], bottom, MARGIN.top);
  const floor = data.behaviors[behavior].floor;
  const alerts = data.alerts.filter((own) => own.behavior === behavior);
  const band = data.bands.get(behavior);
  const [clip, marks] = clipped(`clip-${data.key}-${behavior}`, width, height);
  if (band) {
    const upper = band.steps.map((s, i) => `${x(s)},${y(band.high[i])}`);
    const lower = band.steps.map((s, i) => `${x(s)},${y(band.low[i])}`).reverse();
    marks.append(svg("polygon", { points: [...upper, ...lower].join(" "), class: "band" }));
  }
  const hasRoom = cone(data.forecasts.get(behavior), x, y, data.last_step);
  if (hasRoom) marks.append(hasRoom);
  marks.append(alertLines(alerts, x, SCORE.top - 4, height - AXIS));
  for (const [signal, kind] of [["margin", "mean"], ["margin_low", "low"]]) {
    const own = data.lines.get(`${behavior} ${signal}`);
    if (own) marks.append(line(own.steps, own.values, x, y, kind, range));
  }
  const guard = svg("text", { x: 0, y: 119, class: "note" }, data.actions.length ? "guard" : "");
  const score = data.lines.get(`${behavior} score`);
  if (score) marks.append(line(score.steps, score.values, x, yScore, "score", range));
  const layers = layersOf(data, behavior);
  if (layers.length) marks.append(layerRows(layers, x, bottom + LAYERS.room - 6, width));
  const what = layers.length > 1 ? `interference by layer, ${layers[0].layer || "the whole model"} at the top` : "interference";
  node.setAttribute("height", height);
  node.replaceChildren(
    clip,
    yAxis([0, 0.5, 1], yScore, { y: SCORE.top - 14, text: "score" }, width),
    svg("line", { x1: LEFT, x2: width - RIGHT, y1: yScore(floor), y2: yScore(floor), class: "floor" }),
    svg("text", { x: width - RIGHT, y: yScore(floor) + 13, class: "note", "text-anchor": "end" }, `floor ${number(floor)}`),
    yAxis(ticks(span[0], span[1], 4), y, { y: MARGIN.top - 10, text: "margin" }, width),
    svg("line", { x1: LEFT, x2: width - RIGHT, y1: y(0), y2: y(0), class: "zero" }),
    marks,
    guard,
    svg("text", { x: 0, y: bottom + 20, class: "note" }, layers.length ? what : ""),
    xAxis(width, range, height - AXIS),
  );
}

// Draws the mean reward of each instruction in each cycle; a line for one that stayed.
export function drawRewards(node, { rewards, cycles: [first, last] }, width) {
  const known = rewards.flatMap((own) => own.values).filter((value) => value !== null);
  const least = known.reduce((a, b) => Math.min(a, b), 1), most = known.reduce((a, b) => Math.max(a, b), 0);
  const bottom = REWARDS_HEIGHT - AXIS, top = 26, room = (most - least || 1) * 0.06;
  const x = xScale(width, [first - 0.5, last + 0.5]), y = scale(least - room, most + room, bottom, top);
  const lines = svg("g", {}), dots = svg("g", {});
  for (const { id, cycles, values, kept } of rewards) {
    lines.append(svg("path", { d: path(cycles.map((own, i) => (values[i] === null ? null : [x(own), y(values[i])]))), class: "stayed" }));
    cycles.forEach((own, i) => {
      if (values[i] === null) return;
      const isKept = kept.includes(own), text = `instruction ${id}, cycle ${own}: ${number(values[i])}, ${isKept ? "kept" : "not kept"}`;
      dots.append(svg("circle", { cx: x(own), cy: y(values[i]), r: 4, class: isKept ? "kept" : "dropped" }, svg("title", {}, text)));
    });
  }
  node.setAttribute("height", REWARDS_HEIGHT);
  node.replaceChildren(
    yAxis(ticks(least - room, most + room, 3), y, { y: top - 12, text: "mean reward" }, width),
    xAxis(width, [first - 0.5, last + 0.5], bottom, "cycle"), lines, dots,
  );
}

// Draws learning rate and loss; in reinforcement learning the reward, of which the loss says little.
export function drawTraining(node, data, width, range) {
  const { reward, learning_rate: rate } = data.training;
  const loss = reward ?? data.training.loss, name = reward ? "reward" : "loss";
  const alerts = data.alerts.filter((own) => own.behavior < 0), isEmpty = !loss && !rate && !alerts.length;
  node.setAttribute("height", isEmpty ? 24 : TRAINING_HEIGHT);
  if (isEmpty) {
    node.replaceChildren(svg("text", { x: 0, y: 14, class: "note" }, NO_LOSS));
    return;
  }
  const x = xScale(width, range), bottom = TRAINING_HEIGHT - AXIS, top = 34;
  const [clip, marks] = clipped(`clip-${data.key}-training`, width, TRAINING_HEIGHT);
  const parts = [clip, xAxis(width, range, bottom), marks];
  marks.append(alertLines(alerts, x, top - 4, bottom));
  for (const [own, kind] of [[rate, "rate"], [loss, "loss"]]) {
    const known = (own?.values ?? []).filter((value) => value !== null);
    if (!known.length) continue;
    let low = known.reduce((a, b) => Math.min(a, b)), high = known.reduce((a, b) => Math.max(a, b));
    if (kind === "rate") [low, high] = [0, high * 1.08];
    const y = scale(low, high, bottom - 4, top);
    if (kind === "rate") {
      const text = `learning rate, from 0 to ${number(known.reduce((a, b) => Math.max(a, b)))}`;
      parts.push(svg("text", { x: width - RIGHT, y: top - 14, class: "note rate-note", "text-anchor": "end" }, text));
    }
    if (kind === "loss") parts.unshift(yAxis(ticks(low, high, 3), y, { y: top - 14, text: name }, width));
    marks.append(line(own.steps, own.values, x, y, kind, range));
  }
  if (!loss && !rate) {
    parts.push(svg("text", { x: LEFT, y: 70, class: "note" }, NO_LOSS));
  }
  node.replaceChildren(...parts);
}
