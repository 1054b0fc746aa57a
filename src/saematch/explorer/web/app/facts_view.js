"use strict";
// What is known of one feature: the answer to whether it carries on, its numbers, judge's verdicts.

(() => {
  const { data, h, number, path } = saematch;

  // Return whether a feature carries on in the next column of its path, and the evidence.
  saematch.answerView = async (route) => {
    const { arm, columns, links, current } = route;
    const next = columns[current + 1], between = links[current];
    const { feature, sae } = columns[current];
    if (!between) {
      const text = path.pairsFrom(sae, arm).length
        ? `Nothing follows in the direction of this path from ${sae.name}; the pairs below go elsewhere.`
        : `Nothing follows: ${arm} matched no pair from ${sae.name}.`;
      return [h("p", {}, text), passing(route)];
    }
    if (next.feature === saematch.NONE) {
      const text = `${arm} gives feature ${feature} no partner in ${next.sae.name}.`;
      return [h("p", {}, h("b", {}, "Ends here: "), text), passing(route)];
    }
    const [entry] = between.entries;
    const source = between.best.source(next.feature);
    const { explanation, top_tokens: tokens } = next.row;
    const text = explanation ? `, “${explanation}”` : tokens ? `, top tokens ${tokens}` : "";
    return [
      h("p", { class: "verdict" }, verdict(entry.test, next)),
      h("p", {}, `Best partner in ${next.sae.name}: `,
        h("a", { href: path.address(next.sae, next.feature, { arm }) }, `feature ${next.feature}`),
        text, ` (${["score", "weight"].filter((name) => entry[name] !== undefined).map((name) =>
          `${name} ${saematch.labels.value(name, entry[name])}`).join(", ")}). `,
        source === feature ? "The link is the best in both directions."
          : `Its own best source is feature ${source}, not feature ${feature}.`),
      h("p", {}, await tested(between.pair, arm, entry)),
      passing(route),
    ];
  };

  // Return in one sentence what verify found of a link to a column.
  function verdict(test, { sae, feature }) {
    if (!test) return `Not tested: does this feature carry on in ${sae.name}?`;
    const text = { passes: `: this feature carries on in ${sae.name} as feature ${feature}.`,
      fails: `: no evidence that this feature carries on in ${sae.name}.` }[test.finding];
    return [saematch.finding(test.finding), text ?? `: unclear whether this feature carries on in ${sae.name}.`];
  }

  // Return what verify measured of a link, or how to add the test.
  async function tested(pair, arm, { from, test }) {
    if (!pair.arms[arm].verified)
      return ["This run has no evaluation verify, so the match says only which feature is the most similar. ",
        "Add it to the run's command: ", saematch.withEvaluation("verify")];
    if (!test)
      return ["The evaluation verify did not choose this feature. Ask for it in the run's command: ",
        saematch.withFeature("verify", from)];
    const mean = (await saematch.armMeans(pair)).get(arm);
    const { value } = saematch.labels;
    const random = mean ? ` (random targets, over all features: ${value("off_rate", mean.off_rate_random)})` : "";
    const control = Number.isNaN(test.floor_95) ? "no control: it needs 8 events" : `control ${value("floor_95", test.floor_95)}`;
    if (!test.n_events) return "The feature had no events: it is not active on the texts of verify.";
    return `Removing this feature switches the partner off in ${value("off_rate", test.off_rate)} of ${test.n_events} events${random}. ` +
      `Effect ${saematch.effectText(test)}, ${control}.`;
  }

  // Return how many links of the best path pass verify.
  function passing({ arm, links }) {
    const tested = links.filter(({ pair, entries }) => pair.arms[arm].verified && entries.length);
    if (!tested.length) return null;
    const count = (finding) => tested.filter(({ entries }) => entries[0].test?.finding === finding).length;
    const [passes, fails] = [count("passes"), count("fails")];
    return h("p", {}, `Links on the path: ${passes} pass, ${fails} fail, ${tested.length - passes - fails} have no finding.`);
  }

  // Return a feature's numbers and the histogram of its activations.
  saematch.factsView = async (sae, feature, row) => {
    const { long, short, value } = saematch.labels;
    const record = await data.contexts(sae, feature);
    const facts = sae.columns.filter((name) => row[name] !== undefined && !Number.isNaN(row[name]));
    const texts = [row.explanation ? ["Explanation", `${row.explanation} (${row.explainer})`] : null,
      row.top_tokens ? ["Top tokens", row.top_tokens] : null].filter(Boolean);
    if (!facts.length && !texts.length) return h("p", {}, "The run wrote no numbers of single features.");
    return [
      h("dl", { class: "numbers" },
        texts.map(([name, text]) => h("div", { class: "long" }, h("dt", {}, name), h("dd", {}, text))),
        facts.map((name) => h("div", { title: long(name) }, h("dt", {}, short(name)), h("dd", {}, value(name, row[name]))))),
      record ? histogram(record.histogram, row.max_activation) : null,
    ];
  };

  // Return the histogram of a feature's activations: bins of equal width from 0 to the largest.
  function histogram(values, most) {
    const edge = (i) => number(Number(((most * i) / values.length).toPrecision(3)));
    const rows = values.map((count, i) => ({ from: Number(edge(i)), to: Number(edge(i + 1)), count }));
    const columns = [{ name: "from", label: "From" }, { name: "to", label: "To" }, { name: "count", label: "Tokens" }];
    const label = "Tokens by activation, over active tokens";
    return [
      saematch.charts.bars({ labels: rows.map(({ from }) => String(from)), values, label }),
      h("details", {}, h("summary", {}, "Table of the histogram"), saematch.table(columns, rows, label)),
    ];
  }

  // Return the judge's verdicts on links with a feature at either end.
  saematch.verdictsView = async (sae, feature, arm) => {
    const table = await data.table("judgements");
    if (!table.length)
      return h("p", {}, "This run has no judge. Add one to its command, for example ", h("code", {}, "judge=overlap"));
    const isEnd = (row, side) => row[`${side}_suite`] === sae.suite && row[`${side}_layer`] === sae.layer &&
      row[`${side}_feature`] === feature;
    const rows = table.filter((row) => isEnd(row, "source") || isEnd(row, "target"));
    if (!rows.length) return h("p", {}, "The judge was not asked about this feature.");
    const end = (side) => ({ name: `${side}_explanation`, label: side === "source" ? "Source" : "Target", cell: (row) => {
      const other = data.sae(row[`${side}_suite`], row[`${side}_layer`]);
      return [h("a", { href: path.address(other, row[`${side}_feature`], { arm }) }, `${other.name}, ${row[`${side}_feature`]}`),
        h("div", { class: "text" }, row[`${side}_explanation`] ?? "no explanation")];
    } });
    return saematch.table([
      { name: "label", label: "Verdict", cell: (row) => row.label }, end("source"), end("target"),
      { name: "arm", label: "Arm", cell: (row) => row.arm }, { name: "role", label: "Asked as", cell: (row) => row.role },
      { name: "evaluation", label: "Judge's reason", cell: (row) => row.evaluation ?? "" },
    ], rows, "Judgements of links with this feature");
  };
})();
