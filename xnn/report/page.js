// Puts the page together. Curves and facts are of all runs side by side, the other parts of each run.

function layersPart(run) {
  const found = run.layers;
  if (typeof found === "string") return paragraph(found);
  const shape = (sides) => `(${sides.join(" × ")})`;
  const widest = Math.max(1, ...found.rows.map((row) => row.units));
  const most = Math.max(1, ...found.rows.map((row) => row.operations || 0));
  const flows = (row, next) => next && next.depth <= row.depth && !next.branch; // what a layer gives, the next box takes
  const box = (row, n) => make("li", { class: flows(row, found.rows[n + 1]) ? "flows" : null, style: { "--depth": row.depth } },
    row.branch ? make("span", { class: "soft" }, `branch ${row.branch}: `) : null, make("b", {}, row.text),
    make("div", { class: "soft" }, `${shape(row.before)} → ${shape(row.after)}; ${short(row.parameters)} parameters`
      + `${row.frozen ? ", frozen" : ""}; ${short(row.operations)} operations a sample`),
    make("span", { class: "shape", style: { width: `${(100 * Math.log1p(row.units)) / Math.log1p(widest)}%` }, "aria-hidden": "true" }));
  const nested = found.rows.some((row) => row.depth);
  const rows = found.rows.map((row) => ["\u00a0\u00a0\u00a0".repeat(row.depth) + row.kind, shape(row.after), row.parameters, row.operations,
    row.operations === null ? "–" : share(row.operations / (found.operations || most))]);
  return make("div", {},
    make("p", {}, `${short(found.parameters)} parameters, ${short(found.operations)} operations a sample. `
      + "A multiplication and an addition count as two operations. The length of a bar is the logarithm of a layer's outputs."),
    make("ol", { class: "drawing" }, make("li", { class: "flows", style: { "--depth": 0 } }, make("b", {}, "input"),
      make("div", { class: "soft" }, shape(found.input))), found.rows.map(box)),
    table(`Layers and their costs${nested ? "; what is inside a layer is counted in it, too" : ""}`, ["layer", "output shape", "parameters", "operations", "share"], rows));
}

function factsPart(run) {
  const part = make("div", {});
  for (const [group, rows] of Object.entries(run.facts)) {
    if (!Object.keys(rows).length) continue;
    part.append(make("h3", {}, group), make("table", { class: "facts" }, make("tbody", {}, Object.entries(rows).map(([name, value]) =>
      make("tr", {}, make("th", { scope: "row" }, name), make("td", {}, value))))));
  }
  part.append(make("h3", {}, "To repeat it"));
  part.append(run.command ? make("pre", { tabindex: 0 }, run.command) : paragraph(run.no_command));
  return part;
}

function comparison(runs) {
  const last = (run, name) => {
    if (typeof run.curves === "string") return "–";
    const values = run.curves.series[name];
    return values ? short(values[values.length - 1]) : "–";
  };
  const names = ["loss", "accuracy", "val_loss", "val_accuracy"]
    .filter((name) => runs.some((run) => typeof run.curves !== "string" && name in run.curves.series));
  return table("The runs: the last epoch, and what was measured for this report",
    ["run", ...names.map((name) => name.replace("val_", "validation ")), "accuracy here", "calibration error", "parameters"],
    runs.map((run) => [run.name, ...names.map((name) => last(run, name)),
      share(typeof run.classes === "string" ? null : run.classes.accuracy),
      share(typeof run.classes === "string" || !run.classes.calibration ? null : run.classes.calibration.error),
      typeof run.layers === "string" ? "–" : run.layers.parameters]));
}

function page() {
  const main = document.getElementById("main"), contents = document.getElementById("contents");
  const section = (id, title, ...inside) => {
    main.append(make("section", { "aria-labelledby": id }, make("h2", { id }, title), ...inside));
    contents.append(make("a", { href: `#${id}` }, title));
  };
  const runs = data.runs, several = runs.length > 1;
  const each = (part) => runs.map((run, n) => (several
    ? make("details", { open: n === 0 }, make("summary", {}, run.name), part(run, n)) : part(run, n)));
  for (const run of runs) for (const note of run.notes) main.append(paragraph(several ? `${run.name}: ${note}` : note));
  if (several) section("comparison", "Comparison", comparison(runs));
  section("curves", "Curves", curvesPart(runs));
  section("predictions", "Predictions", ...each(classesPart));
  section("weights", "Weights over time", ...each(snapshotsPart));
  section("architecture", "Architecture", ...each(layersPart));
  section("facts", "Run, plan and digests", ...each(factsPart));
  document.getElementById("made").textContent = "This report was made by "
    + Object.entries(data.made).map(([name, value]) => `${name} ${value}`).join(", ") + ".";
}

page();
