"""vLLM's OpenAI handlers, built for this server: chat, completions, tokenize and detokenize, nothing else of vLLM's.

vLLM's own `init_app_state` would also start what we do not serve (responses, Anthropic, pooling, endpoint plugins). The
handlers look a model name up in `models.lora_requests`, the table that `server.generations` keeps.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .config import ServeConfig, ServeError

if TYPE_CHECKING:
    from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
    from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion
    from vllm.entrypoints.openai.models.serving import OpenAIServingModels
    from vllm.entrypoints.serve.tokenize.serving import ServingTokenization
    from vllm.v1.engine.async_llm import AsyncLLM


@dataclass(frozen=True)
class Handlers:
    """vLLM's serving objects, all on one engine."""

    models: "OpenAIServingModels"
    chat: "OpenAIServingChat"
    completion: "OpenAIServingCompletion"
    tokenization: "ServingTokenization"

    @property
    def max_model_len(self) -> int:
        return int(self.chat.model_config.max_model_len)


def build_handlers(engine: "AsyncLLM", config: ServeConfig) -> Handlers:
    """Handlers that know only the base model so far. Raises: ServeError for an unknown parser or a bad template."""
    from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
    from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion
    from vllm.entrypoints.openai.models.protocol import BaseModelPath
    from vllm.entrypoints.openai.models.serving import OpenAIServingModels
    from vllm.entrypoints.serve.tokenize.serving import ServingTokenization
    from vllm.entrypoints.serve.utils.fingerprint import set_default_fingerprint_mode

    from .rendering import BoundedRenderer

    check_parsers(config)
    set_default_fingerprint_mode("hash")
    template: dict[str, Any] = {
        "chat_template": _template(config),
        "chat_template_content_format": "auto",
    }
    tools: dict[str, Any] = {
        "enable_auto_tools": config.enable_auto_tool_choice,
        "tool_parser": config.tool_call_parser,
        "reasoning_parser": config.reasoning_parser or "",
    }
    quiet: dict[str, Any] = {"request_logger": None}  # prompts are never logged
    models = OpenAIServingModels(engine, [BaseModelPath(name=config.base_name, model_path=config.base_name)])
    renderer = BoundedRenderer(
        engine.model_config,
        engine.renderer,
        **template,
        **tools,
        **quiet,
        max_prompt_tokens=config.max_prompt_tokens,
    )
    renderer.warmup()
    details: dict[str, Any] = {"enable_prompt_tokens_details": True}
    chat = OpenAIServingChat(
        engine, models, "assistant", online_renderer=renderer, **template, **tools, **quiet, **details
    )
    completion = OpenAIServingCompletion(engine, models, online_renderer=renderer, **quiet, **details)
    if config.max_tokens is not None:  # for requests that leave it open; `limits` refuses those that ask for more
        chat.override_max_tokens = completion.override_max_tokens = config.max_tokens
    return Handlers(models, chat, completion, ServingTokenization(models, renderer, **template, **quiet))


def check_parsers(config: ServeConfig) -> None:
    """Raises: ServeError naming the parsers vLLM has. Worth calling before the engine starts."""
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager

    wanted: list[tuple[str, str | None, Any]] = [
        ("--tool-call-parser", config.tool_call_parser, ToolParserManager),
        ("--reasoning-parser", config.reasoning_parser, ReasoningParserManager),
    ]
    for option, name, manager in wanted:
        known = sorted(manager.list_registered())
        if name is not None and name not in known:
            raise ServeError(f"{option}: there is no {name!r}; choose one of {', '.join(known)}")


def _template(config: ServeConfig) -> str | None:
    from vllm.renderers.chat_utils import load_chat_template

    return load_chat_template(config.chat_template) if config.chat_template else None
