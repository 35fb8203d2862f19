"""`/metrics`: vLLM's own metrics, and ours.

    seta_ready                         1 while requests are served
    seta_generation                    the generation in service
    seta_generation_info{...}          1; the generation's base model, tasks and experts as labels
    seta_tokens_total{expert,kind}     tokens by the expert that answered them; kind is unique, shared or base

The last one is counted in the engine's workers. Asking them costs a little of the engine's time, so they are asked at
most once a second, and a busy engine is not waited for: the last answer stands in.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.responses import PlainTextResponse, Response

from .service import Service, service_of

logger = logging.getLogger("seta.server")
router = APIRouter()

AskWorkers = Callable[[str], Awaitable[list[dict[str, Any]]]]


class ExpertTokens:
    """The workers' token counts, asked for at most once in `min_age_seconds`."""

    def __init__(self, ask: AskWorkers, min_age_seconds: float = 1.0, patience_seconds: float = 2.0) -> None:
        self.by_expert: dict[str, int] = {}
        self.base = 0
        self.routed = 0
        self._ask = ask
        self._min_age_seconds = min_age_seconds
        self._patience_seconds = patience_seconds
        self._asked_at = float("-inf")
        self._asking: asyncio.Task[None] | None = None

    @property
    def total(self) -> int:
        """A token that two experts answered counts once."""
        return self.base + self.routed

    async def refresh(self) -> None:
        """Bring the counts up to date, or give up after `patience_seconds`; one question is under way at a time."""
        if self._asking is None or self._asking.done():
            if time.monotonic() - self._asked_at < self._min_age_seconds:
                return
            self._asked_at = time.monotonic()
            self._asking = asyncio.create_task(self._update())
        await asyncio.wait({self._asking}, timeout=self._patience_seconds)

    async def _update(self) -> None:
        try:
            workers = await self._ask("seta_stats")
        except Exception as error:  # whatever ails the engine, the other metrics must still be read
            logger.warning("the workers gave no token counts: %s", type(error).__name__)
            return
        # Under tensor parallelism every worker sees every token, so the first one speaks for all.
        self.by_expert = dict(workers[0]["tokens_by_expert"])
        self.base = int(workers[0]["base_tokens"])
        self.routed = int(workers[0]["routed_tokens"])


class ServiceCollector(Collector):
    """Our metrics, computed from the service's state when they are scraped."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        is_ready = self._service.phase == "ready"
        yield GaugeMetricFamily("seta_ready", "1 while requests are served.", value=float(is_ready))
        if self._service.serving is None:
            return
        yield from self._generation()
        yield self._tokens()

    def _generation(self) -> Iterator[Metric]:
        assert self._service.serving is not None
        manifest = self._service.serving.generations.manifest
        yield GaugeMetricFamily("seta_generation", "The generation in service.", value=manifest.generation)
        info = GaugeMetricFamily(
            "seta_generation_info",
            "1; the generation in service.",
            labels=["generation", "base", "architecture", "tasks", "experts"],
        )
        base = manifest.base
        counts = [str(len(manifest.tasks)), str(len(manifest.experts))]
        info.add_metric([str(manifest.generation), base.weights_sha256[:12], base.architecture, *counts], 1)
        yield info

    def _tokens(self) -> Metric:
        serving = self._service.serving
        assert serving is not None
        kinds = {e.id: e.kind for manifest in serving.generations.manifests.values() for e in manifest.experts}
        tokens = CounterMetricFamily(
            "seta_tokens", "Tokens by the expert that answered them.", labels=["expert", "kind"]
        )
        tokens.add_metric(["base", "base"], serving.expert_tokens.base)
        counts = dict.fromkeys(kinds, 0) | serving.expert_tokens.by_expert
        for expert, count in sorted(counts.items()):
            tokens.add_metric([expert, kinds.get(expert, "unique")], count)
        return tokens


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    service = service_of(request)
    ours = CollectorRegistry()
    ours.register(ServiceCollector(service))
    if service.serving is None:
        return Response(generate_latest(ours), media_type=CONTENT_TYPE_LATEST)
    from vllm.v1.metrics.prometheus import get_prometheus_registry

    if service.phase == "ready":
        await service.serving.expert_tokens.refresh()
    return Response(generate_latest(get_prometheus_registry()) + generate_latest(ours), media_type=CONTENT_TYPE_LATEST)
