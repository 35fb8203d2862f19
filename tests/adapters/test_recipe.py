"""A task's recipe: the same for the same examples and settings, wherever they were read; and the time of a bank."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from adapters.data import DataError, Example, read_examples
from adapters.recipe import creation_time, recipe_sha256
from adapters.settings import LearnSettings

ONE = Example(task="t", prompt="p", answer="a")
OTHERS = [
    Example(task="t", prompt="p", answer="b"),
    Example(task="t", prompt="q", answer="a"),
    Example(task="t", messages=({"role": "user", "content": "p"},), answer="a"),  # type: ignore[arg-type]
]
SETTINGS = LearnSettings()


def test_examples_settings_and_their_order_count_and_nothing_else(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).write_text("\n" * len(name) + ONE.model_dump_json(exclude_none=True))
    recipe = recipe_sha256([ONE], SETTINGS)
    assert {recipe_sha256(read_examples(tmp_path / name), SETTINGS) for name in ("one", "other")} == {recipe}
    changed = [recipe_sha256([other], SETTINGS) for other in OTHERS]
    changed += [recipe_sha256([ONE, *OTHERS], SETTINGS), recipe_sha256([*OTHERS, ONE], SETTINGS)]
    changed += [recipe_sha256([ONE], SETTINGS.model_copy(update={"seed": 1})), recipe_sha256([ONE, ONE], SETTINGS)]
    assert len({recipe, *changed}) == 1 + len(changed)


def test_the_time_is_now_or_what_source_date_epoch_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    assert abs((creation_time() - datetime.now(UTC)).total_seconds()) < 60 and creation_time().microsecond == 0
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    assert creation_time() == datetime(1970, 1, 2, tzinfo=UTC)
    for bad in ("yesterday", "", "1" * 30):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", bad)
        with pytest.raises(DataError, match="SOURCE_DATE_EPOCH is '.*', expected seconds"):
            creation_time()
