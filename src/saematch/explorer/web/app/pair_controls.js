"use strict";
// Form of the view of a pair: arm, axes, range and filters; and the filters as a function.

(() => {
  const { h } = saematch;
  const DENSITY_OF = "density_";

  // Return the fields of the form; `state` has the values that are not empty, by name.
  saematch.pairControls = ({ pair, links }, state) => {
    const columns = [...links.columns].map(([name, { label }]) => [name, label]);
    const axis = (name, title) => h("fieldset", {}, h("legend", {}, title),
      saematch.select(name, columns, state[name], { "aria-label": title }),
      checkbox(`${name}_log`, "logarithmic", state, !isPositive(links, state[name])),
      range(name, title, state));
    return [
      h("fieldset", {}, h("legend", {}, "Links"),
        labelled("Arm", saematch.select("arm", Object.keys(pair.arms).map((arm) => [arm, arm]), state.arm)),
        checkbox("partners", "all partners, not only the best of each feature", state, false, "all")),
      axis("x", "Horizontal axis"), axis("y", "Vertical axis"),
      filters(pair, links, state),
      h("p", { class: "muted" },
        "Select links by dragging a rectangle over the chart, or by the fields from and to. A click on the chart clears the rectangle."),
    ];
  };

  const isPositive = (links, name) => links.columns.get(name).values.some((value) => value > 0);

  // Enable the logarithmic axis x or y if its column has positive values.
  saematch.allowLog = ({ form, links }, axis) => {
    form.elements[`${axis}_log`].disabled = !isPositive(links, form.elements[axis].value);
  };

  const labelled = (text, field) => h("label", {}, `${text} `, field);

  function checkbox(name, text, state, disabled, value = "1") {
    return h("label", {},
      h("input", { type: "checkbox", name, value, disabled, checked: state[name] === value }), ` ${text}`);
  }

  function field(name, label, state, attributes = {}) {
    return h("label", {}, `${label} `, h("input", { type: "number", step: "any", name, value: state[name], ...attributes }));
  }

  function range(axis, title, state) {
    return h("span", { class: "range", role: "group", "aria-label": `Range of the ${title.toLowerCase()}` },
      field(`${axis}_from`, "from", state), field(`${axis}_to`, "to", state));
  }

  function filters(pair, links, state) {
    const sets = textSets(pair);
    const fields = [];
    if (pair.source.columns.includes("density"))
      fields.push(field("density_min", "Source's density from", state, { min: 0 }), field("density_max", "to", state, { min: 0 }));
    if (sets.length > 1)
      fields.push(
        labelled("Text set", saematch.select("set", [["", "any"], ...sets.map((name) => [name, name])], state.set ?? "")),
        field("share", "with a share of at least", state, { min: 0, max: 1, placeholder: "0.5", title: SHARE }));
    for (const [name, title, values] of [
      ["finding", "Finding of verify", links.findings], ["verdict", "Judge's verdict", links.verdicts],
    ])
      if (values.length)
        fields.push(labelled(title, saematch.select(name, [["", "any"], ...values.map((value) => [value, value])], state[name] ?? "")));
    return fields.length ? h("fieldset", {}, h("legend", {}, "Filters"), fields) : null;
  }

  const SHARE =
    "The source feature's density on this text set over the sum of its densities on all text sets, as if all sets had equally many tokens";

  const textSets = (pair) =>
    pair.source.columns.filter((name) => name.startsWith(DENSITY_OF)).map((name) => name.slice(DENSITY_OF.length));

  // Return a function from the number of a link to whether it passes the filters of a form.
  saematch.pairFilter = (links, state) => {
    const tests = [];
    const density = links.columns.get("source.density")?.values;
    if (state.density_min) tests.push((i) => density[i] >= Math.fround(state.density_min));
    if (state.density_max) tests.push((i) => density[i] <= Math.fround(state.density_max));
    if (state.set) {
      const least = Number(state.share ?? 0.5);
      const ofSet = links.columns.get(`source.${DENSITY_OF}${state.set}`).values;
      const all = [...links.columns].filter(([name]) => name.startsWith(`source.${DENSITY_OF}`)).map(([, { values }]) => values);
      tests.push((i) => ofSet[i] > 0 && ofSet[i] >= least * all.reduce((sum, values) => sum + values[i], 0));
    }
    for (const name of ["finding", "verdict"]) if (state[name]) tests.push((i) => links[name](i) === state[name]);
    return (i) => tests.every((test) => test(i));
  };
})();
