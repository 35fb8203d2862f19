"""Whatever a client sends, it gets a clear error in OpenAI's shape, and the server goes on answering others."""

from typing import Any, NamedTuple

import httpx
import openai
import pytest

from tests.server.process import NAME, ServerProcess
from tests.server.requests import HEADER, QUESTION, answer_of, ask, post

MARKER = "xylophonequartz"  # in prompts that must not turn up in the log
LONG = [{"role": "user", "content": "word " * 4000}]
IMAGE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}]


class Bad(NamedTuple):
    """A request and the error it must get."""

    body: Any
    says: str
    param: str | None = None
    code: str | None = None
    status: int = 400
    path: str = "/v1/chat/completions"
    media_type: str = "application/json"


def chat(**fields: Any) -> dict[str, Any]:
    return ask(f"{QUESTION} {MARKER}") | fields


NOT_JSON = ("not valid JSON", None, "invalid_json")
TOO_LARGE = ("more than 4194304 bytes", None, "request_too_large", 413)
NO_MODEL = (f"this server has: {NAME}, {NAME}@", "model", "model_not_found", 404)
TOO_LONG = ("maximum context length is 2048", "input_tokens", "context_length_exceeded")

BAD = {
    "malformed": Bad(b'{"messages": [', *NOT_JSON),
    "nan": Bad(b'{"temperature": NaN}', *NOT_JSON),
    "nested": Bad(b"[" * 100_000, *NOT_JSON),
    "lone surrogate": Bad(b'{"model": "\\ud800"}', *NOT_JSON),
    "empty body": Bad(b"", *NOT_JSON),
    "no object": Bad(b"[1]", "must be a JSON object", code="invalid_json"),
    "content type": Bad(b"{}", "application/json", None, "unsupported_media_type", 415, media_type="text/plain"),
    "too large": Bad(b"x" * (5 << 20), *TOO_LARGE),
    "too large, chunked": Bad([b"x" * (1 << 20)] * 5, *TOO_LARGE),
    "unknown model": Bad(chat(model="gpt-5"), *NO_MODEL),
    "unknown generation": Bad(chat(model=f"{NAME}@999"), *NO_MODEL),
    "path as model": Bad(chat(model="../../etc/passwd"), *NO_MODEL),
    "model no string": Bad(chat(model=5), "must be a string", "model"),
    "no messages": Bad({"max_tokens": 1}, "messages: Field required", "messages", "invalid_value"),
    "empty messages": Bad(chat(messages=[]), "at least one message", "messages", "invalid_value"),
    "messages no list": Bad(chat(messages="hi"), "valid list", "messages", "invalid_value"),
    "image": Bad(chat(messages=IMAGE), "not a multimodal model"),
    "negative temperature": Bad(chat(temperature=-1), "must be non-negative", "temperature"),
    "temperature no number": Bad(chat(temperature="hot"), "valid number", "temperature", "invalid_value"),
    "infinite temperature": Bad(b'{"messages": [{"role": "user", "content": "a"}], "temperature": 1e999}', "finite"),
    "top_p": Bad(chat(top_p=2), "top_p must be in (0, 1]", "top_p"),
    "max_tokens": Bad(chat(max_tokens=-5), "at least 1", "max_tokens"),
    "n": Bad(chat(n=129, temperature=1), "n must be at most 128"),
    "token id": Bad(chat(logit_bias={"99999999": 1}), "out-of-vocab", "logit_bias"),
    "grammar": Bad(chat(structured_outputs={"regex": "((("}), "Grammar error"),
    "template": Bad(chat(chat_template="{{ 1 }}"), "template"),
    "long chat": Bad(chat(messages=LONG), *TOO_LONG),
    "long chat, stream": Bad(chat(messages=LONG, stream=True), *TOO_LONG),
    "long prompt": Bad({"prompt": "word " * 4000}, *TOO_LONG, path="/v1/completions"),
    "empty prompt": Bad({"prompt": ""}, "non-empty", "prompt", path="/v1/completions"),
    "bad token, stream": Bad({"prompt": [10**9], "stream": True}, "out of vocabulary", path="/v1/completions"),
    "tokenize nothing": Bad({}, "Field required", "prompt", "invalid_value", path="/tokenize"),
    "detokenize": Bad({"tokens": [-1]}, "greater than", "tokens.0", "invalid_value", path="/detokenize"),
}


def send(http: httpx.Client, bad: Bad) -> httpx.Response:
    if isinstance(bad.body, dict):
        return http.post(bad.path, json=bad.body)
    content = bad.body if isinstance(bad.body, bytes) else iter(bad.body)
    return http.post(bad.path, content=content, headers={"content-type": bad.media_type})


@pytest.mark.parametrize("bad", [pytest.param(bad, id=name) for name, bad in BAD.items()])
def test_a_clear_error_and_the_server_goes_on(http: httpx.Client, bad: Bad) -> None:
    response = send(http, bad)
    assert response.status_code == bad.status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert bad.says in error["message"]
    assert error["type"] == "invalid_request_error"
    assert bad.param in (error["param"], None) and bad.code in (error["code"], None)
    assert len(error["message"]) < 1100 and "Traceback" not in error["message"]
    assert answer_of(post(http, model=f"{NAME}-base", max_tokens=1))


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "not_found"),
        ("GET", "/docs", 404, "not_found"),
        ("GET", "/openapi.json", 404, "not_found"),
        ("GET", "/version", 404, "not_found"),
        ("GET", "/v1/models/", 404, "not_found"),
        ("GET", "/v1/models/other", 404, "model_not_found"),
        ("POST", "/invocations", 404, "not_found"),
        ("POST", "/v1/responses", 404, "not_found"),
        ("POST", "/v1/load_lora_adapter", 404, "not_found"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
    ],
)
def test_nothing_else_exists(http: httpx.Client, method: str, path: str, status: int, code: str) -> None:
    response = http.request(method, path)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)


def test_openais_client_raises_what_it_raises_with_openai(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.chat.completions.create(model="nobody", **ask())
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=NAME, **(ask() | {"messages": LONG}))
    assert caught.value.code == "context_length_exceeded"


def test_the_error_of_a_bound_request_names_its_generation(http: httpx.Client, current: int) -> None:
    assert post(http, temperature=-1).headers[HEADER] == str(current)


def test_neither_prompts_nor_clients_mistakes_are_in_the_log(http: httpx.Client, server_process: ServerProcess) -> None:
    answer_of(http.post("/v1/chat/completions", json=chat()))
    for bad in BAD.values():
        send(http, bad)
    printed = server_process.printed()
    assert MARKER not in printed
    assert "Traceback" not in printed, "a client's mistake is no event for the log"
