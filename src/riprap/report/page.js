"use strict";
(() => {
  const AXIS = 76;
  const PANEL = 230;
  const GAP = 14;
  const read = (name) => JSON.parse(document.getElementById(name)?.textContent ?? "null");
  const last = read("last");
  const isDark = matchMedia("(prefers-color-scheme: dark)");
  const text = document.getElementById("figures").textContent;
  const legend = [...document.querySelectorAll(".legend i")].map((own) => [own, own.getAttribute("style")]);
  let figures = colored(text);
  const places = [...document.querySelectorAll(".figure")];
  const options = { actions: false, renderer: "canvas" };
  const views = new Map();
  let range = [0, last];

  function colored(texts) {
    let found = texts;
    const dark = isDark.matches ? Object.entries(read("dark")) : [];
    for (const [light, other] of dark) found = found.replaceAll(`"${light}"`, `"${other}"`);
    for (const [own, style] of legend) {
      own.setAttribute("style", dark.reduce((now, [light, other]) => now.replace(light, other), style));
    }
    return JSON.parse(found);
  }

  function fitted(place) {
    const copy = structuredClone(figures[Number(place.dataset.figure)]);
    const width = place.clientWidth;
    if (copy.vconcat) copy.vconcat.forEach((panel) => { panel.width = width - AXIS; });
    else if (copy.facet) {
      const inside = width - AXIS;
      copy.columns = Math.max(1, Math.min(Number(place.dataset.panels), Math.floor(inside / PANEL)));
      copy.spec.width = Math.min(400, inside / copy.columns - GAP);
    }
    else if (last === null) { copy.width = width; copy.autosize = { type: "fit", contains: "padding" }; }
    else { copy.width = width - AXIS; copy.padding = { left: AXIS - 16, right: 16, top: 4, bottom: 2 }; }
    return copy;
  }

  const isStrip = (place) => place.parentElement.className === "strip";
  const apply = (view) => view.signal("x_first", range[0]).signal("x_last", range[1]).runAsync();

  function show([first, end]) {
    range = [first, end];
    document.getElementById("shown").textContent =
      `steps ${Math.round(first).toLocaleString("en")} to ${Math.round(end).toLocaleString("en")}`;
    for (const [place, view] of views) if (view && !isStrip(place)) apply(view);
  }

  function chosen(name, value) {
    const steps = value.step && value.step.map((step) => Math.min(Math.max(step, 0), last));
    show(steps && steps[1] - steps[0] > 1e-6 ? steps : [0, last]);
  }

  // Zooms by a factor around the middle, or moves by a share of what is shown.
  function zoom(kind) {
    const [first, end] = range;
    const size = { in: 0.5, out: 2, all: Infinity }[kind] ?? 1;
    const move = { left: -0.5, right: 0.5 }[kind] ?? 0;
    const wide = Math.min(last, Math.max((end - first) * size, Math.min(2, last)));
    const middle = (first + end) / 2 + move * (end - first);
    const from = Math.min(Math.max(middle - wide / 2, 0), last - wide);
    show([from, from + wide]);
  }

  // A figure inside of a closed <details> is drawn when that opens.
  async function draw() {
    for (const place of places) {
      if (views.has(place) || place.closest("details:not([open])")) continue;
      views.set(place, null);
      const { view } = await vegaEmbed(place, fitted(place), options);
      views.set(place, view);
      if (isStrip(place)) view.addSignalListener("focus", chosen);
      else if (last !== null) apply(view);
    }
  }

  for (const button of document.querySelectorAll("[data-zoom]")) {
    button.addEventListener("click", () => zoom(button.dataset.zoom));
  }
  for (const more of document.querySelectorAll("details.more")) more.addEventListener("toggle", draw);

  async function redraw() {
    for (const view of views.values()) view?.finalize();
    views.clear();
    await draw();
    if (last !== null) show(range);
  }

  let width = window.innerWidth;
  let pending;
  window.addEventListener("resize", () => {
    if (window.innerWidth === width) return;
    width = window.innerWidth;
    clearTimeout(pending);
    pending = setTimeout(redraw, 200);
  });
  isDark.addEventListener("change", () => {
    figures = colored(text);
    redraw();
  });
  redraw();
})();
