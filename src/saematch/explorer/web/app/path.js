"use strict";
// The path of a feature through the layers: the best sources backwards, the best partners forwards.

(() => {
  const { data, link } = saematch;
  const path = (saematch.path = {});
  const MOST = 5; // partners or sources in a column: the best and up to four alternatives

  // Return the address of a feature.
  path.address = (sae, feature, query) => link(["feature", sae.suite, String(sae.layer), String(feature)], query);

  // Return a feature's explanation, else its top tokens; null without both.
  path.describe = (row) => row?.explanation ?? row?.top_tokens ?? null;

  const distance = (pair) => pair.target.layer - pair.source.layer;

  // Return the pairs that an arm matched, the one to follow first: within the suite the pair over
  // `step` layers, then the smallest positive distance; other pairs in the run's order.
  function inOrder(pairs, arm, step = 1) {
    const place = (pair) => {
      if (pair.source.suite !== pair.target.suite || distance(pair) <= 0) return Infinity;
      return distance(pair) === step ? 0 : distance(pair);
    };
    const matched = pairs.filter((pair) => pair.arms[arm]);
    return matched.sort((a, b) => (place(a) === place(b) ? 0 : place(a) - place(b)));
  }
  path.pairsFrom = (sae, arm, step) => inOrder(data.pairsFrom(sae), arm, step);
  path.pairsTo = (sae, arm, step) => inOrder(data.pairsTo(sae), arm, step);

  // Return the pair that a path takes from an SAE, by the rule of Paths.next_pair in paths.py: upward
  // pairs within the suite; only if the arm has none in it, downward ones; else pairs of two suites.
  const kind = ({ source, target }) => (source.suite !== target.suite ? 2 : target.layer > source.layer ? 0 : 1);
  function next(pairs, sae, arm, step, seen, side) {
    const ofSuite = saematch.run.pairs.filter((pair) =>
      pair.arms[arm] && (pair.source.suite === sae.suite || pair.target.suite === sae.suite));
    const least = Math.min(...ofSuite.map(kind));
    const order = (pair) => (distance(pair) === step ? 0 : Math.abs(distance(pair)));
    return pairs.filter((pair) => pair.arms[arm] && kind(pair) === least && !seen.has(pair[side]))
      .sort((a, b) => order(a) - order(b))[0];
  }

  // Return the pairs of a path through an SAE: {backward, forward}, each starting at the SAE.
  // `first` is the pair to follow from the SAE; later pairs span as many layers if there are such.
  function route(sae, arm, first) {
    const step = first && first.source.suite === first.target.suite ? distance(first) : 1;
    const seen = new Set([sae]);
    const follow = (pairsOf, side, start) => {
      const pairs = [];
      let pair = start ?? next(pairsOf(sae), sae, arm, step, seen, side);
      while (pair) {
        seen.add(pair[side]);
        pairs.push(pair);
        pair = next(pairsOf(pair[side]), pair[side], arm, step, seen, side);
      }
      return pairs;
    };
    return { forward: follow(data.pairsFrom, "target", first), backward: follow(data.pairsTo, "source") };
  }

  // Return the best path: {arm, columns, links, current}. A column is {sae, feature}; a path that
  // ends has the feature NONE in its outer column. `links[i]` is between columns i and i + 1:
  // {pair, best}. `current` is the number of the column of the feature itself.
  path.best = async (sae, feature, arm, first) => {
    const { backward, forward } = route(sae, arm, first);
    const load = (pairs) => Promise.all(pairs.map(async (pair) => ({ pair, best: await data.best(arm, pair) })));
    const [before, after] = await Promise.all([load(backward), load(forward)]);
    const follow = (links, side, lookUp) => {
      const columns = [];
      for (const { pair, best } of links) {
        const last = columns.length ? columns.at(-1).feature : feature;
        if (last === saematch.NONE) break;
        columns.push({ sae: pair[side], feature: best[lookUp](last) });
      }
      return columns;
    };
    const left = follow(before, "source", "source").reverse();
    const right = follow(after, "target", "partner");
    const links = [...before.slice(0, left.length).reverse(), ...after.slice(0, right.length)];
    return { arm, columns: [...left, { sae, feature }, ...right], links, current: left.length };
  };

  // Return the result of verify for the link between two features; null if it was not tested.
  path.tested = async (arm, pair, from, to) => {
    const [{ partner }, row] = await Promise.all([data.best(arm, pair), data.verifiedFeature(arm, pair, from)]);
    return row && partner(from) === to ? row : null;
  };

  // Return the partners, or the sources, of a feature in a pair, best first: [{from, to, other,
  // weight, score, test}]. `other` is the number of the feature at the other end, `test` the result
  // of verify.
  path.entries = async (arm, pair, feature, forwards) => {
    const list = await (forwards ? data.partners : data.sources)(arm, pair, feature);
    return Promise.all(list.map(async ({ feature: other, weight, score }) => {
      const [from, to] = forwards ? [feature, other] : [other, feature];
      return { from, to, other, weight, score, test: await path.tested(arm, pair, from, to) };
    }));
  };

  // Add to each link of a path its `entries`, the best first, and to each column its `row`: the
  // feature's numbers and texts.
  path.complete = async ({ arm, columns, links, current }) => {
    await Promise.all([
      ...links.map(async (between, i) => {
        const forwards = i >= current;
        const near = columns[forwards ? i : i + 1].feature;
        between.entries = (await path.entries(arm, between.pair, near, forwards)).slice(0, MOST);
      }),
      ...columns.map(async (column) => {
        if (column.feature !== saematch.NONE) column.row = await data.feature(column.sae, column.feature);
      }),
    ]);
  };
})();
