"""`seta loadtest` and `vllm bench serve` put the same load on the same server and must say the same about it.

On a busy machine two runs of one load differ by more than 5 %, whoever measures. So both go through a proxy that writes
down what it gave to each (`recording_proxy`), and what a tool says is divided by what its own requests really were.
What is left are the tools' own errors, and those are compared. Of the time to first token that is the median: the first
requests of a process that has just started wait for the process, and are a sixth of its mean.
"""

import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from loadtest.progress import Watch
from loadtest.run import LoadTest
from loadtest.settings import Settings
from tests.server.process import NAME, REPO, free_port, status_of

REQUESTS = 48
CLIENTS = 8
TOKENS = 32
ROUNDS = 3
MAX_APART = 0.05
Numbers = dict[str, float]


@dataclass(frozen=True)
class Proxy:
    url: str
    file: Path

    def take(self) -> list[dict[str, Any]]:
        """The measured requests since the last call, once all are written down; without a tool's test of the server."""
        deadline = time.monotonic() + 10
        while len(found := self._measured()) < REQUESTS and time.monotonic() < deadline:
            time.sleep(0.1)
        self.file.write_text("")
        return found

    def _measured(self) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in self.file.read_text().splitlines(keepends=True) if line.endswith("\n")]
        return [one for one in found if one["asked"]["max_tokens"] == TOKENS]


@pytest.fixture
def proxy(server: str, tmp_path: Path) -> Iterator[Proxy]:
    port, file = free_port(), tmp_path / "record"
    file.touch()
    command = [sys.executable, "-m", "tests.chaos.recording_proxy", str(port), server, str(file)]
    process = subprocess.Popen(command, cwd=REPO)
    url = f"http://127.0.0.1:{port}"
    while status_of(f"{url}/ready") != 200:
        assert process.poll() is None
        time.sleep(0.1)
    yield Proxy(url, file)
    process.kill()
    process.wait()


def test_both_say_the_same(proxy: Proxy, model_dir: Path, tmp_path: Path) -> None:
    """In turns, the first of a round second in the next; each number is the median of its rounds."""
    prompts = [f"Question {index}: which food group does item number {index} belong to?" for index in range(REQUESTS)]
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"task": "t", "prompt": prompt}) + "\n" for prompt in prompts))
    tools: dict[str, Callable[[], Numbers]] = {
        "loadtest": lambda: measure_with_loadtest(proxy.url, rows),
        "vllm": lambda: measure_with_vllm(proxy.url, prompts, model_dir),
    }
    tools["loadtest"]()  # the prefix cache holds the prompts from here on
    proxy.take()
    said: dict[str, list[Numbers]] = {name: [] for name in tools}
    true: dict[str, list[Numbers]] = {name: [] for name in tools}
    for number in range(ROUNDS):
        for name in sorted(tools, reverse=number % 2 == 1):
            said[name].append(tools[name]())
            true[name].append(recorded(proxy.take(), prompts))
    apart = {}
    for number_of in said["loadtest"][0]:
        ours, theirs = ([s[number_of] / t[number_of] for s, t in zip(said[n], true[n], strict=True)] for n in tools)
        apart[number_of] = statistics.median(ours) / statistics.median(theirs)
        raw = [statistics.median(run[number_of] for run in said[name]) for name in tools]
        print(f"{number_of:>13}: loadtest {raw[0]:8.2f}, {statistics.median(ours):.3f} of the record; ", end="")
        print(f"vllm {raw[1]:8.2f}, {statistics.median(theirs):.3f}; ratio {apart[number_of]:.3f}")
    assert {name: ratio for name, ratio in apart.items() if abs(ratio - 1) > MAX_APART} == {}


def recorded(requests: list[dict[str, Any]], prompts: list[str]) -> Numbers:
    """What a tool was really given, after a look whether it asked for what it should have."""
    assert sorted(one["asked"]["prompt"] for one in requests) == sorted(prompts)
    wanted = {"model": NAME, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True, "stream": True}
    assert all(one["asked"] | wanted == one["asked"] and len(one["outputs"]) == TOKENS for one in requests)
    edges = sorted([(one["came"], 1) for one in requests] + [(one["outputs"][-1], -1) for one in requests])
    running = [sum(step for _, step in edges[: i + 1]) for i in range(len(edges))]
    assert max(running) in (CLIENTS, CLIENTS + 1)  # the next request may come before the last output is written down
    ttft = [1000 * (one["outputs"][0] - one["came"]) for one in requests]
    e2e = [1000 * (one["outputs"][-1] - one["came"]) for one in requests]
    itl = [1000 * (b - a) for one in requests for a, b in zip(one["outputs"], one["outputs"][1:], strict=False)]
    return {
        "ttft p50 ms": statistics.median(ttft),
        "itl p50 ms": statistics.median(itl),
        "itl mean ms": statistics.mean(itl),
        "e2e p50 ms": statistics.median(e2e),
        "e2e mean ms": statistics.mean(e2e),
        "tokens/s": REQUESTS * TOKENS / (edges[-1][0] - edges[0][0]),
    }


def measure_with_loadtest(url: str, rows: Path) -> Numbers:
    settings = Settings(
        scenario="steady",
        url=url,
        model=NAME,
        api="completions",
        workload=(rows,),
        concurrency=(CLIENTS,),
        requests=REQUESTS,
        seconds=600,
        max_tokens=(TOKENS, TOKENS),
        extra_body={"ignore_eos": True},
    )
    total = asyncio.run(LoadTest(settings, Watch(), None).run()).stages[0].total
    assert (total.completed, total.output_tokens) == (REQUESTS, REQUESTS * TOKENS)
    found = {
        "ttft p50 ms": total.ttft.p50_ms,
        "itl p50 ms": total.itl.p50_ms,
        "itl mean ms": total.itl.mean_ms,
        "e2e p50 ms": total.e2e.p50_ms,
        "e2e mean ms": total.e2e.mean_ms,
        "tokens/s": total.tokens_per_second,
    }
    return {name: value for name, value in found.items() if value is not None}


def measure_with_vllm(url: str, prompts: list[str], model_dir: Path) -> Numbers:
    job: dict[str, Any] = {"url": url, "model": NAME, "tokenizer": str(model_dir), "prompts": prompts}
    job |= {"tokens": TOKENS, "clients": CLIENTS}
    command = [sys.executable, "-m", "tests.chaos.vllm_bench"]
    done = subprocess.run(
        command, cwd=REPO, input=json.dumps(job), capture_output=True, text=True, timeout=600, check=False
    )
    if done.returncode != 0:
        pytest.fail(f"vllm bench serve ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["completed"], result["total_output_tokens"]) == (REQUESTS, REQUESTS * TOKENS)
    return {
        "ttft p50 ms": result["median_ttft_ms"],
        "itl p50 ms": result["median_itl_ms"],
        "itl mean ms": result["mean_itl_ms"],
        "e2e p50 ms": result["median_e2el_ms"],
        "e2e mean ms": result["mean_e2el_ms"],
        "tokens/s": result["output_throughput"],
    }
