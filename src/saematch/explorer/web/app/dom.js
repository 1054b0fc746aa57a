"use strict";
// Helpers of all views: elements, tables, numbers as text, downloads.

(() => {
  // Return an element. Children are elements or text, and text is never read as HTML.
  saematch.h = (tag, attributes = {}, ...children) => {
    const svg = SVG_TAGS.has(tag);
    const element = svg ? document.createElementNS(SVG, tag) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (value === undefined || value === null || value === false) continue;
      if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else element.setAttribute(name, value === true ? "" : value);
    }
    element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
    return element;
  };
  const SVG = "http://www.w3.org/2000/svg";
  const SVG_TAGS = new Set(["svg", "g", "path", "circle", "line", "rect", "text", "title", "tspan"]);

  // Return a number as text with four digits; a dash for a missing number.
  saematch.number = (value) => {
    if (value === null || value === undefined || Number.isNaN(value)) return "–";
    if (typeof value !== "number" || Number.isInteger(value)) return String(value);
    const size = Math.abs(value);
    if (size >= 1e6 || (size < 1e-3 && size > 0)) return Number(value.toPrecision(4)).toExponential();
    return String(Number(value.toPrecision(4)));
  };

  // Return a table. `columns` is a list of {name, label, title, cell}; `cell(row)` returns an
  // element or text, by default the number in `row[name]`. Clicking on a head sorts the rows.
  // The table shows the first `limit` rows and a button for more; `setRows(rows)` replaces them.
  saematch.table = (columns, rows, caption, limit = Infinity) => {
    const { h, number } = saematch;
    const body = h("tbody");
    const state = { rows, limit, column: null, falling: true };
    const more = h("button", { type: "button", onclick: () => show(state.limit + limit) });
    const show = (n) => {
      state.limit = n;
      const { column, falling } = state;
      const sorted = column
        ? [...state.rows].sort((a, b) => compare(a[column], b[column], falling ? -1 : 1))
        : state.rows;
      body.replaceChildren(
        ...sorted.slice(0, n).map((row) =>
          h("tr", {}, columns.map((c) => {
            const value = c.cell ? c.cell(row) : number(row[c.name]);
            const isNumber = typeof row[c.name] === "number" && /^[-\d–]/.test(value.textContent ?? value);
            return h("td", { class: isNumber ? "number" : null }, value);
          })))
      );
      more.hidden = sorted.length <= n;
      more.textContent = `Show more: ${Math.min(n, sorted.length)} of ${sorted.length} rows shown`;
    };
    const sort = (column, head) => {
      state.falling = head.getAttribute("aria-sort") !== "descending";
      state.column = column.name;
      for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", state.falling ? "descending" : "ascending");
      show(limit);
    };
    const heads = columns.map((column) => {
      const head = h("th", { scope: "col", title: column.title });
      const button = h("button", { type: "button", class: "sort", onclick: () => sort(column, head) });
      button.append(column.label ?? column.name);
      head.append(button);
      return head;
    });
    show(limit);
    const element = h("div", { class: "wide", tabindex: "0", role: "group", "aria-label": caption },
      h("table", {}, h("caption", {}, caption), h("thead", {}, h("tr", {}, heads)), body), more);
    element.setRows = (next) => {
      state.rows = next;
      show(limit);
    };
    return element;
  };

  // Missing values come last in both directions.
  function compare(a, b, sign) {
    const missing = (value) => value === null || value === undefined || Number.isNaN(value);
    if (missing(a) || missing(b)) return missing(a) - missing(b);
    return sign * (typeof a === "string" ? a.localeCompare(b) : a - b);
  }

  // Return an element with the options of a select, of which `value` is chosen. `options` is a list
  // of [value, label].
  saematch.select = (name, options, value, attributes = {}) =>
    saematch.h("select", { name, ...attributes },
      options.map(([key, label]) => saematch.h("option", { value: key, selected: key === value }, label)));

  // Return a function that calls `action` after `wait` milliseconds without another call.
  saematch.debounce = (action, wait) => {
    let timer = 0;
    return () => {
      clearTimeout(timer);
      timer = setTimeout(action, wait);
    };
  };

  // Download rows as a CSV file. A spreadsheet reads no cell of text as a formula.
  saematch.downloadCsv = (name, columns, rows) => {
    const cell = (value) => {
      if (value === null || value === undefined || Number.isNaN(value)) return "";
      if (typeof value === "number") return String(value);
      const text = String(value);
      return `"${(/^[=+\-@\t\r]/.test(text) ? "'" : "") + text.replaceAll('"', '""')}"`;
    };
    const lines = [columns.map(cell).join(",")];
    for (const row of rows) lines.push(columns.map((column) => cell(row[column])).join(","));
    saematch.download(name, lines.join("\r\n") + "\r\n", "text/csv");
  };

  saematch.download = (name, text, type) => {
    const url = URL.createObjectURL(new Blob([text], { type }));
    saematch.h("a", { href: url, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(url), 1000);
  };

  // Return an address in this page: link(["feature", "default", 7, 42], {arm: "folded"}).
  saematch.link = (path, query = {}) => {
    const used = Object.entries(query).filter(([, value]) => value !== null && value !== undefined);
    const text = new URLSearchParams(used).toString();
    return `#/${path.map(encodeURIComponent).join("/")}${text ? `?${text}` : ""}`;
  };
})();
