// Elements and texts. Texts enter the page as text nodes only.

export function element(name, options = {}, ...children) {
  const node = document.createElement(name);
  return fill(node, options, children);
}

export function svg(name, options = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  return fill(node, options, children);
}

function fill(node, options, children) {
  for (const [key, value] of Object.entries(options)) {
    if (value !== undefined && value !== null) node.setAttribute(key, value);
  }
  for (const child of children) if (child !== null) node.append(child);
  return node;
}

export function put(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// Puts a text in which what stands in ` marks is code.
export function putMarked(node, text) {
  if (node.textContent === text.replaceAll("`", "")) return;
  const parts = text.split("`").map((part, place) => (place % 2 ? element("code", {}, part) : part));
  node.replaceChildren(...parts);
}

export function number(value) {
  if (value === null || value === undefined) return "not measured";
  const size = Math.abs(value);
  if (size !== 0 && (size < 0.001 || size >= 100000)) return value.toExponential(2);
  return String(Number(value.toPrecision(3)));
}

export const count = (value) => Math.round(value).toLocaleString("en-US");
