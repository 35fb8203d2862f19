// What has been asked and answered, and how a question becomes an answer. No markup here.
import { answer } from "./events.js";
import { getJson } from "./api.js";

let number = 0;

export const newTurn = (question, kind = "chat") => ({
  id: ++number, kind, question, answer: "", state: "running", error: null, generation: null, seta: null, usage: null,
  finish: null, firstTokenSeconds: null, seconds: null,
});

// Earlier turns as messages, but for those that were broken off by an error.
export function messagesOf(turns, question) {
  const told = turns.filter((turn) => turn.kind === "chat" && ["done", "stopped"].includes(turn.state) && turn.answer);
  const earlier = told.flatMap((turn) => [
    { role: "user", content: turn.question },
    { role: "assistant", content: turn.answer },
  ]);
  return [...earlier, { role: "user", content: question }];
}

// Runs a chat turn; `update(changes)` is called with what is new about it.
export async function run(turn, messages, options, signal, update) {
  const start = performance.now();
  const seconds = () => (performance.now() - start) / 1000;
  let text = "";
  let firstTokenSeconds = null;
  try {
    for await (const news of answer({ messages, ...options }, signal)) {
      if (news.text !== undefined) {
        text += news.text;
        firstTokenSeconds ??= seconds();
        update({ answer: text, firstTokenSeconds });
      } else {
        update(news);
      }
    }
    update({ state: "done", seconds: seconds() });
  } catch (error) {
    update({ ...ending(error), seconds: seconds() });
  }
}

// Runs a route turn: where a question would go, with no answer.
export async function runRoute(turn, messages, { model }, signal, update) {
  try {
    const seta = await getJson("v1/route", { body: { messages, model, tokens: true }, signal });
    update({ state: "done", seta, generation: seta.generation === null ? "base" : String(seta.generation) });
  } catch (error) {
    update(ending(error));
  }
}

const ending = (error) => (error.name === "AbortError" ? { state: "stopped" } : { state: "failed", error });
