"""One engine in a process of its own: does what a line on standard input says, and computes at no other time."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict, replace
from typing import Any

from adapters.asked_process import answer
from seta_runtime.bench.rss import rss_bytes
from seta_runtime.bench.slices import IdleMeter, timed

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine is in this process, and steps when it is told
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
    "TORCHDYNAMO_DISABLE": "1",  # as the server has it
}
SETTLE_SECONDS = 0.01
"""OpenMP's threads look out for more work about so long before they sleep: not into the next engine's slice."""


def main() -> None:
    for name, value in (ENVIRONMENT | {"OMP_NUM_THREADS": str(num_threads())}).items():
        os.environ.setdefault(name, value)
    from seta_runtime.bench.batch import Batch
    from seta_runtime.bench.variants import Variant

    start = time.monotonic()
    setup = json.loads(sys.stdin.readline())
    variant = Variant.from_json(setup["variant"])
    from vllm import LLM, SamplingParams

    llm = LLM(**variant.engine_args())
    requests = variant.lora_requests()
    start_seconds = time.monotonic() - start
    answer({"start_seconds": start_seconds, "load_seconds": [_load_seconds(llm, request) for request in requests]})

    def sampling(tokens: int) -> SamplingParams:
        return SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)

    batch = Batch(llm.llm_engine, setup["prompts"], variant.asked_for(requests), sampling)
    idle = IdleMeter()
    idle.rest()
    for line in sys.stdin:
        idle.wake()
        question = json.loads(line)
        if question.get("asks"):
            batch.lora_requests = replace(variant, asks=question["asks"]).asked_for(requests)
        found = _work(question, batch)
        if question["do"] == "end":
            found = {"rss_bytes": rss_bytes(), "stats": _stats(llm, variant), "idle_cpu_share": round(idle.share, 5)}
        if num_threads() > 1:
            time.sleep(SETTLE_SECONDS)
        answer(found)
        idle.rest()


def num_threads() -> int:
    """One less than there are cores, as vLLM gives its server's worker."""
    return max(1, len(os.sched_getaffinity(0)) - 1)


def _work(question: dict[str, Any], batch: Any) -> dict[str, Any]:
    from seta_runtime.bench.points import Point

    if question["do"] == "slice":
        return asdict(timed(batch.step, question["steps"]))
    if question["do"] == "begin":
        batch.begin(Point(**question["point"]), question["number"])
    else:
        batch.end()
    return {}


def _load_seconds(llm: Any, request: Any) -> float:
    begin = time.monotonic()
    llm.llm_engine.add_lora(request)
    return time.monotonic() - begin


def _stats(llm: Any, variant: Any) -> dict[str, int]:
    if variant.kind != "routed":
        return {}
    counts = llm.collective_rpc("seta_stats")[0]
    return {"base_tokens": counts["base_tokens"], "routed_tokens": counts["routed_tokens"]}


if __name__ == "__main__":
    main()
