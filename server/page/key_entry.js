// Asks for the key. It goes to this listener alone and is forgotten with the browser tab.
import { setKey } from "./api.js";
import { html, useEffect, useRef, useState } from "./ui.js";

export function KeyEntry({ problem, what, onDone }) {
  const [text, setText] = useState("");
  const dialog = useRef();
  useEffect(() => dialog.current.showModal(), []);
  const done = (event) => {
    event.preventDefault();
    if (!text.trim()) return;
    setKey(text.trim());
    onDone();
  };
  return html`
    <dialog ref=${dialog} class="key" onCancel=${onDone} aria-label="Key">
      <form onSubmit=${done}>
        <h2>${what}</h2>
        ${problem && html`<p class="problem" role="alert">${problem.message}</p>`}
        <input type="password" autocomplete="off" spellcheck=${false} aria-label=${what} placeholder="seta-…" value=${text}
          onInput=${(event) => setText(event.target.value)} autofocus />
        <p>It is kept in this browser tab only, and sent to this server only.</p>
        <menu><button type="button" onClick=${onDone}>Cancel</button><button class="strong" disabled=${!text.trim()}>Use it</button></menu>
      </form>
    </dialog>`;
}
