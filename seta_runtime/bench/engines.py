"""Which engines there are: plain vLLM, ours on the bank and on synthetic ones, vLLM's own LoRA."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from adapters.bank import Bank, Manifest
from adapters.progress import console
from seta_runtime.bench.banks import lora_adapter, rank_rows_per_task, synthetic_bank
from seta_runtime.bench.engine_process import EngineProcess
from seta_runtime.bench.groups import Group, tasks_name
from seta_runtime.bench.variants import Variant


def variants(model: str, bank: Path, work: Path, sizes: Sequence[int]) -> dict[str, Variant]:
    """By name; what they serve is written to `work`.

    plain, and once more: how equal are equal engines? routed, every request; base_routed, base requests beside a loaded
    generation; two_generations, in one batch; vllm_lora; and ours on banks of other sizes.
    """
    source = Bank.open(bank)
    manifest = source.manifest()
    rank = rank_rows_per_task(source)
    previous = [n for n in source.generations() if 0 < n < manifest.generation][-1:]
    plain = Variant("plain", "plain", model)
    routed = Variant("routed", "routed", model, str(bank.resolve()), (*previous, manifest.generation))
    adapter = lora_adapter(manifest, work / "adapter", rank)
    found = [
        plain,
        replace(plain, name="plain_again"),
        routed,
        replace(routed, name="base_routed", generations=(manifest.generation,), asks="base"),
        Variant("vllm_lora", "vllm_lora", model, adapter=str(adapter), rank=rank, modules=engine_modules(manifest)),
    ]
    if previous:
        found.append(replace(routed, name="two_generations", asks="two"))
    for size in sizes:
        path = synthetic_bank(source, size, work / f"bank{size}")
        found.append(Variant(tasks_name(size), "routed", model, str(path), (1,)))
    return {variant.name: variant for variant in found}


def engine_modules(manifest: Manifest) -> tuple[str, ...]:
    """The engine's projections that hold a bank's targets; it packs some of them into one."""
    packed = dict.fromkeys(("q_proj", "k_proj", "v_proj"), "qkv_proj")
    packed |= dict.fromkeys(("gate_proj", "up_proj"), "gate_up_proj")
    return tuple(sorted({packed.get(target, target) for target in manifest.targets}))


class Running:
    """The engines' processes: started when a group needs them, stopped when no later one does."""

    def __init__(self, variants: dict[str, Variant], prompts: list[list[int]], work: Path) -> None:
        self.variants, self.prompts, self.work = variants, prompts, work
        self.processes: dict[str, EngineProcess] = {}
        self.states: dict[str, dict[str, object]] = {}

    def start(self, group: Group) -> list[EngineProcess]:
        for name in group.engines:
            if name not in self.processes:
                console.print(f"starting engine {name}", highlight=False)
                log = self.work / f"{name}.log"
                self.processes[name] = EngineProcess(self.variants[name], self.prompts, log)
        return [self.processes[name] for name in group.engines]

    def note(self, group: Group) -> None:
        """What each engine of its first group says of itself after it, when all of them have done the same work."""
        for name in group.engines:
            if name not in self.states:
                self.states[name] = self.processes[name].ready | _state(self.processes[name])

    def keep(self, later: Sequence[Group]) -> None:
        """Stop those that no later group needs."""
        needed = {name for group in later for name in group.engines}
        for name in [name for name in self.processes if name not in needed]:
            self.processes.pop(name).stop()

    def stop(self) -> None:
        while self.processes:
            self.processes.popitem()[1].stop()


def _state(process: EngineProcess) -> dict[str, object]:
    """Memory, idleness, and the share of tokens that had an expert: was "every request routed" true?"""
    state = process.state()
    stats = state.pop("stats")
    if stats:
        routed, base = stats["routed_tokens"], stats["base_tokens"]
        state["routed_share_of_tokens"] = round(routed / max(1, routed + base), 4)
    return state
