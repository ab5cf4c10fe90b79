// The weights of a run at its saved steps: a slider moves through pictures and histograms.

function snapshotsPart(run, number) {
  const found = run.snapshots;
  if (typeof found === "string") return paragraph(found);
  const part = make("div", {});
  const id = `step-${number}`;
  const slider = make("input", { id, type: "range", min: 0, max: found.steps.length - 1, value: found.steps.length - 1 });
  const said = make("output", { for: id });
  const one = make("div", {});
  const choices = { weights: "weights", gradients: "gradients", outputs: "outputs of layers" };
  const kinds = Object.keys(choices).filter((kind) => found.steps.some((step) => Object.keys(step[kind]).length));
  let kind = kinds[0];
  const chooser = make("select", { id: `${id}-kind` }, kinds.map((name) => make("option", { value: name }, choices[name])));
  chooser.addEventListener("change", () => { kind = chooser.value; show(); });
  slider.addEventListener("input", show);
  const controls = [make("label", { for: id }, "Checkpoint ", slider), said];
  part.append(make("div", { class: "controls" }, found.steps.length > 1 ? controls : said, " ",
    make("label", { for: `${id}-kind` }, "Histograms of ", chooser)), one);
  for (const note of found.notes) part.append(paragraph(note));
  function show() {
    const step = found.steps[Number(slider.value)];
    const when = [step.epoch >= 0 ? `epoch ${short(step.epoch)}` : "", step.step >= 0 ? `step ${short(step.step)}` : ""];
    said.textContent = [...when, step.name].filter(Boolean).join(", ");
    slider.setAttribute("aria-valuetext", said.textContent);
    const named = Object.entries(step[kind] || {});
    one.replaceChildren();
    if (step.picture) {
      one.append(make("h3", {}, "The first layer"), make("img", { class: "first", src: step.picture.uri, alt: step.picture.alt }),
        paragraph(step.picture.alt, "soft"));
    }
    one.append(make("h3", {}, `Histograms of ${choices[kind]}`));
    if (kind === "weights" || kind === "gradients") {
      const norms = named.map(([name, values]) => [name, values.norm, values.mean, values.deviation]);
      one.append(make("div", { class: "histograms" }, named.map(([name, values]) => histogram(name, values))),
        table(`The ${choices[kind]} in numbers`, ["tensor", "norm", "mean", "deviation"], norms));
    } else {
      one.append(make("div", { class: "histograms" }, named.map(([name, values]) => histogram(name, values))));
    }
    one.append(paragraph("The height of a bar is the square root of its count. All checkpoints have the same limits.", "soft"));
  }
  show();
  return part;
}
