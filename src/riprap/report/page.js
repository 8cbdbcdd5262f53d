"use strict";
(() => {
  const AXIS = 76;
  const PANEL = 230;
  const GAP = 14;
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const last = JSON.parse(document.getElementById("last").textContent);
  const places = [...document.querySelectorAll(".figure")];
  const options = { actions: false, renderer: "canvas" };
  let views = [];
  let range = [0, last];

  function fitted(place) {
    const copy = structuredClone(figures[Number(place.dataset.figure)]);
    const width = place.clientWidth;
    if (copy.vconcat) copy.vconcat.forEach((panel) => { panel.width = width - AXIS; });
    else if (copy.facet) {
      const inside = width - AXIS;
      copy.columns = Math.max(1, Math.min(Number(place.dataset.panels), Math.floor(inside / PANEL)));
      copy.spec.width = Math.min(400, inside / copy.columns - GAP);
    }
    else { copy.width = width - AXIS; copy.padding = { left: AXIS - 16, right: 16, top: 4, bottom: 2 }; }
    return copy;
  }

  function show([first, end]) {
    range = [first, end];
    document.getElementById("shown").textContent =
      `steps ${Math.round(first).toLocaleString("en")} to ${Math.round(end).toLocaleString("en")}`;
    for (const view of views) view.signal("x_first", first).signal("x_last", end).runAsync();
  }

  function chosen(name, value) {
    const steps = value.step && value.step.map((step) => Math.min(Math.max(step, 0), last));
    show(steps && steps[1] - steps[0] > 1e-6 ? steps : [0, last]);
  }

  async function draw() {
    views.forEach((view) => view.finalize());
    views = [];
    for (const place of places) {
      const { view } = await vegaEmbed(place, fitted(place), options);
      if (place.parentElement.className === "strip") view.addSignalListener("focus", chosen);
      else views.push(view);
    }
    show([0, last]);
  }

  let width = window.innerWidth;
  let pending;
  window.addEventListener("resize", () => {
    if (window.innerWidth === width) return;
    width = window.innerWidth;
    clearTimeout(pending);
    pending = setTimeout(draw, 200);
  });
  draw();
})();
