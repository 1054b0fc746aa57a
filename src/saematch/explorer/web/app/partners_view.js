"use strict";
// Partners or sources of a feature in a pair of SAEs, under each arm side by side.

(() => {
  const { data, h, path } = saematch;
  const N_FIRST = 3; // ranks shown before the button for more

  // Return the pairs of an SAE as sections. `first`, the pair of the path, is open, by default the
  // first pair; others load when they are opened.
  saematch.partnersView = (sae, feature, arm, first) => {
    const from = data.pairsFrom(sae), to = data.pairsTo(sae);
    const open = first ?? from[0] ?? to[0];
    const fold = (pair, forwards) => {
      const body = h("div", {});
      const name = forwards ? `Partners in ${pair.target.name}` : `Sources in ${pair.source.name}`;
      const details = h("details", {}, h("summary", {}, name), body);
      const load = () => saematch.fill(body, () => pairTable(pair, feature, forwards, arm));
      details.addEventListener("toggle", load, { once: true });
      details.open = pair === open;
      return details;
    };
    if (!from.length && !to.length) return h("p", {}, `No pair of this run contains ${sae.name}.`);
    return [
      h("p", { class: "muted" }, "A letter marks a feature that several arms name. ",
        ["score", "weight"].map((name) => `${saematch.labels.short(name)}: ${saematch.labels.long(name)}. `)),
      from.length ? from.map((pair) => fold(pair, true)) : h("p", {}, `The run has no pair from ${sae.name}.`),
      to.map((pair) => fold(pair, false)),
    ];
  };

  // Return the table of one pair: a group of columns for each arm, a row for each rank.
  async function pairTable(pair, feature, forwards, chosen) {
    const arms = saematch.run.arms.filter((arm) => pair.arms[arm]);
    const other = forwards ? pair.target : pair.source;
    const lists = await Promise.all(arms.map((arm) => path.entries(arm, pair, feature, forwards)));
    const features = [...new Set(lists.flat().map((entry) => entry.other))];
    const rows = new Map(await Promise.all(features.map(async (f) => [f, await data.feature(other, f)])));
    const mark = marks(arms, lists);
    const n = Math.max(1, ...lists.map((list) => list.length));
    const widths = arms.map((arm) => (pair.arms[arm].scored ? 3 : 2));
    const value = (entry, name) => h("td", { class: "number" }, saematch.labels.value(name, entry[name]));
    const cells = (entry, rank, width) => entry
      ? [partner(entry.other, rows.get(entry.other)), width === 3 ? value(entry, "score") : null, value(entry, "weight")]
      : h("td", { colspan: width, class: "partner muted" }, rank === 0 ? `no ${forwards ? "partner" : "source"}` : "");
    const partner = (f, row) => h("td", { class: "partner" },
      h("a", { href: path.address(other, f, { arm: chosen }) }, String(f)), " ", mark(f),
      h("div", { class: "text" }, path.describe(row) ?? ""));
    const caption = `${forwards ? "Partners" : "Sources"} of feature ${feature} in ${other.name}, the best first`;
    const ranks = Array.from({ length: n }, (_, rank) => h("tr", { hidden: rank >= N_FIRST },
      h("th", { scope: "row" }, String(rank + 1)), lists.map((list, i) => cells(list[rank], rank, widths[i]))));
    const all = h("button", { type: "button", hidden: n <= N_FIRST, onclick: () => {
      for (const row of ranks) row.hidden = false;
      all.hidden = true;
    } }, `Show all ${n} ranks`);
    return h("div", { class: "wide", tabindex: "0", role: "group", "aria-label": caption },
      h("table", { class: "arms" }, h("caption", {}, caption),
        h("thead", {},
          h("tr", {}, h("td"), arms.map((arm, i) => h("th", { scope: "colgroup", colspan: widths[i] }, arm))),
          h("tr", {}, h("th", { scope: "col" }, "Rank"), widths.map((width) =>
            [h("th", { scope: "col" }, "Feature"), ...(width === 3 ? ["score", "weight"] : ["weight"]).map((name) =>
              h("th", { scope: "col", title: saematch.labels.long(name) }, saematch.labels.short(name)))]))),
        h("tbody", {}, ranks),
        await evidence(pair, arms, lists, widths)), all);
  }

  // Return a function from a feature to its mark: a letter if several arms name the feature.
  function marks(arms, lists) {
    const naming = new Map();
    lists.forEach((list, i) => list.forEach(({ other }, rank) =>
      naming.set(other, [...(naming.get(other) ?? []), `${arms[i]} (rank ${rank + 1})`])));
    const shared = [...naming].filter(([, names]) => names.length > 1).map(([feature]) => feature);
    return (feature) => {
      const place = shared.indexOf(feature);
      if (place < 0) return null;
      return h("span", { class: `mark mark-${place % 6}`, title: `Named by ${naming.get(feature).join(", ")}` },
        String.fromCharCode(65 + (place % 26)));
    };
  }

  // Return the results of verify for each arm's best link, and the arm's mean over all features.
  async function evidence(pair, arms, lists, widths) {
    if (!arms.some((arm) => pair.arms[arm].verified)) return null;
    const tests = lists.map(([best]) => best?.test);
    const row = (label, title, cell) => h("tr", {}, h("th", { scope: "row", title }, label),
      tests.map((test, i) => h("td", { colspan: widths[i] }, cell(test, i))));
    const { long, short } = saematch.labels;
    const plain = (name) => row(short(name), long(name), (test) => saematch.labels.value(name, test?.[name]));
    const means = await saematch.armMeans(pair);
    return h("tfoot", {},
      h("tr", {}, h("th", { colspan: widths.reduce((sum, width) => sum + width, 1) }, "Test by verify: each arm's best link")),
      row(short("finding"), long("finding"), (test) => saematch.finding(test?.finding ?? "not tested")),
      plain("off_rate"),
      row(short("effect"), long("effect"), saematch.effectText),
      plain("floor_95"), plain("n_events"),
      row("All features", "mean off rate over all tested features with its interval, and that of random targets",
        (_, i) => meanText(means.get(arms[i]))));
  }

  const percent = (share) => saematch.labels.value("off_rate", share);
  const meanText = (mean) => (mean
    ? `off rate ${percent(mean.off_rate)} [${percent(mean.off_rate_low)}, ${percent(mean.off_rate_high)}], ` +
      `of random targets ${percent(mean.off_rate_random)}` : "–");

  // Return the effect of a tested link with its interval.
  saematch.effectText = (test) => {
    if (!test) return "–";
    const [effect, low, high] = ["effect", "effect_low", "effect_high"].map((name) => saematch.labels.value(name, test[name]));
    return `${effect} [${low}, ${high}]`;
  };

  // Return a Map from each arm to its row in the table verify: best partner, feature removed.
  saematch.armMeans = async (pair) => {
    const rows = (await data.table("verify")).filter((row) =>
      row.sampling === "feature" && row.edit === "remove" && row.k === 1 && data.isOfPair(row, pair));
    return new Map(rows.map((row) => [row.arm, row]));
  };
})();
