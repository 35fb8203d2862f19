"""`/metrics`: vLLM's own metrics, and ours (`docs/metrics.md` lists them).

Ours are computed from the server's state when they are scraped. Two of them cost something: what the workers counted
and the size of the bank. They are asked for now and then, and nobody waits long for the answer: a scrape succeeds while
the engine is busy or dead, with the last known values and their age.
"""

import asyncio
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from starlette.responses import PlainTextResponse, Response

from adapters.bank import Bank

from .families import activation_families, gauge, generation_families, request_families, routing_families
from .generations import Generations
from .polled import Polled
from .request_metrics import RequestMetrics, label
from .service import Service, Serving, service_of

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest

_BANK_SECONDS = 15.0
router = APIRouter()


def measure_bank(bank: Bank) -> Polled[int]:
    """The size of a bank on disk, in bytes."""

    async def ask() -> int:
        return await asyncio.to_thread(_tree_bytes, str(bank.root))

    return Polled(ask, 0, "the bank's size", min_age_seconds=_BANK_SECONDS)


def watch_tokens(
    generations: Generations, requests: RequestMetrics
) -> Callable[["LoRARequest | None", str], Callable[[Any], None]]:
    """What `CountingEngine.watch` needs to time the tokens of each request."""
    return lambda adapter, request_id: requests.timer(label(generations.number_of(adapter)), request_id).see


class ServiceCollector(Collector):
    """All of ours."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        phase = self._service.phase
        yield gauge("seta_ready", "1 while requests are served.", float(phase == "ready"))
        serving = self._service.serving
        if serving is None:
            return
        yield gauge("seta_engine_up", "0 once the engine has stopped unexpectedly.", float(not serving.engine.errored))
        yield from generation_families(serving.generations)
        yield from activation_families(serving.administration.operations.activations)
        yield from request_families(self._service.requests, serving.admission, serving.generations)
        yield from routing_families(serving.generations, serving.routing_counts.value)
        age = serving.routing_counts.age_seconds
        if age is not None:
            yield gauge("seta_routing_age_seconds", "How old the counts of tokens and of the gate are.", age)
        yield gauge("seta_bank_bytes", "Size of the bank on disk.", serving.bank_bytes.value)


def ours(service: Service) -> bytes:
    """Our metrics in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(ServiceCollector(service))
    return generate_latest(registry)


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    service = service_of(request)
    if service.serving is None:
        return Response(ours(service), media_type=CONTENT_TYPE_LATEST)
    from vllm.v1.metrics.prometheus import get_prometheus_registry

    if service.phase == "ready":
        await _refresh(service.serving)
    return Response(generate_latest(get_prometheus_registry()) + ours(service), media_type=CONTENT_TYPE_LATEST)


async def _refresh(serving: Serving) -> None:
    await asyncio.gather(serving.routing_counts.refresh(), serving.bank_bytes.refresh())


def _tree_bytes(path: str) -> int:
    """Files may come and go meanwhile."""
    total = 0
    for directory, _, names in os.walk(path):
        for name in names:
            try:
                total += os.lstat(os.path.join(directory, name)).st_size
            except FileNotFoundError:
                continue
    return total
