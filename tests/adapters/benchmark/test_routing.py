"""What counts as instruction, and how decisions are counted."""

import torch

from adapters.benchmark.routing import measure_routing, strip_instructions
from adapters.data import Example, Message, Tokens
from adapters.examples import Prepared


def examples(*prompts: str) -> list[Example]:
    return [Example(task="t", prompt=prompt, answer="a") for prompt in prompts]


def prompts(found: list[Example]) -> list[str | None]:
    return [example.prompt for example in found]


def test_lines_and_labels_of_most_prompts_are_instruction():
    train = examples(*(f"What is it?\nOption: x, y\nTitle: T{i}\nText:  words {i}: here\nAnswer:" for i in range(4)))
    held_out = examples("What is it?\nOption: x, y\nTitle: New\nNote: kept\nText: one\n\ntwo\nAnswer:")
    assert prompts(strip_instructions(train, held_out)) == ["New\nNote: kept\none\n\ntwo"]


def test_a_line_of_half_of_the_prompts_is_content():
    train = examples("same\none", "same\ntwo", "other\nthree", "another\nfour")
    assert prompts(strip_instructions(train, train[:1])) == ["same\none"]


def test_a_prompt_of_nothing_else_stays():
    train = examples("Do it.", "Do it.", "Do it.")
    assert prompts(strip_instructions(train, train[:1])) == ["Do it."]


def test_a_chat_stays():
    chat = Example(task="t", messages=(Message(role="user", content="Do it."),), answer="a")
    assert strip_instructions(examples("Do it.", "Do it."), [chat]) == [chat]


class Nearest:
    """A gate over one-dimensional evidence: task 0 below 1, task 1 below 2, else base."""

    def probabilities(self, pooled: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot(pooled[..., 0].long().clamp(max=2), 3).float()


def prepared(*evidence: list[float]) -> Prepared:
    """The last value of each belongs to the answer."""
    tokens = [Tokens(prompt=[0] * (len(values) - 1), answer=[1, 2], text="") for values in evidence]
    return Prepared(tokens, [], [torch.tensor(values).unsqueeze(-1) for values in evidence], [])


def test_confusion_and_positions_by_hand():
    """Two template tokens, then content; the prompt's last token decides the confusion."""
    tests = {
        0: prepared([2.0, 2.0, 0.0, 1.0, 1.0, 0.0, 9.0], [2.0, 2.0, 1.0, 1.0, 1.0, 1.0, 0.0]),
        1: prepared([2.0, 2.0, 1.0, 9.0]),
    }
    found = measure_routing(Nearest(), tests, prefix=2)  # type: ignore[arg-type]
    assert found.confusion == ((50.0, 50.0, 0.0), (0.0, 100.0, 0.0))
    assert found.by_position == {1: 100 * 2 / 3, 4: 50.0}, "the third prompt has one content token only"
