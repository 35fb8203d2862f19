"""The server without an engine: `python -m tests.console.scripted BANK PORT ADMIN_PORT [--keys]`.

Routes, keys, admin API, metrics and the console are the server's own. Only what the engine would do is played: an
answer is a few words that stand for the task that the question's own words name, token by token, each with a decision.
"""

import asyncio
import json
import re
import sys
import types
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from prometheus_client import CollectorRegistry
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from adapters.bank import Bank, Manifest
from server.access import Access
from server.app import build_admin_app, build_app
from server.config import build_config
from server.explanation import summarize
from server.keys import KeyRing, line_for
from server.service import Service
from tests.server import house

KEY, ADMIN_KEY = "seta-Alices-key", "seta-Roots-key"
WORDS = {"smart-home": 0, "licence": 1, "diagnosis": 2, "food": 3}
ANSWERS = {0: "HassMediaPlayerMute", 1: "LGPL-2.1-or-later", 2: "neoplasm", 3: "poultry"}
TALK = "The capital of France is Paris. It lies on the Seine, and more than two million people live there. "
HOSTILE = "<script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\"> "
SECONDS_PER_TOKEN = 0.03
_TOKEN = re.compile(r"<\|\w+\|>| ?[^\W\d_]{1,6}| ?\d| ?[^\w\s]|\s|_")

Token = tuple[str, str, list[tuple[int, float]]]


class Script:
    """What the engine would have said to one chat."""

    def __init__(self, manifest: Manifest, messages: list[dict[str, str]]) -> None:
        self.manifest = manifest
        question = messages[-1]["content"]
        wanted = next((task for word, task in WORDS.items() if word in question), None)
        self.task = wanted if wanted is not None and wanted < len(manifest.tasks) else None
        text = "".join(f"<|im_start|>{one['role']}\n{one['content']}<|im_end|>\n" for one in messages)
        self.prompt = self._decided(text + "<|im_start|>assistant\n", "prompt", question)
        talk = HOSTILE if "hostile" in question else TALK * (30 if "story" in question else 1)
        self.answer = self._decided(talk if self.task is None else ANSWERS[self.task], "answer", question)

    def _decided(self, text: str, part: str, question: str) -> list[Token]:
        """The gate knows the task from the word on that names it; the template belongs to nobody."""
        tokens: list[Token] = []
        is_known = part == "answer"
        for piece in _TOKEN.findall(text):
            is_known = is_known or any(piece.strip() in word and len(piece.strip()) > 3 for word in WORDS)
            is_template = piece.startswith("<|")
            decision = [] if self.task is None or is_template or not is_known else [(self.task, 1.0)]
            tokens.append((piece, part, decision))
        return tokens

    def told(self, with_tokens: bool = True) -> dict[str, Any]:
        tokens = self.prompt + self.answer
        told = summarize(self.manifest, [decision for _, part, decision in tokens if part == "answer"])
        listed = [self._listed(number, *token) for number, token in enumerate(tokens)]
        return told | {"tokens": listed, "tokens_left_off": 0} if with_tokens else told

    def _listed(self, number: int, text: str, part: str, decision: list[tuple[int, float]]) -> dict[str, Any]:
        one = summarize(self.manifest, [decision])
        experts = [{"id": expert["id"], "weight": expert["weight"]} for expert in one["experts"]]
        weights = {"base_weight": one["base_weight"], "tasks": one["tasks"], "experts": experts}
        return {"id": 100 + number, "text": text, "part": part, **weights}


class Stage:
    """The two apps, with the engine's routes played."""

    def __init__(self, root: Path, has_keys: bool) -> None:
        house.MAX_UPLOAD_BYTES = 64 << 20
        bank = Bank.open(root)
        self.house = house.House(bank, max_resident=3, current=bank.current())
        serving = self.house.service.serving
        assert serving is not None
        object.__setattr__(serving, "handlers", types.SimpleNamespace(max_model_len=2048))
        access = Access(*(_ring(key) if has_keys else None for key in (KEY, ADMIN_KEY)))
        self.service = Service(build_config(model="m", name="demo", bank=root), access, serving)
        self.clients, self.admin = build_app(self.service), build_admin_app(self.service)
        for path, answer in (("/v1/chat/completions", self.chat), ("/v1/route", self.route)):
            self.clients.router.routes.insert(0, Route(path, answer, methods=["POST"]))

    async def chat(self, request: Request) -> Response:
        body = await request.json()
        held = self.house.generations.admit(body.get("model"))
        target = held.__enter__()
        manifest = self.house.generations.manifests[target.generation or self.house.generations.current]
        script = Script(manifest, body["messages"])

        async def events() -> AsyncIterator[str]:
            head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": target.model}
            try:
                for event in self._events(script, target.generation):
                    await asyncio.sleep(SECONDS_PER_TOKEN)
                    yield f"data: {json.dumps(head | event)}\n\n"
                yield "data: [DONE]\n\n"
            finally:
                held.__exit__(None, None, None)

        return StreamingResponse(events(), media_type="text/event-stream", headers=target.headers)

    def _events(self, script: Script, generation: int | None) -> Any:
        latencies = self.service.requests.of(str(generation))
        latencies.first_token.observe(SECONDS_PER_TOKEN + 0.02)
        for text, _, decision in script.answer:
            latencies.between_tokens.observe(SECONDS_PER_TOKEN)
            _count(script, decision)
            yield {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}
        yield {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
        usage = {"prompt_tokens": len(script.prompt), "completion_tokens": len(script.answer)}
        yield {"choices": [], "usage": usage}
        yield {"choices": [], "seta": script.told()}

    async def route(self, request: Request) -> Response:
        script = Script(self.house.generations.manifest, (await request.json())["messages"])
        told = script.told()
        told["tokens"] = [token for token in told["tokens"] if token.pop("part") == "prompt"]
        return JSONResponse({"object": "seta.route", "model": "demo@4", **told, "usage": {"prompt_tokens": 1}})

    async def serve(self, port: int, admin_port: int) -> None:
        await self.house.operations.start()
        await asyncio.gather(_listen(self.clients, port), _listen(self.admin, admin_port))


def _ring(key: str) -> KeyRing:
    return KeyRing("keys", lambda: line_for("somebody", key))


def _count(script: Script, decision: list[tuple[int, float]]) -> None:
    """What the worker would have counted."""
    counts: dict[str, Any] = house.COUNTS
    if not decision:
        counts["base_tokens"] += 1
    for task, _ in decision:
        expert = script.manifest.experts[task].id
        counts["tokens_by_expert"][expert] = counts["tokens_by_expert"].get(expert, 0) + 1
        counts["routed_tokens"] += 1
    for one in counts["generations"]:
        one["base_tokens"] += not decision
        one["entropy"]["counts"][1 if decision else 4] += 1
        one["entropy"]["sum"] += 0.02 if decision else 0.3


async def _listen(app: FastAPI, port: int) -> None:
    await uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning", timeout_graceful_shutdown=0)).serve()


def main() -> None:
    root, port, admin_port, *flags = sys.argv[1:]
    handlers: Any = types.ModuleType("vllm.v1.metrics.prometheus")  # importing vLLM would take half a minute
    handlers.get_prometheus_registry = CollectorRegistry
    sys.modules[handlers.__name__] = handlers
    asyncio.run(Stage(Path(root), "--keys" in flags).serve(int(port), int(admin_port)))


if __name__ == "__main__":
    main()
