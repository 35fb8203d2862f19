"""What one request may ask for, judged on vLLM's own request models."""

from pathlib import Path
from typing import Any

import pytest

from server.config import ServeConfig, build_config
from server.errors import ApiError
from server.limits import check, check_prompt_length, sequences


@pytest.fixture
def config(tmp_path: Path) -> ServeConfig:
    return build_config(model="m", bank=tmp_path, max_tokens=100, max_n=8)


def chat(**fields: Any) -> Any:
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    return ChatCompletionRequest.model_validate({"messages": [{"role": "user", "content": "a"}]} | fields)


def completion(**fields: Any) -> Any:
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest

    return CompletionRequest.model_validate({"prompt": "a"} | fields)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"n": 8, "max_tokens": 100},
        {"n": None, "max_tokens": None, "stop": None},
        {"max_completion_tokens": 100, "stop": "x" * 1024},
        {"stop": ["x"] * 4, "best_of": None},
        {"n": 2, "best_of": 2},
        {"best_of": 1, "request_id": "x" * 128},
    ],
)
def test_up_to_its_limits_a_request_is_let_through(config: ServeConfig, fields: dict[str, Any]) -> None:
    check(chat(**fields), config)


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"n": 9}, "n", "n must be at most 8"),
        ({"max_tokens": 101}, "max_tokens", "max_tokens must be at most 100"),
        ({"max_completion_tokens": 101}, "max_completion_tokens", "at most 100"),
        ({"max_completion_tokens": 100, "max_tokens": 10**12}, "max_tokens", "at most 100"),
        ({"stop": "x" * 1025}, "stop", "at most 1024 characters"),
        ({"stop": ["a", "x" * 1025]}, "stop", "at most 1024 characters"),
        ({"best_of": 3}, "best_of", "best_of is not supported"),
        ({"n": 2, "best_of": 4}, "best_of", "best_of is not supported"),
        ({"request_id": "x" * 129}, "request_id", "at most 128 characters"),
        ({"kv_transfer_params": {"prompt_token_ids": [1]}}, "kv_transfer_params", "not supported"),
        ({"ec_transfer_params": {}}, "ec_transfer_params", "not supported"),
    ],
)
def test_over_a_limit_the_field_is_named(config: ServeConfig, fields: dict[str, Any], param: str, says: str) -> None:
    with pytest.raises(ApiError, match=says) as caught:
        check(chat(**fields), config)
    assert (caught.value.status, caught.value.param) == (400, param)


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        ({}, 1),
        ({"n": 4}, 4),
        ({"prompt": [1, 2, 3]}, 1),
        ({"prompt": [[1, 2], [3]]}, 2),
        ({"prompt": ["a", "b", "c"], "n": 2}, 6),
    ],
)
def test_answers_are_counted_over_prompts_and_n(fields: dict[str, Any], count: int) -> None:
    assert sequences(completion(**fields)) == count


def test_many_prompts_are_many_answers(config: ServeConfig) -> None:
    check(completion(prompt=["a"] * 4, n=2), config)
    with pytest.raises(ApiError, match="at most 8 answers: n times the number of its prompts"):
        check(completion(prompt=["a"] * 3, n=3), config)


def test_without_a_bound_of_our_own_the_context_length_is_the_bound(tmp_path: Path) -> None:
    check(chat(max_tokens=10**9), build_config(model="m", bank=tmp_path))
    check_prompt_length(10**9, None)


def test_a_prompt_that_is_too_long() -> None:
    check_prompt_length(10, 10)
    with pytest.raises(ApiError, match="The prompt has 11 tokens; this server takes at most 10") as caught:
        check_prompt_length(11, 10)
    assert caught.value.code == "context_length_exceeded"
