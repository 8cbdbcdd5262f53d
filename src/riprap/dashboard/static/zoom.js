// The steps that all lanes show: all of them, or a range that was chosen by mouse, button or key.

import { count, element, put } from "./dom.js";

const LEAST = 2; // steps that are shown at least
const DRAGGED = 6; // pixels from which on a press is not a click
const KEYS = { "+": "in", "=": "in", "-": "out", 0: "all", "[": "left", "]": "right" };
let chosen = null, longest = 1, onChange = () => {};

export function startZoom(changed) {
  onChange = changed;
  for (const button of document.querySelectorAll("#zoom button")) {
    button.addEventListener("click", () => zoom(button.dataset.zoom));
  }
}

// Returns the first and the last step to show of a run that has so many.
export function shownRange(last, all) {
  longest = all;
  const range = chosen ?? [0, last];
  const text = `steps ${count(range[0])} to ${count(chosen ? range[1] : longest)}`;
  put(document.getElementById("range"), text);
  return range;
}

function choose(from, to) {
  const size = Math.min(longest, Math.max(to - from, LEAST));
  const start = Math.min(Math.max((from + to - size) / 2, 0), longest - size);
  chosen = size >= longest ? null : [start, start + size];
  onChange();
}

function zoom(kind) {
  const [from, to] = chosen ?? [0, longest], size = to - from, middle = (from + to) / 2;
  if (kind === "in") choose(middle - size / 4, middle + size / 4);
  else if (kind === "out") choose(middle - size, middle + size);
  else if (kind === "left") choose(from - size / 2, to - size / 2);
  else if (kind === "right") choose(from + size / 2, to + size / 2);
  else choose(0, longest);
}

// Does what a key of a chart means; false: it means nothing here.
export function zoomKey(key) {
  if (!(key in KEYS)) return false;
  zoom(KEYS[key]);
  return true;
}

// Lets a range be chosen by dragging over a chart; returns whether the last press was a drag.
export function brush(node, stepUnder) {
  const box = element("div", { class: "brush", hidden: "" });
  node.append(box);
  let start = null, dragged = false;
  node.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    start = { x: event.clientX, step: stepUnder(event) };
    dragged = false;
  });
  node.addEventListener("pointermove", (event) => {
    if (!start) return;
    if (!dragged && Math.abs(event.clientX - start.x) < DRAGGED) return;
    if (!dragged) node.setPointerCapture(event.pointerId);
    dragged = true;
    const left = node.getBoundingClientRect().left;
    box.hidden = false;
    box.style.left = `${Math.min(event.clientX, start.x) - left}px`;
    box.style.width = `${Math.abs(event.clientX - start.x)}px`;
  });
  node.addEventListener("pointerup", (event) => {
    if (start && dragged) {
      const steps = [start.step, stepUnder(event)].sort((a, b) => a - b);
      choose(Math.max(0, steps[0]), steps[1]);
    }
    start = null;
    box.hidden = true;
  });
  node.addEventListener("pointercancel", () => {
    start = null;
    box.hidden = true;
  });
  return () => dragged;
}
