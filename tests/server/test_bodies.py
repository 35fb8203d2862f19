"""A request's fields as vLLM's model: whatever is in them, it is the client who is told."""

from typing import Any

import pytest
from pydantic import BaseModel, model_validator

from server.bodies import parse
from server.errors import ApiError


class Request(BaseModel):
    """Like vLLM's: a validator that runs before the types are checked."""

    number: int = 0
    options: dict[str, int] | None = None

    @model_validator(mode="before")
    @classmethod
    def look(cls, data: dict[str, Any]) -> dict[str, Any]:
        data.get("options", {}).get("a")
        if data.get("number") == 7:
            raise KeyError("something else")
        return data


def test_what_fits_is_parsed() -> None:
    assert parse(Request, {"number": 1, "options": {"a": 2}}).options == {"a": 2}


def test_a_validator_that_stumbles_is_a_400_that_names_the_field() -> None:
    with pytest.raises(ApiError, match="^options: Input should be a valid dict") as caught:
        parse(Request, {"number": 1, "options": [None]})
    assert (caught.value.status, caught.value.param, caught.value.code) == (400, "options", "invalid_value")


def test_also_where_no_field_is_wrong_by_itself() -> None:
    with pytest.raises(ApiError, match="do not fit together") as caught:
        parse(Request, {"number": 7})
    assert caught.value.status == 400


@pytest.mark.parametrize("wrong", [[None, None], "a", 5, True])
def test_vllms_own_validators(wrong: object) -> None:
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest

    chat = {"messages": [{"role": "user", "content": "a"}]}
    for model, body in ((ChatCompletionRequest, chat), (CompletionRequest, {"prompt": "a"})):
        with pytest.raises(ApiError) as caught:
            parse(model, body | {"structured_outputs": wrong})
        assert caught.value.param == "structured_outputs" and len(caught.value.message) < 200
