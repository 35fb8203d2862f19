"""`/metrics` of the real server: requests, latencies and the gate's decisions, under the generation that served."""

import re
import subprocess
import time

import httpx
import pytest

from tests.deploy.prometheus import promtool
from tests.server.process import NAME

PROMPT = [{"role": "user", "content": "Which smart-home intent does this command express?\nmute stereo"}]
NUM_TOKENS = 6


def scrape(http: httpx.Client) -> dict[str, float]:
    """Ours, by `name{labels}`."""
    time.sleep(1.1)  # the workers' counts are up to a second old
    lines = http.get("/metrics").text.splitlines()
    return {key: float(value) for key, _, value in (line.rpartition(" ") for line in lines if line.startswith("seta_"))}


@pytest.fixture(scope="module")
def serving(http: httpx.Client) -> int:
    return int(http.get("/ready").json()["generation"])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", [NAME, f"{NAME}-base"])
def test_a_request_is_counted_and_timed_once(http: httpx.Client, serving: int, model: str, stream: bool) -> None:
    label, task = (str(serving), "smart_home") if model == NAME else ("base", "base")
    body = {"model": model, "messages": PROMPT, "max_tokens": NUM_TOKENS, "ignore_eos": True, "stream": stream}
    before = scrape(http)
    start = time.monotonic()
    assert http.post("/v1/chat/completions", json=body).status_code == 200
    seconds = time.monotonic() - start
    after = scrape(http)

    def change(key: str) -> float:
        return after[key] - before[key]

    assert change(f'seta_requests_total{{generation="{label}",outcome="ok"}}') == 1
    sums = {}
    for name, count in (("time_to_first_token", 1), ("inter_token_latency", NUM_TOKENS - 1), ("request_duration", 1)):
        assert change(f'seta_{name}_seconds_count{{generation="{label}"}}') == count
        sums[name] = change(f'seta_{name}_seconds_sum{{generation="{label}"}}')
        by_task = f'seta_task_{name}_seconds_count{{generation="{label}",task="{task}"}}'
        assert after[by_task] - before.get(by_task, 0) == count
    ended = f'seta_task_requests_total{{generation="{label}",outcome="ok",task="{task}"}}'
    assert after[ended] - before.get(ended, 0) == 1
    assert min(sums.values()) > 0
    assert sums["time_to_first_token"] + sums["inter_token_latency"] <= sums["request_duration"] + 0.05
    assert sums["request_duration"] <= seconds


def test_the_gates_decisions(http: httpx.Client, serving: int) -> None:
    """Of two answers to one prompt, which the engine runs as two requests under names of its own."""
    before = scrape(http)
    body = {"messages": PROMPT, "max_tokens": NUM_TOKENS, "ignore_eos": True, "n": 2, "temperature": 1}
    assert http.post("/v1/chat/completions", json=body).status_code == 200
    after = scrape(http)
    ended = f'seta_task_requests_total{{generation="{serving}",outcome="ok",task="smart_home"}}'
    assert after[ended] - before.get(ended, 0) == 1

    def change(name: str) -> float:
        picked = re.compile(rf'{name}{{generation="{serving}"[^}}]*}}')
        return sum(after[key] - before.get(key, 0) for key in after if picked.fullmatch(key))

    routed = change("seta_routed_tokens_total")
    assert change("seta_gate_entropy_nats_count") == routed + change("seta_base_tokens_total") > NUM_TOKENS
    assert change("seta_gate_probability_count") == routed > 0
    assert 0.5 * routed < change("seta_gate_probability_sum") <= routed * 1.0001
    assert 0 <= after["seta_routing_age_seconds"] < 60
    assert after["seta_bank_bytes"] > 1000


def test_promtool_finds_nothing_in_ours(http: httpx.Client) -> None:
    """vLLM's own names hold colons, which promtool minds; ours are the part that begins with `seta_`."""
    lines = http.get("/metrics").text.splitlines()
    ours = [line for line in lines if line.removeprefix("# HELP ").removeprefix("# TYPE ").startswith("seta_")]
    checked = subprocess.run(
        [promtool(), "check", "metrics"], input="\n".join(ours) + "\n", capture_output=True, text=True
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_a_client_cannot_make_a_series(http: httpx.Client) -> None:
    before = set(scrape(http))
    assert http.post("/v1/chat/completions", json={"model": 'x"} 1', "messages": PROMPT}).status_code == 404
    assert http.post("/v1/completions", json={"model": f"{NAME}@77", "prompt": "x"}).status_code == 404
    assert set(scrape(http)) == before
