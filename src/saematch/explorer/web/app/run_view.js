"use strict";
// View of the run: what it ran, its metrics, warnings, figures, tables, pairs and provenance.

(() => {
  const { h, link, number } = saematch;
  const N_FIRST = 8; // features to start with
  const HEADLINES = [
    "matching_score", "recall", "explained_variance", "delta_loss", "off_rate", "effect", "judge_score",
  ];
  const OF_PAIRS = ["matching_score", "jaccard", "recall"];

  saematch.views.run = async () => {
    const { run } = saematch;
    const matches = await saematch.data.table("matches");
    return [
      h("h1", {}, run.name),
      facts(),
      start(), metrics(), warnings(), pairs(matches), figures(),
      h("h2", {}, "Tables"), saematch.tableList(),
      h("h2", {}, "Provenance and configuration"),
      tree("Provenance", run.provenance), tree("Configuration", run.config),
    ];
  };

  // Return a list of terms: SAEs, arms and text sets.
  function facts() {
    const { run_id, saes, pairs, arms, config, provenance } = saematch.run;
    const terms = [
      ["Run", [run_id]],
      ["SAEs", [...groups(saes, (sae) => sae.suite)].map(([suite, ofSuite]) => describe(suite, ofSuite))],
      ["Pairs", [`${pairs.length}: ${pairs[0].name}${pairs.length > 1 ? ` … ${pairs.at(-1).name}` : ""}`]],
      ["Arms", arms.map((arm) => `${arm}${reads(config.arms?.[arm])}`)],
      ["Texts", Object.entries(provenance.texts ?? {}).map(([name, { n_texts: n, path }]) => `${name}: ${number(n)} texts of ${path}`)],
    ];
    return h("dl", { class: "facts" }, terms.filter(([, lines]) => lines.length).map(([term, lines]) => (
      [h("dt", {}, term), lines.map((line) => h("dd", {}, line))])));
  }

  function groups(items, keyOf) {
    const byKey = new Map();
    for (const item of items) byKey.set(keyOf(item), [...(byKey.get(keyOf(item)) ?? []), item]);
    return byKey;
  }

  function describe(suite, saes) {
    const widths = [...new Set(saes.map((sae) => sae.n_features.toLocaleString("en")))].join(" or ");
    const name = suite === "default" ? "" : `${suite}: `;
    return `${name}layer${saes.length > 1 ? "s" : ""} ${ranges(saes.map((sae) => sae.layer))}, ` +
      `${widths} features${saes.length > 1 ? " each" : ""}`;
  }

  // Return ascending layers as text, with three or more consecutive ones as a range: "0 to 7, 9".
  function ranges(layers) {
    const runs = [];
    for (const layer of layers)
      if (runs.length && runs.at(-1).at(-1) === layer - 1) runs.at(-1).push(layer);
      else runs.push([layer]);
    return runs.map((run) => (run.length > 2 ? `${run[0]} to ${run.at(-1)}` : run.join(", "))).join(", ");
  }

  // Return how an arm matches: its fold, objective and matcher, in the configuration's words.
  function reads(arm) {
    if (!arm) return "";
    const name = (part) => part?._target_?.split(".").at(-1) ?? "none";
    return `: fold ${arm.fold}, objective ${name(arm.objective)}, matcher ${name(arm.matcher)}`;
  }

  // Return links to features to start with, which are filled in when they are loaded.
  function start() {
    const place = h("div", {}, h("p", { class: "muted" }, "Loading features …"));
    const fill = ({ reason, features }) =>
      place.replaceChildren(h("p", { class: "muted" }, reason), h("ul", {}, features.map(({ sae, feature, text }) =>
        h("li", {}, h("a", { href: link(["feature", sae.suite, sae.layer, feature]) }, `feature ${feature} of ${sae.name}`),
          text && `: ${text}`))));
    firstFeatures().then(fill, (error) => place.replaceChildren(h("p", { class: "bad" }, error.message)));
    return [h("h2", {}, "Start with a feature"), place];
  }

  // Return features whose paths pass verify; without verify, features of the table `paths`; without
  // both, the most active features of the first pair.
  async function firstFeatures() {
    const { reason, features } = await chosenFeatures();
    const withText = features.map(async ({ sae, feature, note }) => {
      const text = saematch.path.describe(await saematch.data.feature(sae, feature));
      return { sae, feature, text: [note, text].filter(Boolean).join("; ") };
    });
    return { reason, features: await Promise.all(withText) };
  }

  async function chosenFeatures() {
    const { arms, saes, start } = saematch.run;
    if (start?.length)
      return {
        reason: `Features that carry on furthest under ${arms[0]}: all links of these paths pass verify.`,
        features: start.map(({ sae, feature, n_passing: n }) => (
          { sae: saes[sae], feature, note: `${n} ${n > 1 ? "links pass" : "link passes"}` })),
      };
    const steps = (await saematch.data.table("paths")).filter((row) => row.step === 0);
    const places = new Map(steps.map((row) => [`${row.source_suite}/${row.source_layer}/${row.source_feature}`, row]));
    const chosen = [...places.values()].slice(0, N_FIRST).map((row) => (
      { sae: saematch.data.sae(row.source_suite, row.source_layer), feature: row.source_feature }));
    return chosen.length
      ? { reason: "Features that the evaluation paths followed.", features: chosen }
      : mostActive(saematch.run.pairs[0].source);
  }

  // Return the features with the highest density; in a run without densities, explained ones first.
  async function mostActive(sae) {
    const features = (await saematch.data.featureBlocks(sae)).flatMap(({ start, parts }) =>
      Array.from({ length: Math.min(saematch.run.block, sae.n_features - start) }, (_, i) => (
        { sae, feature: start + i, rank: parts.density?.[i] ?? Number(Boolean(parts.explanation?.[i])) })));
    const reason = sae.columns.includes("density")
      ? `The most active features of ${sae.name}.`
      : `The first features of ${sae.name}: this run has no densities.`;
    return { reason, features: features.sort((a, b) => b.rank - a.rank).slice(0, N_FIRST) };
  }

  // Return a table of the run's metrics by arm; those that are no headlines are folded away.
  function metrics() {
    const { metrics: values, arms } = saematch.run;
    const rows = new Map();
    for (const [name, value] of Object.entries(values)) {
      const arm = arms.find((arm) => name.split("/").includes(arm));
      const rest = name.split("/").filter((part) => part !== arm);
      const row = rows.get(rest.join("/")) ?? { name: rest[0], place: rest.slice(1).join(", ") };
      rows.set(rest.join("/"), { ...row, [`value ${arm ?? ""}`]: value });
    }
    if (!rows.size) return null;
    const isHeadline = ({ name, place }) => !place && HEADLINES.includes(name);
    const all = [...rows.values()];
    const first = all.filter(isHeadline).sort((a, b) => HEADLINES.indexOf(a.name) - HEADLINES.indexOf(b.name));
    return [
      h("h2", {}, "Metrics"),
      first.length ? metricTable(first, "Means over pairs") : null,
      h("details", {}, h("summary", {}, `All ${all.length} metrics`), metricTable(all, "All metrics")),
    ];
  }

  function metricTable(rows, caption) {
    const { arms } = saematch.run;
    const values = ["", ...arms].filter((arm) => rows.some((row) => row[`value ${arm}`] !== undefined));
    const label = (row) => {
      const { label, title } = saematch.metricLabel(row.name);
      return h("span", { title }, row.place ? `${label} (${row.place})` : label);
    };
    return saematch.table([
      { name: "name", label: "metric", cell: label },
      ...values.map((arm) => ({ name: `value ${arm}`, label: arm || "of the run" })),
    ], rows, caption);
  }

  function warnings() {
    const { log } = saematch.run;
    const lines = log.map((line) => /^\S+ \S+ (WARNING|ERROR|CRITICAL) [^:]+: (.*)$/.exec(line)).filter(Boolean);
    const messages = [...new Set(lines.map(([, , message]) => message))];
    return [
      h("h2", {}, "Warnings"),
      messages.length ? h("ul", { class: "warnings" }, messages.map((message) => h("li", {}, message))) : h("p", {}, "The log of this run has no warnings."),
    ];
  }

  // Return a chart and a table of the metrics of each pair and arm.
  function pairs(matches) {
    const { run } = saematch;
    const metrics = OF_PAIRS.filter((name) => matches.some((row) => typeof row[name] === "number"));
    const rows = matches.map((row) => {
      const [source, target] = [saematch.data.sae(row.source_suite, row.source_layer), saematch.data.sae(row.target_suite, row.target_layer)];
      return { ...row, source, target, place: run.pairs.findIndex((pair) => pair.source === source && pair.target === target) };
    });
    const columns = [
      { name: "place", label: "pair", cell: (row) => h("a", { href: saematch.pairLink(row, { arm: row.arm }) }, run.pairs[row.place].name) },
      { name: "arm", cell: (row) => row.arm },
      ...metrics.map((name) => ({ name, ...saematch.metricLabel(name) })),
      { name: "n_entries", label: "entries" },
    ];
    const chart = metrics.length && run.pairs.length > 1 ? lines(rows, metrics[0]) : null;
    return [h("h2", {}, "Pairs"), chart, saematch.table(columns, rows, "Matches of each pair", 40)];
  }

  function lines(rows, metric) {
    const { pairs, arms } = saematch.run;
    const { label } = saematch.metricLabel(metric);
    const series = arms.map((arm) => ({
      label: arm,
      values: pairs.map((_, place) => rows.find((row) => row.place === place && row.arm === arm)?.[metric] ?? null),
    }));
    const x = pairs.map(({ source, target }) =>
      source.suite === target.suite && source.suite === "default" ? `${source.layer}→${target.layer}` : `${source.suite} ${source.layer}→${target.suite} ${target.layer}`);
    return saematch.charts.line({ x, series, y: label, label: `${label} of each pair, a line for each arm. The table below has the numbers.` });
  }

  function figures() {
    const { figures } = saematch.run;
    if (!figures.length) return null;
    return [h("h2", {}, "Figures"), figures.map(({ name, caption }) => {
      const source = `figures/${encodeURIComponent(name)}.png`;
      return h("figure", {},
        h("a", { href: source }, h("img", { src: source, alt: caption, loading: "lazy" })), h("figcaption", {}, caption));
    })];
  }

  // Return a value of the configuration as a tree that opens level by level.
  function tree(name, value) {
    const isTree = value !== null && typeof value === "object";
    if (!isTree || !Object.keys(value).length)
      return h("div", { class: "leaf" }, h("span", { class: "muted" }, `${name}: `), isTree ? "none" : String(value));
    return h("details", { class: "tree" }, h("summary", {}, name),
      Object.entries(value).map(([key, part]) => tree(key, part)));
  }
})();
