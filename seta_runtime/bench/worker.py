"""One engine in a process of its own: reads a point a line on standard input, answers with seconds and tokens."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

from seta_runtime.bench.rss import rss_bytes

ANSWER = "bench-answer "
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
    "TORCHDYNAMO_DISABLE": "1",  # as the server has it
    "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 2) - 1)),  # as vLLM gives the server's worker
}


def main() -> None:
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from seta_runtime.bench.points import Point, prompts_for
    from seta_runtime.bench.variants import Variant

    start = time.monotonic()
    setup = json.loads(sys.stdin.readline())
    variant = Variant.from_json(setup["variant"])
    from vllm import LLM, SamplingParams

    llm = LLM(**variant.engine_args())
    requests = variant.lora_requests()
    start_seconds = time.monotonic() - start
    _say({"start_seconds": start_seconds, "load_seconds": [_load_seconds(llm, request) for request in requests]})
    if variant.asks_base:
        requests = []
    for line in sys.stdin:
        point = Point(**json.loads(line))
        prompts = [{"prompt_token_ids": ids} for ids in prompts_for(point, setup["prompts"])]
        params = SamplingParams(
            temperature=0, max_tokens=point.new_tokens, min_tokens=point.new_tokens, ignore_eos=True
        )
        begin = time.monotonic()
        outputs = llm.generate(prompts, params, use_tqdm=False, lora_request=_requests(requests, point))
        seconds = time.monotonic() - begin
        generated = sum(len(output.outputs[0].token_ids) for output in outputs)
        prefilled = sum(len(output.prompt_token_ids or ()) for output in outputs)
        tokens = prefilled if point.is_prefill else generated
        _say({"seconds": seconds, "tokens": tokens, "rss_bytes": rss_bytes(), "stats": _stats(llm, variant)})


def _load_seconds(llm: Any, request: Any) -> float:
    begin = time.monotonic()
    llm.llm_engine.add_lora(request)
    return time.monotonic() - begin


def _requests(requests: list[Any], point: Any) -> list[Any] | None:
    if not requests:
        return None
    number = len(requests) if point.is_mixed else 1
    return [requests[-1 - i % number] for i in range(point.batch)]


def _stats(llm: Any, variant: Any) -> dict[str, int]:
    if variant.kind != "routed":
        return {}
    counts = llm.collective_rpc("seta_stats")[0]
    return {"base_tokens": counts["base_tokens"], "routed_tokens": counts["routed_tokens"]}


def _say(values: dict[str, Any]) -> None:
    print(ANSWER + json.dumps(values), flush=True)


if __name__ == "__main__":
    main()
