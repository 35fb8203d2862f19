// The administrator's list: what serves, what is in memory, what is on disk, and the orders.
import { getJson, send } from "./api.js";
import { ADMIN, Problem, Switch, Upload } from "./orders.js";
import { bytes, date, html, plural, useEffect, useState } from "./ui.js";

const EVERY_MILLISECONDS = 4000;
const COLUMNS = ["generation", "state", "tasks", "running", "memory", "disk", "created", ""];

export function GenerationsView({ isOpen, onKeyProblem }) {
  const [list, setList] = useState(null);
  const [error, setError] = useState(null);
  const [news, setNews] = useState(null); // what the last order did
  const [dialog, setDialog] = useState(null);
  const load = () => getJson(`${ADMIN}generations`).then(
    (found) => {
      setList(found);
      setError(null);
    },
    (problem) => (problem.isAboutKey ? onKeyProblem(problem) : setError(problem)),
  );
  useEffect(() => {
    if (!isOpen) return;
    load();
    const timer = setInterval(() => document.hidden || load(), EVERY_MILLISECONDS);
    return () => clearInterval(timer);
  }, [isOpen]);
  const done = (text) => {
    setNews({ text });
    setDialog(null);
    load();
  };
  // Orders that change nothing for clients need no dialog.
  const order = async (text, path, options) => {
    try {
      await send(ADMIN + path, options);
      done(text);
    } catch (problem) {
      setNews({ error: problem });
      load();
    }
  };
  if (!list) return html`<div class="page">${error ? html`<${Problem} error=${error} />` : html`<p class="soft">Asking the server…</p>`}</div>`;
  const close = () => setDialog(null);
  const inFlight = list.generations.find((one) => one.generation === list.serving)?.in_flight ?? 0;
  const inMemory = list.generations.filter((one) => one.resident_bytes !== null).length;
  const toSwitch = (kind, number) => setDialog({ kind, number, serving: list.serving, inFlight });
  return html`
    <div class="page">
      <div class="orders">
        <div><h2>Generation ${list.serving} serves</h2>
          <p class="soft">${inMemory} of at most ${list.max_resident} in memory; ${plural(list.base_in_flight, "request")} to the base model</p></div>
        <span class="spring" />
        <button onClick=${() => setDialog({ kind: "upload" })}>Upload…</button>
        <button class="danger" disabled=${list.rollback_to === null} onClick=${() => toSwitch("rollback", list.rollback_to)}>
          ${list.rollback_to === null ? "Nothing to roll back to" : `Roll back to ${list.rollback_to}…`}</button>
      </div>
      ${error && html`<${Problem} error=${error} />`}
      ${news?.text && html`<p class="news" role="status">${news.text}</p>`}
      <${Problem} error=${news?.error} />
      ${list.problems.map((text) => html`<p class="problem">${text}</p>`)}
      <table class="list cards">
        <thead><tr>${COLUMNS.map((name) => html`<th scope="col">${name}</th>`)}</tr></thead>
        <tbody>${[...list.generations].reverse().map((one) => html`<${Row} key=${one.generation} one=${one} order=${order} toSwitch=${toSwitch} />`)}</tbody>
      </table>
      ${dialog?.kind === "upload" && html`<${Upload} serving=${list.serving} onDone=${done} onClose=${close} />`}
      ${dialog && dialog.kind !== "upload" && html`
        <${Switch} key=${dialog.number} order=${dialog.kind} ...${dialog} onDone=${done} onClose=${close} />`}
    </div>`;
}

function Row({ one, order, toSwitch }) {
  const n = one.generation;
  const isIn = one.resident_bytes !== null;
  const pin = () => order(`Generation ${n} stays in memory.`, `generations/${n}/pin`, { method: "POST" });
  const unpin = () => order(`Generation ${n} may leave memory.`, `generations/${n}/pin`, { method: "DELETE" });
  const retire = () => order(`Generation ${n} leaves memory with its last request.`, "retire", { body: { generation: n } });
  return html`
    <tr class=${one.state === "serving" ? "serving" : ""}>
      <td data-label="generation"><strong>${n}</strong>${one.model && html` <code>${one.model}</code>`}</td>
      <td data-label="state"><span class="badge ${one.state.replace(" ", "-")}">${one.state}</span>${one.is_pinned ? " pinned" : ""}${one.is_on_disk ? "" : ", not on disk"}</td>
      <td data-label="tasks" title=${one.tasks.join(", ")}>${one.tasks.length ? plural(one.tasks.length, "task") : "none"}${one.tasks.length ? html`<span class="soft last-task"> … ${one.tasks.at(-1)}</span>` : ""}</td>
      <td data-label="running">${isIn ? one.in_flight : "–"}</td>
      <td data-label="memory">${isIn ? bytes(one.resident_bytes) : "–"}</td>
      <td data-label="disk">${bytes(one.object_bytes)}</td>
      <td data-label="created">${date(one.created)}</td>
      <td class="actions">
        ${one.state !== "serving" && one.is_on_disk && html`<button onClick=${() => toSwitch("activate", n)}>Activate…</button>`}
        ${one.is_pinned
          ? html`<button class="quiet" onClick=${unpin}>Unpin</button>`
          : (isIn || one.is_on_disk) && html`<button class="quiet" onClick=${pin} title="Keep it in memory: it can be asked for by its number">Pin</button>`}
        ${isIn && one.state !== "serving" && !one.is_pinned && html`<button class="quiet" onClick=${retire} title="Take it out of memory">Retire</button>`}
      </td>
    </tr>`;
}
