"""A small OpenTelemetry collector: takes spans over OTLP/gRPC and keeps them."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc  # type: ignore[import-untyped]
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as messages
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as service

WAIT_SECONDS = 60.0


@dataclass(frozen=True)
class Span:
    """What the tests look at; ids in hexadecimal, "" for no parent."""

    service: str
    name: str
    trace: str
    id: str
    parent: str
    attributes: dict[str, Any]


@dataclass
class Collector(service.TraceServiceServicer):
    endpoint: str = ""
    spans: list[Span] = field(default_factory=list)

    def Export(self, request: Any, context: Any) -> Any:  # the name is gRPC's
        for of_process in request.resource_spans:
            name = str(_values(of_process.resource.attributes).get("service.name"))
            found = [span for scope in of_process.scope_spans for span in scope.spans]
            self.spans += [_span(name, span) for span in found]
        return messages.ExportTraceServiceResponse()

    def wait_for(self, wanted: Callable[[Span], bool]) -> Span:
        """The first span that is wanted; it may be still to come."""
        deadline = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < deadline:
            for span in list(self.spans):
                if wanted(span):
                    return span
            time.sleep(0.1)
        raise AssertionError(f"no such span among {sorted({span.name for span in self.spans})}")


@contextmanager
def collecting() -> Iterator[Collector]:
    server = grpc.server(ThreadPoolExecutor(2))
    collector = Collector()
    service.add_TraceServiceServicer_to_server(collector, server)
    collector.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield collector
    finally:
        server.stop(None)


def _span(name: str, span: Any) -> Span:
    ids = (span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex())
    return Span(name, span.name, *ids, _values(span.attributes))


def _values(attributes: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}
