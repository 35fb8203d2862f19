"""Why an answer came out as it did: the experts that made it.

    request   {"seta": {"explain": true}} or {"seta": {"explain": "tokens"}}
    response  {"seta": {"generation", "base_weight", "tasks": [{name, weight}], "experts": [{id, kind, tasks, weight}],
                        "tokens": [{id, text, part, base_weight, tasks, experts}], "tokens_left_off"}}

A request that does not ask goes to vLLM's handler as it is. One that asks goes to the same handler on a view of the
engine (`server.watching`) that has the worker keep its decisions and fetches them in the end. What they mean, and what
is told of them, is in `server.explanation`.
"""

import asyncio
import copy
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, StrictBool, StrictInt

from adapters.bank import Manifest

from .errors import ApiError
from .explanation import list_tokens, summarize
from .limits import Generating, sequences
from .watching import WatchingEngine

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

Handler = TypeVar("Handler")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Options(_Strict):
    """The field `seta` of a request."""

    explain: StrictBool | Literal["tokens"] = False


class _Request(_Strict):
    seta: Options = Options()


class RouteRequest(_Strict):
    """The body of `POST /v1/route`: a prompt as a chat, as text or as tokens, and whether to list its tokens."""

    model: str | None = None
    messages: list[Any] | None = None
    prompt: str | list[StrictInt] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tokens: StrictBool = False

    def as_request(self) -> dict[str, Any]:
        """The shortest chat or completion request with this prompt. Raises: ApiError 400 unless there is one prompt."""
        if (self.messages is None) == (self.prompt is None):
            raise ApiError(400, "Give either messages or prompt", param="messages", code="invalid_value")
        if self.messages is None and self.chat_template_kwargs is not None:
            message = "chat_template_kwargs goes with messages only"
            raise ApiError(400, message, param="chat_template_kwargs", code="invalid_value")
        given = {name: value for name, value in self if name != "tokens" and value is not None}
        return given | {"max_tokens": 1, "temperature": 0, "seta": {"explain": "tokens" if self.tokens else True}}


class Weight(_Strict):
    """A task's part in an answer."""

    name: str
    weight: float


class ExpertWeight(_Strict):
    """An expert's part in an answer."""

    id: str
    kind: Literal["unique", "shared"]
    tasks: list[str]
    weight: float


class TokenExpert(_Strict):
    """An expert's part in one token; `ExpertWeight` tells what it is."""

    id: str
    weight: float


class ListedToken(_Strict):
    """A token of the prompt, and the decision at it."""

    id: int
    text: str
    base_weight: float | None
    tasks: list[Weight] | None
    experts: list[TokenExpert] | None


class RouteUsage(_Strict):
    prompt_tokens: int


class RouteAnswer(_Strict):
    """What `POST /v1/route` gives."""

    object: Literal["seta.route"]
    model: str
    generation: int | None
    base_weight: float
    tasks: list[Weight]
    experts: list[ExpertWeight]
    tokens: list[ListedToken] | None = None
    tokens_left_off: int | None = None
    usage: RouteUsage


def take_options(body: dict[str, Any]) -> tuple[Options, dict[str, Any]]:
    """The field `seta`, and the body without it. Raises: pydantic's ValidationError."""
    if "seta" not in body:
        return Options(), body
    return _Request(seta=body["seta"]).seta, {name: value for name, value in body.items() if name != "seta"}


def check(request: Generating) -> None:
    """Raises: ApiError 400 for a request whose answer cannot be explained."""
    if sequences(request) > 1:
        raise _unexplained("n", "explain takes one prompt and one answer")
    if getattr(request, "use_beam_search", False):
        raise _unexplained("use_beam_search", "explain does not go with beam search")
    if getattr(request, "max_tokens", None) == 0:
        raise _unexplained("max_tokens", "explain needs an answer of one token; POST /v1/route explains a prompt alone")


def route_of(answer: dict[str, Any]) -> dict[str, Any]:
    """What `POST /v1/route` tells, from the explained answer of one token. Raises: ApiError 503 if there is nothing."""
    told: dict[str, Any] | None = answer["seta"]
    if told is None:
        raise ApiError(503, "The decision was lost in a crowd of requests; try again", code="explanation_lost")
    if "tokens" in told:
        tokens = [token for token in told["tokens"] if token.pop("part") == "prompt"]
        told = told | {"tokens": tokens}
    usage = {"prompt_tokens": answer["usage"]["prompt_tokens"]}
    return {"object": "seta.route", "model": answer["model"], **told, "usage": usage}


class Explanation:
    """One request that is to be explained.

    Args:
        manifest: of the request's generation; None for the base model.
    """

    def __init__(self, engine: "AsyncLLM", manifest: Manifest | None, with_tokens: bool) -> None:
        has_decisions = manifest is not None and bool(manifest.tasks)
        self._engine = WatchingEngine(engine, has_decisions, with_prompt=with_tokens)
        self._manifest = manifest
        self._with_tokens = with_tokens

    def handler(self, handler: Handler) -> Handler:
        """vLLM's handler, on an engine that watches this request."""
        mine: Any = copy.copy(handler)
        mine.engine_client = self._engine
        return mine

    async def finish(self, result: Any) -> Any:
        """The handler's result with the explanation in it: a body or a stream. An error stays what it is."""
        if isinstance(result, AsyncGenerator):
            return self._events(result)
        if hasattr(result, "error"):
            return result
        return result.model_dump() | {"seta": await self._tell()}

    async def _events(self, events: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
        """The stream, and before its end an event without choices, like OpenAI's own with the usage."""
        head: dict[str, Any] = {}
        async with aclosing(events):
            async for event in events:
                head = head or _head(event)
                if event.startswith("data: [DONE]") and (told := await self._tell()) is not None:
                    yield f"data: {json.dumps(head | {'choices': [], 'seta': told}, ensure_ascii=False)}\n\n"
                yield event

    async def _tell(self) -> dict[str, Any] | None:
        """The response's field `seta`; None if the worker has no decisions to give."""
        watched = self._engine.watched
        if watched is None:
            return None
        told = summarize(self._manifest, watched.of_answer)
        if self._with_tokens:
            tokenizer = self._engine.get_tokenizer()
            told |= await asyncio.to_thread(list_tokens, self._manifest, watched, tokenizer)
        return told


def _head(event: str) -> dict[str, Any]:
    """What all events of a stream begin with."""
    if not event.startswith("data: {"):
        return {}
    found = json.loads(event.removeprefix("data: "))
    return {name: found[name] for name in ("id", "object", "created", "model") if name in found}


def _unexplained(field: str, message: str) -> ApiError:
    return ApiError(400, message, param=field, code="unsupported_parameter")
