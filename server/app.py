"""The two ASGI apps: our routes and nothing else, behind the guard; whatever fails is answered in OpenAI's shape."""

import asyncio
import http
from importlib.metadata import version

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adapters.bank import BankError

from . import admin, bank_view, console, health, metrics, model_list, openai
from .auth import OPEN_PATHS, Guard
from .config import ServeConfig
from .errors import ApiError, as_api_error, internal_error
from .request_metrics import RequestMeter
from .service import Service

ROUTERS = tuple(part.router for part in (health, metrics, model_list, bank_view, openai))


def build_app(service: Service) -> FastAPI:
    """Deny by default: no docs, no schema, no redirects, only the routes included here, each behind the guard."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    for router in (*ROUTERS, console.router("chat.html")):
        app.include_router(router)
    config, access = service.config, service.access
    open_paths = OPEN_PATHS | console.OPEN_PATHS | ({"/metrics"} if config.open_metrics else set())
    app.add_middleware(RequestMeter, requests=service.requests)
    origins = config.allow_origin
    app.add_middleware(Guard, keys=access.clients, others=access.admins, open_paths=open_paths, origins=origins)
    _allow_origins(app, config)
    return _equip(app, service)


def build_admin_app(service: Service) -> FastAPI:
    """The app of the admin listener: every route needs an admin key, its OpenAPI document included, but for the
    console's files."""
    app = FastAPI(
        title="SETA administration",
        version=version("seta"),
        openapi_url=f"{admin.PREFIX}/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.include_router(admin.router)
    for router in (health.router, metrics.router):  # for the console; behind a key like the rest
        app.include_router(router, include_in_schema=False)
    app.include_router(console.router("admin.html"))
    app.openapi = lambda: admin.openapi(app)  # type: ignore[method-assign]
    access = service.access
    app.add_middleware(Guard, keys=access.admins, others=access.clients, open_paths=console.OPEN_PATHS)
    return _equip(app, service)


def _equip(app: FastAPI, service: Service) -> FastAPI:
    app.state.service = service
    for kind in (ApiError, BankError, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, _answer_error)
    app.add_middleware(LastResort, service=service)
    return app


def _allow_origins(app: FastAPI, config: ServeConfig) -> None:
    """Let web pages of these origins in. They need a key like anybody; only the browser's question before has none."""
    if config.allow_origin:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=config.allow_origin,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["x-seta-generation", "retry-after"],
        )


async def _answer_error(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException) and error.status_code == http.HTTPStatus.METHOD_NOT_ALLOWED:
        error.headers = {"Allow": ", ".join(_methods_of(request))}
    return as_api_error(error).response()


def _methods_of(request: Request) -> list[str]:
    """Every method of the path: Starlette's own answer names those of one route, and a path may have several."""
    routes = [route for route in request.app.routes if isinstance(route, Route)]
    found = [route.methods or set() for route in routes if route.matches(request.scope)[0] is not Match.NONE]
    return sorted(set().union(*found))


class LastResort:
    """Outermost: whatever ends a request early, the client is told in our shape.

    An exception nobody expected becomes a 500, and a line in the log without its text. A request that is cut off
    because the server stops gets a 503, or, where its stream has begun, an error as the last event.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app = app
        self.service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start: Message | None = None

        async def watched_send(message: Message) -> None:
            nonlocal start
            start = message if message["type"] == "http.response.start" else start
            await send(message)

        try:
            await self.app(scope, receive, watched_send)
        except Exception as error:
            await _finish(internal_error(error), start, scope, receive, send)
        except asyncio.CancelledError:
            if not self.service.is_stopping:
                raise
            await _finish(ApiError(503, "The server is stopping", code="stopping"), start, scope, receive, send)


async def _finish(error: ApiError, start: Message | None, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the error, or end the answer that has begun: a stream of events can still carry it."""
    if scope["type"] != "http":
        return
    if start is None:
        await error.response()(scope, receive, send)
    elif Headers(raw=start["headers"]).get("content-type", "").startswith("text/event-stream"):
        await send({"type": "http.response.body", "body": error.event().encode(), "more_body": False})
