// Text whose every token has the colour of its leading expert; hover, tap or walk over it with the arrow keys for the
// weights.
import { BASE, leading, paint } from "./experts.js";
import { html, percent, useEffect, useRef, useState } from "./ui.js";

const VISIBLE = { "\n": "↵", "\t": "⇥", " ": "␣" };
const KEYS = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 8, ArrowUp: -8, Home: -Infinity, End: Infinity };

export function Tokens({ pieces, label, highlight = null }) {
  const [at, setAt] = useState(null);
  const box = useRef();
  const index = (event) => event.target.dataset.i;
  const show = (event) => index(event) !== undefined && setAt(Number(index(event)));
  const walk = (event) => {
    if (event.key === "Escape") return setAt(null);
    if (!(event.key in KEYS)) return;
    event.preventDefault();
    setAt(Math.max(0, Math.min(pieces.length - 1, (at ?? -1) + KEYS[event.key])));
  };
  return html`
    <span class="tokens" ref=${box} tabindex="0" role="group" aria-label="${label}: arrow keys walk over the tokens"
      onPointerOver=${(event) => event.pointerType === "mouse" && show(event)} onClick=${show}
      onPointerLeave=${(event) => event.pointerType === "mouse" && setAt(null)} onBlur=${() => setAt(null)} onKeyDown=${walk}>
      ${pieces.map((piece, i) => html`<${Token} piece=${piece} i=${i} isAt=${i === at} highlight=${highlight} />`)}
    </span>
    ${at !== null && pieces[at] && html`<${Weights} token=${pieces[at].token} anchor=${box.current.children[at]} />`}`;
}

function Token({ piece, i, isAt, highlight }) {
  const { id, weight } = leading(piece.token);
  const kind = id === null ? "unknown" : id === BASE ? "base" : "routed";
  const isDim = highlight !== null && id !== highlight;
  return html`<span class="token ${kind} ${isAt ? "at" : ""} ${isDim ? "dim" : ""}" data-i=${i} data-expert=${id}
    style=${id === null ? {} : paint(id, weight)}>${piece.text}</span>`;
}

// A box beside the token, inside the window.
function Weights({ token, anchor }) {
  const box = useRef();
  useEffect(() => {
    const place = anchor.getClientRects()[0] ?? anchor.getBoundingClientRect();
    const { width, height } = box.current.getBoundingClientRect();
    const left = Math.max(8, Math.min(place.left, document.documentElement.clientWidth - width - 8));
    const below = place.bottom + 6;
    const top = below + height > innerHeight ? place.top - height - 6 : below;
    Object.assign(box.current.style, { left: `${left}px`, top: `${Math.max(8, top)}px`, visibility: "visible" });
  }, [token, anchor]);
  const shown = [...token.text].map((one) => VISIBLE[one] ?? one).join("");
  return html`
    <div class="weights" ref=${box} role="status">
      <div class="what"><code>${shown || "part of a character"}</code> <span>token ${token.id}</span></div>
      ${token.base_weight === null
        ? html`<p>The gate's decision at this token is not known.</p>`
        : html`
            ${token.experts.map((one) => html`<${Bar} key=${one.id} name=${one.id} weight=${one.weight} />`)}
            <${Bar} name=${BASE} weight=${token.base_weight} />
            ${token.tasks.length > 0 &&
            html`<p>task: ${token.tasks.map((task) => `${task.name} ${percent(task.weight)}`).join(", ")}</p>`}`}
    </div>`;
}

export function Bar({ name, weight }) {
  return html`
    <div class="bar" style=${paint(name)}>
      <span class="name">${name}</span><span class="share">${percent(weight, weight > 0 && weight < 0.01 ? 2 : 0)}</span>
      <span class="track"><span class="fill ${name === BASE ? "base" : ""}" style=${{ width: percent(weight, 1).replace(" ", "") }} /></span>
    </div>`;
}
