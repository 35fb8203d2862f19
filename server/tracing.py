"""OpenTelemetry traces, where the engine argument `otlp_traces_endpoint` has made vLLM set up a tracer.

vLLM's span `llm_request` covers a request in the engine. Ours is its parent, from the request's arrival to its answer's
last byte: it has the wait for a turn, and says which generation answered. It continues the client's trace. Without a
tracer nothing is made and nothing is handed on. No span holds a prompt, an answer, a key or an error's text.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fastapi import Request
from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from .errors import ApiError
from .generations import Target

FLUSH_SECONDS = 3.0
_W3C = TraceContextTextMapPropagator()


@dataclass(frozen=True)
class Trace:
    """One request's span, and the headers that continue it; None without a tracer."""

    span: trace.Span
    headers: dict[str, str] | None

    def name(self, target: Target) -> None:
        """Say which generation the request is bound to."""
        self.span.set_attribute("gen_ai.response.model", target.model)
        self.span.set_attribute("seta.generation", "base" if target.generation is None else str(target.generation))

    @property
    def as_request(self) -> Request | None:
        """A request with the trace's headers and no others: vLLM would also obey the client's on priority and id."""
        if self.headers is None:
            return None
        named = [(name.encode(), value.encode()) for name, value in self.headers.items()]
        return Request({"type": "http", "headers": named})


@contextmanager
def traced(request: Request) -> Iterator[Trace]:
    """A span over the block."""
    provider = trace.get_tracer_provider()
    if isinstance(provider, trace.ProxyTracerProvider):  # nobody has set one up
        yield Trace(trace.INVALID_SPAN, None)
        return
    path = request.url.path
    span = provider.get_tracer("seta.server").start_span(
        f"{request.method} {path}",
        _W3C.extract(request.headers),
        trace.SpanKind.SERVER,
        {"http.request.method": request.method, "http.route": path},
    )
    headers: dict[str, str] = {}
    _W3C.inject(headers, trace.set_span_in_context(span))
    try:
        yield Trace(span, headers)
        span.set_attribute("http.response.status_code", 200)
    except BaseException as error:
        _tell(span, error)
        raise
    finally:
        span.end()


def _tell(span: trace.Span, error: BaseException) -> None:
    if not isinstance(error, ApiError):  # the server stops, or has a fault: then the log knows more
        span.set_attribute("error.type", type(error).__name__)
        span.set_status(trace.StatusCode.ERROR)
        return
    span.set_attribute("http.response.status_code", error.status)
    span.set_attribute("error.type", error.code or str(error.status))
    if error.status >= 500:
        span.set_status(trace.StatusCode.ERROR)


def flush(seconds: float = FLUSH_SECONDS) -> None:
    """Send what is left, within these seconds: a collector that does not answer must not keep the process."""
    shutdown = getattr(trace.get_tracer_provider(), "shutdown", None)
    if shutdown is not None:
        sending = threading.Thread(target=shutdown, name="seta-traces", daemon=True)
        sending.start()
        sending.join(seconds)
