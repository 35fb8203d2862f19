"""Our metrics over a server without an engine: names, units and labels as Prometheus wants them."""

import asyncio
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from adapters.bank import Bank, BankCorrupt
from server.activations import Activations
from server.errors import ApiError
from server.metrics import measure_bank, ours, watch_tokens
from server.request_metrics import RequestMetrics
from tests.deploy.prometheus import promtool
from tests.server.house import House
from tests.server.test_metrics_requests import output

Samples = dict[str, float]


def samples(house: House) -> Samples:
    """`name{labels}` of every sample, as in the text, to its value."""
    found: Samples = {}
    for family in text_string_to_metric_families(ours(house.service).decode()):
        assert family.documentation, family.name
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sample.labels.items())
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def of_generation(found: Samples, number: int) -> set[str]:
    return {key.partition("{")[0] for key in found if f'generation="{number}"' in key}


@pytest.fixture
def run(bank: Bank) -> Iterator[Callable[[Any], Any]]:
    """Runs `scenario(house)` over a house that has started, and closes its requests afterwards."""

    def go(scenario: Any) -> Any:
        async def body() -> Any:
            house = House(bank)
            await house.operations.start()
            await house.service.serving.routing_counts.refresh()  # type: ignore[union-attr]
            with house.requests:
                return await scenario(house)

        return asyncio.run(body())

    yield go


def test_promtool_finds_nothing(run: Any) -> None:
    async def scenario(house: House) -> bytes:
        house.ask()
        await house.operations.activate(5)
        house.service.requests.of("5").first_token.observe(0.1)
        return ours(house.service)

    text = run(scenario)
    checked = subprocess.run([promtool(), "check", "metrics"], input=text, capture_output=True)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")
    assert text.count(b"# HELP seta_") == text.count(b"# TYPE seta_") > 20


def test_what_promtool_would_say_to_a_bad_name() -> None:
    bad = b"# TYPE seta_tokens counter\nseta_tokens 1\n"
    assert subprocess.run([promtool(), "check", "metrics"], input=bad, capture_output=True).returncode != 0


def test_an_idle_server(run: Any) -> None:
    async def scenario(house: House) -> tuple[Samples, str]:
        return samples(house), house.generations.manifest.digest

    found, digest = run(scenario)
    assert found["seta_ready"] == found["seta_engine_up"] == 1
    assert found["seta_generation"] == 4
    assert any(key.startswith("seta_generation_info{") and digest in key for key in found)
    assert found['seta_generations{state="serving"}'] == 1
    assert found['seta_resident_bytes{generation="4"}'] == 1000
    assert found['seta_requests_total{generation="4",outcome="ok"}'] == 0
    assert found['seta_requests_total{generation="none",outcome="refused"}'] == 0
    assert found['seta_activations_total{order="activate",result="ok"}'] == 0
    assert found['seta_activation_duration_seconds_bucket{le="+Inf"}'] == 0


def test_requests_by_generation(run: Any) -> None:
    async def scenario(house: House) -> Samples:
        for model in ("demo", "demo", "demo-base"):
            house.ask(model)
        await house.operations.activate(5)
        house.ask()
        return samples(house)

    found = run(scenario)
    in_flight = {key: value for key, value in found.items() if key.startswith("seta_requests_in_flight")}
    assert list(in_flight.values()) == [1, 2, 1]
    assert found['seta_requests_in_flight{generation="4"}'] == 2


def test_what_the_gate_decided(run: Any) -> None:
    async def scenario(house: House) -> Samples:
        return samples(house)

    found = run(scenario)
    assert found['seta_tokens_total{expert="base",kind="base"}'] == 60
    assert found['seta_tokens_total{expert="alpha.unique",kind="unique"}'] == 30
    assert found['seta_tokens_total{expert="beta.unique",kind="unique"}'] == 0
    assert found['seta_routed_tokens_total{generation="4",task="alpha"}'] == 20
    assert found['seta_base_tokens_total{generation="4"}'] == 30
    assert found['seta_gate_entropy_nats_bucket{generation="4",le="0.001"}'] == 10
    assert found['seta_gate_entropy_nats_bucket{generation="4",le="0.01"}'] == 55
    assert found['seta_gate_entropy_nats_count{generation="4"}'] == 55
    assert found['seta_gate_entropy_nats_sum{generation="4"}'] == 0.4
    assert found['seta_gate_probability_count{generation="4"}'] == 25
    assert "long.gone" not in str(found), "an expert of no generation in memory"


def test_what_has_left_memory_has_no_series(run: Any) -> None:
    async def scenario(house: House) -> tuple[Samples, Samples]:
        house.service.requests.of("4").first_token.observe(0.1)
        house.service.requests.outcomes["4", "ok"] += 1
        tasks = house.service.requests.tasks
        tasks.ended([tasks.track("a", "4")], "ok", 0.3)
        tasks.tell([("a", "alpha")], 0.0)
        before = samples(house)
        await house.operations.activate(5)
        house.operations.retire(4)
        await house.operations.settle()
        after = samples(house)
        assert "4" not in house.service.requests.latencies, "or the counts of all that ever served would stay"
        return before, after

    before, after = run(scenario)
    assert of_generation(before, 4) >= {"seta_requests_total", "seta_gate_entropy_nats_bucket", "seta_resident_bytes"}
    assert of_generation(after, 4) == set()
    assert "seta_task_requests_total" in of_generation(before, 4)
    assert of_generation(after, 5) == {name for name in of_generation(before, 4) if "_task_" not in name}
    assert after["seta_generations_retired_total"] == 1


