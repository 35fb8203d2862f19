"""The OpenAI-compatible routes that generate or tokenize, answered by vLLM's own handlers.

A request's life: it is admitted, or refused at once; the body is read and bounded; its model name is resolved, which
binds the request to a generation (or to the base model) until its last byte is sent or its client has gone; vLLM's
request model and our limits check the fields; it waits its turn; vLLM's handler renders, schedules and generates; the
answer goes out, whole or as a stream of events, with the generation in the header `x-seta-generation`.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from . import explain, limits, tracing
from .admission import Visit
from .auth import tenant_of
from .bodies import client_closed, parse, read_json_object
from .config import ServeConfig
from .errors import ApiError, as_api_error, from_vllm
from .generations import Target
from .service import Serving, service_of, serving_of
from .tenants import cache_salt

router = APIRouter()
Answer = TypeVar("Answer")
Handler = TypeVar("Handler")


@dataclass(frozen=True)
class Asked:
    """One request, read and bound to its generation."""

    serving: Serving
    config: ServeConfig
    visit: Visit
    target: Target
    body: dict[str, Any]
    trace: tracing.Trace


Call = Callable[[Asked], Awaitable[Any]]


@dataclass(frozen=True)
class Entry:
    """An admitted request. What is entered in `held` is left when the visit ends."""

    visit: Visit
    held: ExitStack


async def admit(request: Request) -> AsyncIterator[Entry]:
    """One request's visit; it ends when the last byte of the answer is out, or when the client has gone."""
    with ExitStack() as held:
        visit = serving_of(request).admission.enter(tenant_of(request))
        held.callback(visit.leave)
        yield Entry(visit, held)


Admitted = Annotated[Entry, Depends(admit)]


@router.post("/v1/chat/completions")
async def chat_completions(request: Request, entry: Admitted) -> Response:
    return await _answer(request, entry, _chat)


@router.post("/v1/completions")
async def completions(request: Request, entry: Admitted) -> Response:
    return await _answer(request, entry, _complete)


@router.post("/v1/route")
async def route(request: Request, entry: Admitted) -> Response:
    return await _answer(request, entry, _route)


@router.post("/tokenize")
async def tokenize(request: Request, entry: Admitted) -> Response:
    return await _answer(request, entry, _tokenize)


@router.post("/detokenize")
async def detokenize(request: Request, entry: Admitted) -> Response:
    return await _answer(request, entry, _detokenize)


async def _answer(request: Request, entry: Entry, call: Call) -> Response:
    serving, config = serving_of(request), service_of(request).config
    trace = entry.held.enter_context(tracing.traced(request))
    body = await read_json_object(request, config.max_body_bytes, config.client_seconds)
    target = entry.held.enter_context(serving.generations.admit(body.get("model")))
    trace.name(target)
    try:
        asked = Asked(serving, config, entry.visit, target, body | {"model": target.model}, trace)
        return await until_disconnect(request, _run(call, asked))
    except Exception as error:
        failure = as_api_error(error)
        failure.headers.update(target.headers)
        raise failure from error


async def _run(call: Call, asked: Asked) -> Response:
    result = await call(asked)
    if isinstance(result, AsyncGenerator):
        return await _stream(result, asked.target)
    if hasattr(result, "error"):  # vLLM's ErrorResponse
        raise from_vllm(result.error)
    content = result if isinstance(result, dict) else result.model_dump()
    return JSONResponse(content, headers=asked.target.headers)


async def _chat(asked: Asked) -> Any:
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    options, body = explain.take_options(asked.body)
    _check_messages(body)
    request = parse(ChatCompletionRequest, body)
    raw = asked.trace.as_request
    await _wait_turn(asked, request, options)
    handler = asked.serving.handlers.chat
    return await _generate(asked, options, handler, lambda h: h.create_chat_completion(request, raw))


