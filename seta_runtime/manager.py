"""The only file that touches vLLM's internals: one LoRA slot holds one generation of the bank.

vLLM's LoRA machinery gives each request an adapter id, carries it per token through batching, keys the prefix cache by
the adapter's name, loads and evicts slots at run time. All of that is kept; what is inside a slot, and what a layer
does with it, is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.distributed import (
    get_tensor_model_parallel_rank,
    get_tensor_model_parallel_world_size,
    tensor_model_parallel_all_gather,
    tensor_model_parallel_all_reduce,
)
from vllm.lora.model_manager import DEFAULT_LANGUAGE_WRAPPER_KEY, LRUCacheLoRAModelManager
from vllm.lora.request import LoRARequest
from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.models.utils import PPMissingLayer

from adapters.bank import Bank, BankPathEscape, check_base
from adapters.base_model import fingerprint, resolve_model_dir
from adapters.evidence import Gate
from adapters.gate import load_gate
from seta_runtime import fork_server
from seta_runtime.config import RuntimeConfig, UnsupportedEngine
from seta_runtime.decisions import Decisions, RunningRequest
from seta_runtime.kept import KeptExperts
from seta_runtime.layer import FusedProjection, OutputSlice, RoutedProjection
from seta_runtime.leading import prompts_that_end
from seta_runtime.ops import fused
from seta_runtime.preparation import Preparations
from seta_runtime.ranks import INPUT_SHARDED, Ranks
from seta_runtime.resident import AdapterPath, Layout, ResidentGeneration
from seta_runtime.route import PoolShape, RoutedDecoderLayer, Router
from seta_runtime.state import StepState
from seta_runtime.stats import RoutingStats

POOL_LAYER_NAME = "model.layers.{index}.route_pool"


class SlotMapping:
    """Stands where vLLM keeps its per-step LoRA metadata; hands each token's slot to the step state."""

    def __init__(self, state: StepState, device: torch.device) -> None:
        self.state = state
        self.device = device

    def update_metadata(self, mapping: Any, lora_index_to_id: list[int | None], *_: Any, **__: Any) -> None:
        slot_of_id = {adapter_id: slot for slot, adapter_id in enumerate(lora_index_to_id) if adapter_id is not None}
        slot_of_id[0] = -1
        token_slots = torch.tensor([slot_of_id[i] for i in mapping.index_mapping], dtype=torch.int64)
        self.state.begin_step(token_slots.to(self.device))


class GenerationManager(LRUCacheLoRAModelManager):
    """Fills slots with generations and puts the router and the routed projections into the model."""

    def __init__(self, *args: Any, vllm_config: VllmConfig, **kwargs: Any) -> None:
        self.config = RuntimeConfig.of(vllm_config)
        self._vllm_config = vllm_config
        self.ranks = current_ranks()
        self.stats = RoutingStats()
        self.fused_projections: list[FusedProjection] = []
        super().__init__(*args, vllm_config=vllm_config, **kwargs)

    def _init_punica_wrapper(self, max_num_batched_tokens: int, vllm_config: VllmConfig) -> None:
        self.supports_mm = False
        self.state = StepState([None] * self.lora_slots)
        if fused.is_selected(self.device):
            self.state.fused = fused.FusedStep(
                max_num_batched_tokens, self.lora_slots, self.config.max_experts, self.config.block_size, self.device
            )
        self.punica_wrapper_mapping = {DEFAULT_LANGUAGE_WRAPPER_KEY: SlotMapping(self.state, self.device)}

    def _create_lora_modules(self) -> None:
        layers = _decoder_layers(self.model)
        trunk = self.config.trunk_layers
        first: Any = layers[trunk]
        heads = first.self_attn
        shape = PoolShape(heads.num_heads, heads.num_kv_heads, heads.head_dim)
        pool = Attention(
            shape.num_heads,
            shape.head_size,
            1.0,
            num_kv_heads=shape.num_kv_heads,
            cache_config=self._vllm_config.cache_config,
            prefix=POOL_LAYER_NAME.format(index=len(layers)),
        )
        self.router = Router(self.state, pool, shape, self.stats, self.ranks)
        for index in range(trunk, len(layers)):
            self._wrap_projections(layers[index], index)
        layers[trunk] = RoutedDecoderLayer(first, self.router)

    def _wrap_projections(self, layer: Any, index: int) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        q, kv = attention.q_size, attention.kv_size
        packed = {
            (attention, "qkv_proj"): [("q_proj", 0, q), ("k_proj", q, kv), ("v_proj", q + kv, kv)],
            (attention, "o_proj"): [("o_proj", 0, None)],
            (mlp, "gate_up_proj"): [("gate_proj", 0, None), ("up_proj", None, None)],
            (mlp, "down_proj"): [("down_proj", 0, None)],
        }
        for (parent, name), parts in packed.items():
            wanted = [part for part in parts if part[0] in self.config.targets]
            if wanted:
                base = getattr(parent, name)
                setattr(parent, name, self._wrapped(base, _slices(base, index, wanted, self.ranks.is_alone)))

    def _wrapped(self, base: nn.Module, slices: list[OutputSlice]) -> nn.Module:
        if self.state.fused is None:
            return RoutedProjection(base, self.state, slices, self.ranks)
        if not self.ranks.is_alone:
            raise UnsupportedEngine(
                f"tensor parallelism of {self.ranks.size} on a GPU found, expected 1: the kernel was not tested on a "
                "part of a projection; start with tensor_parallel_size 1"
            )
        projection = FusedProjection(base, self.state.fused, slices)
        self.fused_projections.append(projection)
        return projection

    def _fill_slot(self, slot: int, generation: ResidentGeneration | None) -> None:
        self.state.slots[slot] = generation
        for projection in self.fused_projections:
            projection.put(slot, generation)

    def _add_adapter(self, lora: Any) -> None:
        self._registered_adapters[lora.id] = lora

    def activate_adapter(self, lora_id: int) -> bool:
        """Put a registered generation into a free slot, or the slot of the one used least recently."""
        if lora_id not in self._active_adapters:
            if len(self._active_adapters) >= self.lora_slots:
                self._active_adapters.remove_oldest()
            slot = self.lora_index_to_id.index(None)
            self._active_adapters[lora_id] = None
            self.lora_index_to_id[slot] = lora_id
            self._fill_slot(slot, self._registered_adapters[lora_id])
        self._active_adapters.touch(lora_id)
        return True

    def _deactivate_adapter(self, lora_id: int) -> None:
        if lora_id in self.lora_index_to_id:
            slot = self.lora_index_to_id.index(lora_id)
            self.lora_index_to_id[slot] = None
            self._fill_slot(slot, None)
            self.stats.forget(lora_id)

    def remove_all_adapters(self) -> None:
        super().remove_all_adapters()
        for slot in range(self.lora_slots):
            self._fill_slot(slot, None)
        self.stats.clear()  # vLLM calls this after its warm-up, whose tokens are nobody's

    def create_dummy_lora(self, lora_id: int, rank: int, embedding_modules: Any = None) -> Any:
        return ResidentGeneration.empty(lora_id, self.warmup_gate)

    def get_dummy_lora_warmup_rank(self, default_rank: int) -> int:
        return default_rank

    @property
    def warmup_gate(self) -> Gate:
        bank = Bank.open(self.config.bank)
        manifest = bank.manifest(0 if 0 in bank.generations() else None)
        return load_gate(manifest, bank.load_gate(manifest)).to(self.device)


