"""The OpenAPI description: every route, every status a client can meet, no reference that leads nowhere."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from starlette.routing import Route
from typer.testing import CliRunner

from server import cli, console, errors, limits
from server.access import Access
from server.app import ROUTERS, build_app
from server.config import build_config
from server.openapi import describe
from server.service import Service

REPO = Path(__file__).resolve().parents[2]
NOT_FOR_CLIENTS = {499}  # the client has gone


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(describe(ROUTERS)))
    return found


def test_it_describes_the_routes_of_the_app_and_no_others(document: dict[str, Any], tmp_path: Path) -> None:
    app = build_app(Service(build_config(model="m", bank=tmp_path), Access()))
    routes = {
        (route.path, method.lower())
        for route in app.routes
        if isinstance(route, Route)
        for method in route.methods or ()
    }
    described = {(path, method) for path, operations in document["paths"].items() for method in operations}
    wanted = {(path, method) for path, method in routes if method != "head" and path not in console.OPEN_PATHS}
    assert described == wanted


def test_the_command_prints_it(document: dict[str, Any]) -> None:
    printed = CliRunner().invoke(cli.app, ["openapi"])
    assert json.loads(printed.stdout)["paths"].keys() == document["paths"].keys()


def test_every_route_asks_for_a_key_but_for_the_open_ones(document: dict[str, Any]) -> None:
    is_open = {
        path for path, operations in document["paths"].items() for o in operations.values() if o["security"] == []
    }
    assert is_open == {"/health", "/ready"}
    assert document["components"]["securitySchemes"]["key"] == {"type": "http", "scheme": "bearer"}


def test_every_status_that_the_code_raises_is_described(document: dict[str, Any]) -> None:
    """Read from the sources: `ApiError(<status>, ...)` in the modules that answer clients."""
    modules = ("admission", "auth", "bodies", "errors", "generations", "limits", "openai", "service")
    text = "".join((REPO / "server" / f"{module}.py").read_text() for module in modules)
    raised = {int(status) for status in re.findall(r"ApiError\(\s*(\d{3})", text)} - NOT_FOR_CLIENTS
    assert raised >= {400, 401, 403, 404, 405, 408, 413, 415, 429, 503}, "the search finds nothing any more"
    described = document["paths"]["/v1/chat/completions"]["post"]["responses"]
    assert raised <= {int(status) for status in described}


def test_headers_that_always_come_are_described(document: dict[str, Any]) -> None:
    answers = document["paths"]["/v1/chat/completions"]["post"]["responses"]
    described = {status: set(answer["headers"]) for status, answer in answers.items() if "headers" in answer}
    assert described == {
        "200": {"x-seta-generation"},
        "401": {"WWW-Authenticate"},
        "405": {"Allow"},
        "429": {"Retry-After"},
    }


@pytest.mark.parametrize("kind", ["ChatCompletion", "Completion"])
def test_our_own_field_is_described_and_refused_ones_are_not(document: dict[str, Any], kind: str) -> None:
    taken, given = (document["components"]["schemas"][kind + part]["properties"] for part in ("Request", "Response"))
    options = Draft202012Validator(taken["seta"])
    assert options.is_valid({"explain": "tokens"}) and options.is_valid({"explain": True}) and options.is_valid({})
    assert not options.is_valid({"explain": "all"}) and not options.is_valid({"other": 1})
    assert "object" in given["seta"]["type"]
    assert not set(taken) & set(limits.ENGINE_TO_ENGINE)


def test_no_reference_leads_nowhere_and_every_schema_is_one(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    for ref in re.findall(r'"\$ref": "([^"]*)"', json.dumps(document)):
        assert ref.removeprefix("#/components/schemas/") in schemas
    for schema in schemas.values():
        Draft202012Validator.check_schema(schema)


def test_errors_are_what_the_description_says(document: dict[str, Any]) -> None:
    error = Draft202012Validator(document["components"]["schemas"]["Error"])
    for status in (400, 401, 429, 500, 503):
        error.validate(errors.ApiError(status, "message", param="a", code="b").body())
    with pytest.raises(Exception, match="is not"):
        error.validate({"error": {"message": 5, "type": "server_error", "param": None, "code": None}})


def test_it_is_served_nowhere(tmp_path: Path) -> None:
    app = build_app(Service(build_config(model="m", bank=tmp_path), Access()))
    assert not any(
        "openapi" in getattr(route, "path", "") or "docs" in getattr(route, "path", "") for route in app.routes
    )
