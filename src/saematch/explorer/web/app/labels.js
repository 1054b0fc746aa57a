"use strict";
// Labels of the numbers of features and links, and the settings that add what a run lacks.

(() => {
  const LABELS = {
    score: ["Score", "similarity of the two features by the arm's objective; each arm has its own scale"],
    weight: ["Weight", "factor that turns the source's activation into a prediction of the target's activation"],
    off_rate: ["Off rate", "share of events in which removing the source feature switches off the partner"],
    effect: ["Effect", "mean relative fall of the partner's activation when the source feature is removed, -1 to 1"],
    effect_low: ["Effect, low", "lower end of the effect's interval over texts"],
    effect_high: ["Effect, high", "upper end of the effect's interval over texts"],
    floor_95: ["Control", "95th percentile of the feature's effects on targets that are as active as the partner"],
    n_events: ["Events", "number of tokens on which the source feature was removed"],
    n_active: ["Active tokens", "number of tokens on which the feature is active"],
    finding: ["Finding", "passes: the effect's interval lies above the control; a finding needs 8 events"],
    density: ["Density", "share of tokens on which the feature is active"],
    mean_activation: ["Mean activation", "mean over the tokens on which the feature is active"],
    max_activation: ["Largest activation", "largest activation on the run's texts"],
    threshold: ["Threshold", "activations below it are set to 0"],
    norm_W_enc: ["Encoder norm", "L2 norm of the feature's encoder vector"],
    norm_W_dec: ["Decoder norm", "L2 norm of the feature's decoder vector"],
    b_enc: ["Encoder bias", "added before the activation function"],
  };

  const textSet = (name) => (name.startsWith("density_") && name !== "density_change" ? name.slice("density_".length) : null);

  saematch.labels = {
    // Return a label of a few words.
    short: (name) => LABELS[name]?.[0] ?? (textSet(name) ? `Density in ${textSet(name)}` : name),
    // Return a sentence that explains a number.
    long: (name) => LABELS[name]?.[1] ?? (textSet(name) ? `share of the tokens of ${textSet(name)}` : name),
    // Return the value of a number as text: shares as percentages, others with three digits.
    value: (name, value) => (isShare(name) ? percent(value) : saematch.number(rounded(value))),
  };

  // Return whether a number of a feature, or of an end of a link, is a share.
  const isShare = (name) => /(^|\.)(off_rate|density)($|_(low|high|random)$)/.test(name) || textSet(name.split(".").at(-1)) !== null;
  const rounded = (value) => (typeof value === "number" && Math.abs(value) < 1000 ? Number(value.toPrecision(3)) : value);
  const percent = (share) =>
    share === null || share === undefined || Number.isNaN(share) ? "–" : `${saematch.number(rounded(100 * share))}%`;

  // Return the setting that adds an evaluation to the run's command.
  saematch.withEvaluation = (name) =>
    saematch.h("code", {}, `evaluations=[${[...Object.keys(saematch.run.config.evaluations ?? {}), name].join(",")}]`);

  // Return the setting that asks an evaluation of the run for a feature.
  saematch.withFeature = (evaluation, feature) => {
    const features = saematch.run.config.evaluations?.[evaluation]?.features ?? [];
    return saematch.h("code", {}, `evaluations.${evaluation}.features=[${[...features, feature].join(",")}]`);
  };

  // Return a finding of verify with a mark, so that it can be told apart without colour.
  saematch.finding = (text) => {
    if (text === undefined || text === null) return "–";
    const mark = { passes: "✓ ", fails: "✗ " }[text] ?? "";
    return saematch.h("span", { class: `finding ${mark ? text : "open"}` }, mark + text);
  };
})();
