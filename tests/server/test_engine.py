"""`--engine-arg` goes through vLLM's own parser; what is ours to set stays ours."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from adapters.bank import Bank
from server.config import ServeError, build_config
from server.engine import engine_args, parse_engine_args
from server.memory import GIB
from server.preflight import Plan


@pytest.mark.parametrize(
    ("pair", "key", "value"),
    [
        ("max_logprobs=50", "max_logprobs", 50),
        ("max-logprobs=50", "max_logprobs", 50),
        ("enable_chunked_prefill=false", "enable_chunked_prefill", False),
        ("enable_chunked_prefill=True", "enable_chunked_prefill", True),
        ("quantization=None", "quantization", None),
        ("scheduling_policy=priority", "scheduling_policy", "priority"),
        ('override_generation_config={"top_k": 5}', "override_generation_config", {"top_k": 5}),
    ],
)
def test_a_value_has_vllms_type(pair: str, key: str, value: object) -> None:
    assert parse_engine_args((pair,), set()) == {key: value}


@pytest.mark.parametrize(
    ("pair", "says"),
    [
        ("max_lgprobs=5", "vLLM has no such engine argument; did you mean max_logprobs?"),
        ("max_logprobs=many", "invalid .* value: 'many'"),
        ("enable_chunked_prefill=perhaps", "'perhaps' is not true or false"),
        ("scheduling_policy=chaos", "invalid choice: 'chaos'"),
        ("model=other", "use --model"),
        ("kv_cache_memory_bytes=5", "use --kv-cache-gib"),
        ("pipeline_parallel_size=2", "use --pipeline-parallel-size"),
        ("enable_lora=false", "this server sets it itself"),
        ("additional_config={}", "this server sets it itself"),
        ("enable_log_requests=true", "this server sets it itself"),
    ],
)
def test_a_bad_pair_is_refused(pair: str, says: str) -> None:
    with pytest.raises(ServeError, match=says):
        parse_engine_args((pair,), {"enable_lora", "additional_config"})


@pytest.fixture
def plan(model_dir: Path, demo_bank: Path) -> Plan:
    bank = Bank.open(demo_bank)
    return Plan(model_dir, bank, bank.manifest())


def test_all_arguments_meet_in_one_place(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "3")
    config = build_config(
        model="m", bank=plan.bank.root, name="demo", max_generations=3, max_num_seqs=7, engine_arg=("max_logprobs=9",)
    )
    args = engine_args(config, plan)
    assert (args.model, args.served_model_name) == (str(plan.model_dir), ["demo"])
    assert (args.max_loras, args.max_num_seqs, args.max_logprobs) == (3 + 1, 7, 9)  # a slot to load into
    assert args.enforce_eager and args.enable_prefix_caching and not args.enable_log_requests
    assert args.additional_config["seta"]["bank"] == str(plan.bank.root)


@pytest.mark.parametrize(("option", "variable", "gib"), [(2.0, "3", 2.0), (None, "3", 3.0), (None, "", None)])
def test_the_kv_cache_is_the_options_the_environments_or_a_default(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, option: float | None, variable: str, gib: float | None
) -> None:
    monkeypatch.setattr("vllm.platforms.current_platform", SimpleNamespace(is_cpu=lambda: True))
    monkeypatch.setattr("server.engine.available_bytes", lambda: 16 * GIB)
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", variable)
    config = build_config(model="m", bank=plan.bank.root, name="demo", kv_cache_gib=option)
    assert engine_args(config, plan).kv_cache_memory_bytes == (gib or 2.0) * GIB
