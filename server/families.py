"""Our metrics as Prometheus' client library wants them, made from the server's state when they are scraped.

Every label's values are bounded by the bank and by this code, never by clients; what has left memory has no series.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from seta_runtime.stats import ENTROPY_BUCKETS, PROBABILITY_BUCKETS

from .activations import ORDERS, RESULTS, Activations
from .admission import Admission
from .generations import Generations
from .histogram import Histogram, Latencies, cumulative
from .request_metrics import UNBOUND, RequestMetrics
from .routing_counts import Counts, GenerationCounts, HistogramCounts
from .task_metrics import BASE, OUTCOMES, TaskMetrics


def gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def generation_families(generations: Generations) -> Iterator[Metric]:
    """What serves, what is in memory, and who still uses it."""
    manifest = generations.manifest
    yield gauge("seta_generation", "Number of the generation in service.", manifest.generation)
    base = manifest.base
    labels = {
        "generation": str(manifest.generation),
        "manifest_sha256": manifest.digest,
        "base": base.weights_sha256[:12],
        "architecture": base.architecture,
        "tasks": str(len(manifest.tasks)),
        "experts": str(len(manifest.experts)),
    }
    info = GaugeMetricFamily("seta_generation_info", "1; what the generation in service is.", labels=list(labels))
    info.add_metric(list(labels.values()), 1)
    yield info
    yield _states(generations)
    retired = generations.num_retired
    yield CounterMetricFamily("seta_generations_retired", "Generations that have left memory.", value=retired)
    resident_bytes = GaugeMetricFamily(
        "seta_resident_bytes", "Memory that a generation reads; experts in common are there once.", labels=_BY
    )
    in_flight = GaugeMetricFamily("seta_requests_in_flight", "Requests admitted and not yet ended.", labels=_BY)
    in_flight.add_metric([BASE], generations.base_in_flight)
    for number, resident in sorted(generations.residents.items()):
        resident_bytes.add_metric([str(number)], resident.resident_bytes)
        in_flight.add_metric([str(number)], resident.in_flight)
    yield from (resident_bytes, in_flight)


def _states(generations: Generations) -> Metric:
    states = {"serving": 0, "resident": 0, "retiring": 0}
    for number, resident in generations.residents.items():
        is_current = number == generations.current
        states["serving" if is_current else "resident" if resident.is_open else "retiring"] += 1
    family = GaugeMetricFamily(
        "seta_generations", "Generations in memory; retiring: it only answers what it has.", labels=["state"]
    )
    for state, number in states.items():
        family.add_metric([state], number)
    return family


def routing_families(generations: Generations, counts: Counts) -> Iterator[Metric]:
    """What the gate decided. `counts.generations` may lag behind what is in memory, by one scrape."""
    kinds = {e.id: e.kind for manifest in generations.manifests.values() for e in manifest.experts}
    tokens = CounterMetricFamily(
        "seta_tokens",
        "Tokens by the experts that answered them.",
        labels=["expert", "kind"],
    )
    tokens.add_metric([BASE, BASE], counts.base)
    for expert, kind in sorted(kinds.items()):
        tokens.add_metric([expert, kind], counts.by_expert.get(expert, 0))
    yield tokens
    by_task = CounterMetricFamily(
        "seta_routed_tokens", "Tokens that the gate gave to a task, by the leading one.", labels=[*_BY, "task"]
    )
    base = CounterMetricFamily("seta_base_tokens", "Tokens that the gate left to the base model.", labels=_BY)
    entropy = _Histograms("seta_gate_entropy_nats", "Entropy of the gate's answer, per token.", ENTROPY_BUCKETS)
    text = "The gate's probability for the leading task, per routed token."
    probability = _Histograms("seta_gate_probability", text, PROBABILITY_BUCKETS)
    for number, of_generation in _by_number(generations, counts):
        for task, num_tokens in sorted(of_generation.tokens_by_task.items()):
            by_task.add_metric([number, task], num_tokens)
        base.add_metric([number], of_generation.base_tokens)
        entropy.add(number, of_generation.entropy)
        probability.add(number, of_generation.probability)
    yield from (by_task, base, entropy.family, probability.family)


def _by_number(generations: Generations, counts: Counts) -> Iterator[tuple[str, GenerationCounts]]:
    for number, resident in sorted(generations.residents.items()):
        found = counts.generations.get(resident.adapter.lora_int_id)
        if found is not None:
            yield str(number), found


def request_families(requests: RequestMetrics, admission: Admission, generations: Generations) -> Iterator[Metric]:
    numbers = [str(number) for number in sorted(generations.residents)]
    requests.keep_only([*numbers, BASE, UNBOUND])
    text = "Requests for completions that have ended; generation is none where none was bound."
    ended = CounterMetricFamily("seta_requests", text, labels=[*_BY, "outcome"])
    for generation in (*numbers, BASE, UNBOUND):
        for outcome in OUTCOMES:
            ended.add_metric([generation, outcome], requests.outcomes[generation, outcome])
    yield ended
    yield from _latencies("seta_", _BY, {(generation,): requests.of(generation) for generation in (*numbers, BASE)})
    yield from _task_families(requests.tasks)
    yield gauge("seta_requests_queued", "Requests that wait for their turn.", admission.queued)
    refused = CounterMetricFamily("seta_requests_refused", "Requests refused with 429.", labels=["reason"])
    for reason in ("queue_full", "key_queue_full"):
        refused.add_metric([reason], admission.refused[reason])
    yield refused


def _task_families(tasks: TaskMetrics) -> Iterator[Metric]:
    """Only what there was: a bank may have a thousand tasks."""
    labels = [*_BY, "task"]
    text = "Requests that the engine took and that have ended, by the task that led at the prompt's end."
    ended = CounterMetricFamily("seta_task_requests", text, labels=[*labels, "outcome"])
    for key, number in sorted(tasks.outcomes.items()):
        ended.add_metric(list(key), number)
    yield ended
    yield from _latencies("seta_task_", labels, {key: tasks.latencies[key] for key in sorted(tasks.latencies)})


def _latencies(prefix: str, labels: list[str], latencies: Mapping[tuple[str, ...], Latencies]) -> Iterator[Metric]:
    kinds: dict[tuple[str, str], Callable[[Latencies], Histogram]] = {
        ("time_to_first_token_seconds", "From a request's arrival to its first token"): lambda one: one.first_token,
        ("inter_token_latency_seconds", "Between two tokens of a request"): lambda one: one.between_tokens,
        ("request_duration_seconds", "From a request's arrival to its last byte, if it went well"): (
            lambda one: one.duration
        ),
    }
    by = ", ".join(labels)
    for (name, text), pick in kinds.items():
        family = HistogramMetricFamily(prefix + name, f"{text}; by {by}.", labels=labels)
        for key, of_key in latencies.items():
            histogram = pick(of_key)
            family.add_metric(list(key), cumulative(histogram.buckets, histogram.counts), histogram.sum)
        yield family


def activation_families(activations: Activations) -> Iterator[Metric]:
    text = "When the generation in service began to serve."
    yield gauge("seta_generation_activated_timestamp_seconds", text, activations.activated_at)
    orders = CounterMetricFamily("seta_activations", "Orders to serve another generation.", labels=["order", "result"])
    for order in ORDERS:
        for result in RESULTS:
            orders.add_metric([order, result], activations.counts[order, result])
    yield orders
    took, duration = "seta_activation_duration_seconds", activations.duration
    buckets = cumulative(duration.buckets, duration.counts)
    yield HistogramMetricFamily(took, "What activations and roll-backs took that went well.", buckets, duration.sum)


class _Histograms:
    """A histogram counted by the workers, one for each generation."""

    def __init__(self, name: str, text: str, buckets: Sequence[float]) -> None:
        self.family = HistogramMetricFamily(name, text, labels=_BY)
        self._buckets = buckets

    def add(self, generation: str, counted: HistogramCounts) -> None:
        self.family.add_metric([generation], cumulative(self._buckets, counted.counts), counted.sum)


_BY = ["generation"]
