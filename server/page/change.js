// What will change, shown before anything does.
import { paint } from "./experts.js";
import { bytes, html, plural } from "./ui.js";
import { diff } from "./diff.js";

export function Change({ from, to }) {
  const change = diff(from, to);
  return html`
    <div class="change">
      <p class="from-to"><span>generation <strong>${from.generation}</strong></span> → <span>generation <strong>${to.generation}</strong></span></p>
      ${change.isOtherBase && html`<p class="problem">It was learned on another base model; this server will refuse it.</p>`}
      ${change.isSame
        ? html`<p>Both are the same, byte for byte.</p>`
        : html`
            <ul class="changes">
              ${change.tasksAdded.map((task) => html`<li class="plus">task <strong>${task.name}</strong>, learned from ${plural(task.num_train, "example")}</li>`)}
              ${change.tasksRemoved.map((task) => html`<li class="minus">task <strong>${task.name}</strong> is no longer known</li>`)}
              ${change.expertsAdded.map((expert) => html`<li class="plus"><${Expert} expert=${expert} /></li>`)}
              ${change.expertsChanged.map((expert) => html`<li class="other"><${Expert} expert=${expert} /> has other weights</li>`)}
              ${change.expertsRemoved.map((expert) => html`<li class="minus"><${Expert} expert=${expert} /></li>`)}
              ${change.isGateChanged && html`<li class="other">the gate ${change.gateKind ?? "has other parameters"}</li>`}
              <li class="same">${plural(change.expertsKept, "expert")} unchanged</li>
            </ul>
            <${Accuracy} rows=${change.accuracy} />`}
    </div>`;
}

const Expert = ({ expert }) => html`
  <span class="chip" style=${paint(expert.id)}>${expert.id}</span> ${expert.kind}, ${bytes(expert.object_bytes)}`;

function Accuracy({ rows }) {
  const measured = rows.filter((row) => row.before !== null || row.after !== null);
  if (!measured.length) return html`<p class="soft">Neither says how well its tasks do.</p>`;
  const shown = (value) => (value === null ? "–" : `${value.toFixed(1)} %`);
  return html`
    <table class="list accuracy-change">
      <thead><tr><th scope="col">task</th><th scope="col">accuracy now</th><th scope="col">then</th><th scope="col" /></tr></thead>
      <tbody>${measured.map(({ name, before, after }) => {
        const change = before === null || after === null ? null : after - before;
        const kind = change === null || Math.abs(change) < 0.05 ? "" : change > 0 ? "up" : "down";
        return html`
          <tr><td>${name}</td><td>${shown(before)}</td><td>${shown(after)}</td>
            <td class=${kind}>${change === null ? (after === null ? "lost" : "new") : kind ? `${change > 0 ? "+" : "−"}${Math.abs(change).toFixed(1)}` : "same"}</td></tr>`;
      })}</tbody>
    </table>`;
}
