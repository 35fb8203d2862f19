"""`seta loadtest` and `vllm bench serve`, in turns, put the same load on the same server and must see the same."""

import asyncio
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from loadtest.progress import Watch
from loadtest.run import LoadTest
from loadtest.settings import Settings
from tests.server.process import NAME, REPO

REQUESTS = 48
CLIENTS = 8
TOKENS = 32
ROUNDS = 5
MAX_APART = 0.05


def test_both_see_the_same(server: str, model_dir: Path, tmp_path: Path) -> None:
    """In turns, so that whatever else the machine does meets both; each number is the median of its rounds."""
    prompts = [f"Question {index}: which food group does item number {index} belong to?" for index in range(REQUESTS)]
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"task": "t", "prompt": prompt}) + "\n" for prompt in prompts))
    measure_with_loadtest(server, rows)  # the prefix cache holds the prompts from here on
    ours, theirs = [], []
    for _ in range(ROUNDS):
        ours.append(measure_with_loadtest(server, rows))
        theirs.append(measure_with_vllm(server, prompts, model_dir))
    for name in ours[0]:
        one, two = (statistics.median(run[name] for run in runs) for runs in (ours, theirs))
        print(f"{name:>18}: loadtest {one:8.2f}, vllm bench serve {two:8.2f}, ratio {one / two:.3f}")
    apart = {name: statistics.median(o[name] / t[name] for o, t in zip(ours, theirs, strict=True)) for name in ours[0]}
    assert {name: ratio for name, ratio in apart.items() if abs(ratio - 1) > MAX_APART} == {}


def measure_with_loadtest(url: str, rows: Path) -> dict[str, float]:
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
        "ttft mean ms": total.ttft.mean_ms,
        "itl p50 ms": total.itl.p50_ms,
        "itl mean ms": total.itl.mean_ms,
        "e2e p50 ms": total.e2e.p50_ms,
        "e2e mean ms": total.e2e.mean_ms,
        "tokens/s": total.tokens_per_second,
    }
    return {name: value for name, value in found.items() if value is not None}


def measure_with_vllm(url: str, prompts: list[str], model_dir: Path) -> dict[str, float]:
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
        "ttft mean ms": result["mean_ttft_ms"],
        "itl p50 ms": result["median_itl_ms"],
        "itl mean ms": result["mean_itl_ms"],
        "e2e p50 ms": result["median_e2el_ms"],
        "e2e mean ms": result["mean_e2el_ms"],
        "tokens/s": result["output_throughput"],
    }
