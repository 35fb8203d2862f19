"""adapter_config.json: what decides the deltas is taken as PEFT takes it, everything that is no plain delta refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig as PeftConfig
from peft.utils.other import get_pattern_key

from adapters.lora.config import LoraConfig, LoraError, read_config

from .factory import CONFIG

MODULE = "model.layers.6.self_attn.v_proj"


def written(directory: Path, **changes: Any) -> Path:
    (directory / "adapter_config.json").write_text(json.dumps(CONFIG | changes))
    return directory


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another method": ({"peft_type": "IA3"}, "peft_type: "),
    "no method": ({"peft_type": None}, "peft_type: "),
    "a classifier": ({"task_type": "SEQ_CLS"}, "task_type: "),
    "a bias": ({"bias": "all"}, "bias: "),
    "rank 0": ({"r": 0}, "r: "),
    "no rank": ({"r": None}, "r: "),
    "alpha no number": ({"lora_alpha": "much"}, "lora_alpha: "),
    "DoRA": ({"use_dora": True}, "use_dora is true: DoRA also rescales"),
    "whole modules": ({"modules_to_save": ["lm_head"]}, 'modules_to_save is ["lm_head"]: whole modules'),
    "an embedding": ({"trainable_token_indices": [1]}, "trainable_token_indices is [1]: "),
    "repeated layers": ({"layer_replication": [[0, 4]]}, "layer_replication is"),
    "a bias of its own": ({"lora_bias": True}, "lora_bias is true: it adds a bias"),
    "after some tokens only": ({"alora_invocation_tokens": [3]}, "alora_invocation_tokens is [3]: it acts after"),
    "transposed": ({"fan_in_fan_out": True}, "fan_in_fan_out is true"),
    "something of a later version": ({"use_magic": {"level": 3}}, "use_magic is"),
    "PiSSA": ({"init_lora_weights": "pissa_niter_4"}, "changes the base weights"),
    "OLoRA": ({"init_lora_weights": "olora"}, "changes the base weights"),
    "a rank that is none": ({"rank_pattern": {"v_proj": 0}}, "rank_pattern.v_proj: "),
    "a pattern that takes for ever": ({"rank_pattern": {"(a|aa)+v_proj": 4}}, "repeats a group"),
    "a pattern with many stars": ({"alpha_pattern": {".*.*.*x": 4}}, "a simple pattern"),
    "a pattern of odd signs": ({"rank_pattern": {"v proj": 4}}, "a simple pattern"),
    "a pattern that is none": ({"rank_pattern": {"[v_proj": 4}}, "no regular expression"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_plain_delta_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    changes, reason = REFUSED[name]
    with pytest.raises(LoraError) as error:
        read_config(written(tmp_path, **changes))
    assert str(error.value).startswith(f"{tmp_path / 'adapter_config.json'}: ") and reason in str(error.value)
    assert "\n" not in str(error.value)


def test_an_alpha_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    written(tmp_path, lora_alpha=float("nan"))
    with pytest.raises(LoraError, match="lora_alpha"):
        read_config(tmp_path)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b" " * (1 << 20) + b" {}"])
def test_a_file_that_is_no_configuration_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_bytes(content)
    with pytest.raises(LoraError, match="adapter_config.json"):
        read_config(tmp_path)


def test_a_directory_without_one_is_refused(tmp_path: Path) -> None:
    for directory in (tmp_path, tmp_path / "none"):
        with pytest.raises(LoraError, match="No such file.*save_pretrained"):
            read_config(directory)


def test_what_peft_writes_by_default_is_read(tmp_path: Path) -> None:
    """Every key of a default configuration is either understood or known to say nothing about the delta."""
    PeftConfig(task_type="CAUSAL_LM", target_modules=["v_proj"]).save_pretrained(tmp_path)
    config = read_config(tmp_path)
    assert (config.r, config.lora_alpha, config.scale_of(MODULE)) == (8, 8, 1.0)
    assert config.rank_pattern == config.alpha_pattern == {}


def test_scaling() -> None:
    plain, stable = (LoraConfig(**CONFIG, use_rslora=use) for use in (False, True))
    assert (plain.scale_of(MODULE), stable.scale_of(MODULE)) == (4 / 2, 4 / 2**0.5)
    nulls = LoraConfig(**CONFIG, rank_pattern=None, alpha_pattern=None, use_dora=None, init_lora_weights=None)  # type: ignore[arg-type]
    assert nulls.scale_of(MODULE) == 2


PATTERNS = [
    "v_proj",
    "self_attn.v_proj",
    "6.self_attn.v_proj",
    "layers.6.self_attn.v_proj",
    MODULE,
    "^" + MODULE,
    "^v_proj",
    "q_proj",
    "proj",
    "model.layers.16.self_attn.v_proj",
    r".*\.v_proj",
    "layers.(6|7).self_attn.(q|v)_proj",
    "layers.[0-5].self_attn.v_proj",
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_match_as_in_peft(pattern: str) -> None:
    config = LoraConfig(**CONFIG, rank_pattern={"k_proj": 3, pattern: 16}, alpha_pattern={pattern: 8, ".*proj": 6})
    matches = get_pattern_key([pattern, "fallback"], MODULE) == pattern
    assert config.rank_of(MODULE) == (16 if matches else 2)
    assert config.scale_of(MODULE) == (8 if matches else 6) / config.rank_of(MODULE)
