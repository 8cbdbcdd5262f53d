// The data of one run: a view of all of it, to which changes are added.

const MAX_POINTS = 2400; // of a line; beyond it, stretches of steps keep their extremes only

export function createData(answer) {
  const view = answer.view;
  const data = {
    ...view, lines: new Map(), layers: new Map(), training: {}, bands: new Map(), forecasts: new Map(),
    alerts: [], actions: [], n_alerts: 0, last_step: 0,
  };
  addRows(data, view);
  for (const change of answer.changes) addRows(data, change);
  data.pages = answer.pages; // newer than those of the changes
  data.evals = answer.evals;
  return data;
}

export function addRows(data, change) {
  if (change.version !== undefined) data.version = change.version;
  if (change.pages) data.pages = change.pages;
  if (change.evals) data.evals = change.evals;
  if (change.conclusion) data.conclusion = change.conclusion;
  if (change.lines === undefined) return;
  data.last_step = Math.max(data.last_step, change.last_step);
  for (const line of change.lines) {
    extend(data.lines, `${line.behavior} ${line.signal}`, line, ["values"]);
  }
  for (const own of change.layers) {
    const key = `${own.behavior} ${own.layer}`;
    extend(data.layers, key, own, ["values"]);
    Object.assign(data.layers.get(key), { behavior: own.behavior, layer: own.layer });
  }
  for (const [name, line] of Object.entries(change.training)) {
    const own = new Map(data.training[name] ? [[name, data.training[name]]] : []);
    extend(own, name, line, ["values"]);
    data.training[name] = own.get(name);
  }
  for (const band of change.bands) extend(data.bands, band.behavior, band, ["low", "high"]);
  for (const own of change.forecasts) data.forecasts.set(own.behavior, own);
  data.alerts.push(...change.alerts);
  data.actions.push(...change.actions);
  data.n_alerts += change.n_alerts;
}

function extend(map, key, more, columns) {
  let line = map.get(key);
  if (!line) map.set(key, line = { steps: [], ...Object.fromEntries(columns.map((c) => [c, []])) });
  more.steps.forEach((step, i) => {
    let at = line.steps.length;
    while (at > 0 && line.steps[at - 1] >= step) at -= 1; // a step may be evaluated again
    const replaced = line.steps[at] === step ? 1 : 0;
    line.steps.splice(at, replaced, step);
    for (const c of columns) line[c].splice(at, replaced, more[c][i]);
  });
  if (line.steps.length > MAX_POINTS) thin(line, columns);
}

function thin(line, columns) {
  const values = line[columns[0]];
  const size = (line.steps.at(-1) - line.steps[0] + 1) / (MAX_POINTS / 8);
  const kept = new Set();
  for (let start = 0; start < values.length;) {
    const part = Math.floor(line.steps[start] / size);
    let low = start, high = start, end = start;
    for (; end < values.length && Math.floor(line.steps[end] / size) === part; end += 1) {
      if (values[end] < values[low]) low = end;
      if (values[end] > values[high]) high = end;
    }
    for (const at of [start, low, high, end - 1]) kept.add(at);
    start = end;
  }
  const places = [...kept].sort((a, b) => a - b);
  for (const c of ["steps", ...columns]) line[c] = places.map((at) => line[c][at]);
}

export function nearest(steps, step) {
  let best = 0;
  steps.forEach((own, at) => {
    if (Math.abs(own - step) <= Math.abs(steps[best] - step)) best = at;
  });
  return best;
}
