// One question and its answer, coloured once the server has told its tokens.
import { answerIn, everything, questionIn } from "./align.js";
import { BASE, paint } from "./experts.js";
import { Tokens } from "./tokens.js";
import { html, milliseconds, percent, plural, useMemo, useState } from "./ui.js";

const FINISH = { length: "stopped at the token limit", stop: null };

export function Turn({ turn, highlight, onRetry }) {
  const [isRaw, setRaw] = useState(false);
  const tokens = turn.seta?.tokens;
  const question = useMemo(() => tokens && questionIn(tokens, turn.question), [tokens]);
  const answer = useMemo(() => tokens && answerIn(tokens, turn.answer), [tokens, turn.answer]);
  const raw = useMemo(() => (tokens && isRaw ? everything(tokens) : null), [tokens, isRaw]);
  if (raw) {
    return html`
      <article class="turn">
        <div class="raw"><${Tokens} pieces=${raw} label="What the model saw" highlight=${highlight} /></div>
        <${Facts} turn=${turn} isRaw=${isRaw} setRaw=${setRaw} />
      </article>`;
  }
  return html`
    <article class="turn" aria-busy=${turn.state === "running"}>
      <div class="question">
        ${question ? html`<${Tokens} pieces=${question} label="Question" highlight=${highlight} />` : turn.question}
      </div>
      ${turn.kind === "chat" && html`
        <div class="answer" aria-live=${turn.state === "running" ? "polite" : "off"}>
          ${answer ? html`<${Tokens} pieces=${answer} label="Answer" highlight=${highlight} />` : turn.answer}
          ${turn.state === "running" && html`<span class="cursor" aria-label="answering" />`}
        </div>`}
      ${turn.error && html`<${Problem} error=${turn.error} onRetry=${() => onRetry(turn)} />`}
      <${Facts} turn=${turn} isRaw=${isRaw} setRaw=${setRaw} />
    </article>`;
}

function Problem({ error, onRetry }) {
  return html`
    <div class="problem" role="alert">
      <span>${error.message}${error.code ? html` <code>${error.code}</code>` : ""}</span>
      <button onClick=${onRetry}>Ask again</button>
    </div>`;
}

function Facts({ turn, isRaw, setRaw }) {
  if (turn.state === "running") return null;
  const { seta, usage } = turn;
  const facts = [
    turn.generation && (turn.generation === "base" ? "base model" : `generation ${turn.generation}`),
    turn.firstTokenSeconds !== null && `first token ${milliseconds(turn.firstTokenSeconds)}`,
    turn.seconds !== null && `${milliseconds(turn.seconds)} in all`,
    usage && `${usage.prompt_tokens} + ${plural(usage.completion_tokens, "token")}`,
    turn.state === "stopped" && "stopped",
    turn.finish && FINISH[turn.finish],
  ].filter(Boolean);
  return html`
    <footer class="facts">
      ${seta && html`<${Shares} seta=${seta} isRoute=${turn.kind === "route"} />`}
      ${facts.map((fact) => html`<span>${fact}</span>`)}
      ${seta?.tokens_left_off > 0 && html`<span>the first ${plural(seta.tokens_left_off, "token")} are not listed</span>`}
      ${seta?.tokens && html`<button class="quiet" aria-pressed=${isRaw} onClick=${() => setRaw(!isRaw)}
        title="Question and answer as the model saw them, with the chat template's tokens">all tokens</button>`}
    </footer>`;
}

// The experts' part in the answer as a whole.
function Shares({ seta, isRoute }) {
  const shares = [...seta.experts.map(({ id, weight }) => [id, weight])];
  if (seta.base_weight > 0) shares.push([BASE, seta.base_weight]);
  return html`
    <span class="shares" title=${isRoute ? "Where an answer would begin" : "Mean over the answer's tokens"}>
      ${isRoute && "would go to "}
      ${shares.map(([id, weight]) => html`<span class="chip ${id === BASE ? "base" : ""}" style=${paint(id)}>${id} ${percent(weight)}</span>`)}
    </span>`;
}
