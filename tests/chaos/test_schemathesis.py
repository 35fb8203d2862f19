"""Requests made from the OpenAPI documents, good and bad, against both listeners of a real server on a tiny model.

No answer may be a 5xx, come without a key, tell something of the server, or have a status, header, content type or body
that its document does not know. One or two of schemathesis' checks are left out: an answer may depend on more than a
schema can say, and vLLM takes more than its own says (it ignores fields and converts types).
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from adapters.bank import Bank
from server.app import ROUTERS
from server.keys import line_for
from server.openapi import describe
from tests.chaos.tiny_server import tiny_server
from tests.server.process import NAME, REPO, ServerProcess

KEY, ADMIN_KEY = "seta-a-key", "seta-an-admin-key"
MORE_THAN_A_SCHEMA_SAYS = "positive_data_acceptance"
LENIENT = "positive_data_acceptance,negative_data_rejection"
EXAMPLES = 100
PATIENCE_SECONDS = 1800
VALID: dict[str, dict[str, Any]] = {
    "ChatCompletionRequest": {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2},
    "CompletionRequest": {"prompt": "Hello", "max_tokens": 2},
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("tiny")
    options = ["--max-tokens", "8", "--max-n", "4"]
    for option, key in (("--api-keys-file", KEY), ("--admin-keys-file", ADMIN_KEY)):
        path = folder / option.removeprefix("--")
        path.write_text(line_for("somebody", key))
        options += [option, str(path)]
    with tiny_server(folder, *options) as running:
        yield running
        assert "internal error" not in running.printed()


def test_the_clients_listener(server: ServerProcess, tmp_path: Path) -> None:
    assail(server, server.url, KEY, narrowed(describe(ROUTERS)), tmp_path, LENIENT)


def test_every_field_of_a_generating_request_on_its_own(server: ServerProcess, tmp_path: Path) -> None:
    """Among a dozen random fields vLLM nearly always refuses one, and then does not look at the others."""
    document = narrowed(describe(ROUTERS))
    schemas = document["components"]["schemas"]
    for kind, valid in VALID.items():
        schemas[kind] = one_at_a_time(schemas[kind], valid)
    document["paths"] = {path: document["paths"][path] for path in ("/v1/chat/completions", "/v1/completions")}
    assail(server, server.url, KEY, document, tmp_path, LENIENT)


def test_the_admin_listener(server: ServerProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    headers = {"authorization": f"Bearer {ADMIN_KEY}"}
    document = httpx.get(f"{server.admin_url}/admin/v1/openapi.json", headers=headers).raise_for_status().json()
    bank, archive = Bank.open(server.log.parent / "bank"), tmp_path / "archive.tar"
    bank.export(1, archive)
    monkeypatch.setenv("SETA_TEST_ARCHIVE", str(archive))
    takes = document["paths"]["/admin/v1/generations/missing"]["post"]["requestBody"]["content"]
    takes["application/json"]["example"] = json.loads(bank.manifest(1).to_bytes())
    assail(server, server.admin_url, ADMIN_KEY, document, tmp_path, MORE_THAN_A_SCHEMA_SAYS)


def narrowed(document: dict[str, Any]) -> dict[str, Any]:
    """With names and numbers that this server knows: hardly a request would get past its first checks otherwise."""
    numbers: dict[str, Any] = {"type": ["integer", "null"], "minimum": 1, "maximum": 4}
    known: dict[str, Any] = dict.fromkeys(("max_tokens", "max_completion_tokens", "n", "top_logprobs"), numbers)
    known["model"] = {"enum": [NAME, f"{NAME}@2", f"{NAME}-base", None]}
    for name, schema in document["components"]["schemas"].items():
        if name.endswith("Request"):
            properties = schema["properties"]
            properties |= {field: new for field, new in known.items() if field in properties}
    (name,) = document["paths"]["/v1/models/{name}"]["get"]["parameters"]
    name["schema"] = {"anyOf": [{"enum": [NAME, f"{NAME}-base"]}, name["schema"]]}
    return document


def one_at_a_time(schema: dict[str, Any], valid: dict[str, Any]) -> dict[str, Any]:
    """The request `valid` with one more field, whichever."""
    fixed = {name: {"const": value} for name, value in valid.items()}
    cases = [
        {"properties": fixed | {name: field}, "required": [*valid, name]}
        for name, field in schema["properties"].items()
        if name not in valid
    ]
    return {"anyOf": [case | {"type": "object", "additionalProperties": False} for case in cases]}


def assail(
    server: ServerProcess,
    url: str,
    key: str,
    document: dict[str, Any],
    folder: Path,
    excluded: str,
) -> None:
    """Run schemathesis over every operation of a document; each must have succeeded at times."""
    path, report = folder / "openapi.json", folder / "report.json"
    path.write_text(json.dumps(document))
    command = [sys.executable, "-m", "schemathesis.cli", "run", str(path), "--url", url]
    command += ["--header", f"Authorization: Bearer {key}", "--checks", "all", "--exclude-checks", excluded]
    command += ["--max-examples", str(EXAMPLES), "--seed", "1", "--no-shrink", "--continue-on-failure"]
    command += ["--request-timeout", "60", "--suppress-health-check", "all", "--warnings", "off"]
    command += ["--report", "json", "--report-json-path", str(report)]
    settings = {
        "PYTHONPATH": str(REPO),
        "SCHEMATHESIS_HOOKS": "tests.chaos.schemathesis_hooks",
        "SETA_TEST_PRIVATE": str(server.log.parent),
    }
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE_SECONDS,
    )
    assert done.returncode == 0, done.stdout[-20_000:]
    rates = json.loads(report.read_text())["valid_rates"]
    accepted = {name: sum(phase["accepted"] for phase in phases.values()) for name, phases in rates.items()}
    print(accepted)
    assert all(accepted.values()), accepted
    assert httpx.get(f"{server.url}/ready").status_code == 200
