// Which tokens spell which message. The template's own tokens belong to none.

// The parts of `tokens` that lie in characters [from, to) of their text, as {text, token}.
export function slice(tokens, from, to) {
  const found = [];
  let start = 0;
  for (const token of tokens) {
    const end = start + token.text.length;
    const text = token.text.slice(Math.max(0, from - start), Math.max(0, Math.min(token.text.length, to - start)));
    if (text) found.push({ text, token });
    start = end;
  }
  return found;
}

const textOf = (tokens) => tokens.map((token) => token.text).join("");

// The last message in the prompt; null if the template changed it beyond recognition.
export function questionIn(tokens, question) {
  const prompt = tokens.filter((token) => token.part !== "answer");
  const at = textOf(prompt).lastIndexOf(question.trim());
  return at < 0 ? null : slice(prompt, at, at + question.trim().length);
}

// The answer without the token that ended it; null if the texts differ.
export function answerIn(tokens, answer) {
  const spoken = tokens.filter((token) => token.part === "answer");
  return textOf(spoken).startsWith(answer) ? slice(spoken, 0, answer.length) : null;
}

export const everything = (tokens) => slice(tokens, 0, Infinity);
