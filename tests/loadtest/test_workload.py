import itertools
import json
from collections import Counter
from pathlib import Path

import pytest

from adapters.data import read_examples
from loadtest.errors import LoadTestError
from loadtest.settings import Settings
from loadtest.workload import Row, in_order, mixed, read_rows, shares

ROWS = [Row(task=task, prompt=f"{task} {index}", answer="a") for task in ("a", "b", "c") for index in range(5)]


def settings(**options: object) -> Settings:
    return Settings(scenario="steady", **options)  # type: ignore[arg-type]


def test_it_reads_what_the_trainer_reads() -> None:
    """One file format: the prompts here are those that adapters would learn from."""
    path = Path("demo/examples.jsonl")
    assert [row.chat() for row in read_rows([path])] == [example.chat() for example in read_examples(path)]


def test_the_limit_is_per_file(tmp_path: Path) -> None:
    path = tmp_path / "w.jsonl"
    path.write_text("".join(json.dumps({"task": "t", "prompt": str(index)}) + "\n\n" for index in range(5)))
    assert [row.prompt for row in read_rows([path, path], 2)] == ["0", "1", "0", "1"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "w.jsonl:2: line: Invalid JSON"),
        ("[]", "w.jsonl:2: line: Input should be an object"),
        ('{"task": "t"}', "w.jsonl:2: line: give exactly one of 'prompt' and 'messages'"),
        ('{"task": "t", "prompt": "p", "messages": [{"role": "user", "content": "c"}]}', "give exactly one"),
        ('{"task": "t", "prompt": ""}', "w.jsonl:2: prompt: "),
        ('{"task": "t", "prompt": "p", "answr": "a"}', "w.jsonl:2: answr: Extra inputs"),
        ('{"task": "t", "messages": [{"role": "user"}]}', "w.jsonl:2: messages.0.content: "),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "w.jsonl"
    path.write_text('{"task": "t", "prompt": "p"}\n' + line + "\n")
    with pytest.raises(LoadTestError) as error:
        read_rows([path])
    assert says in str(error.value)


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(LoadTestError, match="none.jsonl: cannot be read"):
        read_rows([tmp_path / "none.jsonl"])
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(LoadTestError, match="no rows"):
        read_rows([tmp_path / "empty"])
    (tmp_path / "latin").write_bytes(b'{"task": "t", "prompt": "\xe9"}')
    with pytest.raises(LoadTestError, match="not UTF-8 at byte 25"):
        read_rows([tmp_path / "latin"])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}),
        ({"popularity": "skewed"}, {"a": 6 / 11, "b": 3 / 11, "c": 2 / 11}),
        ({"popularity": "skewed", "skew": 2}, {"a": 36 / 49, "b": 9 / 49, "c": 4 / 49}),
        ({"popularity": "one", "task": "b"}, {"b": 1.0}),
    ],
)
def test_tasks_mix_as_asked(options: dict[str, object], expected: dict[str, float]) -> None:
    sent = Counter(request.task for request in itertools.islice(mixed(ROWS, settings(**options), 0), 6000))
    assert {task: count / 6000 for task, count in sent.items()} == pytest.approx(expected, abs=0.03)


def test_every_row_is_used_before_any_is_used_again() -> None:
    stream = mixed(ROWS, settings(popularity="one", task="c"), 0)
    for _ in range(4):
        prompts = [request.messages[0]["content"] for request in itertools.islice(stream, 5)]
        assert sorted(prompts) == [f"c {index}" for index in range(5)]


def test_the_seed_decides() -> None:
    one, two, other = (list(itertools.islice(mixed(ROWS, settings(), seed), 30)) for seed in (1, 1, 2))
    assert one == two != other


def test_lengths_are_drawn_from_their_spans() -> None:
    rows = [Row(task="a", prompt="p", answer="a")]
    drawn = list(itertools.islice(mixed(rows, settings(max_tokens="8:10", padding_words="3:5"), 0), 300))
    assert {request.max_tokens for request in drawn} == {8, 9, 10}
    padding, prompts = zip(*(request.messages[0]["content"].split("\n") for request in drawn), strict=True)
    assert {len(words.split()) for words in padding} == {3, 4, 5}
    assert set(prompts) == {"p"}


def test_an_unknown_task_is_said() -> None:
    with pytest.raises(LoadTestError, match="--task x: the workload has a, b"):
        shares(["a", "b"], "one", 1.0, "x")


def test_in_order_is_every_row_once() -> None:
    assert [request.messages for request in in_order(ROWS, 4)] == [row.chat() for row in ROWS]
