"use strict";
// Charts by uPlot (vendor/). Each function returns an element that follows the width of its
// container and the colour scheme. A chart is an image to a screen reader: a table next to it has
// the numbers.

(() => {
  saematch.views = {};
  const charts = (saematch.charts = {});
  // Colours of series (Okabe and Ito's palette, without those too weak on either background).
  const SERIES = ["--link", "--accent", "--green", "--purple", "--muted"];
  const dark = matchMedia("(prefers-color-scheme: dark)");

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name);
  const width = (element) => Math.floor(element.clientWidth);

  // Return an element in which `create(size)` draws a uPlot; `label` says what is drawn.
  function chart(label, height, create) {
    const element = saematch.h("div", { class: "chart", role: "img", "aria-label": label });
    let plot = null;
    const draw = () => {
      plot?.destroy();
      plot = create({ width: width(element), height }, element);
    };
    const fit = () => {
      if (!width(element)) return;
      if (plot) plot.setSize({ width: width(element), height });
      else draw();
    };
    const observer = new ResizeObserver(() => {
      if (!element.isConnected) {
        observer.disconnect();
        dark.removeEventListener("change", draw);
        plot?.destroy();
      } else {
        requestAnimationFrame(fit); // in the callback itself it would be observed again
      }
    });
    observer.observe(element);
    dark.addEventListener("change", draw);
    element.redraw = () => plot && draw();
    return element;
  }

  const axis = (more) => ({
    stroke: colour("--text"), grid: { stroke: colour("--line"), width: 1 },
    ticks: { stroke: colour("--line"), width: 1 }, ...more,
  });
  const short = (plot, values) => values.map((value) => (value === null ? "" : saematch.number(value).replace(/\.0+e/, "e")));

  // Return axes, and the range and texts of an x axis with labels instead of numbers.
  function labelled(x, yLabel) {
    const numeric = x.every((value) => typeof value === "number");
    const labels = (plot, values) => values.map((value) => (Number.isInteger(value) ? (x[value] ?? "") : ""));
    return {
      positions: numeric ? x : x.map((_, place) => place),
      scales: { x: { time: false, ...(numeric ? {} : { range: [-0.5, x.length - 0.5] }) } },
      axes: [
        axis(numeric ? { values: short } : { values: labels, incrs: [1, 2, 5, 10, 20, 50] }),
        axis({ values: short, size: 60, label: yLabel, labelSize: 22 }),
      ],
    };
  }

  // Return a line chart of series [{label, values}] over x, which has labels or numbers.
  charts.line = ({ x, series, label, y, height = 280 }) =>
    chart(label, height, (size, element) => {
      const { positions, scales, axes } = labelled(x, y);
      const lines = series.map((of, place) => ({
        label: of.label, stroke: colour(SERIES[place % SERIES.length]), width: 2,
        dash: place < SERIES.length ? undefined : [6, 4], points: { show: true, size: 6 },
        value: (plot, value) => (value === null ? "" : saematch.number(value)),
      }));
      const options = {
        ...size, scales, axes,
        series: [{ label: "\u00a0", value: (plot, value) => (value === null ? "" : String(x[positions.indexOf(value)])) }, ...lines],
        legend: { show: series.length > 1 },
        cursor: { drag: { x: false, y: false } },
      };
      return new uPlot(options, [positions, ...series.map((of) => of.values)], element);
    });

  // Return a bar chart of values, with `labels`, or with `edges`: the ends of all bars, in order.
  charts.bars = ({ edges, labels, values, label }) =>
    chart(label, 160, (size, element) => {
      const { positions, scales, axes } = labelled(labels ?? edges.map(saematch.number), undefined);
      const series = [{}, {
        fill: colour("--link"), stroke: colour("--link"),
        paths: uPlot.paths.bars({ size: [0.9, 60], align: edges ? 1 : 0 }), points: { show: false },
      }];
      const options = {
        ...size, scales: { ...scales, y: { range: (plot, low, high) => [0, high || 1] } }, axes, series,
        legend: { show: false }, cursor: { show: false },
      };
      return new uPlot(options, [positions, edges ? [...values, null] : values], element);
    });

  // Return a scatter of points. xLog and yLog ask for logarithmic axes, whose values must be
  // positive. Dragging a rectangle calls onselect({x: [from, to], y: [from, to]}), a click without
  // dragging onselect(null). The element has set({points, selected, brush}): `points` and
  // `selected` are [xs, ys], `brush` has the form of onselect's argument.
  charts.scatter = ({ xLabel, yLabel, xLog, yLog, label, onselect }) => {
    let state = { points: [[], []], selected: [[], []], brush: null };
    let plot = null;
    const element = chart(label, 420, (size, parent) => {
      const options = {
        ...size, mode: 2, legend: { show: false },
        scales: {
          x: { time: false, distr: xLog ? 3 : 1, range: () => range([state.points[0], state.selected[0]], xLog) },
          y: { distr: yLog ? 3 : 1, range: () => range([state.points[1], state.selected[1]], yLog) },
        },
        axes: [axis({ values: short, label: xLabel, labelSize: 22 }),
          axis({ values: short, label: yLabel, labelSize: 22, size: 60 })],
        series: [{}, dots("--muted"), dots("--link")],
        cursor: {
          points: { show: false },
          drag: { x: true, y: true, setScale: false, uni: 0 },
        },
        hooks: { setSelect: [selected], ready: [showBrush, onClick], setSize: [showBrush] },
      };
      plot = new uPlot(options, [null, state.points, state.selected], parent);
      return plot;
    });
    const selected = ({ select, posToVal }) => {
      const [x, y] = [["left", "width", "x"], ["top", "height", "y"]].map(([from, length, scale]) =>
        [select[from], select[from] + select[length]].map((place) => posToVal(place, scale)).sort((a, b) => a - b));
      if (select.width > 2 && select.height > 2) onselect({ x, y });
    };
    const onClick = ({ over }) => {
      let start = null;
      over.addEventListener("mousedown", (event) => (start = event));
      over.addEventListener("click", (event) => {
        if (Math.hypot(event.x - start.x, event.y - start.y) < 3) onselect(null);
      });
    };
    const showBrush = (drawn) => {
      const edges = (values, scale, size) => {
        const places = values.map((value) => drawn.valToPos(value, scale)).sort((a, b) => a - b);
        const [low, high] = places.map((place) => Math.min(Math.max(place, 0), size));
        return [low, high - low];
      };
      const { clientWidth, clientHeight } = drawn.over;
      const [left, breadth] = state.brush ? edges(state.brush.x, "x", clientWidth) : [0, 0];
      const [top, height] = state.brush ? edges(state.brush.y, "y", clientHeight) : [0, 0];
      drawn.setSelect({ left, top, width: breadth, height }, false);
    };
    element.set = (next) => {
      state = next;
      if (!plot) return;
      plot.setData([null, state.points, state.selected]);
      showBrush(plot);
    };
    return element;
  };

  // Return the least and greatest value of several arrays with a margin of 3% on both sides.
  function range(arrays, log) {
    let [low, high] = [Infinity, -Infinity];
    for (const values of arrays)
      for (let i = 0; i < values.length; i++) {
        if (values[i] < low) low = values[i];
        if (values[i] > high) high = values[i];
      }
    if (low > high) return log ? [0.1, 1] : [0, 1];
    if (log) {
      const margin = Math.max((high / low) ** 0.03, 1.1);
      return [low / margin, high * margin];
    }
    const margin = (high - low) * 0.03 || Math.abs(low) * 0.1 || 1;
    return [low - margin, high + margin];
  }

  // Return a series that draws a small square for each point, darker where many overlap.
  // Canvas draws 100,000 squares slowly, so the squares are counted by pixel and drawn as an image.
  function dots(name) {
    return {
      paths: (plot, place) => {
        const [xs, ys] = plot.data[place];
        const size = Math.round((xs.length < 1000 ? 5 : 3) * devicePixelRatio);
        uPlot.orient(plot, place, (series, dataX, dataY, scaleX, scaleY, toX, toY, left, top, wide, high) => {
          const [width, height] = [Math.round(wide), Math.round(high)];
          const counts = new Uint16Array(width * height);
          for (let i = 0; i < xs.length; i++) {
            const x = Math.round(toX(xs[i], scaleX, wide, 0) - size / 2);
            const y = Math.round(toY(ys[i], scaleY, high, 0) - size / 2);
            for (let row = Math.max(y, 0); row < Math.min(y + size, height); row++)
              for (let column = Math.max(x, 0); column < Math.min(x + size, width); column++)
                counts[row * width + column]++;
          }
          const alpha = Math.min(Math.max(4000 / xs.length, 0.15), 0.9);
          const image = imageOf(counts, width, height, colour(name), alpha);
          plot.ctx.drawImage(image, left, top);
        });
        return null;
      },
    };
  }

  // Return an image of one colour, whose opacity is that of `counts` layers of `alpha`.
  function imageOf(counts, width, height, cssColour, alpha) {
    const context = new OffscreenCanvas(width, height).getContext("2d");
    context.fillStyle = cssColour; // reads back as #rrggbb
    const rgb = [1, 3, 5].map((at) => parseInt(context.fillStyle.slice(at, at + 2), 16));
    const image = context.createImageData(width, height);
    const pixels = new DataView(image.data.buffer);
    const colours = Array.from({ length: 256 }, (_, n) =>
      rgb.reduce((sum, part) => sum * 256 + part) * 256 + Math.round(255 * (1 - (1 - alpha) ** n)));
    for (let i = 0; i < counts.length; i++)
      if (counts[i]) pixels.setUint32(4 * i, colours[Math.min(counts[i], 255)]);
    context.putImageData(image, 0, 0);
    return context.canvas;
  }
})();