async def _complete(asked: Asked) -> Any:
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest

    options, body = explain.take_options(asked.body)
    request = parse(CompletionRequest, body)
    raw = asked.trace.as_request
    await _wait_turn(asked, request, options)
    handler = asked.serving.handlers.completion
    return await _generate(asked, options, handler, lambda h: h.create_completion(request, raw))


async def _generate(
    asked: Asked, options: explain.Options, handler: Handler, create: Callable[[Handler], Awaitable[Any]]
) -> Any:
    """The handler's answer, or the same with an explanation."""
    if not options.explain:
        return await create(handler)
    generation = asked.target.generation
    manifest = None if generation is None else asked.serving.generations.manifests[generation]
    explanation = explain.Explanation(asked.serving.engine, manifest, options.explain == "tokens")
    return await explanation.finish(await create(explanation.handler(handler)))


async def _route(asked: Asked) -> Any:
    """The gate's decision at a prompt's end: that of an answer of one token, which is thrown away."""
    wanted = parse(explain.RouteRequest, asked.body)
    one_token = replace(asked, body=wanted.as_request())
    answer = await (_complete if wanted.messages is None else _chat)(one_token)
    return explain.route_of(answer) if isinstance(answer, dict) else answer


async def _wait_turn(asked: Asked, request: limits.Generating, options: explain.Options) -> None:
    """What every generating request goes through between its parsing and the engine. Raises: ApiError 400."""
    limits.check(request, asked.config)
    if options.explain:
        explain.check(request)
    request.cache_salt = cache_salt(asked.visit.tenant, request.cache_salt)
    await asked.visit.wait_turn(limits.sequences(request))


async def _tokenize(asked: Asked) -> Any:
    from vllm.entrypoints.serve.tokenize.protocol import TokenizeChatRequest, TokenizeCompletionRequest

    if "messages" in asked.body:
        _check_messages(asked.body)
    kind = TokenizeChatRequest if "messages" in asked.body else TokenizeCompletionRequest
    return await asked.serving.handlers.tokenization.create_tokenize(parse(kind, asked.body), None)


async def _detokenize(asked: Asked) -> Any:
    from vllm.entrypoints.serve.tokenize.protocol import DetokenizeRequest

    return await asked.serving.handlers.tokenization.create_detokenize(parse(DetokenizeRequest, asked.body), None)


def _check_messages(body: dict[str, Any]) -> None:
    if body.get("messages") == []:
        raise ApiError(400, "messages must hold at least one message", param="messages", code="invalid_value")


async def _stream(events: AsyncGenerator[str, None], target: Target) -> Response:
    """A streaming response whose first event is already there, so that an early error still gets its HTTP status."""
    first = await anext(events, "")
    if (info := _error_of(first)) is not None:
        await events.aclose()
        raise from_vllm(info)
    return StreamingResponse(_events(first, events), media_type="text/event-stream", headers=target.headers)


async def _events(first: str, rest: AsyncGenerator[str, None]) -> AsyncIterator[str]:
    try:
        yield first
        async for event in rest:
            info = _error_of(event)
            yield event if info is None else from_vllm(info).event()
    finally:
        await rest.aclose()


def _error_of(event: str) -> Any | None:
    """vLLM's `ErrorInfo` if the event is an error, which in a stream is the only event that begins like this."""
    if not event.startswith('data: {"error":'):
        return None
    from vllm.entrypoints.serve.engine.protocol import ErrorResponse

    return ErrorResponse.model_validate_json(event.removeprefix("data:").strip()).error


async def until_disconnect(request: Request, work: Coroutine[Any, Any, Answer]) -> Answer:
    """The work's result; the work is cancelled, and with it its engine request, once the client has gone.

    The body must have been read: from then on the only message a client can cause is its disconnect.
    """
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise client_closed()
    finally:
        leaving.cancel()
        if working.cancel():
            working.add_done_callback(_forget)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _forget(work: "asyncio.Task[Any]") -> None:
    """Nobody is left to answer; look at the exception so that asyncio does not report it."""
    if not work.cancelled():
        work.exception()
