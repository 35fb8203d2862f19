"""Methods that the engine's workers gain, for `collective_rpc`."""

from __future__ import annotations

from typing import Any


class SetaWorkerExtension:
    """Mixed into vLLM's worker class by `worker_extension_cls`."""

    model_runner: Any

    def seta_stats(self) -> dict[str, Any]:
        """Cumulative routing counts of this worker (`seta_runtime.stats.RoutingStats`)."""
        return self.model_runner.lora_manager.stats.as_dict()

    def seta_resident(self) -> list[int]:
        """Adapter ids of the generations in memory."""
        return sorted(self.model_runner.lora_manager.list_adapters())
