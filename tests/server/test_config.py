from pathlib import Path

import pytest

from server.config import ServeConfig, ServeError, build_config


@pytest.fixture
def required(tmp_path: Path) -> dict[str, object]:
    return {"model": "models/Some-Model", "bank": tmp_path}


def test_defaults_are_safe(required: dict[str, object]) -> None:
    config = build_config(**required)
    assert (config.host, config.port, config.max_generations) == ("127.0.0.1", 8000, 4)
    assert config.max_body_bytes == 4 << 20
    assert config.bank.is_absolute()


@pytest.mark.parametrize(
    ("model", "name"),
    [("models/Some-Model", "Some-Model"), ("models/Some-Model/", "Some-Model"), ("Qwen/Qwen3-4B", "Qwen3-4B")],
)
def test_name_comes_from_the_model(tmp_path: Path, model: str, name: str) -> None:
    config = build_config(model=model, bank=tmp_path)
    assert (config.name, config.base_name) == (name, f"{name}-base")


def test_unknown_field_is_an_error(required: dict[str, object]) -> None:
    with pytest.raises(ServeError, match="--prot: Extra inputs"):
        build_config(**required, prot=8000)


def test_config_is_frozen(required: dict[str, object]) -> None:
    config = ServeConfig(**required)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="frozen"):
        config.port = 1


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("name", "a@b", "'a@b' cannot be a model name"),
        ("name", "gemma-base", "not ending in '-base'"),
        ("name", "a/b", "cannot be a model name"),
        ("name", "x" * 97, "at most 96"),
        ("port", 0, "greater than or equal to 1"),
        ("port", 65536, "less than or equal to 65535"),
        ("bank", Path("no/such/bank"), "there is no directory 'no/such/bank'; learn a task first"),
        ("chat_template", Path("no.jinja"), "there is no file 'no.jinja'"),
        ("pipeline_parallel_size", 2, "pipeline parallelism is not supported"),
        ("gpu_memory_utilization", 1.5, "less than or equal to 1"),
        ("kv_cache_gib", 0, "greater than 0"),
        ("max_generations", 1, "greater than or equal to 2"),
        ("engine_arg", ("max_logprobs",), "'max_logprobs' is not KEY=VALUE"),
        ("engine_arg", ("a b=1",), "'a b=1' is not KEY=VALUE"),
        ("enable_auto_tool_choice", True, "needs --tool-call-parser"),
    ],
)
def test_bad_value_is_named_in_one_sentence(required: dict[str, object], field: str, value: object, says: str) -> None:
    with pytest.raises(ServeError) as caught:
        build_config(**(required | {field: value}))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_default_name_that_would_be_ambiguous_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ServeError, match="--name: 'gemma-base' cannot be a model name"):
        build_config(model="org/gemma-base", bank=tmp_path)
