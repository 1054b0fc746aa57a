"use strict";
// The run's data by SAE, pair, arm and feature. All functions that load a file return promises.

(() => {
  const data = (saematch.data = {});

  // Load the facts of the run, which all other functions need: saematch.run.
  data.open = async () => {
    saematch.run = await saematch.load("run");
    if (saematch.run.schema !== 1)
      throw new Error("Another version of saematch wrote this page: make it again with saematch show");
    saematch.run.saes.forEach((sae, number) => Object.assign(sae, { number, name: saeName(sae) }));
    saematch.run.pairs.forEach((pair, number) => {
      pair.number = number;
      pair.source = saematch.run.saes[pair.source];
      pair.target = saematch.run.saes[pair.target];
      pair.name = `${pair.source.name} → ${pair.target.name}`;
    });
  };

  const saeName = (sae) => (sae.suite === "default" ? `layer ${sae.layer}` : `layer ${sae.layer} of ${sae.suite}`);

  // Return the SAE of an address; an Error that says what exists if there is none.
  data.sae = (suite, layer) => {
    const sae = saematch.run.saes.find((sae) => sae.suite === suite && String(sae.layer) === String(layer));
    if (!sae) throw new Error(`This run has no layer ${layer} of ${suite}: it has ${saematch.run.saes.map((sae) => sae.name).join(", ")}`);
    return sae;
  };

  data.checkFeature = (sae, feature) => {
    if (!Number.isInteger(feature) || feature < 0 || feature >= sae.n_features)
      throw new Error(`The SAE of ${sae.name} has the features 0 to ${sae.n_features - 1}`);
  };

  data.pairsFrom = (sae) => saematch.run.pairs.filter((pair) => pair.source === sae);
  data.pairsTo = (sae) => saematch.run.pairs.filter((pair) => pair.target === sae);

  // Return the numbers and texts of a feature: {feature, sae, density, ..., explanation, ...}.
  data.feature = async (sae, feature) => {
    const block = Math.floor(feature / saematch.run.block);
    const parts = await saematch.load(`features/${sae.number}/${block}`);
    const row = { sae, feature };
    for (const [name, values] of Object.entries(parts)) row[name] = values[feature - block * saematch.run.block];
    return row;
  };

  // Return the arrays of all blocks of an SAE's features: [{start, parts}].
  data.featureBlocks = (sae) => {
    const { block } = saematch.run;
    const starts = Array.from({ length: Math.ceil(sae.n_features / block) }, (_, i) => i * block);
    return Promise.all(starts.map(async (start) => (
      { start, parts: await saematch.load(`features/${sae.number}/${start / block}`) })));
  };

  // Return a feature's partners in a pair, best first: [{feature, weight, score}]. `score` is
  // undefined if the match has no scores.
  data.partners = (arm, pair, feature) => links("links", arm, pair, feature);
  // Return a target feature's sources in a pair, best first.
  data.sources = (arm, pair, feature) => links("sources", arm, pair, feature);

  async function links(kind, arm, pair, feature) {
    if (!pair.arms[arm]) return [];
    const block = Math.floor(feature / saematch.run.block);
    const { starts, others, weights, scores } = await saematch.load(`${kind}/${arm}/${pair.number}/${block}`);
    const place = feature - block * saematch.run.block;
    return Array.from({ length: starts[place + 1] - starts[place] }, (_, i) => {
      const entry = starts[place] + i;
      return { feature: others[entry], weight: weights[entry], score: scores?.[entry] };
    });
  }

  // Return the best partner of every source feature and the best source of every target feature:
  // two functions from a feature to a feature, or to saematch.NONE.
  data.best = async (arm, pair) => {
    const none = () => saematch.NONE;
    if (!pair.arms[arm]) return { partner: none, source: none };
    const { partner, source } = await saematch.load(`best/${arm}/${pair.number}`);
    const lookUp = (array) => (feature) =>
      array[feature] === 2 ** (8 * array.BYTES_PER_ELEMENT) - 1 ? saematch.NONE : array[feature];
    return { partner: lookUp(partner), source: lookUp(source) };
  };

  // Return the results of verify for a pair: a Map from a source feature to {feature, off_rate,
  // effect, effect_low, effect_high, floor_95, n_events, n_active, finding}. Empty without verify.
  data.verified = async (arm, pair) => {
    if (!pair.arms[arm]?.verified) return new Map();
    const n_blocks = Math.ceil(pair.source.n_features / saematch.run.block);
    const blocks = await Promise.all(Array.from({ length: n_blocks }, (_, block) => verifiedBlock(arm, pair, block)));
    return new Map(blocks.flatMap((parts) => Array.from(parts.feature, (feature, i) => [feature, tested(parts, i)])));
  };

  // Return the row of data.verified of one feature; null if verify did not test it.
  data.verifiedFeature = async (arm, pair, feature) => {
    if (!pair.arms[arm]?.verified) return null;
    const parts = await verifiedBlock(arm, pair, Math.floor(feature / saematch.run.block));
    const i = parts.feature.indexOf(feature);
    return i < 0 ? null : tested(parts, i);
  };

  const verifiedBlock = (arm, pair, block) => saematch.load(`verify/${arm}/${pair.number}/${block}`);
  const tested = (parts, i) => Object.fromEntries(Object.keys(parts).map((name) => [name, parts[name][i]]));

  // Return {histogram, contexts} of a feature; null if the run has none for it. A context has
  // dataset, text, start, tokens, values and partners, which maps "<SAE's number>:<feature>" to the
  // partner's values. Values are activations, rounded to 1/255 of the largest one in the context.
  data.contexts = async (sae, feature) => {
    const chunk = sae.chunks.findLastIndex((first) => first <= feature);
    if (chunk < 0) return null;
    const parts = await saematch.load(`contexts/${sae.number}/${chunk}`);
    const place = parts.features.indexOf(feature);
    if (place < 0) return null;
    const n_bins = parts.histogram.length / parts.features.length;
    const histogram = Array.from(parts.histogram.subarray(place * n_bins, (place + 1) * n_bins));
    return { histogram, contexts: contexts(parts, sum(parts.n_contexts, 0, place), parts.n_contexts[place]) };
  };

  const sum = (array, start, stop) => array.subarray(start, stop).reduce((total, value) => total + value, 0);

  // Return contexts `first` to `first + n` of a file (src/saematch/explorer/contexts.py).
  function contexts(parts, first, n) {
    let token = sum(parts.n_tokens, 0, first);
    let partner = sum(parts.n_partners, 0, first);
    let value = 0;
    for (let i = 0; i < first; i++) value += parts.n_tokens[i] * parts.n_partners[i];
    const activations = (largest, shades, start, n) =>
      Array.from(shades.subarray(start, start + n), (shade) => shade * largest / 255);
    return Array.from({ length: n }, (_, i) => {
      const context = first + i;
      const n_tokens = parts.n_tokens[context];
      const tokens = Array.from(parts.tokens.subarray(token, token + n_tokens), (t) => parts.vocabulary[t]);
      const values = activations(parts.largest[context], parts.values, token, n_tokens);
      token += n_tokens;
      const partners = {};
      for (const stop = partner + parts.n_partners[context]; partner < stop; partner++) {
        partners[`${parts.partner_sae[partner]}:${parts.partner[partner]}`] =
          activations(parts.partner_largest[partner], parts.partner_values, value, n_tokens);
        value += n_tokens;
      }
      const dataset = parts.datasets[parts.dataset[context]];
      return { dataset, text: parts.text[context], start: parts.start[context], tokens, values, partners };
    });
  }

  // Return whether a row of a table is of a pair.
  data.isOfPair = (row, { source, target }) =>
    row.source_suite === source.suite && row.source_layer === source.layer &&
    row.target_suite === target.suite && row.target_layer === target.layer;

  // Return the rows of a table of the run; empty if it has no such table.
  data.table = async (name) => {
    const table = saematch.run.tables.find((table) => table.name === name);
    const parts = await Promise.all(
      Array.from({ length: table?.n_parts ?? 0 }, (_, part) => saematch.load(`tables/${name}/${part}`)));
    return parts.flatMap(({ columns }) => {
      const names = Object.keys(columns);
      return columns[names[0]].map((_, i) => Object.fromEntries(names.map((n) => [n, columns[n][i]])));
    });
  };
})();
