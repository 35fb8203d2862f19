"""The state of one server process, shared by all routes: what phase it is in, its engine, handlers and generations."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from fastapi import Request

from .access import Access
from .config import ServeConfig
from .errors import ApiError
from .request_metrics import RequestMetrics

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

    from adapters.bank import Bank

    from .activations import MeteredOperations
    from .admission import Admission
    from .generations import Generations
    from .handlers import Handlers
    from .inventory import Inventory
    from .polled import Polled
    from .routing_counts import RoutingCounts
    from .uploads import Uploads

Phase = Literal["loading", "ready", "engine dead", "stopping"]


@dataclass(frozen=True)
class Administration:
    """All that answering an administrator takes."""

    bank: "Bank"
    operations: "MeteredOperations"
    inventory: "Inventory"
    uploads: "Uploads"


@dataclass(frozen=True)
class Serving:
    """All that answering a request takes; exists once the model and a generation are loaded."""

    engine: "AsyncLLM"
    handlers: "Handlers"
    generations: "Generations"
    routing_counts: "RoutingCounts"
    bank_bytes: "Polled[int]"
    admission: "Admission"
    administration: "Administration"


@dataclass
class Service:
    """`serving` is set once, when loading is done; `is_stopping` once, when the process is told to end."""

    config: ServeConfig
    access: Access = Access()
    serving: Serving | None = field(default=None)
    is_stopping: bool = False
    requests: RequestMetrics = field(default_factory=RequestMetrics)

    @property
    def phase(self) -> Phase:
        if self.is_stopping:
            return "stopping"
        if self.serving is None:
            return "loading"
        return "engine dead" if self.serving.engine.errored else "ready"


def service_of(request: Request) -> Service:
    service = request.app.state.service
    assert isinstance(service, Service)
    return service


def serving_of(request: Request) -> Serving:
    """Raises: ApiError 503 unless the server is ready."""
    service = service_of(request)
    phase = service.phase
    if phase == "ready" and service.serving is not None:
        return service.serving
    raise ApiError(
        503,
        f"The server is not ready ({phase}); try again later",
        code=phase.replace(" ", "_"),
        headers={"retry-after": "5"},
    )
