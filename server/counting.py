"""vLLM's engine, telling which requests it works on and showing what they get. Importing this imports vLLM."""

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from vllm.lora.request import LoRARequest
from vllm.outputs import RequestOutput
from vllm.v1.engine.async_llm import AsyncLLM

InEngine = Callable[[LoRARequest | None, str], AbstractContextManager[None]]
Watch = Callable[[LoRARequest | None], Callable[[RequestOutput], None]]


class CountingEngine(AsyncLLM):
    """`in_engine(adapter, request_id)` is entered when a request goes to the engine and left when it has ended there.

    A request that is cut short ends in the engine's process only when that is told so. Whoever frees the adapter after
    the block has ended comes after that message, on the same connection.
    """

    in_engine: InEngine = staticmethod(lambda adapter, request_id: nullcontext())
    watch: Watch = staticmethod(lambda adapter: lambda output: None)
    """Called once for a request; what it returns sees each of the request's outputs."""

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
            see = self.watch(lora_request)
            try:
                async for output in outputs:
                    see(output)
                    yield output
            finally:
                await outputs.aclose()
