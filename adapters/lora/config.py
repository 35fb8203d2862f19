"""What a PEFT LoRA's `adapter_config.json` says, as far as it decides what the adapter's tensors mean.

PEFT has many variants of LoRA that share this file. Only plain ones are a delta `s B A` on frozen weights; every other
is refused by the key that asks for it, and so is a key that is not known here and is set to anything.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

CONFIG_NAME = "adapter_config.json"
MAX_CONFIG_BYTES = 1 << 20
MAX_QUANTIFIERS = 2
INITS = ("gaussian", "eva", "orthogonal")
"""Initialisations that leave the base weights alone; PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA change them."""

WITHOUT_EFFECT = {
    "auto_mapping",
    "corda_config",
    "ensure_weight_tying",
    "ephemeral_gpu_offload",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "target_modules",
}
"""Set or not, these say nothing about a delta that the tensors' names and values do not say themselves."""

NOT_A_PLAIN_DELTA = {
    "alora_invocation_tokens": "it acts after certain tokens only",
    "fan_in_fan_out": "its weights are transposed",
    "layer_replication": "it repeats layers of the base model",
    "lora_bias": "it adds a bias",
    "modules_to_save": "whole modules were trained besides the LoRA",
    "target_parameters": "it changes parameters that are no linear layer's weight",
    "trainable_token_indices": "it changes the embedding",
    "use_dora": "DoRA also rescales the weights",
    "use_qalora": "QA-LoRA pools its inputs",
}

Rank = Annotated[int, Field(ge=1, le=4096)]
Alpha = Annotated[float, Field(allow_inf_nan=False)]


class LoraError(Exception):
    """A LoRA adapter cannot be read, or cannot be an expert of this bank, or cannot be written."""


class LoraConfig(BaseModel):
    """The fields of `adapter_config.json` that count; a module's delta is `scale_of(module) · B A`."""

    model_config = ConfigDict(frozen=True, extra="allow")
    peft_type: Literal["LORA"]
    task_type: Literal["CAUSAL_LM"] | None = None
    r: Rank
    lora_alpha: Alpha
    use_rslora: bool = False
    bias: Literal["none"] = "none"
    init_lora_weights: bool | str | None = True
    rank_pattern: dict[str, Rank] = {}
    alpha_pattern: dict[str, Alpha] = {}
    base_model_name_or_path: str | None = None

    @field_validator("rank_pattern", "alpha_pattern", mode="before")
    @classmethod
    def _null_is_empty(cls, pattern: Any) -> Any:
        return {} if pattern is None else pattern

    @field_validator("rank_pattern", "alpha_pattern")
    @classmethod
    def _are_quick_to_match(cls, pattern: dict[str, Any]) -> dict[str, Any]:
        """They are regular expressions from outside: none may take for ever."""
        for key in pattern:
            quantifiers = sum(key.count(sign) for sign in "*+?{")
            if not re.fullmatch(r"[\w.\\^$|()\[\]*+?-]{1,256}", key, re.ASCII) or quantifiers > MAX_QUANTIFIERS:
                raise ValueError(f"{key[:80]!r} found, expected a module's name or a simple pattern of one")
            if re.search(r"\)[*+?]", key):
                raise ValueError(f"{key[:80]!r} repeats a group; write the names out")
            try:
                re.compile(key)
            except re.error as error:
                raise ValueError(f"{key[:80]!r} is no regular expression: {error}") from None
        return pattern

    @field_validator("init_lora_weights")
    @classmethod
    def _leaves_the_base_alone(cls, how: bool | str | None) -> bool | str | None:
        if isinstance(how, str) and how not in INITS:
            raise ValueError(
                f"{how[:80]!r} changes the base weights before training, so the adapter is no delta on the base model; "
                "convert it with PEFT's save_pretrained(..., path_initial_model_for_weight_conversion=...)"
            )
        return how

    @model_validator(mode="after")
    def _is_a_plain_delta(self) -> LoraConfig:
        for key, value in sorted((self.model_extra or {}).items()):
            if value and key not in WITHOUT_EFFECT:
                why = NOT_A_PLAIN_DELTA.get(key, "this software does not know what it does")
                raise ValueError(f"{key} is {json.dumps(value)[:80]}: {why}; train the LoRA without it")
        return self

    def rank_of(self, module: str) -> int:
        """`module`: the name inside the base model, as in `model.layers.6.self_attn.v_proj`."""
        return _matching(self.rank_pattern, module, self.r)

    def scale_of(self, module: str) -> float:
        """alpha / r, or alpha / sqrt(r) with rank-stabilised scaling."""
        rank = self.rank_of(module)
        return float(_matching(self.alpha_pattern, module, self.lora_alpha)) / (
            math.sqrt(rank) if self.use_rslora else rank
        )


def read_config(directory: Path) -> LoraConfig:
    """Read and check `adapter_config.json`. Raises LoraError."""
    path = directory / CONFIG_NAME
    try:
        with path.open("rb") as file:
            data = file.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise LoraError(
            f"{path} cannot be read ({error.strerror}); give the directory that PEFT's save_pretrained wrote"
        ) from None
    if len(data) > MAX_CONFIG_BYTES:
        raise LoraError(f"{path} has more than {MAX_CONFIG_BYTES} bytes; it is no adapter's configuration")
    try:
        return LoraConfig.model_validate(json.loads(data))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        what = f"{first['msg'].removeprefix('Value error, ')}"
        found = "" if first["type"] in ("value_error", "missing") else f", found {str(first['input'])[:80]!r}"
        raise LoraError(f"{path}: {where + ': ' if where else ''}{what}{found}") from None
    except (ValueError, RecursionError) as error:
        raise LoraError(f"{path} is not JSON: {error}") from None


def _matching(patterns: dict[str, Any], module: str, default: Any) -> Any:
    """As PEFT chooses: the first key that matches the end of the module's name, from a dot on."""
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), default)
