"""Server-sent events as OpenAI's API streams them: bytes in, the JSON objects of `data:` lines out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

MAX_EVENT_BYTES = 16 << 20
DONE = b"[DONE]"


class BadStream(Exception):
    """What came is not a stream of events with JSON objects."""


class Events:
    """Cuts a byte stream, however it arrives in pieces, into events; `is_done` once `[DONE]` was read."""

    def __init__(self) -> None:
        self.is_done = False
        self._rest = b""

    def feed(self, piece: bytes) -> Iterator[dict[str, Any]]:
        """The events that this piece completes. Raises BadStream."""
        lines = (self._rest + piece).split(b"\n")
        self._rest = lines.pop()
        if len(self._rest) > MAX_EVENT_BYTES:
            raise BadStream(f"a line of over {MAX_EVENT_BYTES} bytes")
        for line in lines:
            data = line.removeprefix(b"data:").strip() if line.startswith(b"data:") else b""
            if data == DONE:
                self.is_done = True
            elif data:  # every other line is a comment, an event name or a blank
                yield _object(data)


def _object(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadStream(f"not JSON: {data[:80]!r}") from error
    if not isinstance(found, dict):
        raise BadStream(f"not a JSON object: {data[:80]!r}")
    return found


@dataclass(frozen=True, slots=True)
class Chunk:
    """One event of a chat or a completion, as far as it matters here."""

    text: str = ""
    has_output: bool = False
    is_last: bool = False
    prompt_tokens: int | None = None
    output_tokens: int | None = None


def chunk_of(event: dict[str, Any]) -> Chunk:
    """An event of either API. It has output if it carries a choice, but for the event that only opens a chat's message.

    A choice without text counts: its token is invisible (an end of turn, half of a character), but it took its time.
    """
    usage = _dict(event.get("usage"))
    counts = {"prompt_tokens": _count(usage, "prompt_tokens"), "output_tokens": _count(usage, "completion_tokens")}
    choices = event.get("choices")
    choice = _dict(choices[0] if isinstance(choices, list) and choices else None)
    delta = _dict(choice.get("delta"))
    text = choice.get("text", delta.get("content"))
    text = text if isinstance(text, str) else ""
    is_last = choice.get("finish_reason") is not None
    has_more = any(value for key, value in delta.items() if key not in ("role", "content"))  # reasoning, tool calls
    is_opening = "role" in delta and not (text or has_more or is_last)
    return Chunk(text, bool(choice) and not is_opening, is_last, **counts)


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _count(usage: dict[str, Any], key: str) -> int | None:
    value = usage.get(key)
    return value if isinstance(value, int) and value >= 0 else None
