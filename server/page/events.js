// A streamed answer: server-sent events as objects, and what they mean for one chat completion.
import { Failure, send, unreachable } from "./api.js";

// Yields the data of each event; ends with [DONE]. Throws a Failure if the stream breaks off before.
export async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let isComplete = false;
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break; // read to the end: whoever leaves before has cancelled the request
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data:")) continue;
        const data = line.slice(5).trim();
        isComplete ||= data === "[DONE]";
        if (!isComplete) yield JSON.parse(data);
      }
    }
  } catch (error) {
    throw error.name === "AbortError" ? error : lost();
  } finally {
    reader.cancel().catch(() => {});
  }
  if (!isComplete) throw lost();
}

const lost = () => new Failure(0, "The connection was lost before the answer was complete", "connection_lost");

// Yields {generation}, {text}, {usage}, {seta} and {finish} as they come.
export async function* answer(body, signal) {
  const asked = { ...body, stream: true, stream_options: { include_usage: true }, seta: { explain: "tokens" } };
  const response = await send("v1/chat/completions", { body: asked, signal });
  yield { generation: response.headers.get("x-seta-generation") };
  try {
    for await (const event of eventsOf(response)) {
      if (event.error) throw new Failure(503, event.error.message, event.error.code);
      const choice = event.choices?.[0];
      if (choice?.delta?.content) yield { text: choice.delta.content };
      if (choice?.finish_reason) yield { finish: choice.finish_reason };
      if (event.usage) yield { usage: event.usage };
      if (event.seta) yield { seta: event.seta };
    }
  } catch (error) {
    throw unreachable(error);
  }
}
