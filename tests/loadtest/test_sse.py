"""Streams in any pieces, and events of any shape."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.sse import BadStream, Chunk, Events, chunk_of

keys = st.sampled_from(["choices", "delta", "content", "text", "usage", "finish_reason", "completion_tokens", "role"])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=40)
@given(
    st.lists(st.text(max_size=8), max_size=4),
    st.lists(st.integers(1, 9), min_size=1),
    st.sampled_from(["\n", "\r\n"]),
)
def test_pieces_make_no_difference(texts: list[str], sizes: list[int], newline: str) -> None:
    lines = [f": ping{newline}"]
    lines += [f"data: {json.dumps({'text': text}, ensure_ascii=False)}{newline}{newline}" for text in texts]
    raw = "".join([*lines, f"data: [DONE]{newline}{newline}"]).encode()
    events, start = Events(), 0
    found: list[dict[str, Any]] = []
    while start < len(raw):
        size = sizes[len(found) % len(sizes)]
        found += events.feed(raw[start : start + size])
        start += size
    assert found == [{"text": text} for text in texts]
    assert events.is_done


@given(st.dictionaries(keys, json_values))
def test_no_event_breaks_the_reader(event: dict[str, Any]) -> None:
    assert isinstance(chunk_of(event), Chunk)


@pytest.mark.parametrize("line", [b"data: {\n", b"data: [1]\n", b"data: \xff\n", b"data: " + b"[" * 100_000 + b"\n"])
def test_what_is_no_event(line: bytes) -> None:
    with pytest.raises(BadStream):
        list(Events().feed(line))


def test_a_line_without_end_is_refused() -> None:
    events = Events()
    with pytest.raises(BadStream, match="a line of over"):
        for _ in range(20):
            list(events.feed(b"x" * (1 << 20)))


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        ({"choices": [{"delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}, Chunk()),
        ({"choices": [{"delta": {"content": "a"}, "finish_reason": None}]}, Chunk("a", True)),
        ({"choices": [{"delta": {"role": "assistant", "content": "a"}}]}, Chunk("a", True)),
        ({"choices": [{"delta": {"content": ""}, "finish_reason": None}]}, Chunk("", True)),
        ({"choices": [{"delta": {"content": ""}, "finish_reason": "stop"}]}, Chunk("", True, True)),
        ({"choices": [{"delta": {"reasoning": "hm"}}]}, Chunk("", True)),
        ({"choices": [{"delta": {"tool_calls": [{"index": 0}]}}]}, Chunk("", True)),
        ({"choices": [{"text": "b", "finish_reason": "length"}]}, Chunk("b", True, True)),
        ({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 9}}, Chunk("", False, False, 3, 9)),
    ],
)
def test_what_counts_as_output(event: dict[str, Any], expected: Chunk) -> None:
    assert chunk_of(event) == expected
