"""The OpenAPI description of this server, printed by `seta openapi` and served nowhere.

FastAPI describes the routes; what they take and give is described by vLLM's own request and response models, which the
routes do not name, because the server answers health checks before vLLM is imported. They are added here, and so are
the statuses that the guard, the limits and the reading of bodies answer with.
"""

import json
from collections.abc import Iterable
from importlib.metadata import version
from typing import Any, NamedTuple

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from .app import ROUTERS
from .auth import OPEN_PATHS
from .explain import Options, RouteAnswer, RouteRequest
from .limits import ENGINE_TO_ENGINE
from .openapi_parts import SECURITY_SCHEMES, add_headers, header

_DESCRIPTION = (
    "OpenAI-compatible inference over an expert bank; no request names a task. Requests are vLLM's: unknown fields are "
    "ignored. The header x-seta-generation of an answer names the generation that gave it. The field seta, with "
    '{"explain": true}, adds to a chat or completion which tasks and experts made it.'
)
_REF = "#/components/schemas/{model}"
_ERROR = "Error"
_STATUSES = {
    400: "A field is missing, wrong, or over a limit.",
    401: "No API key, or one this server does not know.",
    403: "A key for the other listener; without keys, a Host that is not this machine, or a web page's Origin.",
    404: "There is no such model.",
    405: "The route has other methods.",
    408: "The body did not arrive in time.",
    413: "The body is larger than the server takes.",
    415: "The content type is not application/json.",
    429: "Too many requests are waiting, of this key or in all; see Retry-After.",
    500: "The server failed; its log says why.",
    503: "Loading, stopping, or the engine is dead.",
}
_EVENT: dict[str, Any] = {
    "description": "Of each event.",
    "type": "object",
    "required": ["data"],
    "properties": {"data": {"type": "string", "description": "A piece of the answer, or an error; [DONE] at the end."}},
}
_ERROR_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "additionalProperties": False,
            "properties": {
                "message": {"type": "string"},
                "type": {"enum": ["invalid_request_error", "server_error"]},
                "param": {"type": ["string", "null"], "description": "The request's field at fault."},
                "code": {"type": ["string", "null"], "description": "A word that programs can test."},
            },
        }
    },
}


class Exchange(NamedTuple):
    """What one generating route takes and gives."""

    takes: tuple[type[BaseModel], ...]
    gives: type[BaseModel]
    streams: bool = False


def print_document() -> None:
    print(json.dumps(describe(ROUTERS), indent=2))


def describe(routers: Iterable[APIRouter]) -> dict[str, Any]:
    """The OpenAPI 3.1 document of these routes. Imports vLLM."""
    app = FastAPI(openapi_url=None)
    for router in routers:
        app.include_router(router)
    document = get_openapi(title="SETA", version=version("seta"), routes=app.routes, description=_DESCRIPTION)
    exchanges = _exchanges()
    refs, schemas = _schemas(exchanges)
    components = document["components"]
    components["schemas"] |= schemas | {_ERROR: _ERROR_SCHEMA}
    for unused in ("HTTPValidationError", "ValidationError"):  # FastAPI's 422, which no route answers
        components["schemas"].pop(unused, None)
    components["securitySchemes"] = SECURITY_SCHEMES
    for path, operations in document["paths"].items():
        for operation in operations.values():
            _describe_access(operation, path)
            if path in exchanges:
                _describe_exchange(operation, exchanges[path], refs)
            add_headers(operation)
    return document


def _exchanges() -> dict[str, Exchange]:
    from vllm.entrypoints.openai.chat_completion import protocol as chat
    from vllm.entrypoints.openai.completion import protocol as completion
    from vllm.entrypoints.serve.tokenize import protocol as tokenize

    return {
        "/v1/route": Exchange((RouteRequest,), RouteAnswer),
        "/v1/chat/completions": Exchange((chat.ChatCompletionRequest,), chat.ChatCompletionResponse, streams=True),
        "/v1/completions": Exchange((completion.CompletionRequest,), completion.CompletionResponse, streams=True),
        "/tokenize": Exchange(
            (tokenize.TokenizeChatRequest, tokenize.TokenizeCompletionRequest), tokenize.TokenizeResponse
        ),
        "/detokenize": Exchange((tokenize.DetokenizeRequest,), tokenize.DetokenizeResponse),
    }


Refs = dict[tuple[type[BaseModel], Any], dict[str, Any]]


def _schemas(exchanges: dict[str, Exchange]) -> tuple[Refs, dict[str, Any]]:
    """A reference for each model, and the schemas that the references lead to."""
    taken: list[tuple[type[BaseModel], Any]] = [(m, "validation") for e in exchanges.values() for m in e.takes]
    given: list[tuple[type[BaseModel], Any]] = [(e.gives, "serialization") for e in exchanges.values()]
    refs, definitions = models_json_schema(taken + given, ref_template=_REF)
    schemas = definitions["$defs"]
    for kind in ("ChatCompletion", "Completion"):
        _add_ours(schemas[f"{kind}Request"]["properties"], schemas[f"{kind}Response"]["properties"])
    return refs, schemas  # type: ignore[return-value]


def _add_ours(takes: dict[str, Any], gives: dict[str, Any]) -> None:
    """What `server.explain` adds to vLLM's fields, and without those that `server.limits` refuses."""
    for field in ENGINE_TO_ENGINE:
        takes.pop(field, None)
        gives.pop(field, None)
    takes["seta"] = Options.model_json_schema()
    gives["seta"] = {
        "type": ["object", "null"],
        "description": "The explanation, where the request asks for one; null if it was lost.",
    }


def _describe_access(operation: dict[str, Any], path: str) -> None:
    """Who may ask, and what the guard and the router answer to the others."""
    is_open = path in OPEN_PATHS
    operation["security"] = [] if is_open else [{"key": []}]
    operation["responses"].pop("422", None)
    statuses = [405, 500, 503] if is_open else [401, 403, 405, 500, 503]
    for status in [*statuses, *([404] if "{" in path else [])]:
        operation["responses"].setdefault(str(status), _error(status))


def _describe_exchange(operation: dict[str, Any], exchange: Exchange, refs: Refs) -> None:
    """What a route that takes a body answers, beyond what every route does."""
    for status in (400, 404, 408, 413, 415, 429):
        operation["responses"][str(status)] = _error(status)
    taken = [refs[model, "validation"] for model in exchange.takes]
    given = {"application/json": {"schema": refs[exchange.gives, "serialization"]}}
    stream = {"text/event-stream": {"schema": _EVENT}} if exchange.streams else {}
    body = {"schema": taken[0] if len(taken) == 1 else {"anyOf": taken}}
    operation["requestBody"] = {"required": True, "content": {"application/json": body}}
    generation = {"x-seta-generation": header("The generation that answered, or 'base'.", type="string")}
    operation["responses"]["200"] = {"description": "The answer.", "headers": generation, "content": given | stream}


def _error(status: int) -> dict[str, Any]:
    return {
        "description": _STATUSES[status],
        "content": {"application/json": {"schema": {"$ref": _REF.format(model=_ERROR)}}},
    }
