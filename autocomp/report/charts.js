"use strict";
// What every page's script starts from: tables that sort, and plots in the page's own colours.
const charts = (() => {
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

  const dark = matchMedia("(prefers-color-scheme: dark)");
  const narrow = matchMedia("(max-width: 640px)");
  const printing = matchMedia("print");
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
  const config = { responsive: true, displaylogo: false, modeBarButtons: [["zoom2d", "pan2d", "resetScale2d", "toImage"]] };

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

  const roundSizes = [-4, -3, -2, -1, 0, 1, 2, 3, 4, 5].flatMap((e) => [1, 2, 5].map((m) => Number((m * 10 ** e).toPrecision(1))));
  const sizeAxis = (log) => axis("file size (MB = 1,000,000 bytes)", log ? { type: "log", tickvals: roundSizes, ticktext: roundSizes.map(String) } : { rangemode: "tozero" });

  // The attainment staircase of loss and size alone: with latency as a third objective the front holds more rows.
  function staircase(points, x, y, tone) {
    const steps = [];
    for (const p of points.slice().sort((a, b) => a.bytes - b.bytes || a.loss - b.loss)) {
      if (p.loss !== null && (!steps.length || p.loss < steps[steps.length - 1].loss)) steps.push(p);
    }
    return {
      type: "scatter", mode: "lines", x: steps.map(x), y: steps.map(y), hoverinfo: "skip", showlegend: false,
      line: { color: tone, width: 1.2, shape: "hv" },
    };
  }

  return { axis, colour, config, dark, layout, narrow, printing, sizeAxis, staircase };
})();
