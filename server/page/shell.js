// What is around every view: name, state of the server, tabs, theme and key.
import { Failure, getJson, key, onKeyChange, setKey } from "./api.js";
import { KeyEntry } from "./key_entry.js";
import { useTheme } from "./theme.js";
import { html, useEffect, useRef, useState } from "./ui.js";

const THEME_SIGNS = { system: "◐", light: "☀", dark: "☾" };

// `views`: [{id, title, show}]. A view's `show` gets what to call when the server does not take the key.
export function Shell({ title, keyName, views, watch }) {
  const [view, open] = useView(views);
  const [problem, setProblem] = useState(null); // null: the key is not asked for
  const [generationOfKey, setGenerationOfKey] = useState(0);
  useEffect(() => onKeyChange(() => setGenerationOfKey((n) => n + 1)), []);
  const onKeyProblem = (error) => setProblem((old) => old ?? { error });
  return html`
    <header class="top">
      <h1>${title}</h1>
      <${State} watch=${watch} onKeyProblem=${onKeyProblem} key=${generationOfKey} />
      <${Tabs} views=${views} view=${view} open=${open} />
      <span class="spring" />
      <${Theme} />
      <button class="quiet" onClick=${() => (key() ? setKey("") : setProblem({ error: null }))}>${key() ? "Forget key" : "Key"}</button>
    </header>
    ${views.map((one) => html`
      <main id="view-${one.id}" role="tabpanel" aria-labelledby="tab-${one.id}" hidden=${one.id !== view} key="${one.id} ${generationOfKey}">
        ${one.show({ isOpen: one.id === view, onKeyProblem })}
      </main>`)}
    ${problem && html`<${KeyEntry} what=${keyName} problem=${key() ? problem.error : null} onDone=${() => setProblem(null)} />`}`;
}

function useView(views) {
  const named = () => views.find(({ id }) => `#${id}` === location.hash)?.id ?? views[0].id;
  const [view, setView] = useState(named());
  useEffect(() => {
    const onHash = () => setView(named());
    addEventListener("hashchange", onHash);
    return () => removeEventListener("hashchange", onHash);
  }, []);
  return [view, (id) => (location.hash = id)];
}

function Tabs({ views, view, open }) {
  const bar = useRef();
  const onKeyDown = (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const tabs = [...bar.current.children];
    const at = (tabs.indexOf(event.target) + step + tabs.length) % tabs.length;
    open(views[at].id);
    tabs[at].focus();
  };
  return html`
    <nav class="tabs" role="tablist" ref=${bar} onKeyDown=${onKeyDown}>
      ${views.map(({ id, title }) => html`
        <button role="tab" id="tab-${id}" aria-controls="view-${id}" aria-selected=${id === view}
          tabindex=${id === view ? 0 : -1} onClick=${() => open(id)}>${title}</button>`)}
    </nav>`;
}

// What the server says of itself, every few seconds while somebody looks.
function State({ watch, onKeyProblem }) {
  const [state, setState] = useState({ text: "connecting", kind: "waiting" });
  useEffect(() => {
    let isOver = false;
    let timer;
    const look = async () => {
      if (!document.hidden) setState(await stateOf(watch, onKeyProblem));
      if (!isOver) timer = setTimeout(look, 2500);
    };
    look();
    return () => {
      isOver = true;
      clearTimeout(timer);
    };
  }, []);
  return html`<span class="state ${state.kind}" role="status">${state.text}</span>`;
}

async function stateOf(watch, onKeyProblem) {
  try {
    return { text: await watch(), kind: "ready" };
  } catch (error) {
    if (error.isAboutKey) onKeyProblem(error);
    if (!(error instanceof Failure)) throw error;
    const text = error.isAboutKey ? "no key" : error.status === 0 ? "not reachable" : error.message.toLowerCase();
    return { text: error.status === 503 ? "starting or stopping" : text, kind: "waiting" };
  }
}

function Theme() {
  const [theme, next] = useTheme();
  return html`<button class="quiet" onClick=${next} aria-label="Theme: ${theme}" title="Theme: ${theme}">${THEME_SIGNS[theme]}</button>`;
}

export const readiness = async () => {
  const { generation } = await getJson("ready");
  return `generation ${generation}`;
};
