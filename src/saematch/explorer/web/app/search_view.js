"use strict";
// Search for features by number, or by words of explanations and top tokens, over all layers.

(() => {
  const { h, link } = saematch;
  const MOST = 100;
  const count = (n) => n.toLocaleString("en");
  let index = null; // promise of [{sae, text, starts, density}], loaded at the first search for words

  saematch.views.search = async ({ query }) => {
    const { saes } = saematch.run;
    const results = h("div", { "aria-live": "polite" });
    const suites = [...new Set(saes.map((sae) => sae.suite))];
    const layers = [...new Set(saes.map((sae) => String(sae.layer)))];
    const any = (text, values) => [["", text], ...values.map((value) => [value, value])];
    const form = h("form", { class: "controls" },
      h("label", {}, "Search ", h("input", { type: "search", name: "q", value: query.get("q"), size: 40 })),
      suites.length > 1 && h("label", {}, "Suite ", saematch.select("suite", any("all", suites), query.get("suite") ?? "")),
      layers.length > 1 && h("label", {}, "Layer ", saematch.select("layer", any("all", layers), query.get("layer") ?? "")));
    const search = () => {
      const asked = Object.fromEntries([...new FormData(form)].map(([name, value]) => [name, value.trim() || null]));
      saematch.remember(asked);
      show(results, asked);
    };
    form.addEventListener("input", saematch.debounce(search, 150));
    form.addEventListener("submit", (event) => event.preventDefault());
    show(results, Object.fromEntries(query));
    return [
      h("h1", {}, "Search"), form,
      h("p", { class: "muted" }, "By number: 42 in all layers, 7/42 for feature 42 of layer 7, wide/7/42 in the suite wide. ", searched()),
      results,
    ];
  };

  // Return a sentence on the texts that a search for words reads.
  function searched() {
    const labels = new Set(saematch.run.saes.flatMap((sae) => sae.labels));
    const texts = [labels.has("explanation") && "explanations", labels.has("top_tokens") && "top tokens"].filter(Boolean);
    return texts.length
      ? `By words: a search reads ${texts.join(" and ")}. It cannot find features without them by words.`
      : "This run has neither explanations nor top tokens, so it has no search by words.";
  }

  async function show(results, { q, suite, layer }) {
    const number = (results.number = (results.number ?? 0) + 1);
    const saes = saematch.run.saes.filter((sae) => (!suite || sae.suite === suite) && (!layer || String(sae.layer) === layer));
    if (!q) return results.replaceChildren();
    const parts = /^(?:(?:([^/]+)\/)?(\d+)\/)?(\d+)$/.exec(q);
    if (parts) return results.replaceChildren(...byNumber(saes, parts));
    if (!index) index = load(results);
    const entries = await index;
    if (number !== results.number) return; // a newer search is running
    const words = q.toLowerCase().split(/\s+/).filter(Boolean);
    const start = performance.now();
    const found = find(entries.filter(({ sae }) => saes.includes(sae)), words);
    results.dataset.milliseconds = (performance.now() - start).toFixed(1);
    results.replaceChildren(...byWords(found, words));
  }

  function byNumber(saes, [, suite, layer, feature]) {
    const hits = saes.filter((sae) =>
      (!suite || sae.suite === suite) && (!layer || String(sae.layer) === layer) && Number(feature) < sae.n_features);
    if (!hits.length) return [h("p", {}, "No SAE of this run has this feature.")];
    return [h("ul", {}, hits.map((sae) => h("li", {},
      h("a", { href: link(["feature", sae.suite, sae.layer, Number(feature)]) }, `feature ${Number(feature)} of ${sae.name}`))))];
  }

  // Load the features of all SAEs and return their texts, in lower case.
  async function load(results) {
    const { saes } = saematch.run;
    const bar = h("progress", { max: saes.length, value: 0 });
    results.replaceChildren(h("p", {}, h("label", {}, `Loading the features of ${saes.length} SAEs … `, bar)));
    const entries = [];
    for (const sae of saes) {
      entries.push(entryOf(sae, await saematch.data.featureBlocks(sae)));
      bar.value = entries.length;
    }
    return entries;
  }

  // Return an SAE's entry: one string for all its features, and where each feature's part starts.
  // A single long string is searched much faster than many short ones.
  function entryOf(sae, blocks) {
    const texts = [];
    const density = new Float32Array(sae.n_features);
    for (const { start, parts } of blocks) {
      if (parts.density) density.set(parts.density, start);
      const n = Math.min(saematch.run.block, sae.n_features - start);
      for (let i = 0; i < n; i++)
        texts.push(`${parts.explanation?.[i] ?? ""}\n${parts.top_tokens?.[i] ?? ""}\n`.toLowerCase());
    }
    const starts = new Uint32Array(texts.length + 1);
    for (const [feature, text] of texts.entries()) starts[feature + 1] = starts[feature] + text.length;
    return { sae, text: texts.join(""), starts, density };
  }

  // Return {n, best}: the number of features whose texts have all words, and the most relevant.
  // Features with more whole words come first, then those whose texts begin with them: the first
  // tokens of a feature have the largest shares, and explanations come before top tokens.
  function find(entries, words) {
    const best = [];
    const [longest, ...others] = [...words].sort((a, b) => b.length - a.length);
    let n = 0;
    for (const { sae, text, starts, density } of entries) {
      let feature = 0;
      for (let at = text.indexOf(longest); at >= 0; at = text.indexOf(longest, starts[feature + 1])) {
        while (starts[feature + 1] <= at) feature++;
        const ofFeature = text.slice(starts[feature], starts[feature + 1]);
        if (!others.every((word) => ofFeature.includes(word))) continue;
        n++;
        const least = best.length < MOST ? -1 : best[MOST - 1].relevance;
        const earliness = 1 / (2 + at - starts[feature]);
        if (words.length + earliness <= least) continue;
        const relevance = words.filter((word) => hasWhole(ofFeature, word)).length + earliness;
        if (relevance <= least) continue;
        const place = best.findIndex((other) => other.relevance < relevance);
        best.splice(place < 0 ? best.length : place, 0, { sae, feature, density: density[feature], relevance });
        best.length = Math.min(best.length, MOST);
      }
    }
    return { n, best };
  }

  function hasWhole(text, word) {
    for (let at = text.indexOf(word); at >= 0; at = text.indexOf(word, at + 1))
      if (!isLetter(text, at - 1) && !isLetter(text, at + word.length)) return true;
    return false;
  }

  // Return whether a lower-case text has a letter, digit or underscore at a place.
  function isLetter(text, at) {
    const code = text.charCodeAt(at); // NaN beyond the ends
    if (code > 127) return /[\p{L}\p{N}]/u.test(text[at]);
    return (code >= 97 && code <= 122) || (code >= 48 && code <= 57) || code === 95;
  }

  function byWords({ n, best }, words) {
    if (!n) return [h("p", {}, "No explanation and no top tokens have these words.")];
    const columns = [
      { name: "layer", cell: (row) => row.sae.name },
      { name: "feature", cell: (row) => h("a", { href: link(["feature", row.sae.suite, row.sae.layer, row.feature]) }, String(row.feature)) },
      { name: "text", label: "explanation and top tokens", cell: (row) => row.text },
      { name: "density" },
    ];
    const rows = best.map((row) => ({ ...row, layer: row.sae.number, text: texts(row, words) }));
    return [saematch.table(columns, rows, `${count(best.length)} of ${count(n)} features shown, the most relevant first`)];
  }

  // Return the texts of a feature with marked words; they are filled in when the block is there.
  function texts({ sae, feature }, words) {
    const cell = h("span");
    saematch.data.feature(sae, feature).then(({ explanation, top_tokens: tokens }) =>
      cell.append(...marked(explanation ?? "", words), tokens ? h("div", { class: "muted" }, marked(tokens, words)) : ""));
    return cell;
  }

  // Return a text as a list of strings and <mark> elements.
  function marked(text, words) {
    const escaped = words.map((word) => word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
    const pieces = text.split(new RegExp(`(${escaped.join("|")})`, "giu"));
    return pieces.map((piece, place) => (place % 2 ? h("mark", {}, piece) : piece));
  }
})();
