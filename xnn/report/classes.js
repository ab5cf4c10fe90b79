// How well a model predicts: of classes the matrix with the samples behind each cell, mistakes, scores, calibration.

function classesPart(run, number) {
  const found = run.classes;
  if (typeof found === "string") return paragraph(found);
  return found.kind === "numbers" ? numbersPart(found) : ofClasses(found, number);
}

function ofClasses(found, number) {
  const part = make("div", {});
  const name = (place) => found.names[place];
  const words = (item) => [
    item.true === item.said ? `is ${name(item.true)}` : `is ${name(item.true)}, said ${name(item.said)}`,
    ...(item.sure === undefined ? [] : [`sure ${share(item.sure)}`]),
  ];
  part.append(make("p", {}, `Accuracy ${share(found.accuracy)} over ${found.data}; ${short(found.mistakes)} mistakes.`));
  part.append(make("h3", {}, "Confusion matrix"),
    paragraph("A row for each true class, a column for each predicted one. Choose a cell to see its samples; arrow keys move.", "soft"));
  if (found.kept.length < found.names.length) {
    part.append(paragraph(`The ${found.kept.length} classes with the most mistakes are shown, of ${found.names.length}.`));
  }
  const behind = make("div", { id: `cell-${number}`, "aria-live": "polite" });
  part.append(matrix(found, behind, words), behind);
  part.append(make("h3", {}, "The most confidently wrong"));
  part.append(found.wrong.length ? gallery(found.wrong, found, words) : paragraph(found.mistakes
    ? "There was no room for these samples." : "There is no mistake.", "soft"));
  part.append(make("h3", {}, "Scores of each class"), table("Precision, recall, F1 and the number of samples (support)",
    ["class", "precision", "recall", "F1", "support"],
    found.scores.map(([place, precision, recall, f1, support]) => [name(place), share(precision), share(recall), share(f1), support])));
  part.append(make("h3", {}, "Calibration"), calibration(found.calibration));
  return part;
}

function matrix(found, behind, words) {
  const kept = found.kept;
  const off = Math.max(1, ...kept.flatMap((row) => kept.filter((n) => n !== row).map((n) => found.matrix[row][n])));
  const buttons = kept.map((row) => kept.map((column) => {
    const count = found.matrix[row][column];
    const of = found.matrix[row].reduce((one, two) => one + two, 0);
    const right = row === column;
    const depth = right ? (0.55 * count) / (of || 1) : count ? 0.12 + 0.75 * Math.sqrt(count / off) : 0;
    return make("button", {
      type: "button", "aria-pressed": "false", tabindex: -1, "aria-controls": behind.id,
      "aria-label": `true ${found.names[row]}, predicted ${found.names[column]}: ${count} samples`,
      style: { "--tint": right ? "var(--mark)" : "var(--bad)", "--depth": depth.toFixed(3) },
      click: (event) => show(event.currentTarget, row, column, count),
      keydown: (event) => move(event, kept.indexOf(row), kept.indexOf(column)),
    }, count ? String(count) : "·");
  }));
  buttons[0][0].setAttribute("tabindex", "0");
  function show(button, row, column, count) {
    for (const other of buttons.flat()) other.setAttribute("aria-pressed", String(other === button));
    const items = found.cells[`${row},${column}`] || [];
    const title = `True ${found.names[row]}, predicted ${found.names[column]}: ${short(count)} ${count === 1 ? "sample" : "samples"}`;
    const some = items.length < count ? `${items.length} of them are in this file, the most confident first.` : "";
    behind.replaceChildren(make("h3", {}, title), ...(some ? [paragraph(some, "soft")] : []), gallery(items, found, words));
  }
  function move(event, row, column) {
    const by = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!by) return;
    event.preventDefault();
    const to = (buttons[row + by[0]] || [])[column + by[1]];
    if (!to) return;
    for (const other of buttons.flat()) other.setAttribute("tabindex", "-1");
    to.setAttribute("tabindex", "0");
    to.focus();
  }
  const head = make("tr", {}, make("td", {}), kept.map((place) => make("th", { scope: "col" }, found.names[place])));
  return make("div", { class: "scroll" }, make("table", { class: "matrix" },
    make("caption", {}, "rows: true; columns: predicted"), make("thead", {}, head),
    make("tbody", {}, kept.map((row, n) => make("tr", {}, make("th", { scope: "row" }, found.names[row]),
      buttons[n].map((button) => make("td", {}, button)))))));
}

