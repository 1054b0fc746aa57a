"use strict";
// Contexts of a feature and of a feature linked with it: the same tokens with both activations.

(() => {
  const { data, h, number, path } = saematch;
  const N_PARTNERS = 5, N_SOURCES = 2; // recorded by profile, for each arm
  const LAST_CHOICE = 40;

  // Return the contexts of both ends of a link. `route` is the feature's path, `chosen` the value
  // of `with` in the address: suite, layer, number.
  saematch.contextsView = async (route, chosen) => {
    const { sae, feature } = route.columns[route.current];
    if (!saematch.run.saes.some(({ chunks }) => chunks.length)) return withoutProfile();
    const options = await choices(route, sae, feature);
    const given = chosen ? parse(chosen) : null;
    if (given && !options.some((option) => same(option, given)))
      options.push({ ...given, names: ["from the address"] });
    const body = h("div", {});
    const show = (other) => saematch.fill(body, () => both({ sae, feature }, other));
    const key = (end) => `${end.sae.suite},${end.sae.layer},${end.feature}`;
    const other = given ?? options[0] ?? null;
    const names = options.map((option) =>
      [key(option), `${option.sae.name}, feature ${option.feature} (${option.names.join(", ")})`]);
    const select = saematch.select("with", names, other && key(other), { onchange: () => {
      saematch.remember({ with: select.value });
      show(options.find((option) => key(option) === select.value));
    } });
    show(other);
    return [
      options.length ? h("p", {}, h("label", {}, "Other end of the link ", select)) : null,
      h("p", { class: "muted" }, "Shades show activations relative to the feature's largest. The largest in a context is underlined. ",
        "Not recorded: the run recorded only the best partners and sources of each arm."),
      body,
    ];
  };

  const same = (a, b) => a.sae === b.sae && a.feature === b.feature;

  function parse(text) {
    const parts = text.split(",");
    const feature = Number(parts.pop());
    const sae = data.sae(parts.slice(0, -1).join(","), parts.at(-1));
    data.checkFeature(sae, feature);
    return { sae, feature };
  }

  // Return the features linked with a feature on its path, the best partner of the chosen arm
  // first: [{sae, feature, names}]. `names` has arms and ranks.
  async function choices({ arm, links, current }, sae, feature) {
    const ends = [];
    const arms = [arm, ...saematch.run.arms.filter((other) => other !== arm)];
    for (const [between, forwards] of [[links[current], true], [links[current - 1], false]]) {
      if (!between) continue;
      const { pair } = between;
      const other = forwards ? pair.target : pair.source;
      const lists = await Promise.all(arms.map((a) => path.entries(a, pair, feature, forwards)));
      const found = new Map();
      lists.forEach((list, i) => list.slice(0, N_PARTNERS).forEach((entry, rank) =>
        found.set(entry.other, [...(found.get(entry.other) ?? []), `${arms[i]} ${rank + 1}`])));
      ends.push(...[...found].map(([f, names]) => ({ sae: other, feature: f, names })));
    }
    return ends.slice(0, LAST_CHOICE);
  }

  async function both(end, other) {
    const own = await contextList(end, other);
    const others = other ? await contextList(other, end) : null;
    return [h("h3", {}, title("Contexts", end)), own, other ? h("h3", {}, title("Contexts", other)) : null, others];
  }

  const title = (word, { sae, feature }) => `${word} of feature ${feature}, ${sae.name}`;

  // Return the contexts of a feature with the activations of another feature.
  async function contextList(end, other) {
    const record = await data.contexts(end.sae, end.feature);
    if (!record) return withoutContexts(end);
    const key = other && `${other.sae.number}:${other.feature}`;
    const scale = async ({ sae, feature }, values) =>
      (await data.feature(sae, feature)).max_activation || Math.max(...values);
    const all = record.contexts.flatMap(({ values }) => values);
    const most = await scale(end, all);
    const ofOther = key ? record.contexts.flatMap(({ partners }) => partners[key] ?? []) : [];
    const mostOther = other ? await scale(other, [0, ...ofOther]) : 1;
    const silent = other && (ofOther.length || (await isRecorded(end, other)) ? "not active here" : "not recorded");
    return h("ol", { class: "contexts" }, record.contexts.map((context) =>
      h("li", {},
        h("div", { class: "muted" }, `${context.dataset}, text ${context.text}, from token ${context.start}`),
        h("div", { class: "lines wide", tabindex: "0", role: "group", "aria-label": "Activations on the same tokens" },
          line(end, context.tokens, context.values, most),
          other ? line(other, context.tokens, context.partners[key], mostOther, silent) : null))));
  }

  // Return a line of tokens with a feature's activations as shades; the largest is underlined.
  function line({ sae, feature }, tokens, values, most, silent) {
    const peak = values && Math.max(...values);
    const name = h("div", { class: "end" }, `${sae.name}, ${feature}`, values ? null : h("i", {}, ` ${silent}`));
    return [name, h("div", { class: `tokens${values ? "" : " muted"}` }, tokens.map((token, i) => {
      const value = values?.[i] ?? 0;
      const span = h("span", { title: value ? `${number(value)} on ${JSON.stringify(token)}` : null,
        class: value > 0 && value === peak ? "peak" : null }, visible(token));
      const share = Math.min(1, value / most).toFixed(3);
      if (value > 0) span.style.backgroundColor = `rgba(var(--shade), calc(var(--shade-most) * ${share}))`;
      return span;
    }))];
  }

  const visible = (token) => token.replaceAll("\r", "").replaceAll("\n", "↵").replaceAll("\t", "⇥");

  // Return whether profile recorded the other feature in the contexts of a feature: it is among the
  // best partners or sources of an arm that is no baseline, and both SAEs read the same model.
  async function isRecorded(end, other) {
    const { config, provenance, arms } = saematch.run;
    const models = provenance.models ?? {};
    if (end.sae.suite !== other.sae.suite && (end.sae.suite in models || other.sae.suite in models)) return false;
    const matched = arms.filter((arm) => !/\.(Random|Identity)$/.test(config.arms?.[arm]?.matcher?._target_ ?? ""));
    const most = config.evaluations?.profile?.partners ?? N_PARTNERS;
    const lists = await Promise.all(saematch.run.pairs.flatMap((pair) => matched.map(async (arm) => {
      if (pair.source === end.sae && pair.target === other.sae)
        return (await data.partners(arm, pair, end.feature)).slice(0, most);
      if (pair.target === end.sae && pair.source === other.sae)
        return (await data.sources(arm, pair, end.feature)).slice(0, Math.min(N_SOURCES, most));
      return [];
    })));
    return lists.flat().some(({ feature }) => feature === other.feature);
  }

  const withoutProfile = () =>
    h("p", {}, "This run recorded no contexts. Add the evaluation profile to its command: ", saematch.withEvaluation("profile"));

  const withoutContexts = ({ sae, feature }) =>
    h("p", {}, `The run kept no contexts of feature ${feature} of ${sae.name}: it keeps those of the features that fired most. `,
      "Ask for them in the run's command: ", saematch.withFeature("profile", feature));
})();
