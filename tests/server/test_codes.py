"""Every code that an answer can carry stands in docs/operations.md, next to its status, and none there is made up."""

import ast
import re
from pathlib import Path
from typing import get_args

from server.admission import Reason
from server.connections import _BUSY, _MALFORMED
from server.errors import _BANK
from server.service import Phase

REPO = Path(__file__).resolve().parents[2]
NOBODY_READS = {(499, "client_closed")}


def raised() -> set[tuple[int, str]]:
    """(status, code) of every `ApiError` that the sources write out."""
    found = set()
    for path in (REPO / "server").glob("*.py"):
        calls = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
        for call in calls:
            if isinstance(call.func, ast.Name) and call.func.id == "ApiError":
                code = next((keyword.value for keyword in call.keywords if keyword.arg == "code"), None)
                if isinstance(call.args[0], ast.Constant) and isinstance(code, ast.Constant):
                    found.add((int(str(call.args[0].value)), str(code.value)))
    return found


def computed() -> set[tuple[int, str]]:
    """Those that are looked up, or answered before there is a request."""
    refused = {(429, reason) for reason in get_args(Reason)}
    phases = {(503, phase.replace(" ", "_")) for phase in get_args(Phase) if phase != "ready"}
    bare = {
        (int(answer.split()[1]), re.findall(r'"code": "(\w+)"', answer.decode())[0]) for answer in (_BUSY, _MALFORMED)
    }
    return {*_BANK.values(), (507, "disk_full"), *refused, *phases, *bare}


def documented() -> set[tuple[int, str]]:
    """From the first column of the tables: a status goes for the codes that follow it."""
    found, status = set(), 0
    section = (REPO / "docs/operations.md").read_text().split("## Error codes")[1].split("\n## ")[0]
    for line in re.findall(r"^\| (\d{3} .*?) \|", section, re.MULTILINE):
        for number, code in re.findall(r"\b(\d{3})\b|`(\w+)`", line):
            if number:
                status = int(number)
            else:
                found.add((status, code))
    return found


def test_the_codes_are_those_of_the_document() -> None:
    assert len(raised()) > 25, "the search finds nothing any more"
    assert (raised() | computed()) - NOBODY_READS == documented()
