"""A view of the engine for one request whose decisions are wanted.

It is what vLLM's handler takes for the engine: everything but `generate` is the engine's own. The worker is told the
request's id before the request is added, and asked for its decisions once the last output is there; a request that is
cut short is taken back. Each of the two questions waits for the step that is running, as any call into the worker does.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import uuid4

if TYPE_CHECKING:
    from .counting import CountingEngine

logger = logging.getLogger("seta.server")

Decision = Sequence[tuple[int, float]]
"""(column, weight) of the gate's columns with a weight above zero; none means base (`seta_runtime.decisions`)."""

_background: set[asyncio.Task[None]] = set()


@dataclass(frozen=True)
class Watched:
    """A finished request.

    `decisions`: of the positions from the prompt's first token on, or from its last one, to the answer's last but one;
    None where the gate was not asked. The answer's last token was not given to the model any more.
    """

    prompt: list[int]
    answer: list[int]
    decisions: list[Decision | None]

    @property
    def of_answer(self) -> list[Decision | None]:
        """The decision each token of the answer came from: the one at the position before it."""
        return self.decisions[-len(self.answer) :]


class WatchingEngine:
    """`watched` is set when the request has ended, unless it was cut short or the worker knows nothing of it.

    Args:
        has_decisions: False for the base model and a generation without tasks: all their tokens are base.
        with_prompt: have every token of the prompt decided on, also if the prefix cache has it.
    """

    def __init__(self, engine: "CountingEngine", has_decisions: bool, with_prompt: bool) -> None:
        self.watched: Watched | None = None
        self._engine = engine
        self._has_decisions = has_decisions
        self._with_prompt = with_prompt

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def generate(
        self, prompt: Any, sampling_params: Any, request_id: str, **options: Any
    ) -> AsyncGenerator[Any, None]:
        unique_id = f"{request_id}-{uuid4().hex}"  # clients may give two requests the same id
        if not self._has_decisions:
            async for output in self._outputs(prompt, sampling_params, unique_id, **options):
                yield output
            return
        if self._with_prompt:
            sampling_params.skip_reading_prefix_cache = True
        try:
            await self._engine.ask_replicas("seta_watch", unique_id)
            async with aclosing(self._outputs(prompt, sampling_params, unique_id, **options)) as outputs:
                async for output in outputs:
                    yield output
        finally:
            if self.watched is None:
                _run_on(self._forget(unique_id))

    async def _outputs(
        self, prompt: Any, sampling_params: Any, unique_id: str, **options: Any
    ) -> AsyncGenerator[Any, None]:
        """The engine's outputs; sets `watched` after the last one."""
        prompt_ids: list[int] = []
        answer_ids: list[int] = []
        async with aclosing(self._engine.generate(prompt, sampling_params, unique_id, **options)) as outputs:
            async for output in outputs:
                prompt_ids = list(output.prompt_token_ids or prompt_ids)
                answer_ids += output.outputs[0].token_ids  # a stream's are new ones, else there is one output
                yield output
        if prompt_ids and answer_ids:
            first = 0 if self._with_prompt else len(prompt_ids) - 1
            decisions = await self._decisions(unique_id, first, len(prompt_ids) + len(answer_ids) - 1)
            self.watched = None if decisions is None else Watched(prompt_ids, answer_ids, decisions)

    async def _decisions(self, unique_id: str, first: int, stop: int) -> list[Decision | None] | None:
        if not self._has_decisions:
            return [()] * (stop - first)
        told = await self._engine.ask_replicas("seta_decisions", unique_id, first, stop)
        found: list[list[Decision | None]] = [one for one in told if one is not None]
        ran = (one for one in found if any(decision is not None for decision in one))
        return next(ran, found[0] if found else None)  # all replicas watched for it, one ran it

    async def _forget(self, unique_id: str) -> None:
        try:
            await self._engine.ask_replicas("seta_forget", unique_id)
        except Exception as error:  # nobody waits for this; a worker that is gone has forgotten
            logger.debug("a request's decisions could not be dropped: %s", type(error).__name__)


def _run_on(work: Awaitable[None]) -> None:
    """Let it run to its end though nobody waits for it."""
    task = asyncio.ensure_future(work)
    _background.add(task)
    task.add_done_callback(_background.discard)