def test_labels_are_bounded_by_the_bank(run: Any) -> None:
    """Whatever clients name, no new series."""

    async def scenario(house: House) -> tuple[set[str], set[str]]:
        before = set(samples(house))
        for model in ("demo@99", "evil\n", 'demo@4"} 1'):
            with suppress(ApiError):
                house.ask(model)
        return before, set(samples(house))

    before, after = run(scenario)
    assert before == after


def test_activations_by_result(run: Any) -> None:
    async def scenario(house: House) -> tuple[Samples, Samples]:
        before = samples(house)
        await house.operations.activate(5)
        with pytest.raises(ApiError):
            await house.operations.activate(3, expected=1)
        house.loader.fails = BankCorrupt("bad")
        with pytest.raises(BankCorrupt):
            await house.operations.activate(2)
        await house.operations.rollback()
        return before, samples(house)

    before, found = run(scenario)
    counts = {key: value for key, value in found.items() if key.startswith("seta_activations_total") and value}
    assert counts == {
        'seta_activations_total{order="activate",result="ok"}': 1,
        'seta_activations_total{order="activate",result="refused"}': 1,
        'seta_activations_total{order="activate",result="failed"}': 1,
        'seta_activations_total{order="rollback",result="ok"}': 1,
    }
    assert found["seta_activation_duration_seconds_count"] == 2
    name = "seta_generation_activated_timestamp_seconds"
    assert found[name] > before[name]


def test_an_order_that_changes_nothing_is_no_activation(run: Any) -> None:
    async def scenario(house: House) -> tuple[Samples, Samples]:
        before = samples(house)
        await house.operations.activate(4)
        return before, samples(house)

    before, after = run(scenario)
    name = "seta_generation_activated_timestamp_seconds"
    assert before[name] == after[name]


def test_a_failure_of_ours_is_not_the_callers() -> None:
    activations = Activations()
    with suppress(ApiError), activations.measured("activate"):
        raise ApiError(500, "broken")
    assert activations.counts == {("activate", "failed"): 1}


def test_a_dead_engine_can_be_scraped(run: Any) -> None:
    async def scenario(house: House) -> Samples:
        house.service.serving.engine.errored = True  # type: ignore[union-attr, misc]
        return samples(house)

    found = run(scenario)
    assert (found["seta_ready"], found["seta_engine_up"]) == (0, 0)
    assert found['seta_tokens_total{expert="base",kind="base"}'] == 60


def test_before_the_model_is_loaded(bank: Bank) -> None:
    house = House(bank)
    house.service.serving = None
    assert samples(house) == {"seta_ready": 0}


def test_tokens_are_timed_under_their_generation(run: Any) -> None:
    async def scenario(house: House) -> RequestMetrics:
        requests = house.service.requests
        watch = watch_tokens(house.generations, requests)
        watch(house.generations.residents[4].adapter, "a")(output({0: 1}))
        watch(None, "b")(output({0: 1}))
        return requests

    requests = run(scenario)
    assert {name: one.first_token.total for name, one in requests.latencies.items()} == {"4": 1, "base": 1}


def test_requests_and_latency_by_leading_task(run: Any) -> None:
    async def scenario(house: House) -> tuple[Samples, Samples]:
        tasks = house.service.requests.tasks
        for number, model in (("4", "alpha"), ("base", "plain")):
            request = [tasks.track(model, number)]
            request[0].latencies.first_token.observe(0.1)
            tasks.ended(request, "ok", 0.3)
        before = samples(house)
        tasks.tell([("alpha", "alpha")], 0.0)
        return before, samples(house)

    before, after = run(scenario)
    assert [key for key in before if key.startswith("seta_task_requests_total")] == [
        'seta_task_requests_total{generation="base",outcome="ok",task="base"}'
    ]
    assert after['seta_task_requests_total{generation="4",outcome="ok",task="alpha"}'] == 1
    assert after['seta_task_time_to_first_token_seconds_sum{generation="4",task="alpha"}'] == 0.1
    assert after['seta_task_inter_token_latency_seconds_count{generation="4",task="alpha"}'] == 0
    assert after['seta_task_request_duration_seconds_bucket{generation="4",le="0.25",task="alpha"}'] == 0
    assert after['seta_task_request_duration_seconds_bucket{generation="4",le="0.4",task="alpha"}'] == 1


def test_the_banks_size(bank: Bank) -> None:
    size = measure_bank(bank)
    asyncio.run(size.refresh())
    assert size.value == sum(path.stat().st_size for path in Path(bank.root).rglob("*") if path.is_file())
