"""vLLM's own load generator as a process: a JSON job on stdin, its result as the last line on stdout.

Its command reads prompts from a file only with pandas, which nothing here needs; its function takes them as they are.
"""

import asyncio
import json
import sys
from typing import Any

from transformers import AutoTokenizer
from vllm.benchmarks import serve
from vllm.benchmarks.datasets import SampleRequest


async def run(job: dict[str, Any]) -> dict[str, Any]:
    """`job`: url, model, tokenizer (a directory), prompts, tokens (of each answer, exactly), clients."""
    prompts = [SampleRequest(prompt, 1, job["tokens"], request_id=str(i)) for i, prompt in enumerate(job["prompts"])]
    found: dict[str, Any] = await serve.benchmark(
        task_type=serve.TaskType.GENERATION,
        endpoint_type="openai",
        api_url=f"{job['url']}/v1/completions",
        base_url=job["url"],
        model_id=job["model"],
        model_name=job["model"],
        tokenizer=AutoTokenizer.from_pretrained(job["tokenizer"]),  # without one it reports no TTFT and ITL
        input_requests=prompts,
        logprobs=None,
        request_rate=float("inf"),
        burstiness=1.0,
        disable_tqdm=True,
        num_warmups=0,
        profile=False,
        selected_percentile_metrics=["ttft", "itl", "e2el"],
        selected_percentiles=[50.0],
        ignore_eos=True,
        goodput_config_dict={},
        max_concurrency=job["clients"],
        lora_modules=None,
        extra_headers=None,
        extra_body={"temperature": 0},
        ready_check_timeout_sec=0,
    )
    return {name: value for name, value in found.items() if isinstance(value, int | float)}


if __name__ == "__main__":
    print("\n" + json.dumps(asyncio.run(run(json.load(sys.stdin)))))