class GenerationWorkerManager(LRUCacheWorkerLoRAManager):
    """Loads what a `LoRARequest` names: the manifest of a generation."""

    _manager_cls = GenerationManager

    def __init__(self, vllm_config: VllmConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(vllm_config, *args, **kwargs)
        self.config = RuntimeConfig.of(vllm_config)
        self.config.check_engine(vllm_config)
        self._dtype = vllm_config.model_config.dtype
        self._found = fingerprint(resolve_model_dir(vllm_config.model_config.model))
        bank = Bank.open(self.config.bank)
        check_base(bank.manifest(), self._found)
        self.preparations = Preparations(self._load)
        self._known = KeptExperts()
        self._knows_runner = False

    def _apply_adapters(self, lora_requests: Iterable[LoRARequest]) -> None:
        """By id: of a set, each rank would take its own order, and not all would put the same into the same slot."""
        super()._apply_adapters(sorted(lora_requests, key=lambda request: request.lora_int_id))

    def _load_adapter(self, lora_request: LoRARequest) -> Any:
        """What was prepared under this id; else, for engines without a server in front, read it now."""
        prepared = self.preparations.take(lora_request.lora_int_id)
        if prepared is not None:
            return prepared
        path = AdapterPath.parse(lora_request.lora_path)
        if path.bank.resolve() != self.config.bank.resolve():
            raise BankPathEscape(
                f"generation {path.generation} was named in bank {path.bank.name!r}, this engine serves "
                f"{self.config.bank.name!r}; name a generation of that bank"
            )
        return self._load(lora_request.lora_int_id, path.generation, path.digest)

    def _load(self, adapter_id: int, generation: int, digest: str | None) -> ResidentGeneration:
        config = self.config
        layout = Layout(config.trunk_layers, config.targets)
        if fused.is_selected(self.device):
            layout = Layout(config.trunk_layers, config.targets, config.block_size, config.max_experts)
        return ResidentGeneration.load(
            adapter_id,
            self.config.bank,
            generation,
            digest,
            self._found,
            layout,
            self._dtype,
            self.device,
            self._adapter_manager.ranks,
            self._known,
        )

    @property
    def stats(self) -> RoutingStats:
        return self._adapter_manager.stats

    @property
    def decisions(self) -> Decisions:
        return self._adapter_manager.router.decisions

    def watch(self, runner: Any, request_id: str) -> None:
        """Keep the decisions on a request, named as the server named it; `runner` is the worker's model runner."""
        self._know(runner)
        self.decisions.watch(request_id)

    def led(self, runner: Any) -> list[tuple[str, str | None]]:
        """Which task led at the end of each prompt (`seta_runtime.leading`), from the first call on."""
        self._know(runner)
        return self._adapter_manager.router.leading.take()

    def _know(self, runner: Any) -> None:
        if self._knows_runner:
            return
        self._knows_runner = True
        batch = batch_of(runner)
        router = self._adapter_manager.router
        router.decisions.running = lambda: _running(*batch()[:3])
        router.leading.ended = lambda: [(_own_id(one), row) for one, row in prompts_that_end(*batch())]


def current_ranks() -> Ranks:
    """This worker's place among those that share each layer."""
    return Ranks(
        get_tensor_model_parallel_rank(),
        get_tensor_model_parallel_world_size(),
        gather=tensor_model_parallel_all_gather,
        add=tensor_model_parallel_all_reduce,
    )


Batch = tuple[list[str], Any, Any, Any]
"""A step's requests: vLLM's ids, rows `[R + 1]`, and the tokens computed before and those of the prompt, `[R]` each."""


def batch_of(runner: Any) -> Callable[[], Batch]:
    """What tells the requests of the step that a model runner is computing."""
    if hasattr(runner, "query_start_loc"):  # Model Runner V1, which keeps its batch

        def of_v1() -> Batch:
            batch = runner.input_batch
            num = len(batch.req_ids)
            num_prompt = batch.num_prompt_tokens[:num]
            return batch.req_ids, runner.query_start_loc.np[: num + 1], batch.num_computed_tokens_cpu[:num], num_prompt

        return of_v1
    prepare = runner.prepare_inputs  # Model Runner V2, which makes a batch for each step
    latest: list[Any] = []

    def prepare_inputs(*args: Any, **kwargs: Any) -> Any:
        latest[:] = [prepare(*args, **kwargs)]
        return latest[0]

    def of_v2() -> Batch:
        batch = latest[0]
        num = len(batch.req_ids)
        num_prompt = runner.req_states.prompt_len.np[batch.idx_mapping_np[:num]]
        return batch.req_ids, batch.query_start_loc_np[: num + 1], batch.num_computed_tokens_np[:num], num_prompt

    runner.prepare_inputs = prepare_inputs
    return of_v2


def _running(internal_ids: list[str], starts: Any, num_computed: Any) -> Iterator[RunningRequest]:
    for index, internal_id in enumerate(internal_ids):
        rows = range(int(starts[index]), int(starts[index + 1]))
        yield RunningRequest(_own_id(internal_id), rows, int(num_computed[index]))


def _own_id(internal_id: str) -> str:
    """The id that a request was added with: vLLM appends a random suffix."""
    return internal_id.rpartition("-")[0]


def install() -> None:
    """Put the worker manager in place; engines without a `seta` section in `additional_config` get vLLM's own."""
    from vllm.v1.worker import lora_model_runner_mixin as mixin

    use_fork_server()
    if getattr(mixin.LRUCacheWorkerLoRAManager, "is_seta_choice", False):
        return

    def choose(vllm_config: VllmConfig, *args: Any, **kwargs: Any) -> LRUCacheWorkerLoRAManager:
        wanted = GenerationWorkerManager if RuntimeConfig.is_wanted(vllm_config) else LRUCacheWorkerLoRAManager
        return wanted(vllm_config, *args, **kwargs)

    choose.is_seta_choice = True  # type: ignore[attr-defined]
    mixin.LRUCacheWorkerLoRAManager = choose


def use_fork_server() -> None:
    """Where a fork server runs, let it make the engine's processes; vLLM would start fresh interpreters."""
    if not fork_server.is_in_use():
        return
    from vllm.v1.engine import utils as engine_processes
    from vllm.v1.executor import multiproc_executor as worker_processes

    for module in (engine_processes, worker_processes):
        module.get_mp_context = fork_server.ForkServer


def _decoder_layers(model: nn.Module) -> nn.ModuleList:
    layers = getattr(getattr(model, "model", None), "layers", None)
    if layers is None or any(isinstance(layer, PPMissingLayer) for layer in layers):
        raise UnsupportedEngine(
            f"{type(model).__name__}: no whole decoder stack `model.layers` found; pipeline stages are not supported"
        )
    if not all(hasattr(layer, "self_attn") and hasattr(layer.self_attn, "qkv_proj") for layer in layers):
        raise UnsupportedEngine(
            f"{type(model).__name__} is not a decoder like Llama, Qwen2 or Qwen3 (self_attn.qkv_proj missing)"
        )
    return layers


def _slices(
    base: Any, layer: int, parts: list[tuple[str, int | None, int | None]], is_alone: bool
) -> list[OutputSlice]:
    """gate and up are the two halves of their packed output; an unpacked projection is one slice."""
    whole = int(base.output_size_per_partition) if hasattr(base, "output_size_per_partition") else int(base.output_size)
    is_pair = any(target in ("gate_proj", "up_proj") for target, _, _ in parts)
    part_size = whole // 2 if is_pair else whole
    return [
        OutputSlice(
            layer,
            target,
            part_size if start is None else start,
            part_size if size is None else size,
            is_partial=not is_alone and target in INPUT_SHARDED,
        )
        for target, start, size in parts
    ]
