"""The command `seta`. Importing this module imports neither torch nor vLLM; each command imports what it needs.

`seta bank`, `seta learn` and `seta evaluate` belong to `adapters`, `seta loadtest` to `loadtest`; their arguments are
handed on as they are.
"""

import importlib
import inspect
import os
import sys
from typing import Annotated, Any, NoReturn

import typer
from pydantic.fields import FieldInfo

from . import generations_cli, keys_cli
from .access import load_access
from .config import ServeConfig, ServeError, build_config
from .listen import bind

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Learn tasks one after another into an expert bank, and serve them as one model.",
)
_HANDED_ON: dict[str, Any] = {
    "context_settings": {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
}


def _serve(**options: Any) -> None:
    """Serve a base model with a bank's current generation behind an OpenAI-compatible API."""
    given = {name: value for name, value in options.items() if value is not None}
    status = 0
    try:
        config = build_config(**given)
        access = load_access(config)
        with bind(config) as sockets:
            from .launch import launch

            launch(config, sockets, access)
    except (ServeError, ImportError) as error:
        if options["log_level"] == "debug":
            raise
        print(f"seta: {error}", file=sys.stderr)
        status = 1
    _leave(status)


def _leave(status: int) -> NoReturn:
    """End now. Nothing is left to save, and taking torch and vLLM down module by module costs many seconds."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _with_options_of_config(command: Any) -> Any:
    """Give the command one option per field of `ServeConfig`, with the field's default and description."""
    parameters = [_option(name, field) for name, field in ServeConfig.model_fields.items()]
    command.__signature__ = inspect.Signature(parameters)
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def _option(name: str, field: FieldInfo) -> inspect.Parameter:
    kind: Any = field.annotation
    default = inspect.Parameter.empty if field.is_required() else field.default
    if name == "name":
        kind, default = str | None, None  # ServeConfig makes one from --model
    if isinstance(default, tuple):
        kind, default = list[str], list(default)
    option = typer.Option(help=field.description)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option])


app.add_typer(keys_cli.app, name="keys")
app.add_typer(generations_cli.app, name="generations")
app.command("serve")(_with_options_of_config(_serve))


@app.command("learn", **_HANDED_ON)
def learn(context: typer.Context) -> None:
    """Learn the tasks of a file into a bank, one after another."""
    _hand_on("adapters.cli", ["learn", *context.args], "seta")


@app.command("evaluate", **_HANDED_ON)
def evaluate(context: typer.Context) -> None:
    """Measure a bank: accuracy of every task, backward transfer, routing."""
    _hand_on("adapters.cli", ["evaluate", *context.args], "seta")


@app.command("bank", **_HANDED_ON)
def bank(context: typer.Context) -> None:
    """Look into a bank, verify it, clean it up, copy it."""
    _hand_on("adapters.bank.cli", context.args, "seta bank")


@app.command("loadtest", **_HANDED_ON)
def loadtest(context: typer.Context) -> None:
    """Measure a running server, this one or another; compare two measurements."""
    _hand_on("loadtest.cli", context.args, "seta loadtest")


@app.command("openapi")
def openapi() -> None:
    """Print the OpenAPI description of the server's routes."""
    from .openapi import print_document  # imports vLLM

    print_document()


def _hand_on(module: str, arguments: list[str], name: str) -> None:
    importlib.import_module(module).app(args=arguments, prog_name=name)


def main() -> None:
    app(prog_name="seta")


if __name__ == "__main__":
    main()
