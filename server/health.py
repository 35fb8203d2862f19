"""`/health`: the process is alive. `/ready`: it answers requests. Both open, neither touches the engine's queue."""

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from .service import service_of

router = APIRouter()


@router.get("/health")
async def health(request: Request) -> Response:
    """200 as long as the process can go on; 503 once its engine is dead, when only a restart helps."""
    phase = service_of(request).phase
    return JSONResponse({"status": phase}, status_code=503 if phase == "engine dead" else 200)


@router.get("/ready")
async def ready(request: Request) -> Response:
    """200 while requests are served; 503 while loading, stopping, or with a dead engine."""
    service = service_of(request)
    answer: dict[str, Any] = {"status": service.phase}
    if service.phase != "ready" or service.serving is None:
        return JSONResponse(answer, status_code=503)
    generations = service.serving.generations
    return JSONResponse(answer | {"generation": generations.current, "models": generations.names})
