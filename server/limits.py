"""What one request may ask for. vLLM bounds the rest: stop strings (4), bad words, logprobs, the context length.

A request over a limit gets a 400 that names the field, as OpenAI's own limits do.
"""

from typing import Any, Protocol

from .config import ServeConfig
from .errors import ApiError

MAX_STOP_CHARS = 1024
MAX_ID_CHARS = 128  # every event of a stream repeats it
ENGINE_TO_ENGINE = ("kv_transfer_params", "ec_transfer_params")  # how vLLM servers talk among themselves


class Generating(Protocol):
    """What vLLM's `ChatCompletionRequest` and `CompletionRequest` have in common, as far as it matters here."""

    n: int | None
    stop: str | list[str] | None
    request_id: str
    cache_salt: str | None
    model_extra: dict[str, Any] | None


def check(request: Generating, config: ServeConfig) -> None:
    """Raises: ApiError 400 if a field is over its limit, or is not for clients."""
    for field in ENGINE_TO_ENGINE:
        if getattr(request, field, None) is not None:
            raise ApiError(400, f"{field} is not supported", param=field, code="unsupported_parameter")
    if len(request.request_id) > MAX_ID_CHARS:
        raise _too_much("request_id", f"request_id may have at most {MAX_ID_CHARS} characters")
    stop = [request.stop] if isinstance(request.stop, str) else request.stop or []
    if any(len(text) > MAX_STOP_CHARS for text in stop):
        raise _too_much("stop", f"A stop sequence may have at most {MAX_STOP_CHARS} characters")
    _check_answers(request, config.max_n)
    _check_max_tokens(request, config.max_tokens)


def sequences(request: Generating) -> int:
    """How many answers the engine will generate side by side."""
    return max(1, request.n or 1) * _num_prompts(request)


def check_prompt_length(num_tokens: int, most: int | None) -> None:
    """Raises: ApiError 400 if a tokenized prompt is longer than the server takes."""
    if most is not None and num_tokens > most:
        message = f"The prompt has {num_tokens} tokens; this server takes at most {most}"
        raise ApiError(400, message, param="input_tokens", code="context_length_exceeded")


def _num_prompts(request: Generating) -> int:
    """A list is several prompts, unless it is a list of numbers: one prompt as tokens."""
    prompt = getattr(request, "prompt", None)
    if not isinstance(prompt, list) or not prompt or isinstance(prompt[0], int):
        return 1
    return len(prompt)


def _check_answers(request: Generating, most: int) -> None:
    if (request.model_extra or {}).get("best_of") not in (None, 1, request.n):
        message = "best_of is not supported; ask for several answers with n"
        raise ApiError(400, message, param="best_of", code="unsupported_parameter")
    if (request.n or 1) > most:
        raise _too_much("n", f"n must be at most {most}")
    if sequences(request) > most:
        raise _too_much("prompt", f"A request may ask for at most {most} answers: n times the number of its prompts")


def _check_max_tokens(request: Generating, most: int | None) -> None:
    for field in ("max_completion_tokens", "max_tokens"):
        if most is not None and (vars(request).get(field) or 0) > most:
            raise _too_much(field, f"{field} must be at most {most}")


def _too_much(field: str, message: str) -> ApiError:
    return ApiError(400, message, param=field, code="limit_exceeded")
