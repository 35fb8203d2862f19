"""Methods that the engine's workers gain, for `collective_rpc`."""

from __future__ import annotations

from typing import Any

from seta_runtime.decisions import Decision


class SetaWorkerExtension:
    """Mixed into vLLM's worker class by `worker_extension_cls`."""

    model_runner: Any

    def seta_stats(self) -> dict[str, Any]:
        """Cumulative routing counts of this worker (`seta_runtime.stats.RoutingStats`)."""
        return self.model_runner.lora_manager.stats.as_dict()

    def seta_led(self) -> list[tuple[str, str | None]]:
        """The requests whose prompt has ended since the last call, with the task that led there; None for base."""
        return self.model_runner.lora_manager.led(self.model_runner)

    def seta_prepare(self, adapter_id: int, generation: int, digest: str) -> None:
        """Start to read, verify and pack a generation beside the running steps; `add_lora` then only takes it."""
        self.model_runner.lora_manager.preparations.start(adapter_id, generation, digest)

    def seta_preparation(self, adapter_id: int) -> dict[str, Any]:
        """How far that is (`seta_runtime.preparation.Preparations.state`)."""
        return self.model_runner.lora_manager.preparations.state(adapter_id)

    def seta_discard(self, adapter_id: int) -> None:
        """Forget what was prepared, or is still being prepared, and was not taken."""
        self.model_runner.lora_manager.preparations.discard(adapter_id)

    def seta_resident(self) -> list[int]:
        """Adapter ids of the generations in memory."""
        return sorted(self.model_runner.lora_manager.list_adapters())

    def seta_watch(self, request_id: str) -> None:
        """Keep the gate's decisions on a request that is about to be added (`seta_runtime.decisions`)."""
        self.model_runner.lora_manager.watch(self.model_runner, request_id)

    def seta_decisions(self, request_id: str, first: int, stop: int) -> list[Decision | None] | None:
        """A watched request's decisions at positions `first...stop - 1`; it is not watched any more."""
        return self.model_runner.lora_manager.decisions.take(request_id, first, stop)

    def seta_forget(self, request_id: str) -> None:
        """Nobody will ask for this request's decisions."""
        self.model_runner.lora_manager.decisions.forget(request_id)
