"""Command lines of manifests and docs, given to the programs' own parsers; nothing is run."""

import importlib
from typing import Any

import typer

_HANDED_ON = {
    "learn": "adapters.cli",
    "evaluate": "adapters.cli",
    "bank": "adapters.bank.cli",
    "loadtest": "loadtest.cli",
}


def parse(words: list[str]) -> dict[str, Any]:
    """`seta ...`, or `python -m server.cli ...`, as options and values. Raises for what is no option of it."""
    if words[:3] == ["python", "-m", "server.cli"]:
        words = ["seta", *words[3:]]
    assert words[0] == "seta", words
    module = _HANDED_ON.get(words[1], "server.cli")
    own_name = module in ("adapters.bank.cli", "loadtest.cli")
    command: Any = typer.main.get_command(importlib.import_module(module).app)
    words = words[2:] if own_name else words[1:]
    while hasattr(command, "commands"):
        assert words[0] in command.commands, f"{words[0]} is none of {sorted(command.commands)}"
        command, words = command.commands[words[0]], words[1:]
    return dict(command.make_context(command.name or "", list(words)).params)
