"""`Settings` as command-line options: one option per field, with its default and description."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from .errors import LoadTestError
from .settings import Settings

_SHOWN_DEFAULTS = {
    "workload": "demo/examples.jsonl",
    "max_tokens": "32",
    "padding_words": "0",
    "concurrency": "8; sweep 1,2,4,8,16,32",
}


def with_options_of_settings(command: Any) -> Any:
    """Give the command, besides its own parameters, one option per field of `Settings`; None where not given."""
    hints = get_type_hints(command, include_extras=True)
    own = [one for one in inspect.signature(command).parameters.values() if one.kind is not one.VAR_KEYWORD]
    own = [one.replace(annotation=hints[one.name], kind=one.KEYWORD_ONLY) for one in own]
    parameters = [*(_option(name, field) for name, field in Settings.model_fields.items()), *own]
    command.__signature__ = inspect.Signature(parameters)
    command.__annotations__ = {one.name: one.annotation for one in parameters}
    return command


def settings_from(options: dict[str, Any]) -> Settings:
    """Raises LoadTestError in one sentence that names the option."""
    given = {name: value for name, value in options.items() if value is not None and value != []}
    try:
        return Settings(**given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = f"--{str(first['loc'][0]).replace('_', '-')}: " if first["loc"] else ""
        raise LoadTestError(name + first["msg"].removeprefix("Value error, ")) from error


def _option(name: str, field: FieldInfo) -> inspect.Parameter:
    shown = _SHOWN_DEFAULTS.get(name, field.default if isinstance(field.default, (str, int, float)) else False)
    option = typer.Option(help=field.description, show_default=str(shown) if shown is not False else False)
    kind = _kind(field.annotation) | None
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, option])


def _kind(annotation: Any) -> Any:
    """What the command line takes for a field: plain types and choices as they are, a text for everything composed."""
    if annotation == tuple[Path, ...]:
        return list[Path]
    (plain,) = (
        [one for one in get_args(annotation) if one is not type(None)] if _is_optional(annotation) else (annotation,)
    )
    if plain in (int, float, str) or get_origin(plain) is Literal:
        return plain
    return str


def _is_optional(annotation: Any) -> bool:
    return type(None) in get_args(annotation)
