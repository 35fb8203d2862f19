"""SETA on Ray Serve LLM: `serve run serve.yaml` in this directory, or `serve deploy serve.yaml` on a cluster.

Ray Serve LLM starts vLLM itself, so the server of this project, its admin API and its metrics are not there. What is
needed for routed answers is little: vLLM's plugin is found wherever the package `seta` is installed, `seta_engine_args`
switches it on, and vLLM loads one generation of the bank when it starts, as it would a LoRA. `RoutedServer` then asks
for that generation in every request, so that no client has to name it.

The generation is fixed when the application is built: all replicas serve the same one, also a replica that is started
again later. To ship an expert, write its number into serve.yaml and deploy again; Ray replaces the replicas one by one.
"""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from ray.serve import Application
from ray.serve.llm import LLMConfig, build_openai_app
from ray.serve.llm.deployment import LLMServer
from vllm.entrypoints.openai.models.protocol import LoRAModulePath

from adapters.bank import Bank, check_base
from adapters.base_model import fingerprint, resolve_model_dir
from seta_runtime.engine_args import seta_engine_args
from seta_runtime.resident import AdapterPath


class Settings(BaseModel):
    """`args` of the application in serve.yaml. `model` and `bank` must be there on every node that runs a replica."""

    model_config = ConfigDict(extra="forbid")

    model: str
    bank: Path
    name: str = "seta"
    generation: int | None = Field(default=None, ge=0, description="Default: the bank's current one, read once.")
    replicas: int = Field(default=1, ge=1)
    accelerator: str | None = Field(default=None, description="Ray's name of a GPU type, such as L4; none for a CPU.")
    engine_kwargs: dict[str, Any] = Field(default_factory=dict, description="More arguments for vLLM's engine.")


class RoutedServer(LLMServer):
    """Ray's vLLM server; requests for its model get the generation that vLLM loaded at its start."""

    @property
    def _routed_name(self) -> str:
        return str(self._llm_config.engine_kwargs["lora_modules"][0].name)

    async def chat(self, request: Any, raw_request_info: Any = None) -> Any:
        request.model = self._routed_name
        return await super().chat(request, raw_request_info)

    async def completions(self, request: Any, raw_request_info: Any = None) -> Any:
        request.model = self._routed_name
        return await super().completions(request, raw_request_info)


def llm_config(settings: Settings) -> LLMConfig:
    """Ray's description of the model. Raises: a BankError or BaseModelError that says what does not fit."""
    bank = Bank.open(settings.bank)
    manifest = bank.manifest(settings.generation)
    model_dir = resolve_model_dir(settings.model)
    check_base(manifest, fingerprint(model_dir))
    generation = LoRAModulePath(
        name=f"{settings.name}@{manifest.generation}", path=str(AdapterPath.of(bank.root, manifest))
    )
    hardware: dict[str, Any] = {"accelerator_config": {"kind": "cpu"}}
    if settings.accelerator is not None:
        hardware = {"accelerator_type": settings.accelerator}
    return LLMConfig(
        model_loading_config={"model_id": settings.name, "model_source": str(model_dir)},
        engine_kwargs=settings.engine_kwargs
        | seta_engine_args(manifest, bank.root, max_generations=1)
        | {"enforce_eager": True, "lora_modules": [generation]},
        deployment_config={"num_replicas": settings.replicas},
        server_cls=RoutedServer,
        # A CPU engine would otherwise compile small functions when a request first needs them.
        runtime_env={"env_vars": {"TORCHDYNAMO_DISABLE": "1"}} if settings.accelerator is None else None,
        **hardware,
    )


def app(settings: Settings) -> Application:
    """The application that serve.yaml names: Ray's OpenAI-compatible ingress in front of routed vLLM replicas."""
    return build_openai_app({"llm_configs": [llm_config(settings)]})
