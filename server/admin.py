"""The admin API: its own app on its own listener, for those who ship experts and take them back.

Answers are the models of `admin_models`; errors have OpenAI's shape and a stable `code` (`docs/operations.md`). The
OpenAPI document is at /admin/v1/openapi.json.
"""

import asyncio
from typing import Annotated, Any, TypeVar

import pydantic_core
from fastapi import APIRouter, FastAPI, Path, Request
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, ValidationError

from adapters.bank import Manifest
from adapters.bank.info import MAX_GENERATION
from adapters.bank.manifest import MAX_MANIFEST_BYTES

from .admin_models import (
    ActivateOrder,
    Changed,
    ErrorAnswer,
    ExpertList,
    GenerationList,
    Missing,
    Pinned,
    Retired,
    RetireOrder,
    RollbackOrder,
    StoredObject,
    Uploaded,
)
from .bank_view import BankView, GenerationView
from .bodies import parse, read_json_object
from .errors import as_api_error
from .openapi_parts import SECURITY_SCHEMES, add_headers
from .service import Administration, service_of, serving_of
from .uploads import MEDIA_TYPE

PREFIX = "/admin/v1"
_MAX_ORDER_BYTES = 64 << 10
_ALWAYS = (401, 403, 405, 500, 503)
_BODY = (400, 408, 413, 415)

router = APIRouter(prefix=PREFIX)
Order = TypeVar("Order", bound=BaseModel)
Number = Annotated[int, Path(ge=0, le=MAX_GENERATION)]


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": ErrorAnswer} for status in sorted({*_ALWAYS, *statuses})}


def _takes(media_type: str, schema: dict[str, Any]) -> dict[str, Any]:
    """The OpenAPI part of a body that we read ourselves, because it must be bounded."""
    return {"requestBody": {"required": True, "content": {media_type: {"schema": schema}}}}


def _takes_json(model: type[BaseModel]) -> dict[str, Any]:
    return _takes("application/json", model.model_json_schema())


def openapi(app: FastAPI) -> dict[str, Any]:
    """The document, without the 422 that FastAPI adds for path parameters: ours are answered with 400."""
    document = get_openapi(title=app.title, version=app.version, routes=app.routes)
    document["components"]["securitySchemes"] = SECURITY_SCHEMES
    document["security"] = [{"key": []}]
    for operations in document["paths"].values():
        for operation in operations.values():
            found = operation["responses"].get("422", {}).get("content", {})
            if "HTTPValidationError" in str(found):
                del operation["responses"]["422"]
            add_headers(operation)
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)
    return document


def _administration(request: Request) -> Administration:
    return serving_of(request).administration


def _patience(request: Request) -> float:
    return service_of(request).config.client_seconds


async def _order(request: Request, model: type[Order]) -> Order:
    body = await read_json_object(request, _MAX_ORDER_BYTES, _patience(request))
    try:
        return parse(model, body)
    except ValidationError as error:
        raise as_api_error(error) from None


@router.get("/generations", responses=_errors(), summary="List generations")
async def list_generations(request: Request) -> GenerationList:
    """Every generation in memory or on disk: what serves, what is in flight, what it takes."""
    return await _administration(request).inventory.generations()


@router.get("/generations/{generation:int}", responses=_errors(400, 404, 422), summary="Look into a generation")
async def generation(request: Request, generation: Number) -> GenerationView:
    """Its tasks, experts and accuracy: what would be known if it served."""
    return await _administration(request).inventory.generation(generation)


@router.get("/bank", responses=_errors(), summary="Show the bank")
async def bank(request: Request) -> BankView:
    """What the generation in service knows, and how the bank grew. The list may be some seconds old."""
    return await _administration(request).inventory.bank()


@router.get("/experts", responses=_errors(), summary="List experts")
async def list_experts(request: Request) -> ExpertList:
    """The experts of the generation in service and how many tokens each has answered."""
    return await _administration(request).inventory.experts()


@router.post(
    "/activate",
    responses=_errors(*_BODY, 404, 409, 422, 429, 507),
    openapi_extra=_takes_json(ActivateOrder),
    summary="Activate a generation",
)
async def activate(request: Request) -> Changed:
    """Serve a generation of the bank. When this answers, new requests are bound to it; running ones keep theirs."""
    order = await _order(request, ActivateOrder)
    change = await _administration(request).operations.activate(order.generation, order.expected_generation)
    return Changed(serving=change.serving, previous=change.previous, seconds=change.seconds)


@router.post(
    "/rollback",
    responses=_errors(*_BODY, 404, 409, 422, 429, 507),
    openapi_extra=_takes_json(RollbackOrder),
    summary="Roll back",
)
async def rollback(request: Request) -> Changed:
    """Serve what served before; after a restart, the parent of the generation in service."""
    order = await _order(request, RollbackOrder)
    change = await _administration(request).operations.rollback(order.expected_generation)
    return Changed(serving=change.serving, previous=change.previous, seconds=change.seconds)


@router.post(
    "/retire",
    responses=_errors(*_BODY, 404, 409),
    openapi_extra=_takes_json(RetireOrder),
    summary="Take a generation out of memory",
)
async def retire(request: Request) -> Retired:
    """It takes no new request and leaves memory with the end of its last one. Calls off a load under way."""
    order = await _order(request, RetireOrder)
    in_flight = _administration(request).operations.retire(order.generation)
    return Retired(generation=order.generation, in_flight=in_flight)


@router.post(
    "/generations",
    responses=_errors(400, 408, 409, 413, 415, 422, 429, 499, 507),
    openapi_extra=_takes(MEDIA_TYPE, {"type": "string", "format": "binary"}),
    summary="Upload a generation",
)
async def upload(request: Request) -> Uploaded:
    """Bring an archive (`seta bank export`) into the bank; objects that the bank has may be left out. It does not
    serve yet."""
    manifest = await _administration(request).uploads.receive(request)
    return Uploaded(generation=manifest.generation, manifest_sha256=manifest.digest)


@router.post(
    "/generations/missing",
    responses=_errors(*_BODY, 409, 422),
    openapi_extra=_takes("application/json", {"type": "object", "description": "A manifest (docs/design.md)."}),
    summary="List what an upload must bring",
)
async def missing(request: Request) -> Missing:
    """Which of a manifest's objects the bank lacks, or why it would be refused."""
    body = await read_json_object(request, MAX_MANIFEST_BYTES, _patience(request))
    manifest = Manifest.from_bytes(pydantic_core.to_json(body), "the manifest")
    bank = _administration(request).bank
    refs = await asyncio.to_thread(bank.missing_objects, manifest)
    numbers = await asyncio.to_thread(bank.generations)
    objects = [StoredObject(**ref._asdict()) for ref in refs]
    return Missing(generation=manifest.generation, is_in_bank=manifest.generation in numbers, objects=objects)


@router.post("/generations/{generation}/pin", responses=_errors(400, 404, 409, 422, 429), summary="Pin a generation")
async def pin(request: Request, generation: Number) -> Pinned:
    """Keep a generation in memory until it is unpinned or the server ends; it is loaded if need be."""
    resident = await _administration(request).operations.pin(generation)
    return Pinned(generation=generation, is_pinned=True, resident_bytes=resident.resident_bytes)


@router.delete("/generations/{generation}/pin", responses=_errors(400, 404), summary="Unpin a generation")
async def unpin(request: Request, generation: Number) -> Pinned:
    """Let a generation leave memory again when others need its place."""
    resident = _administration(request).operations.unpin(generation)
    return Pinned(generation=generation, is_pinned=False, resident_bytes=resident.resident_bytes)
