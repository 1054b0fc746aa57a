"use strict";
// Views of the run's tables: a list of them, and the rows of each.

(() => {
  const { h, link } = saematch;
  const N_ROWS = 200;

  saematch.views.tables = async ({ path: [name], query }) => {
    if (name === undefined) return [h("h1", {}, "Tables"), saematch.tableList()];
    if (!saematch.run.tables.some((table) => table.name === name))
      throw new Error(`This run has no table ${name}: it has ${saematch.run.tables.map((table) => table.name).join(", ")}`);
    const rows = await saematch.data.table(name);
    const names = Object.keys(rows[0] ?? {});
    const table = saematch.table(names.map(columnOf), rows, `Table ${name}`, N_ROWS);
    const filter = h("input", { type: "search", name: "q", value: query.get("q"), "aria-label": "Words that a row must have" });
    const count = h("span", { role: "status", class: "muted" });
    let kept = rows;
    const update = () => {
      const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
      kept = rows.filter((row) => hasAll(row, words));
      count.textContent = `${kept.length} of ${rows.length} rows`;
      table.setRows(kept);
    };
    filter.addEventListener("input", saematch.debounce(() => {
      saematch.remember({ q: filter.value || null });
      update();
    }, 150));
    update();
    const save = () => saematch.downloadCsv(`${saematch.run.run_id} ${name}.csv`, names, kept);
    return [
      h("h1", {}, `Table ${name}`),
      h("p", { class: "controls" }, h("label", {}, "Filter ", filter), count,
        h("button", { type: "button", onclick: save }, "Download these rows (CSV)")),
      table,
    ];
  };

  // Return a list of links to the tables.
  saematch.tableList = () =>
    h("ul", { class: "columns" }, saematch.run.tables.map((table) =>
      h("li", {}, h("a", { href: link(["tables", table.name]) }, table.name), ` (${table.n_rows.toLocaleString("en")} rows)`)));

  const hasAll = (row, words) => {
    const text = words.length ? Object.values(row).join("\n").toLowerCase() : "";
    return words.every((word) => text.includes(word));
  };

  // Return the column of a metric, with the definition of the metric as its title.
  function columnOf(name) {
    const { label, title } = saematch.metricLabel(name);
    return { name, label, title, cell: (row) => cell(row, name) };
  }

  // Return the label and the definition of a metric; the end of an interval has the metric's.
  saematch.metricLabel = (name) => {
    const { columns } = saematch.run;
    const [, metric, end] = /^(.*?)(_low|_high)?$/.exec(name);
    const column = columns[name] ?? columns[metric];
    if (!column) return { label: name.replaceAll("_", " "), title: name };
    const suffix = columns[name] || !end ? "" : { _low: ", low end", _high: ", high end" }[end];
    return {
      label: column.label + suffix + (column.unit ? ` (${column.unit})` : ""),
      title: [name, column.meaning, column.better && `${column.better} is better`].filter(Boolean).join(": "),
    };
  };

  // Return a cell: the number of a feature is a link to it.
  function cell(row, name) {
    const value = row[name];
    const side = { source_feature: "source_", target_feature: "target_", feature: "" }[name];
    const known = ["", "source_"].find((prefix) => row[`${prefix}layer`] !== undefined);
    const prefix = side === "" ? known : side;
    const sae = saematch.run.saes.find((sae) =>
      prefix !== undefined && sae.suite === row[`${prefix}suite`] && sae.layer === row[`${prefix}layer`]);
    if (sae && Number.isInteger(value) && value >= 0)
      return h("a", { href: link(["feature", sae.suite, sae.layer, value]) }, String(value));
    return typeof value === "boolean" ? (value ? "yes" : "no") : saematch.number(value);
  }
})();
