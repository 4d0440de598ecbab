(() => {
  const { axis, colour, config, dark, layout, narrow, printing, sizeAxis, staircase } = charts;
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  if (typeof Plotly === "undefined" || !data.models.length) return;

  const tones = () => (dark.matches
    ? ["#8ab4ff", "#ffb070", "#5fd6a8", "#c9a0ff", "#ff8f98", "#63d3e6", "#d8c84f", "#ff9fd0"]
    : ["#2456b3", "#b4540a", "#0b7a53", "#7d3fb0", "#b3242f", "#0b7285", "#7a6a00", "#b8327f"]);
  const searches = data.models.flatMap((m) => m.searches);
  const values = (key) => [...new Set(searches.map((s) => s[key]))];

  // Colours by what the searches differ in; a sweep over budgets alone has no choice to offer.
  const keys = ["budget", "target", "seed"];
  const differing = keys.filter((key) => values(key).length > 1);
  for (const key of differing.length ? differing : keys.slice(0, 1)) byId("tone").add(new Option(key, key));
  byId("tone").closest("label").hidden = differing.length < 2;

  function traces(model, chosen, x, y, stairs) {
    const key = byId("tone").value, known = values(key), named = new Set();
    return chosen.flatMap((search) => {
      const place = known.indexOf(search[key]), tone = tones()[place % tones().length];
      const shared = { type: "scatter", legendgroup: search[key], name: search[key], hovertemplate: "%{text}<extra></extra>" };
      const hover = (p) => "<b>" + search.name + "</b><br>" + p.name + "<br>" + p.text;
      const front = search.front.filter((p) => x(p) !== null && y(p) !== null);
      const best = [search.best].filter((p) => p && x(p) !== null && y(p) !== null);
      const marks = {
        ...shared, mode: "markers", x: front.map(x), y: front.map(y), text: front.map(hover), showlegend: !named.has(search[key]),
        marker: { color: tone, size: 7, symbol: front.map((p) => (p.feasible ? "circle" : "circle-open")), line: { width: 1.5, color: tone } },
      };
      const star = {
        ...shared, mode: "markers", x: best.map(x), y: best.map(y), text: best.map(hover), showlegend: false,
        marker: { color: tone, size: 17, symbol: "star", line: { color: colour("card"), width: 1 } },
      };
      named.add(search[key]);
      const line = { ...staircase(front, x, y, tone), legendgroup: search[key] };
      if (place >= tones().length) line.line.dash = "dot";
      return stairs ? [line, marks, star] : [marks, star];
    });
  }

  const reference = (model, x, y) => ({
    type: "scatter", mode: "markers", name: "float32", x: [x(model.float32)], y: [y(model.float32)],
    text: ["<b>float32</b><br>" + model.float32.text], hovertemplate: "%{text}<extra></extra>",
    marker: { symbol: "square", size: 10, color: colour("ink") },
  });
  const score = (model) => (p) => (p.score === null ? null : model.percent ? 100 * p.score : p.score);
  const metricAxis = (model) => axis(model.metric + (model.percent ? " in %" : ""), {});

  function budgets(model) {
    const key = byId("tone").value, lines = new Map();
    for (const s of model.searches) {
      if (s.budget_bytes !== null) lines.set(s.budget_bytes, key === "budget" ? tones()[values(key).indexOf(s.budget) % tones().length] : colour("grey"));
    }
    return [...lines].map(([bytes, color]) => ({
      type: "line", x0: bytes / 1e6, x1: bytes / 1e6, y0: 0, y1: 1, yref: "paper", line: { color, width: 1, dash: "dot" },
    }));
  }

  function drawSize(model, number) {
    const loss = byId("vertical").value === "loss", x = (p) => p.bytes / 1e6;
    const positive = model.searches.flatMap((s) => s.front).map((p) => p.loss).filter((v) => v > 0);
    const floor = positive.length ? Math.min(...positive) / 2 : 1e-6;
    const y = loss ? (p) => (p.loss === null ? null : Math.max(p.loss, floor)) : score(model);
    const drawn = traces(model, model.searches, x, y, loss);
    Plotly.react("size-" + number, loss ? drawn : [...drawn, reference(model, x, y)], layout({
      xaxis: sizeAxis(byId("log-x").getAttribute("aria-pressed") === "true"), shapes: budgets(model), showlegend: true,
      yaxis: loss ? axis(narrow.matches ? model.loss.split(" (")[0] : model.loss, { type: "log", exponentformat: "power", dtick: 1 }) : metricAxis(model),
    }), config);
  }

  function drawLatencies(model, number) {
    model.latencies.forEach((plane, place) => {
      const x = (p) => (p.source === plane.source ? p.ms : null);
      const own = model.searches.filter((s) => s.target === plane.target);
      Plotly.react("latency-" + number + "-" + place, traces(model, own, x, score(model), false), layout({
        xaxis: axis("latency on " + plane.target + " (ms, " + plane.source + ")", { rangemode: "tozero" }), yaxis: metricAxis(model), showlegend: true,
      }), config);
    });
  }

  function drawAll() {
    data.models.forEach((model, number) => { drawSize(model, number); drawLatencies(model, number); });
  }
  for (const id of ["tone", "vertical"]) byId(id).addEventListener("change", drawAll);
  byId("log-x").addEventListener("click", () => {
    byId("log-x").setAttribute("aria-pressed", String(byId("log-x").getAttribute("aria-pressed") !== "true"));
    drawAll();
  });
  for (const query of [dark, narrow, printing]) query.addEventListener("change", drawAll);
  drawAll();
})();
