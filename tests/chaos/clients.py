"""Many clients at once, and exactly what each of them saw."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import aiohttp

MAX_TOKENS = 16
TIMEOUT_SECONDS = 300


@dataclass
class Seen:
    """One request: times by `time.monotonic()`, seconds; `tokens` are the answer's token ids."""

    prompt: str
    is_stream: bool
    started: float
    answered: float = 0.0
    generation: str = ""
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    gaps: list[float] = field(default_factory=list)
    error: str | None = None


async def ask(session: aiohttp.ClientSession, url: str, model: str, prompt: str, is_stream: bool) -> Seen:
    """Greedy, bounded; never raises for what the server does."""
    seen = Seen(prompt, is_stream, time.monotonic())
    body = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": MAX_TOKENS,
        "temperature": 0,
        "stream": is_stream,
        "return_token_ids": True,
    }
    try:
        async with session.post(f"{url}/v1/chat/completions", json=body) as response:
            seen.answered = time.monotonic()
            seen.generation = response.headers.get("x-seta-generation", "?")
            if response.status != 200:
                seen.error = f"{response.status}: {await response.text()}"
            elif is_stream:
                await _read_stream(response, seen)
            else:
                choice = (await response.json())["choices"][0]
                seen.tokens, seen.text = choice["token_ids"], choice["message"]["content"]
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError, KeyError) as error:
        seen.error = f"{type(error).__name__}: {error}"
    return seen


async def _read_stream(response: aiohttp.ClientResponse, seen: Seen) -> None:
    last, is_done = None, False
    async for line in response.content:
        if not line.startswith(b"data: "):
            continue
        if line.strip() == b"data: [DONE]":
            is_done = True
            continue
        event = json.loads(line[6:])
        if "error" in event:
            seen.error = json.dumps(event["error"])
            return
        if new := event["choices"][0].get("token_ids"):
            now = time.monotonic()
            seen.gaps += [] if last is None else [now - last]
            seen.tokens += new
            last = now
    if not is_done:
        seen.error = "the stream ended without [DONE]"


async def answers(url: str, model: str, prompts: Sequence[str], concurrency: int = 1) -> dict[str, Seen]:
    """Every prompt answered, `concurrency` at a time."""
    places = asyncio.Semaphore(concurrency)
    async with _session() as session:

        async def one(prompt: str) -> Seen:
            async with places:
                return await ask(session, url, model, prompt, is_stream=False)

        found = await asyncio.gather(*map(one, prompts))
    assert not [one.error for one in found if one.error]
    return {one.prompt: one for one in found}


class Crowd:
    """`num_clients` clients in a thread of their own; each sends its next request when its last one has ended."""

    def __init__(self, url: str, model: str, prompts: Sequence[str], num_clients: int) -> None:
        self.seen: list[Seen] = []
        self._url, self._model, self._prompts, self._num_clients = url, model, prompts, num_clients
        self._is_over = threading.Event()

    @property
    def failed(self) -> list[str]:
        return [f"{one.generation}, {one.prompt[:40]!r}: {one.error}" for one in self.seen if one.error]

    def wait_for(self, num_requests: int) -> None:
        """Until so many more requests have ended."""
        goal = len(self.seen) + num_requests
        while len(self.seen) < goal:
            time.sleep(0.05)

    @contextmanager
    def running(self) -> Iterator[Crowd]:
        thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._is_over.set()
            thread.join(TIMEOUT_SECONDS)
            assert not thread.is_alive()

    async def _run(self) -> None:
        async with _session() as session:
            await asyncio.gather(*(self._client(session, seed) for seed in range(self._num_clients)))

    async def _client(self, session: aiohttp.ClientSession, seed: int) -> None:
        rng = random.Random(seed)
        while not self._is_over.is_set():
            seen = await ask(session, self._url, self._model, rng.choice(self._prompts), rng.random() < 0.5)
            self.seen.append(seen)
            if seen.error:
                await asyncio.sleep(0.1)


def _session() -> aiohttp.ClientSession:
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
    return aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=2))


def percentile(values: Sequence[float], percent: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * percent / 100))]
