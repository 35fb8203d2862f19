"""Every error a client can see, in OpenAI's shape, made in one place.

    {"error": {"message": "...", "type": "invalid_request_error", "param": "temperature", "code": null}}

Handlers raise `ApiError`; `as_api_error` turns everything else that can go wrong into one: vLLM's exceptions and error
objects, pydantic's, Starlette's. What is our own fault becomes a 500 without a reason, and the log gets the reason: the
exception's type and place, never its text, which may hold a prompt.
"""

import errno
import http
import json
import logging
import re
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from adapters.bank import (
    BankConflict,
    BankCorrupt,
    BankError,
    BankFormatTooNew,
    BankIOError,
    BankMismatch,
    BankNotFound,
    BankPathEscape,
    BankTooLarge,
)

logger = logging.getLogger("seta.server")

_MAX_MESSAGE_CHARS = 1000
_CONTEXT = re.compile(r"maximum (context|model) length|context length", re.IGNORECASE)
_FIELD = re.compile(r"[a-z][a-z0-9_]*")
_BRANCHES = {"str", "int", "float", "bool", "bytes", "list", "tuple", "dict", "set", "none", "nullable", "union"}
_ECHO = re.compile(r" \(parameter=.*\)$", re.DOTALL)  # vLLM repeats the parameter and its value
_BANK: dict[type[BankError], tuple[int, str]] = {
    BankNotFound: (404, "not_in_bank"),
    BankConflict: (409, "bank_conflict"),
    BankTooLarge: (413, "too_large"),
    BankCorrupt: (422, "bank_corrupt"),
    BankMismatch: (422, "bank_mismatch"),
    BankFormatTooNew: (422, "bank_format_too_new"),
    BankPathEscape: (422, "bank_path_escape"),
    BankIOError: (500, "disk_error"),
    BankError: (500, "disk_error"),
}
_INTERNAL = "The server failed to answer this request; its log says why"
_ENGINE_DEAD = "The engine has stopped; the server is going down"


class ApiError(Exception):
    """An answer with an error status.

    `param` is the request's field at fault, `code` a word programs can test, `details` what they may need besides.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message if len(message) <= _MAX_MESSAGE_CHARS else message[:_MAX_MESSAGE_CHARS] + "…"
        self.param = param
        self.code = code
        self.headers = dict(headers or {})
        self.details = dict(details or {})

    def body(self) -> dict[str, Any]:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": error | ({"details": self.details} if self.details else {})}

    def event(self) -> str:
        """The error as an event of a stream."""
        return f"data: {json.dumps(self.body())}\n\n"

    def response(self) -> JSONResponse:
        return JSONResponse(self.body(), status_code=self.status, headers=self.headers)


def as_api_error(error: BaseException) -> ApiError:
    """The error a client gets for whatever was raised while its request was handled."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, HTTPException):
        return _from_http(error)
    if isinstance(error, (ValidationError, RequestValidationError)):
        return _from_validation(error.errors())
    if isinstance(error, BankError):
        return _from_bank(error)
    if _is_engine_dead(error):
        return ApiError(503, _ENGINE_DEAD, code="engine_dead")
    known = _from_vllm_exception(error) if isinstance(error, Exception) else None
    return known or internal_error(error)


def internal_error(error: BaseException) -> ApiError:
    """A 500 that says nothing; the log says where it happened."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{'/'.join(frames[-1].filename.split('/')[-2:])}:{frames[-1].lineno}" if frames else "unknown place"
    logger.error("internal error: %s at %s", type(error).__name__, place)
    logger.debug("traceback of the internal error", exc_info=error)
    return ApiError(500, _INTERNAL, code="internal_error")


def from_vllm(info: Any) -> ApiError:
    """vLLM's `ErrorInfo` (message, type, code, param) as ours."""
    if info.code >= 500 and info.code != http.HTTPStatus.SERVICE_UNAVAILABLE:
        if "EngineCore" in info.message:
            return ApiError(503, _ENGINE_DEAD, code="engine_dead")
        return ApiError(info.code, _INTERNAL, code="internal_error")
    code = "context_length_exceeded" if _CONTEXT.search(info.message) else None
    return ApiError(info.code, _ECHO.sub("", info.message), param=info.param, code=code)


def _from_bank(error: BankError) -> ApiError:
    """A bank's own errors are written to be shown: what was found, what was expected, what to do, and no path."""
    status, code = next(answer for kind, answer in _BANK.items() if isinstance(error, kind))
    if isinstance(error, BankIOError) and _is_disk_full(error):
        status, code = 507, "disk_full"
    return ApiError(status, str(error), code=code)


def _is_disk_full(error: BaseException) -> bool:
    return isinstance(error.__cause__, OSError) and error.__cause__.errno in (errno.ENOSPC, errno.EDQUOT)


def _from_vllm_exception(error: Exception) -> ApiError | None:
    """vLLM's own judgement of an exception; None where it sees a fault of the server."""
    from vllm.entrypoints.serve import create_error_response

    info = create_error_response(error).error
    return None if info.code == http.HTTPStatus.INTERNAL_SERVER_ERROR else from_vllm(info)


def _from_http(error: HTTPException) -> ApiError:
    """Starlette's own: an unknown route, a method a route does not have."""
    headers = dict(error.headers or {})
    if error.status_code == http.HTTPStatus.NOT_FOUND:
        return ApiError(404, "There is no such route", code="not_found", headers=headers)
    if error.status_code == http.HTTPStatus.METHOD_NOT_ALLOWED:
        message = f"The route takes {headers.get('Allow', 'other methods')} only"
        return ApiError(405, message, code="method_not_allowed", headers=headers)
    return ApiError(error.status_code, str(error.detail), headers=headers)


def _from_validation(errors: Sequence[Any]) -> ApiError:
    """Of pydantic's or FastAPI's findings only place and reason are told: the rest repeats what was sent."""
    found = list(dict.fromkeys(f"{_field(one['loc'])}: {one['msg']}" for one in errors))  # each branch of a union once
    more = [f"and {len(found) - 3} more"] if len(found) > 3 else []
    return ApiError(400, "; ".join(found[:3] + more), param=_field(errors[0]["loc"]), code="invalid_value")


def _field(location: tuple[int | str, ...]) -> str:
    """The path of a field as a client would write it, without pydantic's names for union branches and wrappers."""
    names = (str(part) for part in location if isinstance(part, int) or _FIELD.fullmatch(part))
    return ".".join(name for name in names if name not in _BRANCHES) or "body"


def _is_engine_dead(error: BaseException) -> bool:
    return type(error).__name__ == "EngineDeadError"
