"""`seta loadtest` and `vllm bench serve`, in turns, put the same load on the same server and must see the same."""

import asyncio
import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from loadtest.progress import Watch
from loadtest.run import LoadTest
from loadtest.settings import Settings
from tests.server.process import NAME, REPO

REQUESTS = 64
CLIENTS = 8
TOKENS = 32
ROUNDS = 3
MAX_APART = 0.05
RUN_VLLM = """
import sys
from vllm.benchmarks import serve
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = FlexibleArgumentParser()
serve.add_cli_args(parser)
serve.main(parser.parse_args(sys.argv[1:]))
"""


def test_both_see_the_same(server: str, model_dir: Path, tmp_path: Path) -> None:
    """In turns, so that whatever else the machine does meets both; each number is the median of its rounds."""
    prompts = [f"Question {index}: which food group does item number {index} belong to?" for index in range(REQUESTS)]
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"task": "t", "prompt": prompt}) + "\n" for prompt in prompts))
    measure_with_loadtest(server, rows)  # the prefix cache holds the prompts from here on
    ours, theirs = [], []
    for _ in range(ROUNDS):
        ours.append(measure_with_loadtest(server, rows))
        theirs.append(measure_with_vllm(server, rows, model_dir, tmp_path))
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


def measure_with_vllm(url: str, rows: Path, model_dir: Path, folder: Path) -> dict[str, float]:
    options = [
        *("--backend", "openai", "--endpoint", "/v1/completions", "--base-url", url, "--model", NAME),
        *("--tokenizer", str(model_dir), "--dataset-name", "custom", "--dataset-path", str(rows)),
        *("--num-prompts", str(REQUESTS), "--custom-output-len", str(TOKENS), "--disable-shuffle"),
        *("--skip-chat-template", "--max-concurrency", str(CLIENTS), "--temperature", "0", "--ignore-eos"),
        *("--percentile-metrics", "ttft,itl,e2el", "--disable-tqdm"),
        *("--save-result", "--result-dir", str(folder), "--result-filename", "vllm.json"),
    ]
    command = [sys.executable, "-c", RUN_VLLM, *options]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode != 0:
        pytest.fail(f"vllm bench serve ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    result = json.loads((folder / "vllm.json").read_text())
    assert (result["completed"], result["total_output_tokens"]) == (REQUESTS, REQUESTS * TOKENS)
    return {
        "ttft mean ms": result["mean_ttft_ms"],
        "itl p50 ms": result["median_itl_ms"],
        "itl mean ms": result["mean_itl_ms"],
        "e2e p50 ms": result["median_e2el_ms"],
        "e2e mean ms": result["mean_e2el_ms"],
        "tokens/s": result["output_throughput"],
    }
