"""Tools through OpenAI's client, on a server with a tool-call parser.

The demo model calls no tool by itself. Where a call is forced and the tool is strict, the output is guided by its
schema, so what the server and its parser do with it shows on any model.
"""

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import openai
import pytest

from tests.clients.conftest import NAME
from tests.server.process import ServerProcess

QUESTION = "Will it rain in Rome tomorrow?"


def tool(name: str, **properties: list[str]) -> dict[str, Any]:
    """Its arguments are one of a few words each, so that no call is endless."""
    schema = {
        "type": "object",
        "properties": {key: {"type": "string", "enum": words} for key, words in properties.items()},
        "required": list(properties),
        "additionalProperties": False,
    }
    function = {"name": name, "description": name, "parameters": schema, "strict": True}
    return {"type": "function", "function": function}


WEATHER = tool("get_weather", city=["Paris", "Rome"], unit=["celsius", "fahrenheit"])
CLOCK = tool("get_time", city=["Paris", "Rome"])
TOOLS = [WEATHER, CLOCK]
CHOICES: list[Any] = ["required", {"type": "function", "function": {"name": "get_weather"}}]


@pytest.fixture(scope="module")
def client(traced: ServerProcess) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{traced.url}/v1", api_key="none", max_retries=0, timeout=300)


def chat(client: openai.OpenAI, **fields: Any) -> Any:
    usual = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 128, "temperature": 0, "tools": TOOLS}
    return client.chat.completions.create(model=NAME, **(usual | fields))


def check_call(name: str, arguments: str) -> None:
    (schema,) = [one["function"]["parameters"] for one in TOOLS if one["function"]["name"] == name]
    jsonschema.validate(json.loads(arguments), schema)


@pytest.mark.parametrize("choice", CHOICES, ids=["required", "named"])
def test_a_forced_call_fits_its_tools_schema(client: openai.OpenAI, choice: Any) -> None:
    (answer,) = chat(client, tool_choice=choice).choices
    calls = answer.message.tool_calls
    assert calls and len({call.id for call in calls}) == len(calls)
    for call in calls:
        assert call.type == "function"
        check_call(call.function.name, call.function.arguments)
    if choice != "required":
        assert [call.function.name for call in calls] == ["get_weather"]
    assert answer.finish_reason in ("tool_calls", "stop") and not answer.message.content


@pytest.mark.parametrize("choice", CHOICES, ids=["required", "named"])
def test_a_stream_has_the_same_calls(client: openai.OpenAI, choice: Any) -> None:
    whole = chat(client, tool_choice=choice).choices[0].message.tool_calls
    streamed = calls_in(chat(client, tool_choice=choice, stream=True))
    found = [(name, json.loads(arguments)) for name, arguments in streamed]  # a whole answer's blanks are tidied up
    assert found == [(call.function.name, json.loads(call.function.arguments)) for call in whole]


def calls_in(stream: Any) -> Iterator[tuple[str, str]]:
    """(name, arguments) of each call, put together from its pieces as a client does."""
    names: dict[int, str] = {}
    arguments: dict[int, str] = {}
    for chunk in stream:
        for piece in (chunk.choices[0].delta.tool_calls or []) if chunk.choices else []:
            names[piece.index] = names.get(piece.index, "") + (piece.function.name or "")
            arguments[piece.index] = arguments.get(piece.index, "") + (piece.function.arguments or "")
    yield from ((names[index], arguments[index]) for index in sorted(names))


def test_a_tools_result_is_answered_in_words(client: openai.OpenAI) -> None:
    asked = chat(client, tool_choice=CHOICES[1]).choices[0].message
    result = {"role": "tool", "tool_call_id": asked.tool_calls[0].id, "content": "rain all day"}
    messages = [{"role": "user", "content": QUESTION}, asked.model_dump(exclude_none=True), result]
    message = chat(client, messages=messages, tool_choice="none", max_tokens=8).choices[0].message
    assert message.content and not message.tool_calls


def test_auto_leaves_the_choice_to_the_model(client: openai.OpenAI) -> None:
    """The demo model takes none."""
    (answer,) = chat(client, tool_choice="auto", max_tokens=8).choices
    assert answer.message.content and not answer.message.tool_calls


def test_a_tool_that_is_not_there_is_an_error(client: openai.OpenAI) -> None:
    unknown = {"type": "function", "function": {"name": "get_news"}}
    with pytest.raises(openai.BadRequestError):
        chat(client, tool_choice=unknown)
