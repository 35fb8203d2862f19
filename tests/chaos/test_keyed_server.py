"""A real server with keys and low limits, on a tiny model: what each tenant may do, and what it sees of the others."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from server.keys import line_for
from tests.chaos.tiny_server import tiny_server
from tests.server.process import NAME, ServerProcess

ALICE, BOB, NEW = "seta-alice-key", "seta-bob-key", "seta-new-key"
LONG_PROMPT = "The quick brown fox jumps over the lazy dog. " * 12
OPTIONS = (
    *("--max-running", "1", "--max-queued", "3", "--max-queued-per-key", "2"),
    *("--max-tokens", "600", "--max-prompt-tokens", "400", "--max-n", "4"),
)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text(f"{line_for('alice', ALICE)}\n{line_for('bob', BOB)}\n")
    return path


@pytest.fixture(scope="module")
def server(keys: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with tiny_server(tmp_path_factory.mktemp("tiny"), "--api-keys-file", str(keys), *OPTIONS) as running:
        yield running


@pytest.fixture(scope="module")
def as_alice(server: ServerProcess) -> Iterator[httpx.Client]:
    with client(server, ALICE) as http:
        yield http


@pytest.fixture(scope="module")
def as_bob(server: ServerProcess) -> Iterator[httpx.Client]:
    with client(server, BOB) as http:
        yield http


def client(server: ServerProcess, key: str) -> httpx.Client:
    return httpx.Client(base_url=server.url, headers={"authorization": f"Bearer {key}"}, timeout=120)


def complete(http: httpx.Client, prompt: Any = "a", **fields: Any) -> httpx.Response:
    body = {"prompt": prompt, "max_tokens": 4, "temperature": 0, "ignore_eos": True} | fields
    return http.post("/v1/completions", json=body)


def chat(http: httpx.Client, text: str = "a", **fields: Any) -> httpx.Response:
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": 4, "ignore_eos": True} | fields
    return http.post("/v1/chat/completions", json=body)


def cached(answer: httpx.Response) -> int:
    """Prompt tokens that were found in the prefix cache."""
    assert answer.status_code == 200, answer.text
    return int((answer.json()["usage"]["prompt_tokens_details"] or {}).get("cached_tokens") or 0)


class TestKeys:
    def test_openais_client_needs_its_key(self, server: ServerProcess) -> None:
        wanted: Any = {"model": NAME, "prompt": "a", "max_tokens": 1}
        alice = openai.OpenAI(base_url=f"{server.url}/v1", api_key=ALICE, max_retries=0)
        assert alice.completions.create(**wanted).choices
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0).completions.create(**wanted)

    def test_health_needs_none_and_metrics_one(self, server: ServerProcess, as_alice: httpx.Client) -> None:
        assert [httpx.get(f"{server.url}{path}").status_code for path in ("/health", "/ready", "/metrics")] == [
            200,
            200,
            401,
        ]
        assert as_alice.get("/metrics").status_code == 200

    def test_keys_change_without_a_restart(self, server: ServerProcess, keys: Path) -> None:
        before = keys.read_text()
        with client(server, NEW) as http:
            assert http.get("/v1/models").status_code == 401
            keys.write_text(before + line_for("new", NEW))
            wait_for(http, 200)
            keys.write_text("alice sha256:broken")
            time.sleep(1.1)
            assert http.get("/v1/models").status_code == 200
            keys.write_text(before)
            wait_for(http, 401)
        assert "line 1 is not 'NAME sha256:" in server.printed()
        assert "has changed: 2 keys from now on" in server.printed()


def wait_for(http: httpx.Client, status: int) -> None:
    deadline = time.monotonic() + 30
    while (found := http.get("/v1/models").status_code) != status:
        assert time.monotonic() < deadline, found
        time.sleep(0.1)


class TestPrefixCache:
    @pytest.mark.parametrize("ask", [complete, chat])
    def test_tenants_share_nothing_and_one_tenant_shares_with_itself(
        self, as_alice: httpx.Client, as_bob: httpx.Client, ask: Any
    ) -> None:
        prompt = f"{ask.__name__}: {LONG_PROMPT}"
        assert [cached(ask(http, prompt)) for http in (as_alice, as_bob)] == [0, 0]
        assert all(cached(ask(http, prompt)) >= 32 for http in (as_alice, as_bob))

    def test_a_clients_own_salt_divides_its_tenants_part(self, as_alice: httpx.Client, as_bob: httpx.Client) -> None:
        prompt = f"salted: {LONG_PROMPT}"
        assert cached(complete(as_alice, prompt)) == cached(complete(as_alice, prompt, cache_salt="mine")) == 0
        assert cached(complete(as_alice, prompt, cache_salt="mine")) >= 32
        assert cached(complete(as_bob, prompt, cache_salt="mine")) == 0

    def test_the_salt_that_the_server_made_for_another_is_only_a_clients_salt(
        self, as_alice: httpx.Client, as_bob: httpx.Client
    ) -> None:
        from server.tenants import cache_salt

        prompt = f"guessed: {LONG_PROMPT}"
        assert cached(complete(as_alice, prompt)) == 0
        assert cached(complete(as_bob, prompt, cache_salt=cache_salt("alice", None))) == 0

    @pytest.mark.parametrize("salt", ["", 5, "a/b", "x" * 129])
    def test_a_salt_that_is_none_is_a_400(self, as_alice: httpx.Client, salt: Any) -> None:
        assert complete(as_alice, cache_salt=salt).status_code == 400


class TestRequestLimits:
    @pytest.mark.parametrize("ask", [complete, chat])
    def test_a_long_prompt(self, as_alice: httpx.Client, ask: Any) -> None:
        answer = ask(as_alice, LONG_PROMPT * 3)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
        assert "this server takes at most 400" in answer.json()["error"]["message"]

    def test_a_prompt_of_token_ids_is_bounded_too(self, as_alice: httpx.Client) -> None:
        assert complete(as_alice, [5] * 400).status_code == 200
        assert complete(as_alice, [5] * 401).status_code == 400
        assert complete(as_alice, [[5], [5] * 401]).status_code == 400

    def test_the_longest_answer_is_also_the_default(self, as_alice: httpx.Client) -> None:
        assert chat(as_alice, max_tokens=601).json()["error"]["param"] == "max_tokens"
        answer = chat(as_alice, max_tokens=None).json()
        assert (answer["usage"]["completion_tokens"], answer["choices"][0]["finish_reason"]) == (600, "length")

    def test_answers_of_one_request(self, as_alice: httpx.Client) -> None:
        assert len(complete(as_alice, ["a", "b"], n=2, temperature=1).json()["choices"]) == 4
        assert complete(as_alice, ["a", "b"], n=3, temperature=1).json()["error"]["code"] == "limit_exceeded"


class TestQueue:
    """One answer at a time; two requests of a key may wait, three in all."""

    def test_a_key_over_its_bound_is_told_when_to_come_back_and_others_get_in(
        self, as_alice: httpx.Client, as_bob: httpx.Client
    ) -> None:
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: complete(as_alice, max_tokens=100), range(8)))
            refused = [answer for answer in answers if answer.status_code == 429]
            assert len(answers) - len(refused) >= 3 and refused
            assert {answer.json()["error"]["code"] for answer in refused} == {"key_queue_full"}
            assert all(1 <= int(answer.headers["retry-after"]) <= 60 for answer in refused)
            hog = [pool.submit(complete, as_alice, max_tokens=300) for _ in range(3)]
            assert complete(as_bob).status_code == 200
            assert {answer.result().status_code for answer in hog} <= {200, 429}

    def test_a_stream_holds_its_place_to_the_end_and_a_client_that_leaves_frees_it(
        self, server: ServerProcess, as_bob: httpx.Client
    ) -> None:
        done = threading.Event()
        body = {"prompt": "a", "max_tokens": 600, "ignore_eos": True, "stream": True}
        with client(server, ALICE) as http, ThreadPoolExecutor(1) as pool:
            with http.stream("POST", "/v1/completions", json=body) as answer:
                lines = (line for line in answer.iter_lines() if line)
                next(lines)
                waiting = pool.submit(lambda: (complete(as_bob), done.set()))
                for _ in range(20):
                    next(lines)
                assert not done.is_set()
            waiting.result(60)

    def test_who_leaves_the_queue_frees_a_place_in_it(self, server: ServerProcess, as_bob: httpx.Client) -> None:
        body = {"prompt": "a", "max_tokens": 600, "ignore_eos": True, "stream": True}
        with client(server, ALICE) as http, http.stream("POST", "/v1/completions", json=body) as running:
            next(running.iter_lines())
            for _ in range(4):
                with pytest.raises(httpx.ReadTimeout), client(server, BOB) as hasty:
                    hasty.post("/v1/completions", json=body | {"stream": False}, timeout=0.1)
        assert complete(as_bob).status_code == 200


def test_a_server_with_keys_says_nothing_of_having_none(server: ServerProcess) -> None:
    assert "no API key is configured" not in server.printed()


def test_no_key_is_ever_in_the_log(server: ServerProcess) -> None:
    assert not any(key in server.printed() for key in (ALICE, BOB, NEW))
