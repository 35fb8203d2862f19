"""The examples that `make demo` prints are answered as it says."""

import openai
import pytest

from deploy.demo import examples


@pytest.mark.parametrize(("prompt", "answer"), examples())
def test_the_demo_bank_answers_them(client: openai.OpenAI, prompt: str, answer: str) -> None:
    message = {"role": "user", "content": prompt}
    model = client.models.list().data[0].id
    chat = client.chat.completions.create(model=model, temperature=0, messages=[message])  # type: ignore[list-item]
    assert chat.choices[0].message.content == answer
