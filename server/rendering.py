"""vLLM's renderer (chat template and tokenizer) with this server's own bound on the length of a prompt.

Import only where vLLM may be imported.
"""

from typing import Any

from vllm.renderers.online_renderer import OnlineRenderer

from .limits import check_prompt_length


class BoundedRenderer(OnlineRenderer):
    """Refuses prompts of more than `max_prompt_tokens` tokens before the engine sees them. None: no such bound."""

    def __init__(self, *args: Any, max_prompt_tokens: int | None, **options: Any) -> None:
        super().__init__(*args, **options)
        self._max_prompt_tokens = max_prompt_tokens

    async def render_chat(self, request: Any, **options: Any) -> Any:
        rendered = await super().render_chat(request, **options)
        if isinstance(rendered, tuple):  # else vLLM's ErrorResponse
            self._check(rendered[1])
        return rendered

    async def render_completion(self, request: Any, **options: Any) -> Any:
        rendered = await super().render_completion(request, **options)
        if isinstance(rendered, list):
            self._check(rendered)
        return rendered

    def _check(self, inputs: list[Any]) -> None:
        for one in inputs:
            check_prompt_length(len(one.get("prompt_token_ids", ())), self._max_prompt_tokens)
