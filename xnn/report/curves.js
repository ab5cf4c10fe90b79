// Curves of all runs: a panel for each number, all with the same epochs; the mark is at one epoch in all of them.

function curvesPart(runs) {
  const drawn = runs.filter((run) => typeof run.curves !== "string");
  const part = make("div", {});
  for (const run of runs) if (typeof run.curves === "string") part.append(paragraph(`${run.name}: ${run.curves}`));
  if (!drawn.length) return part;
  const names = [...new Set(drawn.flatMap((run) => Object.keys(run.curves.series)))];
  const groups = names.filter((name) => !(name.startsWith("val_") && names.includes(name.slice(4))));
  const rank = (name) => (name === "learning_rate" || name.includes("norm") ? 1 : name === "samples_per_second" ? 2 : 0);
  groups.sort((one, two) => rank(one) - rank(two));
  const epochs = [...new Set(drawn.flatMap((run) => run.curves.epoch))].sort((a, b) => a - b);
  const state = { at: epochs.length - 1, smooth: 0 };
  const said = make("output", { for: "epoch" });
  const slider = (id, label, most, value, change) => {
    const input = make("input", { id, type: "range", min: 0, max: most, value, step: 1 });
    input.addEventListener("input", () => change(Number(input.value)));
    return make("label", { for: id }, `${label} `, input);
  };
  const at = slider("epoch", "Epoch", epochs.length - 1, state.at, (place) => { state.at = place; mark(); });
  const smooth = slider("smoothing", "Smoothing", 95, 0, (value) => { state.smooth = value / 100; draw(); });
  part.append(make("div", { class: "controls" }, at, said, " ", smooth));
  part.append(make("div", { class: "legend" }, drawn.flatMap((run) => {
    const place = runs.indexOf(run);
    const key = (text, dashed) => make("span", { class: dashed ? "dashed" : null, style: { "--colour": colour(place) } }, text);
    const own = runs.length > 1 ? `${run.name}: ` : "";
    const validated = groups.some((name) => `val_${name}` in run.curves.series);
    return [key(`${own}training`, false), ...(validated ? [key(`${own}validation`, true)] : [])];
  })));
  const panels = groups.map((name) => panel(name, epochs, drawn, runs, (place) => {
    state.at = place;
    at.querySelector("input").value = place;
    mark();
  }));
  part.append(make("div", { class: "panels" }, panels.map((one) => one.figure)));
  if (drawn.some((run) => run.curves.thinned)) part.append(paragraph("Only some of the epochs are drawn, since there are many.", "soft"));
  function mark() {
    said.textContent = String(epochs[state.at]);
    at.querySelector("input").setAttribute("aria-valuetext", `epoch ${epochs[state.at]}`);
    for (const one of panels) one.mark(state.at);
  }
  function draw() {
    for (const one of panels) one.draw(state.smooth);
    mark();
  }
  draw();
  return part;
}

/** A number beside an axis, where there is little room: 240,000 is 240K. */
function tick(value) {
  return Math.abs(value) < 1e4 ? short(value) : new Intl.NumberFormat("en", { notation: "compact" }).format(value);
}

function colour(place) {
  return `var(--run${place % 8})`;
}

/** The exponential moving average of a curve; what is missing stays missing. */
function smoothed(values, share) {
  let kept = null;
  return values.map((value) => {
    if (value === null) return null;
    kept = kept === null ? value : share * kept + (1 - share) * value;
    return kept;
  });
}

function panel(name, epochs, drawn, runs, moved) {
  const wide = 340, tall = 190, left = 46, right = 8, top = 8, bottom = 22;
  const lines = drawn.flatMap((run) => [[name, false], [`val_${name}`, true]]
    .filter(([key]) => key in run.curves.series)
    .map(([key, dashed]) => ({ run, dashed, place: runs.indexOf(run), epochs: run.curves.epoch, raw: run.curves.series[key] })));
  const values = lines.flatMap((line) => line.raw).filter((value) => value !== null);
  let low = Math.min(...values), high = Math.max(...values);
  if (!values.length) [low, high] = [0, 1];
  if (high === low) [low, high] = [low - (Math.abs(low) / 2 || 0.5), high + (Math.abs(high) / 2 || 0.5)];
  const first = epochs[0], last = epochs[epochs.length - 1];
  const x = (epoch) => left + ((wide - left - right) * (epoch - first)) / (last - first || 1);
  const y = (value) => top + ((tall - top - bottom) * (high - value)) / (high - low);
  const here = make("figcaption", {});
  const svg = make("svg", { viewBox: `0 0 ${wide} ${tall}`, role: "img" });
  const inside = { lines: [], at: make("line", { class: "at", y1: top, y2: tall - bottom }) };
  for (const value of ticks(low, high, 4)) {
    svg.append(make("line", { class: "axis", x1: left, x2: wide - right, y1: y(value), y2: y(value) }),
      make("text", { x: left - 4, y: y(value) + 4, "text-anchor": "end" }, tick(value)));
  }
  for (const epoch of ticks(first, last, 5).filter(Number.isInteger)) {
    svg.append(make("text", { x: x(epoch), y: tall - 6, "text-anchor": "middle" }, String(epoch)));
  }
  svg.append(inside.at);
  const pointed = (event) => {
    const box = svg.getBoundingClientRect();
    const epoch = first + (((event.clientX - box.left) / box.width) * wide - left) / (wide - left - right) * (last - first || 1);
    let best = 0;
    epochs.forEach((one, place) => { if (Math.abs(one - epoch) < Math.abs(epochs[best] - epoch)) best = place; });
    moved(best);
  };
  svg.addEventListener("pointermove", pointed);
  svg.addEventListener("pointerdown", pointed);
  const path = (line, values) => {
    let text = "";
    values.forEach((value, n) => {
      if (value === null) return;
      text += `${n && values[n - 1] !== null ? "L" : "M"}${x(line.epochs[n]).toFixed(1)} ${y(value).toFixed(1)}`;
    });
    return text;
  };
  function draw(share) {
    inside.lines.forEach((one) => one.remove());
    inside.lines = [];
    for (const line of lines) {
      line.shown = smoothed(line.raw, share);
      const kind = line.dashed ? "curve dashed" : "curve";
      const style = { stroke: colour(line.place) };
      if (share) inside.lines.push(make("path", { class: `${kind} faint`, d: path(line, line.raw), style }));
      inside.lines.push(make("path", { class: kind, d: path(line, line.shown), style }));
      line.shown.forEach((value, n) => { // points between gaps, which no line reaches
        if (value === null || (line.shown[n - 1] ?? null) !== null || (line.shown[n + 1] ?? null) !== null) return;
        inside.lines.push(make("circle", { cx: x(line.epochs[n]), cy: y(value), r: 3, style: { fill: colour(line.place) } }));
      });
    }
    svg.append(...inside.lines);
  }
  function mark(place) {
    const epoch = epochs[place];
    inside.at.setAttribute("x1", x(epoch));
    inside.at.setAttribute("x2", x(epoch));
    const words = lines.map((line) => {
      const value = short(line.shown[line.epochs.indexOf(epoch)] ?? null);
      return { style: { color: colour(line.place) }, text: line.dashed ? `validation ${value}` : value, run: line.run.name };
    });
    here.replaceChildren(make("b", {}, name.replaceAll("_", " ")), ...words.map((one) => make("span", { style: one.style }, one.text)));
    svg.setAttribute("aria-label", `${name} at epoch ${epoch}: ` + words.map((one) => `${one.run} ${one.text}`).join(", "));
  }
  return { figure: make("figure", {}, here, svg), draw, mark };
}
