"""The OpenAI-compatible routes, answered by vLLM's own handlers.

A request's life: the body is read and bounded; its model name is resolved, which binds the request to a generation (or
to the base model) for good; vLLM's request model checks the fields; vLLM's handler renders, schedules and generates;
the answer goes out, whole or as a stream of events, with the generation in the header `x-seta-generation`.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from .bodies import parse, read_json_object
from .errors import ApiError, as_api_error, from_vllm
from .generations import Generations, Target
from .service import Serving, service_of, serving_of

router = APIRouter()
Answer = TypeVar("Answer")
Call = Callable[[Serving, dict[str, Any]], Awaitable[Any]]


@router.post("/v1/chat/completions")
async def chat_completions(request: Request) -> Response:
    return await _answer(request, _chat)


@router.post("/v1/completions")
async def completions(request: Request) -> Response:
    return await _answer(request, _complete)


@router.post("/tokenize")
async def tokenize(request: Request) -> Response:
    return await _answer(request, _tokenize)


@router.post("/detokenize")
async def detokenize(request: Request) -> Response:
    return await _answer(request, _detokenize)


@router.get("/v1/models")
async def models(request: Request) -> Response:
    serving = serving_of(request)
    cards = [_card(serving, name) for name in serving.generations.names]
    return JSONResponse({"object": "list", "data": cards}, headers=_current(serving.generations).headers)


@router.get("/v1/models/{name}")
async def model(request: Request, name: str) -> Response:
    serving = serving_of(request)
    target = serving.generations.resolve(name)
    return JSONResponse(_card(serving, name), headers=target.headers)


async def _answer(request: Request, call: Call) -> Response:
    serving = serving_of(request)
    body = await read_json_object(request, service_of(request).config.max_body_bytes)
    target = serving.generations.resolve(body.get("model"))
    try:
        return await until_disconnect(request, _run(call, serving, body | {"model": target.model}, target))
    except Exception as error:
        failure = as_api_error(error)
        failure.headers.update(target.headers)
        raise failure from error


async def _run(call: Call, serving: Serving, body: dict[str, Any], target: Target) -> Response:
    result = await call(serving, body)
    if isinstance(result, AsyncGenerator):
        return await _stream(result, target)
    if hasattr(result, "error"):  # vLLM's ErrorResponse
        raise from_vllm(result.error)
    return JSONResponse(result.model_dump(), headers=target.headers)


async def _chat(serving: Serving, body: dict[str, Any]) -> Any:
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    _check_messages(body)
    return await serving.handlers.chat.create_chat_completion(parse(ChatCompletionRequest, body))


async def _complete(serving: Serving, body: dict[str, Any]) -> Any:
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest

    return await serving.handlers.completion.create_completion(parse(CompletionRequest, body))


async def _tokenize(serving: Serving, body: dict[str, Any]) -> Any:
    from vllm.entrypoints.serve.tokenize.protocol import TokenizeChatRequest, TokenizeCompletionRequest

    if "messages" in body:
        _check_messages(body)
    kind = TokenizeChatRequest if "messages" in body else TokenizeCompletionRequest
    return await serving.handlers.tokenization.create_tokenize(parse(kind, body), None)


async def _detokenize(serving: Serving, body: dict[str, Any]) -> Any:
    from vllm.entrypoints.serve.tokenize.protocol import DetokenizeRequest

    return await serving.handlers.tokenization.create_detokenize(parse(DetokenizeRequest, body), None)


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
        raise ApiError(499, "The client closed the connection", code="client_closed")
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


def _current(generations: Generations) -> Target:
    return generations.resolve(None)


def _card(serving: Serving, name: str) -> dict[str, Any]:
    """A model as `/v1/models` shows it: never a path of the server."""
    generations = serving.generations
    target = generations.resolve(name)
    number = generations.current if target.generation is None else target.generation
    return {
        "id": name,
        "object": "model",
        "created": int(generations.manifests[number].created.timestamp()),
        "owned_by": "seta",
        "parent": None if target.generation is None else generations.base_name,
        "max_model_len": serving.handlers.max_model_len,
    }
