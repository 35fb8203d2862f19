"""Reading a request's body: bounded in bytes and in time, JSON, an object."""

import asyncio
from typing import Any, TypeVar

import pydantic_core
from fastapi import Request
from pydantic import BaseModel, TypeAdapter, ValidationError
from starlette.requests import ClientDisconnect

from .errors import ApiError

_STUMBLES = (AttributeError, TypeError, KeyError, IndexError)
Model = TypeVar("Model", bound=BaseModel)


async def read_json_object(request: Request, max_bytes: int, seconds: float) -> dict[str, Any]:
    """The body as a JSON object.

    Raises: ApiError 415 for another content type, 413 for more than `max_bytes`, 408 if it has not arrived after
    `seconds`, 400 for anything but a JSON object.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise ApiError(415, "The content type must be application/json", code="unsupported_media_type")
    try:
        async with asyncio.timeout(seconds):
            body = await _read(request, max_bytes)
    except TimeoutError:
        message = f"The body has not arrived after {seconds:g} s"
        raise ApiError(408, message, code="request_timeout", headers={"connection": "close"}) from None
    except ClientDisconnect:
        raise client_closed() from None
    try:
        parsed = pydantic_core.from_json(body, allow_inf_nan=False)
    except ValueError as error:  # too deep, a lone surrogate or NaN included
        raise ApiError(400, f"The body is not valid JSON: {error}", code="invalid_json") from None
    if not isinstance(parsed, dict):
        raise ApiError(400, "The body must be a JSON object", code="invalid_json")
    return parsed


def client_closed() -> ApiError:
    """What stands in the log of a proxy as 499: nobody is there to read it."""
    return ApiError(499, "The client closed the connection", code="client_closed")


def parse(model: type[Model], body: dict[str, Any]) -> Model:
    """The body as vLLM's request model. Raises: pydantic's ValidationError, or vLLM's own; ApiError 400."""
    try:
        return model.model_validate(body)
    except _STUMBLES as error:
        raise _misfit(model, body) from error


def _misfit(model: type[Model], body: dict[str, Any]) -> ApiError:
    """The first field that is not of its type.

    Some of vLLM's validators look into a field before its type has been checked, and stumble over what they find.
    """
    for name, field in model.model_fields.items():
        if name not in body:
            continue
        try:
            TypeAdapter[Any](field.annotation).validate_python(body[name])  # type: ignore[arg-type]
        except ValidationError as error:
            reason = error.errors(include_input=False, include_context=False)[0]["msg"]
            return ApiError(400, f"{name}: {reason}", param=name, code="invalid_value")
        except _STUMBLES:
            return ApiError(400, f"{name}: It cannot be read", param=name, code="invalid_value")
    return ApiError(400, "The fields do not fit together", code="invalid_value")


async def _read(request: Request, max_bytes: int) -> bytes:
    length = request.headers.get("content-length", "")
    if length.isascii() and length.isdecimal() and int(length) > max_bytes:
        raise _too_large(max_bytes)
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > max_bytes:
            raise _too_large(max_bytes)
        chunks.append(chunk)
    return b"".join(chunks)


def _too_large(max_bytes: int) -> ApiError:
    return ApiError(413, f"The body has more than {max_bytes} bytes", code="request_too_large")
