"use strict";
// View of a pair of SAEs: all links of an arm as a scatter, a brush and filters that select links,
// and the selected links as a table and a CSV file. The form's fields are the address's query.

(() => {
  const { h, link } = saematch;
  const N_ROWS = 200;
  const LOG_AT_FIRST = ["source.density", "source.threshold"];
  const RANGE = ["x_from", "x_to", "y_from", "y_to"];
  const count = (n) => n.toLocaleString("en");

  saematch.views.pair = async ({ path, query }) => {
    if (!path.length) return pairList();
    const pair = pairOf(path);
    const results = h("div");
    const page = { pair, form: h("form", { class: "controls" }), results };
    page.form.addEventListener("submit", (event) => event.preventDefault());
    page.form.addEventListener("input", (event) => changed(page, event.target));
    await open(page, Object.fromEntries(query));
    return [h("h1", {}, pair.name), choiceOfPair(pair), page.form, results];
  };

  function pairList() {
    const columns = [
      { name: "name", label: "pair", cell: (row) => h("a", { href: row.href }, row.name) },
      { name: "arms", label: "arms", cell: (row) => row.arms },
    ];
    const rows = saematch.run.pairs.map((pair) => (
      { name: pair.name, href: saematch.pairLink(pair), arms: Object.keys(pair.arms).join(", ") }));
    return [h("h1", {}, "Pairs of SAEs"), saematch.table(columns, rows, "Pairs of this run", N_ROWS)];
  }

  saematch.pairLink = ({ source, target }, query) =>
    link(["pair", source.suite, source.layer, target.suite, target.layer], query);

  function pairOf([sourceSuite, sourceLayer, targetSuite, targetLayer]) {
    const [source, target] = [saematch.data.sae(sourceSuite, sourceLayer), saematch.data.sae(targetSuite, targetLayer)];
    const pair = saematch.run.pairs.find((pair) => pair.source === source && pair.target === target);
    if (!pair) throw new Error(`This run did not match ${source.name} with ${target.name}`);
    return pair;
  }

  function choiceOfPair(pair) {
    const options = saematch.run.pairs.map((other) => [saematch.pairLink(other), other.name]);
    const open = (event) => (location.hash = event.target.value);
    return h("p", { class: "controls" },
      h("label", {}, "Pair ", saematch.select("pair", options, saematch.pairLink(pair), { onchange: open })));
  }

  // Load the links of the arm and build the form, the chart and the table anew.
  async function open(page, state) {
    const arms = Object.keys(page.pair.arms);
    if (!arms.length) throw new Error(`No arm matched ${page.pair.name}`);
    if (state.arm && !arms.includes(state.arm))
      throw new Error(`${page.pair.name} has no arm ${state.arm}: it has ${arms.join(", ")}`);
    const arm = state.arm ?? arms[0];
    page.links = await saematch.pairLinks(arm, page.pair, state.partners === "all");
    page.rows = rowsOf(page.links);
    const names = [...page.links.columns.keys()];
    const usable = (name, preferred) => (names.includes(name) ? name : preferred.find((other) => names.includes(other)));
    const x = usable(state.x, ["source.density", "source.threshold", "score", "weight", "rank"]);
    const y = usable(state.y, ["off_rate", "score", "weight"].filter((name) => name !== x));
    const x_log = state.x ? state.x_log : LOG_AT_FIRST.includes(x) ? "1" : undefined;
    page.form.replaceChildren(...saematch.pairControls(page, { ...state, arm, x, y, x_log }));
    page.chart = null;
    page.download = h("button", { type: "button", onclick: () => save(page) }, "Download the selection (CSV)");
    page.count = h("p", { role: "status" });
    page.figure = h("div");
    page.table = null;
    page.tablePlace = h("div");
    page.results.replaceChildren(page.figure, page.count, page.download, page.tablePlace);
    update(page);
  }

  function stateOf(form) {
    const state = Object.fromEntries([...new FormData(form)].map(([name, value]) => [name, value || null]));
    for (const box of form.querySelectorAll("input[type=checkbox]")) state[box.name] = box.checked && !box.disabled ? box.value : null;
    return state;
  }

  async function changed(page, field) {
    if (field.name === "x" || field.name === "y") {
      clearRange(page.form, field.name);
      saematch.allowLog(page, field.name);
    }
    const state = stateOf(page.form);
    saematch.remember(state);
    if (field.name === "arm" || field.name === "partners") {
      page.form.setAttribute("aria-busy", "true");
      const kept = Object.fromEntries(Object.entries(state).filter(([, value]) => value !== null));
      await open(page, kept);
      page.form.removeAttribute("aria-busy");
      page.form.elements[field.name].focus();
    } else update(page);
  }

  function clearRange(form, axis) {
    for (const name of RANGE) if (name.startsWith(axis)) form.elements[name].value = "";
  }

  // Write the range of a brush into the form's fields, with four digits.
  function brushed(page, brush) {
    const short = (value) => String(Number(value.toPrecision(4)));
    for (const name of RANGE) {
      const [axis, end] = name.split("_");
      page.form.elements[name].value = brush ? short(brush[axis][end === "from" ? 0 : 1]) : "";
    }
    saematch.remember(stateOf(page.form));
    update(page);
  }

  // Draw the links that pass the filters, and list those that are selected.
  function update(page) {
    const { links } = page;
    const state = stateOf(page.form);
    const [x, y] = [links.columns.get(state.x), links.columns.get(state.y)];
    const brush = rangeOf(state);
    const passes = saematch.pairFilter(links, state);
    const points = [[], []];
    const inside = [[], []];
    page.selection = [];
    const missing = { x: 0, y: 0 };
    for (let i = 0; i < links.n; i++) {
      if (!passes(i)) continue;
      const [a, b] = [x.values[i], y.values[i]];
      const lacking = !isDrawn(a, state.x_log) ? "x" : !isDrawn(b, state.y_log) ? "y" : null;
      const selected = brush ? !lacking && within(a, brush.x) && within(b, brush.y) : true;
      if (selected) page.selection.push(i);
      if (lacking) missing[lacking]++;
      else {
        const [xs, ys] = selected ? inside : points;
        xs.push(a);
        ys.push(b);
      }
    }
    draw(page, state, { points, selected: inside, brush });
    const reasons = [["x", x], ["y", y]].filter(([axis]) => missing[axis]).map(([axis, { label }]) =>
      `${count(missing[axis])} without a ${state[`${axis}_log`] ? "positive " : ""}value for ${label}`);
    page.count.textContent =
      `${count(page.selection.length)} of ${count(links.n)} links selected` +
      (reasons.length ? `; ${reasons.join(" and ")} are not drawn.` : ".");
    page.download.disabled = !page.selection.length;
    list(page, state, x, y);
  }

  const isDrawn = (value, log) => (log ? value > 0 : !Number.isNaN(value));
  const within = (value, [from, to]) => value >= from && value <= to;

  // Return the range of the number fields; null if all four are empty.
  function rangeOf(state) {
    if (RANGE.every((name) => state[name] === null)) return null;
    const end = (name, open) => (state[name] === null ? open : Math.fround(state[name])); // columns have 32 bits
    return Object.fromEntries(["x", "y"].map((axis) =>
      [axis, [end(`${axis}_from`, -Infinity), end(`${axis}_to`, Infinity)]]));
  }

  function draw(page, state, drawn) {
    const axes = [state.x, state.y, state.x_log, state.y_log].join(" ");
    if (page.axes !== axes || !page.chart) {
      const [xLabel, yLabel] = [state.x, state.y].map((name) => page.links.columns.get(name).label);
      page.chart = saematch.charts.scatter({
        xLabel, yLabel, xLog: state.x_log, yLog: state.y_log, onselect: (brush) => brushed(page, brush),
        label: `Scatter of the links of ${page.pair.name}: ${yLabel} against ${xLabel}. The table below lists the selected links.`,
      });
      page.axes = axes;
      page.figure.replaceChildren(page.chart);
    }
    page.chart.set(drawn);
  }

  function list(page, state, x, y) {
    const { links, pair } = page;
    const names = [...new Set(["score", "weight", "off_rate", "effect", state.x, state.y])];
    const shown = names.filter((name) => links.columns.has(name));
    const rows = page.selection.map((i) => page.rows[i]);
    const ofFeature = (sae, name) => (row) =>
      h("a", { href: link(["feature", sae.suite, sae.layer, row[name]], { arm: state.arm }) }, String(row[name]));
    const key = [...shown, state.arm].join(" ");
    if (page.table && page.tableKey === key) return page.table.setRows(rows);
    const columns = [
      { name: "source", label: `feature of ${pair.source.name}`, cell: ofFeature(pair.source, "source") },
      { name: "target", label: `feature of ${pair.target.name}`, cell: ofFeature(pair.target, "target") },
      ...shown.map((name) => {
        const { label, title } = links.columns.get(name);
        return { name, label, title, cell: (row) => saematch.labels.value(name, row[name]) };
      }),
      { name: "finding", label: "finding of verify", cell: (row) => saematch.finding(row.finding) },
      { name: "verdict", label: "judge", cell: (row) => row.verdict ?? "–" },
      ...(pair.source.labels.length + pair.target.labels.length ? [
        { name: "source_explanation", label: "explanation of the source", cell: (row) => row.source_explanation },
        { name: "target_explanation", label: "explanation of the target", cell: (row) => row.target_explanation },
      ] : []),
    ].filter(({ name }) => links[`${name}s`]?.length !== 0);
    page.tableKey = key;
    page.table = saematch.table(columns, rows, "Selected links", N_ROWS);
    page.tablePlace.replaceChildren(page.table);
  }

  // Return an object for each link, which looks up its columns when they are read.
  function rowsOf(links) {
    class Row {
      constructor(i) {
        this.i = i;
      }
    }
    const column = (name, valueOf) =>
      Object.defineProperty(Row.prototype, name, { get() { return valueOf(this.i); } });
    for (const [name, ofLinks] of links.columns) column(name, (i) => ofLinks.values[i]);
    column("source", (i) => links.source[i]);
    column("target", (i) => links.target[i]);
    column("finding", links.finding);
    column("verdict", links.verdict);
    column("source_explanation", (i) => links.text(i)[0]);
    column("target_explanation", (i) => links.text(i)[1]);
    return Array.from({ length: links.n }, (_, i) => new Row(i));
  }

  // Download the selected links with all their columns.
  function save(page) {
    const { pair: { source, target, name }, links } = page;
    const { arm } = stateOf(page.form);
    const names = [...links.columns.keys(), "finding", "verdict", "source_explanation", "target_explanation"];
    const rows = page.selection.map((i) => {
      const row = page.rows[i];
      return {
        ...Object.fromEntries(names.map((column) => [column, rounded(row[column])])), arm,
        source_suite: source.suite, source_layer: source.layer, source_feature: row.source,
        target_suite: target.suite, target_layer: target.layer, target_feature: row.target,
      };
    });
    const columns = [
      "source_suite", "source_layer", "source_feature", "target_suite", "target_layer", "target_feature", "arm", ...names,
    ];
    saematch.downloadCsv(`${saematch.run.run_id} ${name} ${arm}.csv`, columns, rows);
  }

  // Numbers of the page have 32 bits; six digits leave out the noise of their decimal form.
  const rounded = (value) => (typeof value === "number" ? Number(value.toPrecision(6)) : value);
})();
