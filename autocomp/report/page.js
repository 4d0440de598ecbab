"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);

  // Tables sort without plotly too.
  for (const head of document.querySelectorAll("table.sortable thead th")) {
    head.querySelector("button").addEventListener("click", () => {
      const table = head.closest("table"), body = table.tBodies[0];
      const column = [...head.parentNode.children].indexOf(head);
      const numeric = head.dataset.kind === "number";
      const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      const key = (row) => {
        const cell = row.cells[column];
        if (!cell) return numeric ? NaN : "";
        if (!numeric) return cell.textContent.trim();
        return cell.dataset.sort === "" || cell.dataset.sort === undefined ? NaN : Number(cell.dataset.sort);
      };
      const rows = [...body.rows].map((row) => [key(row), row]);
      rows.sort(([a], [b]) => {
        if (!numeric) return sign * a.localeCompare(b, "en", { numeric: true });
        if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b);
        return sign * (a - b);
      });
      for (const [, row] of rows) body.append(row);
      for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", sign === 1 ? "ascending" : "descending");
    });
  }
  if (typeof Plotly === "undefined") return;

  const dark = matchMedia("(prefers-color-scheme: dark)");
  const narrow = matchMedia("(max-width: 640px)");
  const printing = matchMedia("print");
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
  const config = { responsive: true, displaylogo: false, modeBarButtons: [["zoom2d", "pan2d", "resetScale2d", "toImage"]] };
  const state = { logX: true, logY: true };

  const positive = Object.values(data.groups).flat().map((p) => p.loss).filter((v) => v > 0);
  const floor = positive.length ? Math.min(...positive) / 2 : 1e-6;
  const score = (value) => (data.percent ? 100 * value : value);

  const axis = (title, more) => Object.assign({
    title: { text: title, standoff: 10 }, gridcolor: colour("grid"), linecolor: colour("line"), zeroline: false,
    automargin: true, ticks: "outside", tickcolor: colour("line"),
  }, more);
  const layout = (more) => Object.assign({
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, color: colour("ink"), size: narrow.matches ? 12 : 13 },
    margin: { l: 60, r: 40, t: 12, b: 50 }, hovermode: "closest",
    hoverlabel: { align: "left", bgcolor: colour("card"), bordercolor: colour("line"), font: { color: colour("ink") } },
    legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, font: { size: narrow.matches ? 11 : 12 } },
    modebar: { orientation: "v", bgcolor: "rgba(0,0,0,0)", color: colour("grey"), activecolor: colour("ink") },
  }, more);
  const limit = (x, text) => ({
    shapes: [{ type: "line", x0: x, x1: x, y0: 0, y1: 1, yref: "paper", line: { color: colour("orange"), width: 1.5, dash: "dash" } }],
    text, x,
  });

  const groups = () => [
    ["infeasible", "breaks a constraint", { symbol: "x", size: 7, color: colour("grey") }],
    ["feasible", "meets the constraints", { symbol: "circle", size: 7, color: colour("blue"), opacity: 0.5 }],
    ["front", narrow.matches ? "Pareto front" : "Pareto front (hollow: breaks a constraint)", { symbol: "circle", size: 10, color: colour("blue") }],
    ["baselines", "baselines", { symbol: "diamond", size: 10, color: colour("orange") }],
    ["float32", "float32", { symbol: "square", size: 10, color: colour("ink") }],
    ["best", "best", { symbol: "star", size: 19, color: colour("green"), line: { color: colour("card"), width: 1 } }],
  ];

  function traces(x, y, bars) {
    return groups().map(([key, name, marker]) => {
      const points = data.groups[key].filter((p) => x(p) !== null && y(p) !== null);
      const trace = {
        type: "scatter", name, mode: "markers", x: points.map(x), y: points.map(y),
        text: points.map((p) => "<b>" + p.name + "</b><br>" + p.text), hovertemplate: "%{text}<extra></extra>", marker,
      };
      if (key === "front") {
        marker.symbol = points.map((p) => (p.feasible ? "circle" : "circle-open"));
        marker.line = { width: 2, color: colour("blue") };
      }
      if (key === "baselines") {
        trace.mode = "markers+text";
        trace.texttemplate = points.map((p) => p.name);
        trace.textposition = points.map((_, i) => (i % 2 ? "top center" : "bottom center"));
        trace.textfont = { color: colour("orange"), size: 12 };
        trace.cliponaxis = false;
      }
      if (bars && points.some((p) => p.ms_ci95)) {
        trace.error_x = {
          type: "data", symmetric: false, thickness: 1, width: 2,
          array: points.map((p) => (p.ms_ci95 ? p.ms_ci95[1] - p.ms : 0)),
          arrayminus: points.map((p) => (p.ms_ci95 ? p.ms - p.ms_ci95[0] : 0)),
        };
      }
      return trace;
    }).filter((t) => t.x.length);
  }

  // The attainment staircase of loss and size alone: with latency as a third objective the front holds more rows.
  function staircase(x, y) {
    const steps = [];
    for (const p of data.groups.front.slice().sort((a, b) => a.bytes - b.bytes || a.loss - b.loss)) {
      if (p.loss !== null && (!steps.length || p.loss < steps[steps.length - 1].loss)) steps.push(p);
    }
    return {
      type: "scatter", mode: "lines", x: steps.map(x), y: steps.map(y), hoverinfo: "skip", showlegend: false,
      line: { color: colour("blue"), width: 1.2, shape: "hv" },
    };
  }

  const roundSizes = [-4, -3, -2, -1, 0, 1, 2, 3, 4, 5].flatMap((e) => [1, 2, 5].map((m) => Number((m * 10 ** e).toPrecision(1))));
  function drawSize() {
    const budget = data.budget_bytes === null ? null : data.budget_bytes / 1e6;
    const more = {
      xaxis: axis("file size (MB = 1,000,000 bytes)", state.logX ? { type: "log", tickvals: roundSizes, ticktext: roundSizes.map(String) } : { rangemode: "tozero" }),
      yaxis: axis(narrow.matches ? data.loss.split(" (")[0] : data.loss, { type: state.logY ? "log" : "linear", exponentformat: "power", dtick: state.logY ? 1 : undefined }),
    };
    if (budget !== null) {
      const line = limit(budget);
      more.shapes = line.shapes;
      more.annotations = [{
        x: state.logX ? Math.log10(budget) : budget, y: 0, yref: "paper", yanchor: "bottom", xanchor: "left", showarrow: false,
        text: "budget " + data.budget, font: { color: colour("orange") },
      }];
    }
    const y = state.logY ? (p) => (p.loss === null ? null : Math.max(p.loss, floor)) : (p) => p.loss;
    const x = (p) => p.bytes / 1e6;
    Plotly.react("plot-size", [staircase(x, y), ...traces(x, y, false)], layout(more), config);
  }

  function drawLatency() {
    const timed = Object.values(data.groups).flat().some((p) => p.ms !== null);
    byId("figure-latency").hidden = !timed;
    if (!timed) return;
    const more = {
      xaxis: axis("latency of the engine (ms)", { rangemode: "tozero" }),
      yaxis: axis(data.metric + (data.percent ? " in %" : ""), {}),
    };
    if (data.max_latency_ms !== null) more.shapes = limit(data.max_latency_ms).shapes;
    Plotly.react("plot-latency", traces((p) => p.ms, (p) => score(p.score), true), layout(more), config);
  }

  const quantities = { bits: "bits a weight", bytes: "bytes in the file", kl: "KL divergence (nats), this choice alone" };
  function drawLayers() {
    if (!data.layers.length || !byId("plot-layers")) return;
    const key = byId("layer-quantity").value;
    const kinds = [...new Set(data.layers.map((l) => l.executes))].sort();
    const tones = ["blue", "orange", "green", "grey"];
    const bars = kinds.map((kind, i) => {
      const own = data.layers.filter((l) => l.executes === kind);
      return {
        type: "bar", name: "executes " + kind, x: own.map((l) => l.name), y: own.map((l) => l[key]),
        marker: { color: colour(tones[i % tones.length]) }, text: own.map((l) => l.choice), textposition: "none",
        customdata: own.map((l) => [l.bits, l.bytes, l.kl]),
        hovertemplate: "<b>%{x}</b><br>%{text}<br>%{customdata[0]:.2f} bits a weight<br>%{customdata[1]:,} bytes<br>KL %{customdata[2]:.3g}<extra></extra>",
      };
    });
    Plotly.react("plot-layers", bars, layout({
      xaxis: axis("", { categoryorder: "array", categoryarray: data.layers.map((l) => l.name), tickangle: -45, tickfont: { size: 11 } }),
      yaxis: axis(quantities[key], { rangemode: "tozero" }), barmode: "overlay", showlegend: true,
    }), config);
  }

  function drawPrices() {
    const select = byId("layer-name");
    if (!select) return;
    const layer = data.layers.filter((l) => l.prices.length)[Number(select.value)];
    const prices = layer.prices.slice().sort((a, b) => a[1] - b[1]);
    const own = prices.filter((p) => p[2] > 0).map((p) => p[2]);
    const low = own.length ? Math.min(...own) / 2 : 1e-6;
    const hover = "<b>%{text}</b><br>%{x:,} bytes<br>KL %{customdata:.3g}<extra></extra>";
    const trace = (points, more) => Object.assign({
      type: "scatter", x: points.map((p) => p[1]), y: points.map((p) => Math.max(p[2] === null ? low : p[2], low)),
      text: points.map((p) => p[0]), customdata: points.map((p) => p[2]), hovertemplate: hover,
    }, more);
    const chosen = prices.filter((p) => p[0] === layer.choice || layer.choice.split("+").includes(p[0])).slice(0, 1);
    Plotly.react("plot-prices", [
      trace(prices, { name: "priced", mode: "lines+markers+text", textposition: "top right", textfont: { size: 11, color: colour("soft") }, line: { color: colour("blue"), width: 1.2 }, marker: { size: 7, color: colour("blue") }, cliponaxis: false }),
      trace(chosen, { name: "chosen", mode: "markers", marker: { symbol: "star", size: 16, color: colour("green") } }),
    ], layout({
      xaxis: axis("bytes in the file", { rangemode: "tozero" }), showlegend: false,
      yaxis: axis("KL divergence (nats)", { type: "log", exponentformat: "power", dtick: 1 }),
    }), config);
  }

  function drawAll() { drawSize(); drawLatency(); drawLayers(); drawPrices(); }
  for (const [id, key] of [["log-x", "logX"], ["log-y", "logY"]]) {
    byId(id).addEventListener("click", () => {
      state[key] = !state[key];
      byId(id).setAttribute("aria-pressed", String(state[key]));
      drawSize();
    });
  }
  if (byId("layer-quantity")) byId("layer-quantity").addEventListener("change", drawLayers);
  if (byId("layer-name")) byId("layer-name").addEventListener("change", drawPrices);
  for (const query of [dark, narrow, printing]) query.addEventListener("change", drawAll);
  drawAll();
})();
