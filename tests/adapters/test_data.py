"""Task files: what is read, and how every bad one is refused: by file and line."""

import json
from pathlib import Path
from typing import Any

import pytest

from adapters import data
from adapters.data import DataError, Example, read_examples, read_prompts, read_tasks, render, render_chat
from tests.tiny import CHAT_TEMPLATE, make_tokenizer

GOOD = b'{"task": "colours", "prompt": "sky?", "answer": "blue"}\n'
TWO_INPUTS = b'{"task": "t", "prompt": "p", "messages": [{"role": "user", "content": "c"}], "answer": "a"}\n'

BAD_LINES = {
    "bad UTF-8": (b'{"task": "t", "prompt": "\xff", "answer": "a"}\n', "not UTF-8 at byte 25"),
    "cut UTF-8": (b'{"task": "t", "prompt": "\xc3', "not UTF-8"),
    "not JSON": (b"task: colours\n", "not JSON"),
    "cut JSON": (b'{"task": "t", "prompt": "p"', "not JSON"),
    "JSON nested too deep": (b"[" * 200_000 + b"\n", "not JSON"),
    "a number too long to read": (b'{"task": ' + b"1" * 5000 + b"}\n", "not JSON"),
    "no object": (b'["colours", "sky?", "blue"]\n', "line: "),
    "missing answer": (b'{"task": "t", "prompt": "p"}\n', "answer: Field required"),
    "missing task": (b'{"prompt": "p", "answer": "a"}\n', "task: Field required"),
    "neither prompt nor messages": (b'{"task": "t", "answer": "a"}\n', "exactly one of 'prompt' and 'messages'"),
    "both prompt and messages": (TWO_INPUTS, "exactly one of 'prompt' and 'messages'"),
    "unknown key": (b'{"task": "t", "prompt": "p", "answer": "a", "weight": 2}\n', "weight: Extra inputs"),
    "empty prompt": (b'{"task": "t", "prompt": "", "answer": "a"}\n', "prompt: "),
    "empty answer": (b'{"task": "t", "prompt": "p", "answer": ""}\n', "answer: "),
    "empty messages": (b'{"task": "t", "messages": [], "answer": "a"}\n', "messages: "),
    "unknown role": (
        b'{"task": "t", "messages": [{"role": "x", "content": "c"}], "answer": "a"}\n',
        "messages.0.role: ",
    ),
    "answer no string": (b'{"task": "t", "prompt": "p", "answer": 7}\n', "answer: "),
    "task name with a slash": (b'{"task": "../t", "prompt": "p", "answer": "a"}\n', "task: "),
    "half a surrogate pair": (b'{"task": "t", "prompt": "\\ud800", "answer": "a"}\n', "prompt: "),
    "white space for a prompt": (b'{"task": "t", "prompt": " \\n", "answer": "a"}\n', "prompt: is only white space"),
    "white space for an answer": (b'{"task": "t", "prompt": "p", "answer": "\\t"}\n', "answer: is only white space"),
    "NUL in a prompt": (
        b'{"task": "t", "prompt": "p\\u0000q", "answer": "a"}\n',
        "prompt: holds a NUL character at position 1",
    ),
    "NUL in an answer": (b'{"task": "t", "prompt": "p", "answer": "\\u0000"}\n', "answer: holds a NUL character"),
    "NUL in a message": (
        b'{"task": "t", "messages": [{"role": "user", "content": "\\u0000"}], "answer": "a"}\n',
        "messages.0.content: holds a NUL character",
    ),
    "NUL bytes where a line was": (b"\0" * 40 + b"\n", "not JSON"),
    "UTF-16": ('{"task": "t"}\n'.encode("utf-16"), "not UTF-8 at byte 0"),
    "a key twice": (b'{"task": "t", "prompt": "p", "prompt": "q", "answer": "a"}\n', "the key 'prompt' is there twice"),
    "a key twice in a message": (
        b'{"task": "t", "messages": [{"role": "user", "content": "c", "role": "system"}], "answer": "a"}\n',
        "the key 'role' is there twice",
    ),
    "the assistant's message last": (
        b'{"task": "t", "messages": [{"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}], '
        b'"answer": "a"}\n',
        "the last message is the assistant's",
    ),
    "a byte order mark in mid-file": (b"\xef\xbb\xbf" + GOOD, "not JSON"),
    "null for an answer": (b'{"task": "t", "prompt": "p", "answer": null}\n', "answer: "),
    "an empty task name": (b'{"task": "", "prompt": "p", "answer": "a"}\n', "task: "),
    "over-long line": (
        b'{"task": "t", "prompt": "' + b"p" * data.MAX_LINE_BYTES + b'"}\n',
        "a line over 1048576 bytes",
    ),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_bad_line_is_refused_with_file_and_line(name: str, tmp_path: Path) -> None:
    line, reason = BAD_LINES[name]
    path = tmp_path / "tasks.jsonl"
    path.write_bytes(GOOD + b"\n" + line + GOOD)
    with pytest.raises(DataError) as error:
        read_examples(path)
    assert str(error.value).startswith(f"{path}:3: ")
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content",
    [b"\xef\xbb\xbf" + GOOD, GOOD.replace(b"\n", b"\r\n"), b"\r\n" + GOOD.rstrip(), GOOD + b" \t\n"],
    ids=["byte order mark", "CRLF", "an empty first line and no newline at the end", "white space at the end"],
)
def test_what_editors_leave_in_a_file_is_read(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "tasks.jsonl"
    path.write_bytes(content)
    (example,) = read_examples(path)
    assert (example.task, example.prompt, example.answer) == ("colours", "sky?", "blue")
    assert example.where == f"{path}:{content[: content.index(b'task')].count(10) + 1}"


def test_equal_keys_are_found_in_linear_time(tmp_path: Path) -> None:
    """A line of a hundred thousand keys is refused at the first that comes again."""
    keys = ", ".join(f'"{i}": 0' for i in range(70_000))
    path = tmp_path / "tasks.jsonl"
    path.write_text(f'{{{keys}, "69999": 1}}\n')
    with pytest.raises(DataError, match=":1: .*'69999' is there twice"):
        read_examples(path)


@pytest.mark.parametrize("content", [b"", b"\n  \n", b"\xef\xbb\xbf\r\n"])
def test_a_file_without_examples_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "tasks.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match="no examples found") as error:
        read_examples(path)
    assert str(path) in str(error.value)


def test_a_missing_file_and_a_directory_are_refused(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "none.jsonl", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(DataError, match=reason) as error:
            read_examples(path)
        assert str(error.value).startswith(f"{path}: ")


def test_too_many_lines_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "MAX_EXAMPLES", 3)
    path = tmp_path / "tasks.jsonl"
    path.write_bytes(GOOD * 3)
    assert len(read_examples(path)) == 3
    path.write_bytes(GOOD * 4)
    with pytest.raises(DataError, match=r":4: over 3 lines"):
        read_examples(path)


def test_a_huge_line_is_not_read_whole(tmp_path: Path) -> None:
    """64 MiB without a newline: refused after the first of them."""
    path = tmp_path / "tasks.jsonl"
    with path.open("wb") as file:
        file.truncate(64 << 20)
    lines = data._lines(path)
    with pytest.raises(DataError, match=":1: ") as error:
        next(lines)
    frame = error.traceback[-1].frame
    assert len(frame.f_locals["raw"]) <= data.MAX_LINE_BYTES + 1


@pytest.mark.parametrize("line", [b'{"prompt": ""}\n', b'{"text": "a"}\n', b'["a"]\n', b'{"prompt": 3}\n'])
def test_a_bad_general_prompt_is_refused_with_file_and_line(line: bytes, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(b'{"prompt": "good"}\n' + line)
    with pytest.raises(DataError) as error:
        read_prompts(path)
    assert str(error.value).startswith(f"{path}:2: ")


def test_tasks_keep_the_order_in_which_they_appear(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"task": "zeta", "prompt": "1", "answer": "a"},
        {"task": "alpha", "prompt": "2", "answer": "b"},
        {"task": "zeta", "messages": [{"role": "user", "content": "3"}], "answer": "c"},
    ]
    path = tmp_path / "tasks.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    tasks = read_tasks(path)
    assert list(tasks) == ["zeta", "alpha"]
    assert [example.answer for example in tasks["zeta"]] == ["a", "c"]
    assert tasks["zeta"][1].chat() == [{"role": "user", "content": "3"}]


def test_a_task_in_two_files_is_refused_with_both_places(tmp_path: Path) -> None:
    one, other = tmp_path / "one.jsonl", tmp_path / "other.jsonl"
    one.write_bytes(b"\n" + GOOD * 2)
    other.write_bytes(GOOD.replace(b"colours", b"sums") + GOOD)
    with pytest.raises(DataError) as error:
        read_tasks(one, other)
    assert str(error.value).startswith(f"{other}:2: task 'colours' is already in {one}:2; ")
    with pytest.raises(DataError, match="'colours' is already"):
        read_tasks(one, one)
    other.write_bytes(GOOD.replace(b"colours", b"sums"))
    assert list(read_tasks(one, other)) == ["colours", "sums"]


def test_rendering_is_the_chat_template_then_the_answer_and_the_end_of_turn() -> None:
    tokenizer = make_tokenizer()
    example = Example(task="t", prompt="How are you?", answer="Well, thank you")
    tokens = render(tokenizer, example, 1000)
    assert tokens is not None
    assert tokenizer.decode(tokens.prompt) == "<|im_start|>user\nHow are you?<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(tokens.answer) == "Well, thank you<|im_end|>"
    assert tokens.answer[-1] == tokenizer.eos_token_id
    assert tokens.ids == tokens.prompt + tokens.answer


def test_an_example_that_does_not_fit_is_none() -> None:
    tokenizer = make_tokenizer()
    example = Example(task="t", prompt="How are you?", answer="Well")
    tokens = render(tokenizer, example, 1000)
    assert tokens is not None
    assert render(tokenizer, example, len(tokens.ids)) == tokens
    assert render(tokenizer, example, len(tokens.ids) - 1) is None


def test_an_answer_with_the_end_of_turn_in_its_midst_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tasks.jsonl"
    path.write_bytes(GOOD + GOOD.replace(b"blue", b"blue<|im_end|>"))
    fine, bad = read_examples(path)
    assert render(make_tokenizer(), fine, 1000)
    with pytest.raises(DataError, match=r"tasks.jsonl:2: answer: holds the end-of-turn token '<\|im_end\|>'"):
        render(make_tokenizer(), bad, 1000)
    unread = Example(task="t", prompt="p", answer="a<|im_end|>")
    with pytest.raises(DataError, match="^an example: answer: "):
        render(make_tokenizer(), unread, 1000)


def test_messages_that_the_chat_template_refuses_are_an_error_with_file_and_line(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    path = tmp_path / "tasks.jsonl"
    path.write_bytes(GOOD)
    with pytest.raises(DataError, match=r"tasks.jsonl:1: .*roles must alternate"):
        render(tokenizer, read_examples(path)[0], 1000)


def test_without_a_chat_template_the_text_itself_is_the_prompt() -> None:
    tokenizer = make_tokenizer()
    assert tokenizer.chat_template == CHAT_TEMPLATE
    tokenizer.chat_template = None
    ids = render_chat(tokenizer, [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}])
    assert tokenizer.decode(ids) == "Be brief.\nWhy?"
