"use strict";
// What all parts of the page draw with. Texts of the data become text nodes and attributes, never HTML.

const data = JSON.parse(document.getElementById("data").textContent);

/** An element. about: its attributes; a function is a listener. inside: elements and texts. */
function make(tag, about, ...inside) {
  const svg = make.svg.has(tag);
  const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(about || {})) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (name === "style") for (const [key, to] of Object.entries(value)) element.style.setProperty(key, to);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value);
  }
  for (const part of inside.flat()) if (part !== null && part !== undefined) element.append(part);
  return element;
}
make.svg = new Set(["svg", "path", "line", "text", "rect", "circle", "title"]);

/** A number in few characters. */
function short(value) {
  if (value === null || value === undefined) return "–";
  if (Number.isInteger(value)) return value.toLocaleString("en");
  const size = Math.abs(value);
  return size !== 0 && (size < 1e-3 || size >= 1e5) ? value.toExponential(2) : String(Number(value.toPrecision(4)));
}

function share(value) {
  return value === null || value === undefined ? "–" : `${(100 * value).toFixed(1)}\u00a0%`;
}

function paragraph(text, kind) {
  return make("p", { class: kind || "note" }, text);
}

/** A table. head: the texts of its columns. rows: lists of texts, numbers or elements. words: which columns are texts. */
function table(caption, head, rows, words = [0]) {
  const kind = (place) => (words.includes(place) ? "words" : null);
  const cell = (value) => (typeof value === "number" ? short(value) : value);
  return make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption },
    make("table", {}, make("caption", {}, caption),
      make("thead", {}, make("tr", {}, head.map((name, n) => make("th", { scope: "col", class: kind(n) }, name)))),
      make("tbody", {}, rows.map((row) => make("tr", {}, row.map((value, n) =>
        n ? make("td", { class: kind(n) }, cell(value)) : make("th", { scope: "row" }, cell(value))))))));
}

/** About n round numbers from low to high. */
function ticks(low, high, n) {
  if (!(high > low)) return [low];
  const raw = (high - low) / n;
  const unit = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].find((times) => times * unit >= raw) * unit;
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step * 1e-9; at += step) found.push(Number(at.toPrecision(12)));
  return found;
}

/** Bars for a histogram, with its limits below. */
function histogram(title, found) {
  const figure = make("figure", { class: "histogram" });
  const spread = found.mean === null ? "no finite number" : `mean ${short(found.mean)}, deviation ${short(found.deviation)}`;
  const lost = found.lost ? `, ${short(found.lost)} NaN or infinite` : "";
  const most = Math.max(1, ...found.counts);
  const width = 240 / Math.max(1, found.counts.length);
  const bars = found.counts.map((count, n) => {
    const height = 52 * Math.sqrt(count / most);
    return make("rect", { class: "bar", x: n * width, y: 54 - height, width: width * 0.9, height });
  });
  figure.append(make("figcaption", {}, make("b", {}, title)),
    make("svg", { viewBox: "0 0 240 70", role: "img", "aria-label": `${title}: ${spread}${lost}` }, bars,
      make("line", { class: "axis", x1: 0, x2: 240, y1: 54.5, y2: 54.5 }),
      make("text", { x: 0, y: 67 }, short(found.low)), make("text", { x: 240, y: 67, "text-anchor": "end" }, short(found.high))),
    make("figcaption", {}, spread + lost));
  return figure;
}

/** Samples of a gallery, with words below each. */
function gallery(items, found, words) {
  const texts = found.gallery.length > 0 && !("image" in found.gallery[0]);
  return make("ul", { class: texts ? "gallery texts" : "gallery" }, items.map((item) => {
    const sample = found.gallery[item.item];
    const said = words(item);
    return make("li", {}, sample.image ? make("img", { src: sample.image, alt: `sample ${sample.row}` }) : make("div", {}, sample.text),
      said.map((line) => make("div", {}, line)), make("div", { class: "soft" }, `row ${sample.row}`));
  }));
}
