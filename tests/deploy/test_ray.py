"""deploy/ray without Ray: what it would give to Ray is what vLLM and the plugin understand.

Ray is not among what the tests install; here its modules are stand-ins that only take down what they are given.
"""

import asyncio
import dataclasses
import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import yaml

from adapters.bank import Bank
from seta_runtime.config import KEY
from seta_runtime.resident import AdapterPath
from tests.deploy.dockerfile import REPO

FOLDER = REPO / "deploy" / "ray"
SERVE: dict[str, Any] = yaml.safe_load((FOLDER / "serve.yaml").read_text())


class RaysServer:
    """Stands for `ray.serve.llm.deployment.LLMServer`."""

    async def chat(self, request: Any, raw_request_info: Any = None) -> Any:
        return "chat", request.model, raw_request_info

    async def completions(self, request: Any, raw_request_info: Any = None) -> Any:
        return "completions", request.model, raw_request_info


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    names = {"ray": {}, "ray.serve": {"Application": object}, "ray.serve.llm.deployment": {"LLMServer": RaysServer}}
    llm = {"LLMConfig": lambda **given: SimpleNamespace(**given), "build_openai_app": lambda given: given}
    for name, members in {**names, "ray.serve.llm": llm}.items():
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    spec = importlib.util.spec_from_file_location("seta_on_ray", FOLDER / "seta_on_ray.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "seta_on_ray", module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def config(example: Any, model_dir: Path, demo_bank: Path) -> Any:
    (application,) = SERVE["applications"]
    arguments = application["args"] | {"model": str(model_dir), "bank": str(demo_bank)}
    (built,) = example.app(example.Settings(**arguments))["llm_configs"]
    return built


def test_serve_yaml_names_the_builder(example: Any) -> None:
    (application,) = SERVE["applications"]
    module, _, builder = application["import_path"].partition(":")
    assert module == example.__name__ and callable(getattr(example, builder))
    example.Settings(**application["args"])


def test_every_engine_argument_is_one_of_vllms(config: Any) -> None:
    """Ray refuses others, and hands those of the front end on as they are."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.cli_args import FrontendArgs

    engine = {field.name for field in dataclasses.fields(AsyncEngineArgs)}
    front = {field.name for field in dataclasses.fields(FrontendArgs)}
    assert set(config.engine_kwargs) <= engine | front
    assert set(config.engine_kwargs) & front == {"lora_modules"}
    assert config.engine_kwargs["enforce_eager"] and KEY in config.engine_kwargs["additional_config"]


def test_the_generation_of_serve_yaml_is_what_vllm_loads(config: Any, demo_bank: Path) -> None:
    (generation,) = config.engine_kwargs["lora_modules"]
    number = SERVE["applications"][0]["args"]["generation"]
    bank = Bank.open(demo_bank)
    assert generation.name == f"seta@{number}"
    assert AdapterPath.parse(generation.path) == AdapterPath.of(bank.root, bank.manifest(number))


def test_every_request_gets_the_generation(config: Any) -> None:
    server = config.server_cls()
    server._llm_config = config
    for method in ("chat", "completions"):
        request = SimpleNamespace(model="seta")
        assert asyncio.run(getattr(server, method)(request, "headers")) == (method, "seta@4", "headers")


def test_an_unknown_setting_and_a_foreign_model_are_refused(example: Any, demo_bank: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="generatoin"):
        example.Settings(model="m", bank=demo_bank, generatoin=4)
    with pytest.raises(Exception, match="config.json|safetensors|directory"):
        example.llm_config(example.Settings(model=str(tmp_path), bank=demo_bank))
