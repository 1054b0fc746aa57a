"use strict";
// The view of one feature: #/feature/<suite>/<layer>/<number>?arm=...&to=<suite>,<layer>&with=...

(() => {
  const { data, h, path } = saematch;
  const MARKS = ["feature opened", "feature shown", "feature complete"]; // of performance.mark
  let keys = {}; // addresses by key, of the feature that is shown

  saematch.views.feature = async ({ path: [suite, layer, text], query }) => {
    MARKS.forEach((name) => performance.clearMarks(name));
    performance.mark("feature opened");
    if (text === undefined) throw new Error("The address of a feature has suite, layer and number: #/feature/default/7/42");
    const sae = data.sae(suite, layer);
    const feature = /^\d+$/.test(text) ? Number(text) : -1;
    data.checkFeature(sae, feature);
    const arm = armOf(query.get("arm"));
    const first = path.pairsFrom(sae, arm).find((pair) => endName(pair.target) === query.get("to"));
    const [route, row] = await Promise.all([path.best(sae, feature, arm, first), data.feature(sae, feature)]);
    keys = addresses(route, first);
    route.columns[route.current].row = row;
    const picture = saematch.pathPicture(route);
    const page = sections(route, row, picture, query.get("with"));
    document.addEventListener("shown", () => {
      if (!picture.scroller.isConnected) return; // another address was opened in the meantime
      picture.centre();
      performance.mark("feature shown");
      page.load();
    }, { once: true });
    return [head(route, row), page.elements];
  };

  // Load the best links in the background, so that the first feature of an arm is fast too.
  document.addEventListener("shown", async () => {
    for (const arm of saematch.run.arms)
      for (const sae of saematch.run.saes) {
        const [pair] = path.pairsFrom(sae, arm);
        if (pair) await data.best(arm, pair).catch(() => null); // the view of a feature shows the error
      }
  }, { once: true });

  // Fill an element with content that is loaded; an error is shown in its place.
  saematch.fill = async (body, load) => {
    body.replaceChildren(h("p", { class: "muted" }, "Loading …"));
    try {
      body.replaceChildren(...[await load()].flat(Infinity).filter((child) => child !== null && child !== undefined));
    } catch (error) {
      body.replaceChildren(h("p", { class: "bad", role: "alert" }, error.message));
    }
  };

  const endName = (sae) => `${sae.suite},${sae.layer}`;

  function armOf(name) {
    const { arms } = saematch.run;
    if (name !== null && !arms.includes(name)) throw new Error(`This run has no arm ${name}: it has ${arms.join(", ")}`);
    return name ?? arms[0];
  }

  // Return the addresses that keys open.
  function addresses({ arm, columns, current }, first) {
    const { sae, feature } = columns[current];
    const to = first && endName(first.target);
    const at = (column) => column && column.feature !== saematch.NONE ? path.address(column.sae, column.feature, { arm }) : null;
    return {
      k: feature > 0 ? path.address(sae, feature - 1, { arm, to }) : null,
      j: feature + 1 < sae.n_features ? path.address(sae, feature + 1, { arm, to }) : null,
      ArrowLeft: at(columns[current - 1]),
      ArrowRight: at(columns[current + 1]),
    };
  }

  document.addEventListener("keydown", (event) => {
    const { target, key } = event;
    if (event.ctrlKey || event.metaKey || event.altKey || target.matches?.("input, select, textarea")) return;
    if (key.startsWith("Arrow") && target.matches?.(".wide")) return; // arrows scroll it
    if (key === "/") document.querySelector("form[role=search] input").focus();
    else if (location.hash.startsWith("#/feature/") && keys[key]) location.hash = keys[key];
    else return;
    event.preventDefault();
  });

  function head({ arm, columns, links, current }, row) {
    const { sae, feature } = columns[current];
    const open = (query) => { location.hash = path.address(sae, feature, { arm, ...query }); };
    const step = (key, text, title) =>
      h("a", { href: keys[key], class: "step", title, "aria-disabled": keys[key] ? null : "true" }, text);
    const pairs = path.pairsFrom(sae, arm);
    const followed = links[current]?.pair;
    const neuronpedia = neuronpediaAddress(sae, feature);
    return [
      h("h1", {}, `Feature ${feature}, ${sae.name}`),
      h("p", { class: "explanation" }, path.describe(row) ?? "No explanation and no top tokens.", " ",
        h("span", { class: "muted" },
          row.explanation ? `(explained by ${row.explainer})` : row.top_tokens ? "(top tokens)" : "")),
      h("div", { class: "steps" },
        h("nav", { "aria-label": "Neighbouring features" },
          step("ArrowLeft", "← best source", "Best source in the previous column (key ←)"),
          step("ArrowRight", "best partner →", "Best partner in the next column (key →)"),
          step("k", "previous feature", "Previous feature of this SAE (key k)"),
          step("j", "next feature", "Next feature of this SAE (key j)"),
          neuronpedia ? h("a", { href: neuronpedia, rel: "noreferrer" }, "Neuronpedia") : null),
        h("label", {}, "Arm ", saematch.select("arm", saematch.run.arms.map((name) => [name, name]), arm,
          { onchange: ({ target }) => open({ arm: target.value }) })),
        pairs.length > (followed ? 1 : 0) ? h("label", {}, "Follow to ", saematch.select("to",
          [...(followed ? [] : [["", "–"]]), ...pairs.map(({ target }) => [endName(target), target.name])],
          followed ? endName(followed.target) : "", { onchange: ({ target }) => open({ to: target.value || null }) })) : null,
        h("span", { class: "muted keys" }, "Keys: ← best source, → best partner, k previous, j next, / search")),
    ];
  }

  // Return the feature's address on Neuronpedia; null if its SAE has no id there.
  function neuronpediaAddress(sae, feature) {
    const name = sae.suite === "default" ? String(sae.layer) : `${sae.suite}/${sae.layer}`;
    const id = saematch.run.provenance.saes?.[name]?.neuronpedia_id;
    return id ? `https://www.neuronpedia.org/${[...id.split("/"), feature].map(encodeURIComponent).join("/")}` : null;
  }

  // Return the elements below the head, and a function that loads what they show.
  function sections(route, row, picture, other) {
    const { sae, feature } = route.columns[route.current];
    const part = (title, load) => {
      const body = h("div", {});
      return { element: h("section", { "aria-label": title }, h("h2", {}, title), body), body, load };
    };
    const table = h("div", {}), answer = h("div", { class: "answer" }, h("p", { class: "muted" }, "Loading …"));
    const parts = [
      part("Contexts", () => saematch.contextsView(route, other)),
      part("Partners under each arm",
        () => saematch.partnersView(sae, feature, route.arm, route.links[route.current]?.pair)),
      part("Numbers of this feature", () => saematch.factsView(sae, feature, row)),
      part("Verdicts of the judge", () => saematch.verdictsView(sae, feature, route.arm)),
    ];
    const load = async () => {
      for (const { body, load } of parts) saematch.fill(body, load);
      await saematch.fill(table, async () => {
        await path.complete(route);
        picture.draw();
        const ends = h("p", { class: "muted" }, saematch.pathEnds(route));
        return [saematch.pathLegend(route), ends, saematch.pathTable(route)];
      });
      await saematch.fill(answer, () => saematch.answerView(route));
      performance.mark("feature complete");
    };
    const pathSection = h("section", { "aria-label": "Path" },
      h("h2", {}, `Path through the layers under ${route.arm}`), picture.scroller, table);
    return { elements: [answer, pathSection, parts.map(({ element }) => element)], load };
  }
})();
