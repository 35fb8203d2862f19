// The bank as a picture: which task runs which experts, what they weigh, how well each task does, and how it all grew.
import { getJson } from "./api.js";
import { hueOf, paint } from "./experts.js";
import { Growth } from "./growth.js";
import { bytes, date, html, plural, useEffect, useState } from "./ui.js";

const EVERY_MILLISECONDS = 15000;
const MOST_TASKS = 40; // a bank may have a thousand; the latest are drawn
const MOST_EXPERTS = 60;

export function BankView({ path, isOpen, onKeyProblem }) {
  const [bank, setBank] = useState(null);
  const [error, setError] = useState(null);
  useEffect(() => {
    if (!isOpen) return;
    const load = () =>
      getJson(path).then(
        (found) => {
          found.serving.experts.forEach((expert) => hueOf(expert.id));
          setBank(found);
          setError(null);
        },
        (problem) => (problem.isAboutKey ? onKeyProblem(problem) : setError(problem)),
      );
    load();
    const timer = setInterval(() => document.hidden || load(), EVERY_MILLISECONDS);
    return () => clearInterval(timer);
  }, [isOpen]);
  if (!bank) return html`<div class="page">${error ? html`<p class="problem">${error.message}</p>` : html`<p class="soft">Reading the bank…</p>`}</div>`;
  return html`
    <div class="page bank">
      <${Summary} serving=${bank.serving} />
      <${Composition} serving=${bank.serving} />
      <div class="column">
        <${Growth} generations=${bank.generations} serving=${bank.serving.generation} />
        <${Accuracy} serving=${bank.serving} />
      </div>
    </div>`;
}

function Summary({ serving }) {
  const { base, experts, tasks, targets } = serving;
  const size = experts.reduce((sum, expert) => sum + expert.object_bytes, 0);
  const facts = [
    ["generation in service", serving.generation],
    ["created", date(serving.created)],
    ["tasks", tasks.length],
    ["experts", `${experts.filter((one) => one.kind === "unique").length} unique, ${experts.filter((one) => one.kind === "shared").length} shared`],
    ["experts on disk", bytes(size)],
    ["gate", `${serving.gate.kind}, ${bytes(serving.gate.object_bytes)}`],
    ["updates", `${targets.join(", ")} in layers ${serving.trunk_layers} to ${base.num_layers - 1}`],
    ["base model", `${base.architecture}, width ${base.hidden_size}`],
  ];
  return html`<dl class="facts-grid">${facts.map(([name, value]) => html`<div><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>`;
}

// Rows are tasks, columns experts; a filled cell: this task runs that expert.
function Composition({ serving }) {
  const tasks = serving.tasks.slice(-MOST_TASKS);
  const names = new Set(tasks.map((task) => task.name));
  const experts = serving.experts.filter((expert) => expert.tasks.some((name) => names.has(name))).slice(-MOST_EXPERTS);
  if (!tasks.length) return html`<p class="soft">No task has been learned yet: every answer is the base model's.</p>`;
  const widest = Math.max(...experts.map((expert) => expert.object_bytes));
  return html`
    <section class=${experts.length > 4 ? "wide" : ""}>
      <h2>Tasks and experts</h2>
      <p class="soft">A filled cell: tokens of this task run that expert. An expert of several tasks is striped.
        ${(tasks.length < serving.tasks.length || experts.length < serving.experts.length) &&
        ` The last ${tasks.length} of ${serving.tasks.length} tasks, with ${experts.length} of ${serving.experts.length} experts.`}</p>
      <div class="scroll">
        <table class="matrix">
          <thead>
            <tr><th scope="col">task</th>${experts.map((expert) => html`<th scope="col" class="slanted"><span>${expert.id}</span></th>`)}</tr>
          </thead>
          <tbody>
            ${tasks.map((task) => html`
              <tr><th scope="row">${task.name}</th>
                ${experts.map((expert) => {
                  const runs = expert.tasks.includes(task.name);
                  const title = `${task.name} ${runs ? "runs" : "does not run"} ${expert.id}`;
                  return html`<td title=${title}><span class="cell ${runs ? `filled ${expert.kind}` : ""}" style=${runs ? paint(expert.id) : {}}
                    role="img" aria-label=${title} /></td>`;
                })}
              </tr>`)}
            <tr class="weights-row"><th scope="row">kind</th>${experts.map((expert) => html`<td>${expert.kind}</td>`)}</tr>
            <tr class="weights-row"><th scope="row">rank, blocks</th>
              ${experts.map((expert) => html`<td title="rank ${expert.rank}, ${plural(expert.num_blocks, "sub-block")}">${expert.rank}, ${expert.num_blocks}</td>`)}</tr>
            <tr class="weights-row"><th scope="row">size</th>
              ${experts.map((expert) => html`
                <td><span class="size ${expert.kind}" style=${{ ...paint(expert.id), height: `${Math.max(3, (46 * expert.object_bytes) / widest)}px` }} />${bytes(expert.object_bytes)}</td>`)}</tr>
          </tbody>
        </table>
      </div>
    </section>`;
}

// Row i: after learning task i. Forgetting would show as a column that fades downwards.
function Accuracy({ serving }) {
  const { accuracy_matrix: all } = serving;
  if (!all.length) return null;
  const first = Math.max(0, serving.tasks.length - MOST_TASKS);
  const tasks = serving.tasks.slice(first);
  const rows = all.slice(first).map((row) => row.slice(first));
  return html`
    <section>
      <h2>Accuracy as tasks were learned</h2>
      <p class="soft">Each row: right answers in percent after one more task. A column that falls would be forgetting.</p>
      <div class="scroll">
        <table class="matrix accuracy">
          <thead><tr><th scope="col">after learning</th>${tasks.map((task) => html`<th scope="col">${task.name}</th>`)}</tr></thead>
          <tbody>
            ${rows.map((row, i) => html`
              <tr><th scope="row">${tasks[i].name}</th>
                ${tasks.map((_, j) => html`<td>${j < row.length && html`<${Score} value=${row[j]} before=${i > j ? rows[i - 1][j] : null} />`}</td>`)}
              </tr>`)}
          </tbody>
        </table>
      </div>
    </section>`;
}

function Score({ value, before }) {
  const change = before === null ? 0 : value - before;
  const trend = Math.abs(change) < 0.05 ? "" : change > 0 ? "up" : "down";
  return html`<span class="score ${trend}" style=${{ "--share": (value / 100).toFixed(3) }}
    title=${trend ? `${change > 0 ? "+" : ""}${change.toFixed(1)} points` : null}>${value.toFixed(1)}</span>`;
}
