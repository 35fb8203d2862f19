"""The methods by name, and their settings from the command line: `seta`, `seq-lora`, `seta:gate=softmax:rank=16`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_origin

from pydantic import BaseModel

from adapters.benchmark.settings import EwcSettings, ILoraSettings, LoraSettings, OLoraSettings, SetaSettings
from adapters.data import DataError


@dataclass(frozen=True)
class Kind:
    """`defaults`: what differs from the settings' own. `revision` grows whenever a change of the method's code changes
    its results: older cells then no longer count."""

    name: str
    settings: type[BaseModel]
    learner: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    revision: int = 1


SETA = "adapters.benchmark.seta:SetaLearner"
KINDS = {
    kind.name: kind
    for kind in (
        Kind("seta", SetaSettings, SETA, revision=3),
        Kind("seta-paper", SetaSettings, SETA, {"preset": "paper"}),
        Kind("seq-lora", LoraSettings, "adapters.benchmark.lora_methods:SequentialLora"),
        Kind("ewc", EwcSettings, "adapters.benchmark.ewc:Ewc"),
        Kind("o-lora", OLoraSettings, "adapters.benchmark.o_lora:OLora"),
        Kind("i-lora", ILoraSettings, "adapters.benchmark.i_lora:ILora"),
        Kind("joint", LoraSettings, "adapters.benchmark.lora_methods:JointLora"),
        Kind("per-task", LoraSettings, "adapters.benchmark.lora_methods:PerTaskLora"),
    )
}


@dataclass(frozen=True)
class Method:
    """One method with its settings; `label` is how it was asked for and how reports name it."""

    label: str
    kind: Kind
    settings: BaseModel


def parse_method(spec: str, steps: int, seed: int, overrides: Mapping[str, str]) -> Method:
    """`name[:setting=value]...`; a list's values are joined by `+`. Raises DataError, pydantic's ValidationError.

    `overrides` holds for every method that has such a setting; the spec's own settings come last.
    """
    name, *pairs = spec.split(":")
    if name not in KINDS:
        raise DataError(f"method {name!r} found; expected one of {', '.join(KINDS)}")
    kind = KINDS[name]
    own = parse_pairs(pairs)
    unknown = sorted(set(own) - set(kind.settings.model_fields))
    if unknown:
        raise DataError(f"{spec}: {name} has no setting {unknown[0]!r}; it has {', '.join(kind.settings.model_fields)}")
    wanted = {key: value for key, value in overrides.items() if key in kind.settings.model_fields} | own
    values: dict[str, Any] = {**kind.defaults, "steps": steps, "seed": seed}
    values |= {key: _value(kind.settings, key, value) for key, value in wanted.items()}
    return Method(spec, kind, kind.settings.model_validate(values))


def parse_methods(specs: Sequence[str], steps: int, seed: int, overrides: Mapping[str, str]) -> list[Method]:
    """Raises DataError for an override that no method has, or a method that comes twice."""
    twice = sorted({spec for spec in specs if specs.count(spec) > 1})
    if twice or not specs:
        raise DataError(f"method {twice[0]!r} comes twice" if twice else f"no method; give some of {', '.join(KINDS)}")
    methods = [parse_method(spec, steps, seed, overrides) for spec in specs]
    for key in overrides:
        if not any(key in method.kind.settings.model_fields for method in methods):
            raise DataError(f"--set {key}: none of the methods {', '.join(specs)} has that setting")
    return methods


def parse_pairs(pairs: Sequence[str]) -> dict[str, str]:
    """`name=value` strings → values by name. Raises DataError."""
    for pair in pairs:
        if "=" not in pair.strip("="):
            raise DataError(f"{pair!r} found; expected name=value")
    return {name: value for name, _, value in (pair.partition("=") for pair in pairs)}


def _value(settings: type[BaseModel], name: str, value: str) -> Any:
    if get_origin(settings.model_fields[name].annotation) is tuple:
        return tuple(value.split("+"))
    return None if value == "none" else value
