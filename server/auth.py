"""Who may ask what: a key for every route of a listener, but for the few on its written list.

`Guard` is ASGI middleware around the whole app, so a route added tomorrow is closed until somebody opens it by name. It
leaves the name of the key, the tenant, with the request.

Where no key is configured the listener is on loopback (`access.refuse_exposure`). Then anybody on this machine may ask,
but no web page in a browser there: neither one that had its own host name resolved to 127.0.0.1 (DNS rebinding; the
Host header gives it away), nor one that sends a request without caring for the answer (the Origin header does).
"""

from collections.abc import Collection

from fastapi import Request
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from .access import is_loopback
from .errors import ApiError
from .keys import KeyRing

OPEN_PATHS = frozenset({"/health", "/ready"})
_TENANT = "seta.tenant"


class Guard:
    """Lets a request through to `app` if its path is open or its key is one of `keys`.

    Args:
        keys: the keys of this listener; None asks for none.
        others: the keys of the other listener, which get a 403 instead of a 401: right server, wrong door.
        open_paths: paths that need no key; compared as a whole with the path that the router will see.
        origins: where web pages may ask from although no key is asked for; "*": from anywhere.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: KeyRing | None,
        others: KeyRing | None = None,
        open_paths: Collection[str] = OPEN_PATHS,
        origins: Collection[str] = (),
    ) -> None:
        self.app = app
        self._keys = keys
        self._others = others
        self._open_paths = frozenset(open_paths)
        self._origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":  # we have no WebSocket, and nothing else has a way to show a key
            return await send({"type": "websocket.close", "code": 1008})
        try:
            scope[_TENANT] = None if scope["path"] in self._open_paths else self._tenant(Headers(scope=scope))
        except ApiError as error:
            return await error.response()(scope, receive, send)
        await self.app(scope, receive, send)

    def _tenant(self, headers: Headers) -> str | None:
        """The name of the request's key; None where no key is asked for. Raises: ApiError 401 or 403."""
        if self._keys is None:
            _check_host(headers.get("host", ""))
            self._check_origin(headers.get("origin"), headers.get("host", ""))
            return None
        key = _bearer(headers.getlist("authorization"))
        tenant = self._keys.find(key)
        if tenant is not None:
            return tenant
        if self._others is not None and self._others.find(key) is not None:
            raise ApiError(403, "This key is for the server's other listener", code="wrong_listener")
        raise _unauthorized("The API key is not known to this server")

    def _check_origin(self, origin: str | None, host: str) -> None:
        """Browsers name the page's origin whenever it is not this server's own, and with a POST always."""
        if origin is None or origin.lower() in (f"http://{host.lower()}", f"https://{host.lower()}"):
            return
        if not self._origins & {origin, "*"}:
            message = "This server has no keys and takes no requests from web pages, unless --allow-origin names theirs"
            raise ApiError(403, message, code="origin_not_allowed")


def tenant_of(request: Request) -> str | None:
    """The name of the key that a request came with; None where keys are not in use. The guard must have seen it."""
    tenant = request.scope[_TENANT]
    assert tenant is None or isinstance(tenant, str)
    return tenant


def _bearer(values: list[str]) -> str:
    if len(values) > 1:
        raise _unauthorized("There is more than one Authorization header")
    scheme, _, key = (values[0] if values else "").partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        raise _unauthorized("An API key is needed: send the header 'Authorization: Bearer KEY'")
    return key.strip()


def _unauthorized(message: str) -> ApiError:
    return ApiError(401, message, code="invalid_api_key", headers={"www-authenticate": "Bearer"})


def _check_host(host: str) -> None:
    name = host if host.endswith("]") else host.rpartition(":")[0] or host
    if name and not is_loopback(name):
        raise ApiError(
            403,
            "This server has no keys and answers this machine only: ask it as 127.0.0.1 or localhost, "
            "or have its operator configure keys",
            code="host_not_allowed",
        )
