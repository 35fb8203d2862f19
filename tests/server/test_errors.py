import pytest
from pydantic import BaseModel, Field, ValidationError
from starlette.exceptions import HTTPException

from server.errors import ApiError, as_api_error, from_vllm


class Info(BaseModel):
    """What `from_vllm` reads of vLLM's `ErrorInfo`."""

    message: str
    type: str = "BadRequestError"
    param: str | None = None
    code: int


def test_the_shape_is_openais() -> None:
    error = ApiError(400, "no", param="temperature", code="invalid_value")
    assert error.body() == {
        "error": {
            "message": "no",
            "type": "invalid_request_error",
            "param": "temperature",
            "code": "invalid_value",
        }
    }
    assert ApiError(503, "no").body()["error"]["type"] == "server_error"


def test_a_message_is_bounded() -> None:
    assert len(ApiError(400, "x" * 10**6).message) < 1100


class Inner(BaseModel):
    text: str


class Body(BaseModel):
    count: int = Field(ge=0)
    value: str | list[Inner]


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"count": -1, "value": "a"}, "count", "count: Input should be greater than or equal to 0"),
        ({"value": "a"}, "count", "count: Field required"),
        ({"count": 1, "value": [{}]}, "value", "value: Input should be a valid string; value.0.text: Field required"),
    ],
)
def test_a_validation_error_names_the_field_as_the_client_knows_it(body: object, param: str, message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Body.model_validate(body)
    error = as_api_error(caught.value)
    assert (error.status, error.param, error.message, error.code) == (400, param, message, "invalid_value")


def test_a_validation_error_does_not_repeat_the_input() -> None:
    with pytest.raises(ValidationError) as caught:
        Body.model_validate({"count": "a private thing", "value": "a"})
    assert "private" not in as_api_error(caught.value).message


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (HTTPException(404), 404, "not_found"),
        (HTTPException(405, headers={"Allow": "POST"}), 405, "method_not_allowed"),
    ],
)
def test_starlettes_errors(error: HTTPException, status: int, code: str) -> None:
    converted = as_api_error(error)
    assert (converted.status, converted.code) == (status, code)
    assert converted.headers == dict(error.headers or {})


def test_vllms_error_objects() -> None:
    long = from_vllm(
        Info(message="This model's maximum context length is 2048 tokens. (parameter=x, value=1)", code=400)
    )
    assert (long.status, long.code) == (400, "context_length_exceeded")
    assert long.message == "This model's maximum context length is 2048 tokens."
    assert from_vllm(Info(message="queue full", code=503)).message == "queue full"


@pytest.mark.parametrize("message", ["boom at /usr/lib/secret.py", "KeyError: 'a private thing'"])
def test_a_fault_of_ours_says_nothing(message: str) -> None:
    error = from_vllm(Info(message=message, code=500))
    assert (error.status, error.code) == (500, "internal_error")
    assert "private" not in error.message and "/" not in error.message


def test_an_exception_of_ours_is_logged_without_its_text(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING", "seta.server"):
        try:
            raise KeyError("a private thing")
        except KeyError as raised:
            error = as_api_error(raised)
    assert (error.status, error.message) == (500, "The server failed to answer this request; its log says why")
    assert "KeyError at server/test_errors.py:" in caplog.text
    assert "private" not in caplog.text


@pytest.mark.parametrize(("error", "status"), [(ValueError("bad"), 400), (NotImplementedError("not here"), 501)])
def test_exceptions_of_vllms_handlers_are_judged_as_vllm_judges_them(error: Exception, status: int) -> None:
    assert as_api_error(error).status == status


def test_a_dead_engine_is_503() -> None:
    from vllm.v1.engine.exceptions import EngineDeadError

    error = as_api_error(EngineDeadError())
    assert (error.status, error.code) == (503, "engine_dead")
    assert "stack trace" not in error.message
