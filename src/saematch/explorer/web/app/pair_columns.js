"use strict";
// Links of a pair as columns of numbers, which the view of a pair draws, filters and lists.

(() => {
  const EFFECTS = ["off_rate", "effect", "effect_low", "effect_high", "floor_95", "n_events"];
  const { short, long } = saematch.labels;
  const lower = (label) => label[0].toLowerCase() + label.slice(1);

  // Return the links of an arm in a pair: {n, source, target, columns, finding, verdict, text}.
  // `columns` is a Map from a name to {label, title, values}, with NaN for missing values.
  // `finding`, `verdict` and `text` (explanations of both ends) are functions of a link's number.
  // With `all`, a link for all partners on the page, else for the best.
  saematch.pairLinks = async (arm, pair, all) => {
    const [blocks, ofSource, ofTarget, verified, judged] = await Promise.all([
      linkBlocks(arm, pair), columnsOf(pair.source), columnsOf(pair.target),
      saematch.data.verified(arm, pair), verdicts(arm, pair),
    ]);
    const { n, source, target, rank, weight, score } = joined(blocks, all);
    const columns = new Map();
    const add = (name, valueOf, label = lower(short(name)), title = long(name)) =>
      columns.set(name, Object.assign(lazy(n, valueOf), { label, title }));
    if (score) add("score", (i) => score[i]);
    add("weight", (i) => weight[i]);
    add("rank", (i) => rank[i], "rank of the partner", "1 for the best partner of the source feature");
    const effects = (i) => (rank[i] === 1 ? verified.get(source[i]) : undefined);
    if (verified.size)
      for (const name of EFFECTS) add(name, (i) => effects(i)?.[name] ?? NaN);
    for (const [side, features, { numbers }] of [["source", source, ofSource], ["target", target, ofTarget]])
      for (const [name, values] of Object.entries(numbers))
        add(`${side}.${name}`, (i) => values[features[i]], `${side}'s ${lower(short(name))}`, long(name));
    const [first, second] = [ofSource.numbers.density, ofTarget.numbers.density];
    if (first && second)
      add("density_change", (i) => {
        const change = Math.log10(second[target[i]] / first[source[i]]);
        return Number.isFinite(change) ? change : NaN;
      }, "log10 of target's over source's density", "difference of the logarithms of both densities");
    return {
      n, source, target, columns,
      finding: (i) => effects(i)?.finding ?? null,
      verdict: (i) => judged.get(`${source[i]}:${target[i]}`) ?? null,
      findings: distinct([...verified.values()].map((row) => row.finding)),
      verdicts: distinct([...judged.values()]),
      text: (i) => [ofSource.text(source[i]), ofTarget.text(target[i])],
    };
  };

  const distinct = (values) => [...new Set(values)].sort();

  // Return {values}, an array that is computed when it is first read.
  function lazy(n, valueOf) {
    let values = null;
    return {
      get values() {
        if (!values) {
          values = new Float32Array(n);
          for (let i = 0; i < n; i++) values[i] = valueOf(i);
        }
        return values;
      },
    };
  }

  function linkBlocks(arm, pair) {
    const n = Math.ceil(pair.source.n_features / saematch.run.block);
    return Promise.all(Array.from({ length: n }, (_, block) => saematch.load(`links/${arm}/${pair.number}/${block}`)));
  }

  // Return arrays of all links, or of each source feature's best link; ranks count from 1.
  function joined(blocks, all) {
    const most = all ? Infinity : 1;
    let n = 0;
    for (const { starts } of blocks)
      for (let place = 0; place + 1 < starts.length; place++) n += Math.min(starts[place + 1] - starts[place], most);
    const [source, target] = [new Uint32Array(n), new Uint32Array(n)];
    const [rank, weight] = [new Uint8Array(n), new Float32Array(n)];
    const score = blocks.some((block) => block.scores) ? new Float32Array(n) : null;
    let i = 0;
    for (const [number, { starts, others, weights, scores }] of blocks.entries())
      for (let place = 0; place + 1 < starts.length; place++)
        for (let entry = starts[place]; entry < Math.min(starts[place + 1], starts[place] + most); entry++, i++) {
          source[i] = number * saematch.run.block + place;
          target[i] = others[entry];
          rank[i] = entry - starts[place] + 1;
          weight[i] = weights[entry];
          if (score) score[i] = scores[entry];
        }
    return { n, source, target, rank, weight, score };
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
      row.role === "pair" && row.arm === arm && saematch.data.isOfPair(row, pair));
    return new Map(ofPair.map((row) => [`${row.source_feature}:${row.target_feature}`, row.label]));
  }
})();
