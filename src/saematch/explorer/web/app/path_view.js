"use strict";
// The picture of a feature's path: columns of layers, links weighted by evidence, a table, charts.

(() => {
  const { h, number, path } = saematch;
  const GAP = 40, TOP = 30, FURTHER = 26, SPACE = 7; // pixels

  // Return a scrollable picture of a path. Links and alternatives are drawn if path.complete ran.
  saematch.pathPicture = (route) => {
    const scroller = h("div", { class: "path wide", tabindex: "0", role: "group",
      "aria-label": "Path through the layers; the table below has the same content" });
    const draw = () => scroller.replaceChildren(canvas(route));
    const centre = () => {
      const column = scroller.querySelector("[aria-current]");
      scroller.scrollLeft = column.offsetLeft + column.offsetWidth / 2 - scroller.clientWidth / 2;
    };
    draw();
    return { scroller, draw, centre };
  };

  function canvas(route) {
    const available = document.querySelector("main").clientWidth - 32;
    const pitch = Math.max(132, Math.min(176, (available + GAP) / route.columns.length));
    const size = { pitch, width: pitch - GAP };
    const nodes = route.columns.flatMap((column, i) => columnNodes(route, column, i, size));
    const most = Math.max(1, ...route.links.map(({ entries }) => entries?.length ?? rows(route)));
    const box = h("div", { class: "canvas" }, links(route, size), nodes);
    box.style.width = `${pitch * route.columns.length - GAP}px`;
    box.style.height = `${top(most) - SPACE + 4}px`;
    return box;
  }

  // Number of rows to reserve before the links are known.
  const rows = ({ arm, links: [{ pair }] }) => (pair.arms[arm].n_entries > pair.source.n_features ? 5 : 1);

  // Height of a row's nodes, and their distance from the top. Row 0 is the best path.
  const height = (row) => (row > 0 || !saematch.run.saes.some(({ labels }) => labels.length) ? FURTHER : 3 * FURTHER);
  const top = (row) => (row === 0 ? TOP : TOP + height(0) + SPACE + (row - 1) * (FURTHER + SPACE));
  const middle = (row) => top(row) + height(row) / 2;

  function columnNodes(route, column, i, size) {
    const name = placed(h("div", { class: `layer${i === route.current ? " current" : ""}` }, column.sae.name), i, size);
    name.style.top = 0;
    if (column.feature === saematch.NONE) {
      const text = i < route.current ? "no source" : "no partner";
      return [name, node(h("div", { class: "node none" }, text), i, 0, size)];
    }
    const text = path.describe(column.row);
    const best = h("a", {
      class: "node best", href: path.address(column.sae, column.feature, { arm: route.arm }), title: text,
      "aria-current": i === route.current ? "true" : null,
      "aria-label": `Feature ${column.feature}, ${column.sae.name}${text ? `: ${text}` : ""}`,
    }, h("b", {}, String(column.feature)), h("span", {}, text ?? ""));
    return [name, node(best, i, 0, size), ...further(route, column.sae, i, size)];
  }

  // Return the nodes of the alternatives in a column. They get their explanations when pointed at.
  function further(route, sae, i, size) {
    const entries = (i > route.current ? route.links[i - 1] : route.links[i])?.entries;
    if (!entries || i === route.current) return [];
    return entries.slice(1).map(({ other, score, weight }, rank) => {
      const explain = async () => {
        const text = path.describe(await saematch.data.feature(sae, other));
        if (text) element.setAttribute("title", text);
      };
      const element = h("a", {
        class: "node further", href: path.address(sae, other, { arm: route.arm }),
        onpointerenter: explain, onfocus: explain, title: "no explanation",
        "aria-label": `Alternative ${rank + 1}: feature ${other}, ${sae.name}`,
      }, h("b", {}, String(other)), h("span", {}, shortNumber(score ?? weight)));
      return node(element, i, rank + 1, size);
    });
  }

  const shortNumber = (value) => number(Number(value.toPrecision(2)));

  function placed(element, i, size) {
    element.style.left = `${i * size.pitch}px`;
    element.style.width = `${size.width}px`;
    return element;
  }

  function node(element, i, row, size) {
    element.style.top = `${top(row)}px`;
    element.style.height = `${height(row)}px`;
    return placed(element, i, size);
  }

  // Return the links as SVG: alternatives first, so that the best path is drawn over them.
  function links(route, size) {
    const curves = route.links.flatMap(({ entries }, i) => (entries ?? []).map((entry, row) => {
      const [rowFrom, rowTo] = i < route.current ? [row, 0] : [0, row];
      const x = i * size.pitch + size.width;
      const [y0, y1] = [middle(rowFrom), middle(rowTo)];
      const d = `M${x},${y0}C${x + GAP / 2},${y0} ${x + GAP / 2},${y1} ${x + GAP},${y1}`;
      return h("path", { d, class: linkClass(entry, row), "stroke-width": lineWidth(entry, entries) });
    }));
    return h("svg", { width: "100%", height: "100%", "aria-hidden": "true" }, curves.reverse());
  }

  const FINDINGS = { passes: "passes", fails: "fails" };
  const linkClass = (entry, row) => `link ${FINDINGS[entry.test?.finding] ?? "untested"}${row ? " further" : ""}`;

  // Width of a line: 1.5 to 7 pixels, relative to the links between the same two columns.
  function lineWidth(entry, entries) {
    const value = ({ score, weight }) => score ?? Math.abs(weight);
    const values = entries.map(value);
    const [least, most] = [Math.min(0, ...values), Math.max(...values)];
    return most > least ? 1.5 + (5.5 * (value(entry) - least)) / (most - least) : 7;
  }

  // Return the legend of the links.
  saematch.pathLegend = (route) => {
    const sample = (kind) => h("svg", { width: 34, height: 8, "aria-hidden": "true" },
      h("path", { d: "M0,4H34", class: `link ${kind}`, "stroke-width": 4 }));
    const scored = route.links.every(({ pair }) => pair.arms[route.arm].scored);
    const verified = route.links.some(({ pair }) => pair.arms[route.arm].verified);
    const tests = [["passes", "passes verify"], ["fails", "fails verify"], ["untested", "not tested, or too few events"]];
    return h("ul", { class: "legend" },
      h("li", {}, `Line width: ${scored ? "score" : "absolute weight"}, relative to the largest between the same two columns`),
      verified
        ? tests.map(([kind, text]) => h("li", {}, sample(kind), text))
        : h("li", {}, sample("untested"), "not tested: verify did not run"),
      route.links.some(({ entries }) => entries.length > 1)
        ? h("li", {}, `Small boxes: alternatives with their ${scored ? "scores" : "weights"}`) : null);
  };

  // Return why a path begins and ends where it does: sentences.
  saematch.pathEnds = ({ arm, columns, current }) => {
    const last = columns.at(-1), first = columns[0];
    const text = (column, inner, word, pairs, side) => column.feature === saematch.NONE
      ? `feature ${inner.feature} of ${inner.sae.name} has no ${word} under ${arm}`
      : pairs.length ? `the path takes no further pair ${side} ${column.sae.name}` : `the run has no pair ${side} ${column.sae.name}`;
    const begin = text(first, columns[1], "source", saematch.data.pairsTo(first.sae), "into");
    const end = text(last, columns.at(-2), "partner", saematch.data.pairsFrom(last.sae), "from");
    return `The path starts at ${columns[first.feature === saematch.NONE ? 1 : 0].sae.name}: ${begin}. ` +
      `It ends at ${columns.at(last.feature === saematch.NONE ? -2 : -1).sae.name}: ${end}.`;
  };

  const OF_LINK = ["score", "weight", "off_rate", "effect", "effect_low", "effect_high", "floor_95", "n_events"];
  const OF_FEATURE = ["density", "threshold", "norm_W_enc", "norm_W_dec", "b_enc", "mean_activation", "max_activation"];

  // Return the rows of the path's table: a column's feature and its link to the next column.
  function rowsOf(route) {
    return route.columns.flatMap((column, i) => {
      if (column.feature === saematch.NONE) return [];
      const next = route.columns[i + 1];
      const forwards = i >= route.current;
      const entry = next && next.feature !== saematch.NONE ? route.links[i].entries.find(
        ({ other }) => other === (forwards ? next : column).feature) : undefined;
      const row = { suite: column.sae.suite, layer: column.sae.layer, feature: column.feature };
      row.explanation = path.describe(column.row);
      for (const name of OF_LINK) row[name] = entry?.[name] ?? entry?.test?.[name];
      row.finding = entry ? entry.test?.finding ?? "not tested" : undefined;
      for (const name of OF_FEATURE) row[name] = column.row[name];
      return [{ ...row, column }];
    });
  }

  // Return the table of a complete path, a button that downloads it, and charts along the path.
  saematch.pathTable = (route) => {
    const rows = rowsOf(route);
    const { labels } = saematch;
    const filled = (name) => rows.some((row) => row[name] !== undefined && !Number.isNaN(row[name]));
    const shown = [...OF_LINK, "finding", ...OF_FEATURE].filter(filled);
    const columns = [
      { name: "layer", label: "Layer", cell: ({ column }) => column.sae.name },
      { name: "feature", label: "Feature", cell: ({ column }) =>
        h("a", { href: path.address(column.sae, column.feature, { arm: route.arm }) }, String(column.feature)) },
      { name: "explanation", label: "Explanation", cell: (row) => row.explanation ?? "–" },
      ...shown.map((name) => ({ name, label: labels.short(name), title: labels.long(name), cell: (row) =>
        name === "finding" ? saematch.finding(row.finding) : labels.value(name, row[name]) })),
    ];
    const names = ["suite", "layer", "feature", "explanation", ...shown];
    return [
      h("details", {}, h("summary", {}, "Table of the path"),
        saematch.table(columns, rows, "Features along the path. Score to finding describe the link to the next row."),
        h("button", { type: "button", onclick: () =>
          saematch.downloadCsv(`path_${rows[0].layer}-${rows.at(-1).layer}.csv`, names, rows) }, "Download as CSV")),
      charts(rows),
    ];
  };

  function charts(rows) {
    if (rows.length < 2) return null;
    const groups = [["density"], ["threshold"], ["norm_W_enc", "norm_W_dec"], ["max_activation"]];
    const used = groups.map((names) => names.filter((name) => rows.every((row) => Number.isFinite(row[name]))));
    const filled = used.filter((names) => names.length);
    if (!filled.length) return null;
    const { short } = saematch.labels;
    const title = (names) => (names[0] === "density" ? "Density (%)" : names.map(short).join(", "));
    const valueOf = (row, name) => (name === "density" ? 100 * row[name] : row[name]);
    const chart = (names) => h("div", {}, h("h3", {}, title(names)), saematch.charts.line({
      x: rows.map(({ column }) => column.sae.name.replace("layer ", "")),
      series: names.map((name) => ({ label: short(name), values: rows.map((row) => valueOf(row, name)) })),
      label: `${title(names)} by layer; the table of the path has the numbers`,
      height: 180,
    }));
    return h("details", { open: innerWidth > 600 }, h("summary", {}, "Charts along the path"),
      h("div", { class: "small-charts" }, filled.map(chart)));
  }
})();
