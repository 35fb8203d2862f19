"""The command that times counting runs, over steps in which prompts end and steps in which none does."""

import pytest

from seta_runtime.bench.counting import TOKENS, main, measure


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    main(steps=2, repetitions=1)
    printed = capsys.readouterr().out
    assert all(f" {num_tokens} " in printed for num_tokens in TOKENS)


@pytest.mark.parametrize("prompts_end", [False, True])
def test_a_step_takes_some_time(prompts_end: bool) -> None:
    assert measure(8, prompts_end, steps=2, repetitions=2) > 0
