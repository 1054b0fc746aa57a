"use strict";
// Links of a pair as columns of numbers, which the view of a pair draws, filters and lists.

(() => {
  const FEATURE_LABELS = {
    density: "density", n_active: "active tokens", mean_activation: "mean activation",
    max_activation: "maximum activation", threshold: "threshold", b_enc: "encoder bias",
    norm_W_enc: "encoder norm", norm_W_dec: "decoder norm",
  };
  const VERIFY_LABELS = {
    off_rate: "off rate", effect: "effect", effect_low: "effect, low end", effect_high: "effect, high end",
    floor_95: "95% floor of random partners", n_events: "events", n_active: "events with an active partner",
  };

  // Return the label of a column of features.
  saematch.featureLabel = (name) =>
    FEATURE_LABELS[name] ?? (name.startsWith("density_") ? `density on ${name.slice(8)}` : name.replaceAll("_", " "));

  // Return the links of an arm in a pair: {n, source, target, columns, finding, verdict, text}.
  // `columns` is a Map from a name to {label, values}, with NaN for missing values; `text(i)` gives
  // the explanations of both ends. With `all`, all partners on the page, else the best.
  saematch.pairLinks = async (arm, pair, all) => {
    const [blocks, ofSource, ofTarget, verified, judged] = await Promise.all([
      linkBlocks(arm, pair), columnsOf(pair.source), columnsOf(pair.target),
      saematch.data.verified(arm, pair), verdicts(arm, pair),
    ]);
    const links = joined(blocks, all);
    const { n, source, target, rank } = links;
    const columns = new Map();
    if (links.score) columns.set("score", { label: "score", values: links.score });
    columns.set("weight", { label: "weight", values: links.weight });
    columns.set("rank", { label: "rank of the partner", values: rank });
    addEffects(columns, verified, source, rank);
    for (const [side, features, { numbers }] of [["source", source, ofSource], ["target", target, ofTarget]])
      for (const [name, values] of Object.entries(numbers))
        columns.set(`${side}.${name}`, {
          label: `${side}'s ${saematch.featureLabel(name)}`,
          values: Float32Array.from(features, (feature) => values[feature]),
        });
    const [first, second] = [columns.get("source.density")?.values, columns.get("target.density")?.values];
    if (first && second)
      columns.set("density_change", {
        label: "log10 of target's over source's density",
        values: Float32Array.from(first, (value, i) => finite(Math.log10(second[i] / value))),
      });
    const finding = Array.from(source, (feature, i) => (rank[i] === 1 ? (verified.get(feature)?.finding ?? null) : null));
    const verdict = Array.from(source, (feature, i) => judged.get(`${feature}:${target[i]}`) ?? null);
    return { n, source, target, columns, finding, verdict, text: (i) => [ofSource.text(source[i]), ofTarget.text(target[i])] };
  };

  const finite = (value) => (Number.isFinite(value) ? value : NaN);

  function linkBlocks(arm, pair) {
    const n = Math.ceil(pair.source.n_features / saematch.run.block);
    return Promise.all(Array.from({ length: n }, (_, block) => saematch.load(`links/${arm}/${pair.number}/${block}`)));
  }

  // Return arrays of all links, or of each source feature's best link; ranks count from 1.
  function joined(blocks, all) {
    const entries = [];
    for (const [number, block] of blocks.entries())
      for (let place = 0; place + 1 < block.starts.length; place++) {
        const end = all ? block.starts[place + 1] : Math.min(block.starts[place + 1], block.starts[place] + 1);
        for (let entry = block.starts[place]; entry < end; entry++)
          entries.push([block, entry, number * saematch.run.block + place, entry - block.starts[place] + 1]);
      }
    const scored = blocks.some((block) => block.scores);
    return {
      n: entries.length,
      source: Uint32Array.from(entries, ([, , feature]) => feature),
      target: Uint32Array.from(entries, ([block, entry]) => block.others[entry]),
      rank: Float32Array.from(entries, ([, , , rank]) => rank),
      weight: Float32Array.from(entries, ([block, entry]) => block.weights[entry]),
      score: scored ? Float32Array.from(entries, ([block, entry]) => block.scores[entry]) : null,
    };
  }

  function addEffects(columns, verified, source, rank) {
    if (!verified.size) return;
    for (const [name, label] of Object.entries(VERIFY_LABELS))
      columns.set(name, {
        label,
        values: Float32Array.from(source, (feature, i) => (rank[i] === 1 ? (verified.get(feature)?.[name] ?? NaN) : NaN)),
      });
  }

  // Return {numbers, text} of an SAE: arrays by column, and each feature's explanation or tokens.
  async function columnsOf(sae) {
    const blocks = await saematch.data.featureBlocks(sae);
    const numbers = {};
    for (const name of sae.columns) {
      numbers[name] = new Float32Array(sae.n_features);
      for (const { start, parts } of blocks) numbers[name].set(parts[name], start);
    }
    const text = (feature) => {
      const { start, parts } = blocks[Math.floor(feature / saematch.run.block)];
      return parts.explanation?.[feature - start] ?? parts.top_tokens?.[feature - start] ?? "";
    };
    return { numbers, text };
  }

  // Return the judge's label of each judged link: "<source>:<target>" -> label.
  async function verdicts(arm, pair) {
    const rows = await saematch.data.table("judgements");
    const ofPair = rows.filter((row) =>
      row.role === "pair" && row.arm === arm &&
      row.source_suite === pair.source.suite && row.source_layer === pair.source.layer &&
      row.target_suite === pair.target.suite && row.target_layer === pair.target.layer);
    return new Map(ofPair.map((row) => [`${row.source_feature}:${row.target_feature}`, row.label]));
  }
})();
