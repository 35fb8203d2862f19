// Latency and routing as they are now, from /metrics, asked every two seconds while somebody looks.
import { getText } from "./api.js";
import { Chart } from "./chart.js";
import { hueOf } from "./experts.js";
import { EVERY_SECONDS, History, byGeneration } from "./history.js";
import { total } from "./prometheus.js";
import { html, milliseconds, percent, useEffect, useRef, useState } from "./ui.js";

const MOST_EXPERTS = 8;
const QUANTILES = [{ label: "median", hue: 255 }, { label: "95 %", hue: 55, dash: [6, 4] }];

export function LiveView({ isOpen, onKeyProblem }) {
  const history = useRef(new History());
  const [, setCount] = useState(0);
  const [error, setError] = useState(null);
  useEffect(() => {
    if (!isOpen) return;
    let timer;
    let isOver = false;
    const look = async () => {
      try {
        if (!document.hidden) history.current.add(await getText("metrics"), Date.now() / 1000);
        setError(null);
      } catch (problem) {
        if (problem.isAboutKey) onKeyProblem(problem);
        else setError(problem);
      }
      if (isOver) return;
      setCount((n) => n + 1);
      timer = setTimeout(look, 1000 * EVERY_SECONDS);
    };
    look();
    return () => {
      isOver = true;
      clearTimeout(timer);
    };
  }, [isOpen]);
  const { latest, marks } = history.current;
  return html`
    <div class="page">
      ${error && html`<p class="problem" role="alert">${error.message}</p>`}
      ${latest && total(latest, "seta_generation") !== null
        ? html`<${Tiles} history=${history.current} /><${Charts} history=${history.current} marks=${marks} /><${Generations} values=${latest} />`
        : html`<p class="soft">Waiting for the first numbers…</p>`}
    </div>`;
}

function Tiles({ history }) {
  const point = history.points.at(-1);
  const values = history.latest;
  const tiles = [
    ["generation", total(values, "seta_generation")],
    ["requests", point.requests === undefined ? "–" : `${point.requests.toFixed(1)} / s`],
    ["running, waiting", `${point.inFlight ?? 0}, ${point.queued ?? 0}`],
    ["first token, 95 %", milliseconds(point.firstToken95 ?? null)],
    ["token gap, 95 %", milliseconds(point.gap95 ?? null)],
    ["base model's share", point.baseShare == null ? "–" : percent(point.baseShare / 100)],
  ];
  return html`<dl class="tiles">${tiles.map(([name, value]) => html`<div class="panel"><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>`;
}

function Charts({ history, marks }) {
  const experts = history.busiest(MOST_EXPERTS);
  const rate = (value) => (value >= 10 ? value.toFixed(0) : value.toFixed(1));
  const ofExperts = experts.map((id) => ({ label: id === "base" ? "base model" : id, hue: id === "base" ? null : hueOf(id) }));
  const columns = (...names) => history.columns(names);
  return html`
    <div class="charts">
      <${Chart} title="Time to first token" note="over the last 20 s, queue included" series=${QUANTILES} marks=${marks}
        columns=${columns("firstToken50", "firstToken95")} format=${milliseconds} />
      <${Chart} title="Time between tokens" note="over the last 20 s" series=${QUANTILES} marks=${marks}
        columns=${columns("gap50", "gap95")} format=${milliseconds} />
      <${Chart} title="Tokens by expert" note="a second, prompt and answer" series=${ofExperts} marks=${marks}
        columns=${columns(...experts.map((id) => `expert ${id}`))} format=${rate} />
      <${Chart} title="Base model's share" note="of tokens that the gate gave to no task" series=${[{ label: "share", hue: 300 }]} marks=${marks}
        columns=${columns("baseShare")} format=${(value) => `${value.toFixed(0)} %`} most=${100} />
      <${Chart} title="Entropy of the gate" note="nats, mean over tokens; higher is less sure" series=${[{ label: "entropy", hue: 350 }]} marks=${marks}
        columns=${columns("entropy")} format=${(value) => value.toFixed(2)} />
      <${Chart} title="Requests" note="running and waiting, and failures a second" marks=${marks}
        series=${[{ label: "running", hue: 155 }, { label: "waiting", hue: 55 }, { label: "failed / s", hue: 20 }]}
        columns=${columns("inFlight", "queued", "failures")} format=${rate} />
    </div>`;
}

function Generations({ values }) {
  const columns = ["generation", "answered", "failed", "running", "first token 50 / 95 %", "between tokens 50 / 95 %", "base share", "entropy", "probability"];
  const decimal = (value) => (value === null ? "–" : value.toFixed(3));
  const rows = byGeneration(values).map((one) => [
    one.generation === "base" ? "base model" : one.generation, one.answered, one.failed, one.inFlight,
    `${milliseconds(one.firstToken50)} / ${milliseconds(one.firstToken95)}`, `${milliseconds(one.gap50)} / ${milliseconds(one.gap95)}`,
    one.baseShare === null ? "–" : percent(one.baseShare, 1), decimal(one.entropy), decimal(one.probability),
  ]);
  return html`
    <section>
      <h2>Generations in memory, compared</h2>
      <p class="soft">All that each has answered since it came into memory, or since the server started.</p>
      <div class="scroll">
        <table class="list">
          <thead><tr>${columns.map((name) => html`<th scope="col">${name}</th>`)}</tr></thead>
          <tbody>${rows.map((row) => html`<tr>${row.map((value, i) => html`<td data-label=${columns[i]}>${value}</td>`)}</tr>`)}</tbody>
        </table>
      </div>
    </section>`;
}
