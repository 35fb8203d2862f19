"""An engine that computes only when it is told: a batch is kept running and advanced by so many steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from seta_runtime.bench.points import DECODE_TOKENS, Point, prompts_for

SPARE_TOKENS = 16
"""More than a request can get while the others of its batch are still being prefilled."""


class Engine(Protocol):
    """What is used of `vllm.v1.engine.llm_engine.LLMEngine`, run inside this process."""

    def add_request(self, request_id: str, prompt: Any, params: Any, *, lora_request: Any = None) -> str: ...

    def step(self) -> list[Any]: ...

    def abort_request(self, request_ids: list[str]) -> None: ...


class Batch:
    """The requests of one point on one engine.

    Request i of a batch asks for adapter i of `lora_requests`, in turns. `sampling`: number of tokens → vLLM's sampling
    parameters for greedy decoding of so many.
    """

    def __init__(
        self, engine: Engine, prompts: list[list[int]], lora_requests: list[Any], sampling: Callable[[int], Any]
    ) -> None:
        self.engine, self.prompts, self.lora_requests, self.sampling = engine, prompts, lora_requests, sampling
        self.point = Point("none", 0)
        self.running: list[str] = []
        self.num_requests = self.num_prefills = 0

    def begin(self, point: Point, number: int) -> None:
        """Give up what runs; start the point's batch `number` and run it until every request has its first token."""
        self.end()
        self.point, self.num_prefills = point, 0
        if point.is_prefill:
            return
        self.running = self._add(number, DECODE_TOKENS + SPARE_TOKENS)
        waiting = set(self.running)
        while waiting:
            waiting -= {output.request_id for output in self.engine.step()}

    def step(self) -> int:
        """Tokens decoded, or prefilled, in one step. Raises RuntimeError if it was not a whole one."""
        if self.point.is_prefill:
            self._add(self.num_prefills, 1)
            self.num_prefills += 1
        self._check(self.engine.step(), is_last=self.point.is_prefill)
        return self.point.tokens_per_step

    def end(self) -> None:
        self.engine.abort_request(self.running)
        self.running = []

    def _check(self, outputs: list[Any], is_last: bool) -> None:
        """Every request has got one token, which is its last one or not."""
        if len(outputs) != self.point.batch or any(output.finished != is_last for output in outputs):
            ended = sum(output.finished for output in outputs)
            raise RuntimeError(
                f"a step of {self.point.name} gave {len(outputs)} requests a token and ended {ended} of them; "
                f"expected {self.point.batch} and {self.point.batch * is_last}"
            )

    def _add(self, number: int, max_tokens: int) -> list[str]:
        ids: list[str] = []
        for index, prompt in enumerate(prompts_for(self.point, self.prompts, number)):
            self.num_requests += 1
            ids.append(str(self.num_requests))
            adapter = self.lora_requests[index % len(self.lora_requests)] if self.lora_requests else None
            self.engine.add_request(
                ids[-1], {"prompt_token_ids": prompt}, self.sampling(max_tokens), lora_request=adapter
            )
        return ids
