// One chart: lines over time, and a dashed line where another generation began to serve.
import UPlot from "./vendor/uplot.js";
import { html, useEffect, useRef } from "./ui.js";

const HEIGHT = 180;
const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
// A canvas knows no custom properties.
const line = (hue) => (hue === null ? style("--soft") : `oklch(${style("--mark-l")} ${style("--mark-c")} ${hue})`);

// `series`: [{label, hue, dash}], `columns`: time and one column for each series, `format`: of a value.
export function Chart({ title, note, series, columns, marks, format, most = null }) {
  const box = useRef();
  const chart = useRef();
  const now = useRef();
  now.current = { marks };
  const shape = JSON.stringify(series);
  useEffect(() => {
    const make = () => {
      chart.current?.destroy();
      chart.current = new UPlot(options(box.current.clientWidth, series, format, now, most), columns, box.current);
    };
    make();
    const resized = new ResizeObserver(() => chart.current.setSize({ width: box.current.clientWidth, height: HEIGHT }));
    resized.observe(box.current);
    const scheme = matchMedia("(prefers-color-scheme: dark)");
    scheme.addEventListener("change", make);
    addEventListener("themechange", make);
    return () => {
      resized.disconnect();
      scheme.removeEventListener("change", make);
      removeEventListener("themechange", make);
      chart.current.destroy();
      chart.current = null;
    };
  }, [shape]);
  useEffect(() => chart.current?.setData(columns), [columns]);
  return html`<section class="panel chart"><h3>${title}</h3><p class="soft">${note}</p><div ref=${box} class="plot" /></section>`;
}

function options(width, series, format, now, most) {
  const axis = { stroke: style("--soft"), grid: { stroke: style("--line"), width: 1 }, ticks: { show: false }, font: "12px system-ui, sans-serif" };
  const value = (_, found) => (found === null || found === undefined ? "–" : format(found));
  return {
    width, height: HEIGHT, padding: [8, 30, 0, 0],
    cursor: { drag: { x: false, y: false }, points: { size: 7 } },
    scales: { y: { range: (_, low, high) => [0, most ?? (high > 0 ? high * 1.12 : 1)] } },
    axes: [{ ...axis, size: 30, space: 90, values: "{HH}:{mm}:{ss}" }, { ...axis, size: 64, values: (_, ticks) => ticks.map(format) }],
    series: [
      { label: "time", value: "{HH}:{mm}:{ss}" },
      ...series.map(({ label, hue, dash }) => ({ label, stroke: line(hue), width: 2, dash, value, spanGaps: false, points: { size: 4 } })),
    ],
    hooks: { draw: [(chart) => drawMarks(chart, now.current.marks)] },
  };
}

function drawMarks(chart, marks) {
  const { ctx, bbox } = chart;
  ctx.save();
  ctx.strokeStyle = ctx.fillStyle = style("--ink");
  ctx.font = `${12 * devicePixelRatio}px system-ui, sans-serif`;
  ctx.textAlign = "left";
  ctx.setLineDash([4 * devicePixelRatio, 4 * devicePixelRatio]);
  let row = 0;
  let free = -Infinity; // where the last label ends: one that begins before goes a row down
  for (const { at, generation } of marks) {
    const x = chart.valToPos(at, "x", true);
    if (x < bbox.left || x > bbox.left + bbox.width) continue;
    const label = `→ ${generation}`;
    row = x < free ? (row + 1) % 3 : 0;
    free = x + ctx.measureText(label).width + 8 * devicePixelRatio;
    ctx.beginPath();
    ctx.moveTo(x, bbox.top);
    ctx.lineTo(x, bbox.top + bbox.height);
    ctx.stroke();
    ctx.fillText(label, x + 4 * devicePixelRatio, bbox.top + (12 + 14 * row) * devicePixelRatio);
  }
  ctx.restore();
}
