"""A bank, an engine and a handler that an explanation can be made of."""

import asyncio
import json
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any

from server.explain import Explanation

MANIFEST: Any = SimpleNamespace(
    generation=3,
    gate=SimpleNamespace(kind="analytic"),
    tasks=[SimpleNamespace(name="sums"), SimpleNamespace(name="shouts")],
    experts=[
        SimpleNamespace(id="sums.unique", kind="unique", tasks=("sums",)),
        SimpleNamespace(id="both.shared", kind="shared", tasks=("sums", "shouts")),
        SimpleNamespace(id="shouts.unique", kind="unique", tasks=("shouts",)),
    ],
    experts_by_task=[[0, 1], [1, 2]],
    tasks_by_expert=[[0], [0, 1], [1]],
)
SUMS, SHOUTS, BASE = [(0, 1.0)], [(1, 1.0)], []


class Letters:
    """A tokenizer of bytes."""

    def decode(self, ids: list[int], *, skip_special_tokens: bool = False) -> str:
        return bytes(ids).decode(errors="replace")


class Engine:
    """A prompt of three tokens, an answer of two, an output each; `told` records what the worker was asked."""

    def __init__(self, decisions: Any = (SUMS, BASE, SUMS, SHOUTS)) -> None:
        self.decisions = decisions
        self.told: list[tuple[Any, ...]] = []
        self.added: list[tuple[str, Any]] = []

    def get_tokenizer(self) -> Letters:
        return Letters()

    async def ask_replicas(self, method: str, *args: Any) -> list[Any]:
        self.told.append((method, *args))
        if method != "seta_decisions" or self.decisions is None:
            return [None]
        ran = list(self.decisions)[args[1] : args[2]]
        return [
            None,
            [None] * len(ran),
            ran,
        ]  # a replica that does not know it, one that watched for it, one that ran it

    async def generate(self, prompt: Any, params: Any, request_id: str, **_: Any) -> AsyncGenerator[Any, None]:
        self.added.append((request_id, params))
        for token in (100, 101):
            await asyncio.sleep(0)
            yield SimpleNamespace(prompt_token_ids=[97, 98, 99], outputs=[SimpleNamespace(token_ids=[token])])


class Answer:
    """vLLM's response."""

    def model_dump(self) -> dict[str, Any]:
        return {"model": "demo@3", "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}


class Handler:
    """vLLM's handler: it takes everything from the engine."""

    def __init__(self, engine: Any) -> None:
        self.engine_client = engine

    async def whole(self) -> Answer:
        async for _ in self.engine_client.generate("abc", SimpleNamespace(), "chatcmpl-1", priority=0):
            pass
        return Answer()

    async def stream(self) -> AsyncGenerator[str, None]:
        head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 7, "model": "demo@3"}
        async for output in self.engine_client.generate("abc", SimpleNamespace(), "chatcmpl-1"):
            yield f"data: {json.dumps(head | {'choices': [output.outputs[0].token_ids]})}\n\n"
        yield "data: [DONE]\n\n"


def explained(engine: Engine, with_tokens: bool = False, manifest: Any = MANIFEST) -> dict[str, Any]:
    async def run() -> dict[str, Any]:
        explanation: Any = Explanation(engine, manifest, with_tokens)  # type: ignore[arg-type]
        return await explanation.finish(await explanation.handler(Handler(engine)).whole())  # type: ignore[no-any-return]

    return asyncio.run(run())
