// The chat: questions, streamed answers, and which experts wrote them.
import { getJson } from "./api.js";
import { BASE, paint } from "./experts.js";
import { messagesOf, newTurn, run, runRoute } from "./conversation.js";
import { Turn } from "./turn.js";
import { html, useCallback, useEffect, useMemo, useRef, useState } from "./ui.js";

const FOLLOWED_PIXELS = 160; // who has scrolled further up than this is reading
const DEFAULTS = { model: "", max_tokens: 256, temperature: 0, remembers: true };

export function Chat({ onKeyProblem, experts }) {
  const [turns, setTurns] = useState([]);
  const [options, setOptions] = useState(DEFAULTS);
  const [highlight, setHighlight] = useState(null);
  const running = useRef(null);
  const end = useRef();
  const isRunning = turns.some((turn) => turn.state === "running");

  const update = (id) => (changes) => {
    if (changes.error?.isAboutKey) onKeyProblem(changes.error);
    setTurns((all) => all.map((turn) => (turn.id === id ? { ...turn, ...changes } : turn)));
  };
  const start = (turn, earlier) => {
    setTurns([...earlier, turn]);
    running.current = new AbortController();
    const { remembers, ...sent } = options;
    const messages = messagesOf(remembers ? earlier : [], turn.question);
    const work = turn.kind === "route" ? runRoute : run;
    work(turn, messages, { ...sent, model: sent.model || undefined }, running.current.signal, update(turn.id));
  };
  const ask = (question, kind) => start(newTurn(question, kind), turns);
  const retry = (turn) => start(newTurn(turn.question, turn.kind), turns.filter((one) => one.id !== turn.id));
  const latest = useRef();
  latest.current = retry;
  const onRetry = useCallback((turn) => latest.current(turn), []);
  const stop = () => running.current?.abort();

  useEffect(() => {
    const onKey = (event) => event.key === "Escape" && isRunning && stop();
    addEventListener("keydown", onKey);
    return () => removeEventListener("keydown", onKey);
  }, [isRunning]);
  useEffect(() => {
    const { scrollHeight, scrollTop, clientHeight } = end.current.parentElement;
    const isFollowing = scrollHeight - scrollTop - clientHeight < FOLLOWED_PIXELS || turns.at(-1)?.answer === "";
    if (isFollowing) end.current.scrollIntoView({ block: "end" });
  }, [turns]);
  useEffect(() => stop, []);

  return html`
    <section class="chat" aria-label="Chat">
      <div class="turns">
        ${turns.length === 0 && html`<${Welcome} ask=${ask} experts=${experts} />`}
        ${turns.map((turn) => html`<${Kept} key=${turn.id} turn=${turn} highlight=${highlight} onRetry=${onRetry} />`)}
        <div ref=${end} class="end" />
      </div>
      <div class="dock">
        <${Legend} turns=${turns} highlight=${highlight} setHighlight=${setHighlight} />
        <${Entry} ask=${ask} stop=${stop} isRunning=${isRunning} />
        <${Options} options=${options} setOptions=${setOptions} clear=${turns.length > 0 && !isRunning && (() => setTurns([]))} />
      </div>
    </section>`;
}

// A turn is drawn anew only when it changes: a long conversation must not slow an answer down.
function Kept({ turn, highlight, onRetry }) {
  return useMemo(() => html`<${Turn} turn=${turn} highlight=${highlight} onRetry=${onRetry} />`, [turn, highlight]);
}

function Welcome({ experts }) {
  return html`
    <div class="welcome">
      <h2>Ask something</h2>
      <p>Nobody names a task here: a gate decides for every token which experts it goes to. Each token of question and
        answer takes the colour of its leading expert; text without colour is the base model's alone.</p>
      ${experts.length > 0 && html`<p class="shares">${experts.map(({ id }) => html`<span class="chip" style=${paint(id)}>${id}</span>`)}</p>`}
    </div>`;
}

function Entry({ ask, stop, isRunning }) {
  const [text, setText] = useState("");
  const box = useRef();
  useEffect(() => box.current.focus({ preventScroll: true }), []);
  const send = (kind) => {
    if (isRunning || !text.trim()) return;
    ask(text.trim(), kind);
    setText("");
    box.current.focus();
  };
  const onKeyDown = (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send(event.altKey ? "route" : "chat");
  };
  return html`
    <div class="entry">
      <textarea ref=${box} rows="2" aria-label="Your question" placeholder="Your question" value=${text}
        onInput=${(event) => setText(event.target.value)} onKeyDown=${onKeyDown} />
      ${isRunning
        ? html`<button class="strong" onClick=${stop} title="Esc">Stop</button>`
        : html`
            <button class="strong" onClick=${() => send("chat")} disabled=${!text.trim()} title="Enter; Shift+Enter for a new line">Ask</button>
            <button onClick=${() => send("route")} disabled=${!text.trim()} title="Alt+Enter: only which experts it would go to">Route</button>`}
    </div>`;
}

// Experts seen in this conversation; choosing one dims the rest.
function Legend({ turns, highlight, setHighlight }) {
  const ids = useMemo(() => {
    const seen = new Set();
    for (const turn of turns) {
      for (const token of turn.seta?.tokens ?? []) (token.experts ?? []).forEach((expert) => seen.add(expert.id));
    }
    return seen.size ? [...seen, BASE] : [];
  }, [turns]);
  if (!ids.length) return null;
  return html`
    <div class="legend" role="group" aria-label="Show the tokens of one expert">
      ${ids.map((id) => html`
        <button class="chip ${id === BASE ? "base" : ""}" style=${paint(id)} aria-pressed=${highlight === id}
          onClick=${() => setHighlight(highlight === id ? null : id)}>${id}</button>`)}
    </div>`;
}

function Options({ options, setOptions, clear }) {
  const [models, setModels] = useState([]);
  const [isOpen, setOpen] = useState(false); // on a narrow screen they are folded away
  const load = () => getJson("v1/models").then(({ data }) => setModels(data.map((one) => one.id)), () => {});
  useEffect(load, []);
  const set = (name, convert = String) => (event) => setOptions({ ...options, [name]: convert(event.target.value) });
  return html`
    <div class="options ${isOpen ? "open" : ""}">
      <button class="quiet fold" aria-expanded=${isOpen} onClick=${() => setOpen(!isOpen)}>Options</button>
      ${clear && html`<button class="quiet" onClick=${clear}>New conversation</button>`}
      <label>model${" "}
        <select value=${options.model} onFocus=${load} onChange=${set("model")}>
          ${models.map((id, i) => html`<option value=${i === 0 ? "" : id}>${id}${i === 0 ? " (in service)" : ""}</option>`)}
        </select></label>
      <label>at most <input type="number" min="1" max="8192" value=${options.max_tokens} onChange=${set("max_tokens", Number)} /> tokens</label>
      <label>temperature <input type="number" min="0" max="2" step="0.1" value=${options.temperature} onChange=${set("temperature", Number)} /></label>
      <label><input type="checkbox" checked=${options.remembers}
        onChange=${(event) => setOptions({ ...options, remembers: event.target.checked })} /> send earlier turns along</label>
    </div>`;
}
