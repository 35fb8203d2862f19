"""Task files in, token ids out.

A task file is JSON lines, `{"task", "prompt" | "messages", "answer"}`. Rendering goes through the tokenizer's own chat
template, exactly as the server renders a chat request, so that training and serving see the same tokens.
"""

from __future__ import annotations

import json
from codecs import BOM_UTF8
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

from jinja2 import TemplateError
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, field_validator, model_validator

MAX_LINE_BYTES = 1 << 20
MAX_EXAMPLES = 1_000_000
TASK_NAME = r"^[a-z0-9][a-z0-9_.-]{0,63}$"


class DataError(ValueError):
    """A task file cannot be used; the message names the file and the line."""


class Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    role: str = Field(pattern="^(system|user|assistant)$")
    content: str

    @field_validator("content")
    @classmethod
    def _is_text(cls, content: str) -> str:
        return _without_nul(content)


class Prompted(BaseModel):
    """A line with a prompt; `messages` is what the chat template renders."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    prompt: str | None = Field(default=None, min_length=1)
    messages: tuple[Message, ...] | None = Field(default=None, min_length=1)
    _where: str = PrivateAttr(default="")

    @field_validator("prompt", "answer", check_fields=False)
    @classmethod
    def _is_text(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if not value.strip():
            raise ValueError("is only white space")
        return _without_nul(value)

    @model_validator(mode="after")
    def _one_input(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give exactly one of 'prompt' and 'messages'")
        if self.messages is not None and self.messages[-1].role == "assistant":
            raise ValueError("the last message is the assistant's; what it should say belongs into 'answer'")
        return self

    @property
    def where(self) -> str:
        """`file:line`, where it was read from a file."""
        return self._where or "an example"

    def chat(self) -> list[dict[str, str]]:
        if self.messages is not None:
            return [m.model_dump() for m in self.messages]
        return [{"role": "user", "content": self.prompt or ""}]


class Example(Prompted):
    """One line of a task file."""

    task: str = Field(pattern=TASK_NAME)
    answer: str = Field(min_length=1)


class TaskPrompt(Prompted):
    """One line of a file of prompts of one task, whose answers need not be known; a task file's line is one too."""

    task: str | None = Field(default=None, pattern=TASK_NAME)
    answer: str | None = Field(default=None, min_length=1)


Line = TypeVar("Line", bound=Prompted)


@dataclass(frozen=True)
class Tokens:
    """A rendered example: prompt ids, and answer ids that end with the end-of-turn token."""

    prompt: list[int]
    answer: list[int]
    text: str

    @property
    def ids(self) -> list[int]:
        return self.prompt + self.answer


def read_examples(path: Path) -> list[Example]:
    """Read and check every line. Raises DataError with file and line before anything is used."""
    examples = [_parse(Example, path, number, line) for number, line in _lines(path)]
    if not examples:
        raise DataError(f"{path}: no examples found; expected one JSON object a line")
    return examples


def read_task_prompts(path: Path, task: str) -> list[TaskPrompt]:
    """Prompts of one task; a line that names another one is an error. Raises DataError."""
    prompts = [_parse(TaskPrompt, path, number, line) for number, line in _lines(path)]
    if not prompts:
        raise DataError(f"{path}: no prompts found; expected one JSON object with 'prompt' or 'messages' a line")
    for prompt in prompts:
        if prompt.task not in (None, task):
            raise DataError(f"{prompt.where}: task {prompt.task!r} found, expected {task!r} or no task")
    return prompts


def read_tasks(*paths: Path) -> dict[str, list[Example]]:
    """Group the files' examples by task, in the order in which the tasks first appear.

    Raises DataError for a task that is in two files: two data sets of one name are more likely a mistake than a wish.
    """
    tasks: dict[str, list[Example]] = {}
    for path in paths:
        found: dict[str, list[Example]] = {}
        for example in read_examples(path):
            found.setdefault(example.task, []).append(example)
        for name in found.keys() & tasks.keys():
            raise DataError(
                f"{found[name][0].where}: task {name!r} is already in {tasks[name][0].where}; put one task's examples "
                "into one file, or give one of the two another name"
            )
        tasks |= found
    return tasks


def read_prompts(path: Path) -> list[str]:
    """Read `{"prompt": ...}` lines (general prompts). Raises DataError."""
    prompts: list[str] = []
    for number, line in _lines(path):
        row = _load(path, number, line)
        prompt = row.get("prompt") if isinstance(row, dict) else None
        if not isinstance(prompt, str) or not prompt:
            raise DataError(f"{path}:{number}: expected an object with a non-empty 'prompt'")
        prompts.append(prompt)
    return prompts


def render_chat(tokenizer: Any, messages: list[dict[str, str]]) -> list[int]:
    """The prompt's token ids as the server's chat endpoint makes them."""
    if not tokenizer.chat_template:
        text = "\n".join(m["content"] for m in messages)
        return list(tokenizer(text).input_ids)
    return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))


def render_prompt(tokenizer: Any, example: Prompted) -> list[int]:
    """The prompt's token ids. Raises DataError where the chat template refuses the messages."""
    try:
        return render_chat(tokenizer, example.chat())
    except TemplateError as error:
        raise DataError(f"{example.where}: the model's chat template refuses the messages: {error}") from error


def render(tokenizer: Any, example: Example, max_tokens: int) -> Tokens | None:
    """Render one example; None when it does not fit in `max_tokens`.

    Raises DataError as `render_prompt` does, and for an answer that no model could give because the end of turn is in
    the midst of it.
    """
    prompt = render_prompt(tokenizer, example)
    answer = [*tokenizer(example.answer, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    if tokenizer.eos_token_id in answer[:-1]:
        raise DataError(
            f"{example.where}: answer: holds the end-of-turn token {tokenizer.eos_token!r}, with which every answer "
            "ends by itself; leave it out"
        )
    if len(prompt) + len(answer) > max_tokens:
        return None
    return Tokens(prompt, answer, example.answer)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), 1):
                if number > MAX_EXAMPLES or len(raw) > MAX_LINE_BYTES:
                    raise DataError(
                        f"{path}:{number}: over {MAX_EXAMPLES} lines, or a line over {MAX_LINE_BYTES} bytes"
                    )
                text = raw.removeprefix(BOM_UTF8) if number == 1 else raw
                if text.strip():
                    yield number, _decode(path, number, text)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _decode(path: Path, number: int, raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}:{number}: not UTF-8 at byte {error.start} of the line") from error


def _load(path: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line, object_pairs_hook=_without_duplicates)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{number}: not JSON: {error.msg} at column {error.colno}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; thousands of brackets
        raise DataError(f"{path}:{number}: not JSON that can be read: {error}") from error


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """JSON leaves open which of two equal keys counts, so neither does."""
    row: dict[str, Any] = {}
    for key, value in pairs:
        if key in row:
            raise ValueError(f"the key {key[:80]!r} is there twice")
        row[key] = value
    return row


def _without_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError(f"holds a NUL character at position {text.index(chr(0))}; the file is damaged, or no text")
    return text


def _parse(kind: type[Line], path: Path, number: int, line: str) -> Line:
    row = _load(path, number, line)
    try:
        parsed = kind.model_validate(row)
        parsed._where = f"{path}:{number}"
        return parsed
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "line"
        raise DataError(f"{path}:{number}: {where}: {first['msg'].removeprefix('Value error, ')}") from error
