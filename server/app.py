"""The ASGI app: our routes and nothing else; an unknown path, method or failure gets an error in OpenAI's shape."""

import logging

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from . import health, metrics, openai
from .errors import ApiError, as_api_error, internal_error
from .service import Service

logger = logging.getLogger("seta.server")


def build_app(service: Service) -> FastAPI:
    """Deny by default: no docs, no schema, no redirects, only the routes included here."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.service = service
    for part in (health, metrics, openai):
        app.include_router(part.router)
    app.add_exception_handler(ApiError, _answer_error)
    app.add_exception_handler(HTTPException, _answer_error)
    app.add_middleware(LastResort)
    return app


async def _answer_error(_: Request, error: Exception) -> Response:
    return as_api_error(error).response()


class LastResort:
    """Outermost: an exception nobody expected becomes a 500 in our shape, and a line in the log without its text."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_started = False

        async def watched_send(message: Message) -> None:
            nonlocal is_started
            is_started = is_started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, receive, watched_send)
        except Exception as error:
            failure = internal_error(error)
            if scope["type"] == "http" and not is_started:
                await failure.response()(scope, receive, send)
