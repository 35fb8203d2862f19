"""The requests that the HTTP tests send."""

from typing import Any

import httpx

QUESTION = "What is the capital of France?"
HEADER = "x-seta-generation"


def ask(text: str = QUESTION, **fields: Any) -> dict[str, Any]:
    """A chat request's body with greedy decoding."""
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 8, "temperature": 0} | fields


def answer_of(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["message"]["content"])


def post(http: httpx.Client, **fields: Any) -> httpx.Response:
    return http.post("/v1/chat/completions", json=ask(**fields))
