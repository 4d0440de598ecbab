(() => {
  const { axis, colour, config, dark, layout, narrow, printing, sizeAxis, staircase } = charts;
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);

  if (typeof Plotly === "undefined") return;

  const state = { logX: true, logY: true };

  const positive = Object.values(data.groups).flat().map((p) => p.loss).filter((v) => v > 0);
  const floor = positive.length ? Math.min(...positive) / 2 : 1e-6;
  const score = (value) => (data.percent ? 100 * value : value);

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

  function drawSize() {
    const budget = data.budget_bytes === null ? null : data.budget_bytes / 1e6;
    const more = {
      xaxis: sizeAxis(state.logX),
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
    Plotly.react("plot-size", [staircase(data.groups.front, x, y, colour("blue")), ...traces(x, y, false)], layout(more), config);
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
