"""All held-out prompts of the demo tasks over HTTP."""

from pathlib import Path

from tests.accuracy import check_served_as_trained
from tests.server.process import NAME


def test_every_held_out_prompt_is_answered_as_well_as_the_trainer_says(
    server: str, model_dir: Path, demo_bank: Path, demo_tests: list[Path]
) -> None:
    check_served_as_trained(server, NAME, model_dir, demo_bank, demo_tests)
