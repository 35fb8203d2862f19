"""Our span of a request: whose trace it continues, what it says, what vLLM gets, and that it holds nobody up."""

import threading

import pytest
from fastapi import Request
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from server import tracing
from server.errors import ApiError
from server.generations import Target

TRACE_ID, SPAN_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PATH = "/v1/chat/completions"
SECRET = "a prompt"


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    return exporter


def request(**headers: str) -> Request:
    sent = {"authorization": "Bearer k", "x-request-id": "mine", "priority": "-1"} | headers
    scope = {"type": "http", "method": "POST", "scheme": "http", "server": ("h", 80), "path": PATH}
    return Request(scope | {"headers": [(name.encode(), value.encode()) for name, value in sent.items()]})


def the_span(spans: InMemorySpanExporter) -> ReadableSpan:
    (span,) = spans.get_finished_spans()
    return span


def test_without_a_tracer_nothing_is_handed_on() -> None:
    with tracing.traced(request(traceparent=f"00-{TRACE_ID}-{SPAN_ID}-01")) as found:
        found.name(Target("demo@4", 4))
    assert found.as_request is None and not found.span.is_recording()


def test_the_clients_trace_goes_on_and_vllms_span_becomes_ours(spans: InMemorySpanExporter) -> None:
    with tracing.traced(request(traceparent=f"00-{TRACE_ID}-{SPAN_ID}-01", tracestate="vendor=1")) as found:
        found.name(Target("demo@4", 4))
        raw = found.as_request
        assert not spans.get_finished_spans()
    span = the_span(spans)
    assert span.context is not None and span.parent is not None
    assert (f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}") == (TRACE_ID, SPAN_ID)
    assert (span.name, span.kind) == (f"POST {PATH}", trace.SpanKind.SERVER)
    assert dict(span.attributes or {}) == {
        "http.request.method": "POST",
        "http.route": PATH,
        "gen_ai.response.model": "demo@4",
        "seta.generation": "4",
        "http.response.status_code": 200,
    }
    assert raw is not None
    expected = {"traceparent": f"00-{TRACE_ID}-{span.context.span_id:016x}-01", "tracestate": "vendor=1"}
    assert dict(raw.headers) == expected, "vLLM gets no other header of the client's"


@pytest.mark.parametrize("traceparent", ["", "nonsense", f"00-{'0' * 32}-{SPAN_ID}-01"])
def test_a_bad_traceparent_begins_a_trace(spans: InMemorySpanExporter, traceparent: str) -> None:
    with tracing.traced(request(traceparent=traceparent)) as found:
        found.name(Target("demo-base", None))
    span = the_span(spans)
    assert span.parent is None and span.attributes is not None
    assert span.attributes["seta.generation"] == "base"


def test_what_the_client_does_not_sample_is_not_sampled(spans: InMemorySpanExporter) -> None:
    with tracing.traced(request(traceparent=f"00-{TRACE_ID}-{SPAN_ID}-00")) as found:
        pass
    assert not spans.get_finished_spans()
    assert found.as_request is not None and found.as_request.headers["traceparent"].endswith("-00")


@pytest.mark.parametrize(
    ("error", "told", "is_fault"),
    [
        (ApiError(400, SECRET, code="invalid_value"), {"status": 400, "type": "invalid_value"}, False),
        (ApiError(404, SECRET), {"status": 404, "type": "404"}, False),
        (ApiError(503, SECRET, code="engine_dead"), {"status": 503, "type": "engine_dead"}, True),
        (KeyError(SECRET), {"status": None, "type": "KeyError"}, True),
        (KeyboardInterrupt(SECRET), {"status": None, "type": "KeyboardInterrupt"}, True),
    ],
)
def test_an_error_is_told_without_its_text(
    spans: InMemorySpanExporter, error: BaseException, told: dict[str, object], is_fault: bool
) -> None:
    with pytest.raises(type(error)), tracing.traced(request()):
        raise error
    span = the_span(spans)
    attributes = span.attributes or {}
    assert attributes.get("http.response.status_code") == told["status"] and attributes["error.type"] == told["type"]
    assert span.status.is_ok is not is_fault
    assert SECRET not in span.to_json() and not span.events


class Stuck:
    """A provider whose collector does not answer."""

    def __init__(self) -> None:
        self.asked, self.answer, self.is_done = threading.Event(), threading.Event(), False

    def shutdown(self) -> None:
        self.asked.set()
        self.answer.wait()
        self.is_done = True


def test_a_collector_that_does_not_answer_does_not_keep_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    stuck = Stuck()
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: stuck)
    tracing.flush(0.01)
    assert stuck.asked.wait(60) and not stuck.is_done
    stuck.answer.set()


def test_what_is_left_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=3_600_000))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    with tracing.traced(request()):
        pass
    assert not exporter.get_finished_spans()
    tracing.flush()
    assert len(exporter.get_finished_spans()) == 1