function calibration(found) {
  if (typeof found === "string") return paragraph(found);
  const side = 240, left = 34, bottom = 34, inner = side - left - 8;
  const x = (value) => left + inner * value, y = (value) => 8 + inner * (1 - value);
  const width = inner / found.bins.length;
  const svg = make("svg", { viewBox: `0 0 ${side} ${side + 4}`, role: "img",
    "aria-label": `Reliability curve; expected calibration error ${short(found.error)}` });
  for (const value of [0, 0.5, 1]) {
    svg.append(make("line", { class: "axis", x1: left, x2: left + inner, y1: y(value), y2: y(value) }),
      make("text", { x: left - 4, y: y(value) + 4, "text-anchor": "end" }, String(value)),
      make("text", { x: x(value), y: side - bottom + 22, "text-anchor": "middle" }, String(value)));
  }
  found.bins.forEach(([count, , right], n) => {
    if (count) svg.append(make("rect", { class: "bar", x: left + n * width + 1, y: y(right), width: width - 2, height: inner * right }));
  });
  svg.append(make("line", { class: "diagonal", x1: x(0), x2: x(1), y1: y(0), y2: y(1) }),
    make("text", { x: left + inner / 2, y: side, "text-anchor": "middle" }, "confidence"));
  const rows = found.bins.map(([count, sure, right], n) => [`${n / found.bins.length} – ${(n + 1) / found.bins.length}`,
    count, count ? share(sure) : "–", count ? share(right) : "–"]);
  return make("div", {}, make("p", {}, `Expected calibration error: ${share(found.error)}. `
    + "A bar is the share of right predictions at a confidence; the dashed line is where both are equal."),
  make("div", { class: "panels pair" }, make("figure", {}, svg),
    table("Predictions by confidence", ["confidence", "samples", "mean confidence", "right"], rows)));
}

function numbersPart(found) {
  const part = make("div", {}, make("p", {}, `${found.data}: ` + Object.entries(found.scores).map(([name, value]) => `${name} ${short(value)}`).join(", ")));
  const values = found.points.flat().filter((value) => value !== null);
  const low = Math.min(...values), high = Math.max(...values), side = 300, left = 44, inner = side - left - 10;
  const at = (value) => (value - low) / (high - low || 1);
  const x = (value) => left + inner * at(value), y = (value) => 10 + inner * (1 - at(value));
  const svg = make("svg", { viewBox: `0 0 ${side} ${side}`, role: "img", "aria-label": "The first target of some samples, and the output for it" });
  for (const value of ticks(low, high, 4)) {
    svg.append(make("line", { class: "axis", x1: left, x2: left + inner, y1: y(value), y2: y(value) }),
      make("text", { x: left - 4, y: y(value) + 4, "text-anchor": "end" }, short(value)),
      make("text", { x: x(value), y: side - 18, "text-anchor": "middle" }, short(value)));
  }
  svg.append(make("line", { class: "diagonal", x1: x(low), x2: x(high), y1: y(low), y2: y(high) }),
    make("text", { x: left + inner / 2, y: side - 3, "text-anchor": "middle" }, "target"));
  for (const [target, output] of found.points) svg.append(make("circle", { class: "bar", cx: x(target), cy: y(output), r: 2.5 }));
  part.append(make("h3", {}, "Outputs against targets"), make("div", { class: "panels" }, make("figure", {}, svg)));
  const words = (item) => [`target ${item.true.map(short).join(", ")}`, `output ${item.said.map(short).join(", ")}`];
  part.append(make("h3", {}, "The largest errors"), gallery(found.wrong, found, words));
  return part;
}
