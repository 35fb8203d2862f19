"""`/v1/models`: every name a client may use as `model`, and what it stands for. Never a path of the server."""

from typing import Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict
from starlette.responses import JSONResponse, Response

from .service import Serving, serving_of

router = APIRouter()


class ModelCard(BaseModel):
    """`parent`: the base model of a generation; null for the base model itself. `max_model_len`: tokens."""

    model_config = ConfigDict(extra="forbid")

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["seta"] = "seta"
    parent: str | None
    max_model_len: int


class ModelList(BaseModel):
    model_config = ConfigDict(extra="forbid")

    object: Literal["list"] = "list"
    data: list[ModelCard]


@router.get("/v1/models", response_model=ModelList)
async def models(request: Request) -> Response:
    serving = serving_of(request)
    cards = [_card(serving, name) for name in serving.generations.names]
    headers = serving.generations.resolve(None).headers
    return JSONResponse(ModelList(data=cards).model_dump(), headers=headers)


@router.get("/v1/models/{name}", response_model=ModelCard)
async def model(request: Request, name: str) -> Response:
    serving = serving_of(request)
    target = serving.generations.resolve(name)
    return JSONResponse(_card(serving, name).model_dump(), headers=target.headers)


def _card(serving: Serving, name: str) -> ModelCard:
    generations = serving.generations
    target = generations.resolve(name)
    number = generations.current if target.generation is None else target.generation
    return ModelCard(
        id=name,
        created=int(generations.manifests[number].created.timestamp()),
        parent=None if target.generation is None else generations.base_name,
        max_model_len=serving.handlers.max_model_len,
    )
