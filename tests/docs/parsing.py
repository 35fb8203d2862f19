"""Whether a command line is understood by the program it names; nothing is run.

Each is given to the program's own parser: typer's for ours, argparse's where a module uses that. A `Drift` says what
a document has and the code has not.
"""

import argparse
import importlib
import importlib.util
import inspect
import json
import re
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import urlsplit

import typer
from fastapi import FastAPI
from starlette.routing import Match, Route
from typer.main import get_command

import server.cli
from server.app import build_admin_app, build_app
from server.config import build_config
from server.service import Service
from tests.docs.documents import REPO, Command

ADMIN_PORT = 8001


class Drift(Exception):
    """What is wrong with a documented command."""


class _Parsed(Exception):
    """argparse has understood the arguments."""


def check(command: Command) -> None:
    """Raises: Drift."""
    program, *words = command.words
    try:
        if program == "seta":
            _check_seta(words)
        elif program == "make":
            _check_make(words)
        elif program == "curl":
            _check_curl(words)
        elif program == "pip":
            _check_pip(words)
        elif program == "cd" and not (REPO / words[0]).is_dir():
            raise Drift(f"there is no directory {words[0]}")
        elif program.rpartition("/")[2] in ("python", "python3"):
            _check_module(words)
    except Drift:
        raise
    except (Exception, SystemExit) as error:
        if not command.is_whole and type(error).__name__ == "MissingParameter":
            return
        raise Drift(f"{type(error).__name__}: {error}") from error


def check_mentioned(words: list[str]) -> None:
    """A command in running text may leave arguments out; its sub-commands and options must be there. Raises: Drift."""
    program, *words = words
    if program == "make":
        return _check_make(words)
    if program != "seta" and len(words) == 2:
        return _check_module(words)
    command = root_of_seta() if program == "seta" else command_of(words[1])
    words = words if program == "seta" else words[2:]
    while words and not words[0].startswith("-") and (below := getattr(command, "commands", None)):
        if words[0] not in below:
            raise Drift(f"there is no command {words[0]!r}, only {', '.join(below)}")
        command, words = _followed(below[words[0]]), words[1:]
    known = {"--help", *options_of(command)}
    for word in words:
        if word.startswith("--") and word.partition("=")[0] not in known:
            raise Drift(f"{command.name} has no option {word}")


def options_of(command: Any) -> Iterator[str]:
    """Every option of a command and of those below it."""
    for param in command.params:
        yield from (*param.opts, *param.secondary_opts)
    for below in getattr(command, "commands", {}).values():
        yield from options_of(_followed(below))


def root_of_seta() -> Any:
    return get_command(server.cli.app)


def command_of(module: str) -> Any:
    """The typer command of `python -m module`. Raises: Drift if there is no such module, or no command in it."""
    loaded = _loaded(module)
    if hasattr(loaded, "app"):
        return get_command(loaded.app)
    if not hasattr(loaded, "main") or not inspect.signature(loaded.main).parameters:
        raise Drift(f"{module} takes no options")
    alone = typer.Typer(add_completion=False)
    alone.command()(loaded.main)
    return get_command(alone)


def _loaded(module: str) -> Any:
    """The module that has the command line of `python -m module`."""
    for name in (f"{module}.cli", f"{module}.__main__", module):
        if _exists(name):
            return importlib.import_module(name)
    raise Drift(f"there is no module {module}")


def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # what should be its package is a module, or is not there
        return False


def _check_seta(words: list[str]) -> None:
    parse(root_of_seta(), "seta", words)


def parse(command: Any, name: str, words: list[str], parent: Any = None) -> None:
    """Follow a command to its last sub-command, as typer would, and on into the package that it is handed on to."""
    context = command.make_context(name, list(words), parent=parent)
    if hasattr(command, "commands"):
        rest = [*context._protected_args, *context.args]
        if rest:
            below, found, rest = command.resolve_command(context, rest)
            parse(found, below, rest, context)
    elif context.ignore_unknown_options:
        module, arguments = _handed_on(command, context)
        parse(get_command(importlib.import_module(module).app), name, arguments)


def _handed_on(command: Any, context: Any) -> tuple[str, list[str]]:
    """The module and the arguments that one of `seta`'s commands hands on."""
    found: list[tuple[str, list[str]]] = []
    with patch.object(server.cli, "_hand_on", lambda module, arguments, name: found.append((module, arguments))):
        command.invoke(context)
    return found[0]


def _followed(command: Any) -> Any:
    """The command itself, or the one it hands its arguments on to."""
    if not command.context_settings.get("ignore_unknown_options"):
        return command
    module, arguments = _handed_on(command, command.make_context(command.name, []))
    followed = get_command(importlib.import_module(module).app)
    return followed.commands[arguments[0]] if arguments else followed  # type: ignore[attr-defined]


def _check_module(words: list[str]) -> None:
    if words[:1] != ["-m"]:
        raise Drift("expected python -m MODULE")
    module, *options = words[1:]
    if not options or not (REPO / module.partition(".")[0]).is_dir():
        if not _exists(module):
            raise Drift(f"there is no module {module}")
        return
    loaded = _loaded(module)
    if "argparse" in vars(loaded):
        _check_argparse(loaded.main, options)
        return
    command = command_of(module)
    if options[0].startswith("--") and "grid" in getattr(command, "commands", {}):
        options = ["grid", *options]  # as `adapters.benchmark.__main__.main` does
    parse(command, module, options)


def _check_argparse(main: Callable[[list[str]], object], options: list[str]) -> None:
    parse_args = argparse.ArgumentParser.parse_args

    def parsed(self: argparse.ArgumentParser, *given: Any) -> None:
        parse_args(self, *given)
        raise _Parsed

    with patch.object(argparse.ArgumentParser, "parse_args", parsed):
        try:
            main(options)
        except _Parsed:
            return
    raise Drift("it did not parse its arguments")


def _check_make(words: list[str]) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (REPO / "Makefile").read_text(), re.MULTILINE))
    variables = set(re.findall(r"^([A-Z_]+) [?:]?=", (REPO / "Makefile").read_text(), re.MULTILINE))
    for word in words:
        name, equals, _ = word.partition("=")
        if name not in (variables if equals else targets):
            raise Drift(f"the Makefile has no {'variable' if equals else 'target'} {name!r}")


def _check_pip(words: list[str]) -> None:
    """An extra of ours that is installed exists."""
    extras = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for found in re.findall(r"(?:seta|\.)\[([a-z,]+)\]", " ".join(words)):
        if unknown := set(found.split(",")) - set(extras):
            raise Drift(f"pyproject.toml has no extra {unknown}")


def _check_curl(words: list[str]) -> None:
    (address,) = [word for word in words if word.startswith("http")]
    bodies = [words[at + 1] for at, word in enumerate(words) if word in ("-d", "--data", "--json")]
    for body in bodies:
        json.loads(body)
    methods = [words[at + 1] for at, word in enumerate(words) if word in ("-X", "--request")]
    method = methods[0] if methods else "POST" if bodies else "GET"
    url = urlsplit(address)
    scope = {"type": "http", "method": method, "path": url.path}
    routes = [route for route in _app(url.port == ADMIN_PORT).routes if isinstance(route, Route)]
    if not any(route.matches(scope)[0] is Match.FULL for route in routes):
        raise Drift(f"there is no route {method} {url.path}")


def _app(is_admin: bool) -> FastAPI:
    with tempfile.TemporaryDirectory() as bank:
        service = Service(build_config(model="m", bank=Path(bank)))
    return build_admin_app(service) if is_admin else build_app(service)
