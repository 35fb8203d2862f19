"""`/health`: the process is alive. `/ready`: it answers requests. Both open, neither touches the engine's queue."""

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict
from starlette.responses import JSONResponse, Response

from .service import Phase, service_of

router = APIRouter()


class Health(BaseModel):
    model_config = ConfigDict(extra="forbid")

    status: Phase


class Ready(Health):
    """`generation` is the one in service, `models` every name a client may use."""

    generation: int
    models: list[str]


@router.get("/health", response_model=Health, responses={503: {"model": Health}})
async def health(request: Request) -> Response:
    """200 as long as the process can go on; 503 once its engine is dead, when only a restart helps."""
    phase = service_of(request).phase
    return JSONResponse(Health(status=phase).model_dump(), status_code=503 if phase == "engine dead" else 200)


@router.get("/ready", response_model=Ready, responses={503: {"model": Health}})
async def ready(request: Request) -> Response:
    """200 while requests are served; 503 while loading, stopping, or with a dead engine."""
    service = service_of(request)
    if service.phase != "ready" or service.serving is None:
        return JSONResponse(Health(status=service.phase).model_dump(), status_code=503)
    generations = service.serving.generations
    ready = Ready(status="ready", generation=generations.current, models=generations.names)
    return JSONResponse(ready.model_dump())
