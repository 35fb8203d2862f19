"""vLLM's engine, telling which requests it works on and showing what they get. Importing this imports vLLM.

Under data parallelism it stands for several engines, of which each request goes to one. vLLM's own `collective_rpc`
asks them all and gives back what the first one said.
"""

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from vllm.lora.request import LoRARequest
from vllm.outputs import RequestOutput
from vllm.v1.engine.async_llm import AsyncLLM

InEngine = Callable[[LoRARequest | None, str], AbstractContextManager[None]]
Watch = Callable[[LoRARequest | None, str], Callable[[RequestOutput], None]]


class CountingEngine(AsyncLLM):
    """`in_engine(adapter, request_id)` is entered when a request goes to the engine and left when it has ended there.

    A request that is cut short ends in the engine's process only when that is told so. Whoever frees the adapter after
    the block has ended comes after that message, on the same connection.
    """

    in_engine: InEngine = staticmethod(lambda adapter, request_id: nullcontext())
    watch: Watch = staticmethod(lambda adapter, request_id: lambda output: None)
    """Called once for a request; what it returns sees each of the request's outputs."""

    async def collective_rpc(
        self,
        method: str,
        timeout: float | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> list[Any]:
        """The answers of every replica's workers, one replica after another. Raises if any of them fails."""
        return [answer for workers in await self._replicas(method, timeout, args, kwargs) for answer in workers]

    async def ask_replicas(self, method: str, *args: Any) -> list[Any]:
        """One answer a replica: that of its first worker, which under tensor parallelism sees what the others see."""
        return [workers[0] for workers in await self._replicas(method, None, args, None)]

    async def _replicas(self, method: str, *rest: Any) -> list[list[Any]]:
        found: list[list[Any]] = await self.engine_core.call_utility_all_async("collective_rpc", method, *rest)
        return found

    async def generate(
        self,
        prompt: Any,
        sampling_params: Any,
        request_id: str,
        *,
        lora_request: LoRARequest | None = None,
        **options: Any,
    ) -> AsyncGenerator[RequestOutput, None]:
        outputs = super().generate(prompt, sampling_params, request_id, lora_request=lora_request, **options)
        with self.in_engine(lora_request, request_id):
            see = self.watch(lora_request, request_id)
            try:
                async for output in outputs:
                    see(output)
                    yield output
            finally:
                await outputs.aclose()
