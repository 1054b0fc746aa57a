"use strict";
// Shows the view of the address after #. Views are async functions: address -> elements.

(() => {
  const { h, link } = saematch;
  const main = document.querySelector("main");
  let shown = 0;

  // Address of the page: {path: ["feature", "default", "7", "42"], query: URLSearchParams}.
  function address() {
    const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
    return { path: path.split("/").filter(Boolean).map(decodeURIComponent), query: new URLSearchParams(query) };
  }

  async function show() {
    const number = ++shown;
    main.setAttribute("aria-busy", "true");
    let content;
    try {
      const { path, query } = address(); // may be a damaged address, such as #/%
      const view = saematch.views[path[0] ?? "run"];
      if (!view) throw new Error(`This page has no address #/${path.join("/")}`);
      content = await view({ path: path.slice(1), query });
    } catch (error) {
      content = [h("h1", {}, "Not found"), h("p", { class: "bad", role: "alert" }, error.message)];
    }
    if (number !== shown) return; // another address was opened in the meantime
    main.replaceChildren(...[content].flat(Infinity).filter(Boolean));
    main.removeAttribute("aria-busy");
    document.title = `${main.querySelector("h1")?.textContent ?? "saematch"} · saematch`;
    main.dispatchEvent(new CustomEvent("shown", { bubbles: true }));
  }

  // Change values of the address's query without a new view, such as a selection in a chart.
  saematch.remember = (values) => {
    const { path, query } = address();
    for (const [name, value] of Object.entries(values))
      if (value === null || value === undefined) query.delete(name);
      else query.set(name, value);
    history.replaceState(null, "", link(path, Object.fromEntries(query)));
  };

  async function start() {
    try {
      await saematch.data.open();
    } catch (error) {
      main.replaceChildren(h("p", { class: "bad", role: "alert" }, error.message));
      return;
    }
    document.querySelector("nav").replaceChildren(
      h("a", { href: "#/" }, saematch.run.name),
      h("a", { href: "#/pair" }, "Pairs"),
      h("a", { href: "#/tables" }, "Tables"));
    document.querySelector("form[role=search]").addEventListener("submit", (event) => {
      event.preventDefault();
      location.hash = link(["search"], { q: new FormData(event.target).get("q") });
    });
    addEventListener("hashchange", async () => {
      if (location.hash === "#main") return;
      await show();
      scrollTo(0, 0);
      main.focus({ preventScroll: true });
    });
    await show();
  }

  start();
})();
