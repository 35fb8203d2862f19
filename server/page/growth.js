// How the bank grew: one bar a generation, unique experts below, shared ones on top.
import { bytes, html, plural } from "./ui.js";

const MOST = 60;

export function Growth({ generations, serving }) {
  const shown = generations.slice(-MOST);
  const most = Math.max(1, ...shown.map((one) => one.unique_bytes + one.shared_bytes));
  return html`
    <section>
      <h2>Growth over generations</h2>
      <p class="soft">Size of the experts of each generation; they share files, so the bank on disk is smaller than the sum. Above: mean accuracy.
        ${generations.length > MOST && ` The last ${MOST} of ${generations.length}.`}</p>
      <div class="legend-line"><span class="swatch unique" /> unique experts <span class="swatch shared" /> shared experts
        <span class="swatch serving" /> in service</div>
      <div class="scroll">
        <ol class="growth">${shown.map((one) => html`<${Column} key=${one.generation} one=${one} most=${most} isServing=${one.generation === serving} />`)}</ol>
      </div>
    </section>`;
}

function Column({ one, most, isServing }) {
  const height = (size) => ({ height: `${(130 * size) / most}px` });
  const accuracy = one.mean_accuracy === null ? "" : `${one.mean_accuracy.toFixed(1)} %`;
  const parts = [
    plural(one.num_tasks, "task"), `${one.num_unique} unique`, `${one.num_shared} shared`,
    bytes(one.unique_bytes + one.shared_bytes), accuracy && `mean accuracy ${accuracy}`,
  ];
  return html`
    <li class=${isServing ? "serving" : ""} title="Generation ${one.generation}: ${parts.filter(Boolean).join(", ")}">
      <span class="accuracy-of">${accuracy}</span>
      <span class="stack"><span class="shared" style=${height(one.shared_bytes)} /><span class="unique" style=${height(one.unique_bytes)} /></span>
      <strong>${one.generation}</strong>
      <span>${plural(one.num_tasks, "task")}</span>
      <span class="soft">${bytes(one.unique_bytes + one.shared_bytes)}</span>
    </li>`;
}
