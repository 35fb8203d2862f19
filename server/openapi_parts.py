"""What the OpenAPI documents of both listeners say alike: how a key is shown, and which headers a refusal carries."""

from typing import Any

SECURITY_SCHEMES = {"key": {"type": "http", "scheme": "bearer"}}


def header(description: str, **schema: Any) -> dict[str, Any]:
    return {"description": description, "required": True, "schema": schema}


_HEADERS = {
    "401": {"WWW-Authenticate": header("How a key is shown.", const="Bearer")},
    "405": {"Allow": header("The methods that the route has.", type="string")},
    "429": {"Retry-After": header("When to ask again, in seconds.", type="integer", minimum=1)},
}


def add_headers(operation: dict[str, Any]) -> None:
    """To each response of an operation that always has some."""
    for status, response in operation["responses"].items():
        if status in _HEADERS:
            response["headers"] = _HEADERS[status]
