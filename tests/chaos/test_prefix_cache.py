"""The same prompt under three generations: with the prefix cache on, the answers are those with it off."""

from dataclasses import dataclass

import pytest

from adapters.data import read_prompts
from tests.chaos.conftest import Live, Start
from tests.server.process import NAME, REPO

GENERATIONS = (2, 3, 4)
MAX_DIFFERENCE = 1e-3
"""Of a log-probability: a cached block was computed in another batch than a fresh one."""


@dataclass(frozen=True)
class Answer:
    text: str
    first_logprobs: dict[str, float]
    cached_tokens: int


def long_prompts() -> list[str]:
    """Several blocks of the cache each; the second shares all but its end with the first, and so does a food."""
    text = "\n".join(read_prompts(REPO / "tests/data/general_prompts.jsonl")[:12])
    ends = ("Summarise the questions above.", "How many questions are there above?")
    food = "Which food group does this description belong to?\nBeef, top loin petite roast, boneless, select, raw"
    return [*(f"{text}\n\n{end}" for end in ends), f"{text}\n\n{food}", food + ", lean" * 150]


def ask(live: Live, model: str, prompt: str) -> Answer:
    response = live.ask(prompt, model=model, max_tokens=12, logprobs=True, top_logprobs=5)
    assert response.status_code == 200, response.text
    choice, usage = response.json()["choices"][0], response.json()["usage"]
    first = {one["token"]: one["logprob"] for one in choice["logprobs"]["content"][0]["top_logprobs"]}
    return Answer(choice["message"]["content"], first, (usage["prompt_tokens_details"] or {}).get("cached_tokens", 0))


def all_answers(live: Live) -> dict[tuple[str, str, int], Answer]:
    """Every prompt under every generation and the base model, twice, in the order that would mix them up most."""
    for number in GENERATIONS:
        live.admin.pin(number)
    names = [*(f"{NAME}@{number}" for number in GENERATIONS), f"{NAME}-base"]
    return {
        (name, prompt, turn): ask(live, name, prompt) for turn in (1, 2) for prompt in long_prompts() for name in names
    }


def test_generations_share_nothing(start: Start) -> None:
    options = ("--dtype", "float32")
    cached = all_answers(start(*options, "--enable-prefix-caching"))
    fresh = all_answers(start(*options, "--no-enable-prefix-caching"))
    assert sum(answer.cached_tokens for answer in fresh.values()) == 0
    for key, answer in cached.items():
        name, prompt, turn = key
        assert answer.text == fresh[key].text, key
        assert answer.first_logprobs == pytest.approx(fresh[key].first_logprobs, abs=MAX_DIFFERENCE), key
        if turn == 2:
            assert answer.cached_tokens > 0, key
    first_prompt = long_prompts()[0]
    assert [cached[name, first_prompt, 1].cached_tokens for name, _, _ in list(cached)[:4]] == [0, 0, 0, 0]
    different = {cached[f"{NAME}@{number}", long_prompts()[3], 1].text for number in GENERATIONS}
    assert len(different) > 1, "the prompt does not tell the generations apart"


def test_a_generation_of_the_same_number_with_other_contents_starts_afresh(live: Live) -> None:
    """A bank that was replaced: `NAME@3` of today must not read what `NAME@3` of yesterday computed."""
    prompt, manifest = long_prompts()[3], live.bank.root / "generations/00003.json"
    live.admin.pin(3)
    for expected in (False, True):
        assert (ask(live, f"{NAME}@3", prompt).cached_tokens > 0) is expected
    live.admin.unpin(3)
    live.admin.retire(3)
    other = live.bank.manifest(3).model_copy(update={"settings": {"seed": 7}})
    manifest.write_bytes(other.to_bytes())
    live.admin.pin(3)
    assert ask(live, f"{NAME}@3", prompt).cached_tokens == 0
