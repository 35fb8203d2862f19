"""One real server for others' tools (`make test-clients`): the demo bank, named as `make demo` names it, traced."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.collector import Collector, collecting
from tests.server.process import ServerProcess, start_server, stop_server, wait_until_ready

NAME = "seta-demo"
SERVICE = "seta-test"


@pytest.fixture(scope="session")
def collector() -> Iterator[Collector]:
    with collecting() as found:
        yield found


@pytest.fixture(scope="session")
def traced(
    model_dir: Path, demo_bank: Path, collector: Collector, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """A server whose spans go to the collector."""
    options = ["--name", NAME, "--tool-call-parser", "hermes", "--enable-auto-tool-choice"]
    options += ["--engine-arg", f"otlp_traces_endpoint={collector.endpoint}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_SERVICE_NAME", SERVICE)
        running = start_server(model_dir, demo_bank, tmp_path_factory.mktemp("traced") / "log", *options)
    try:
        wait_until_ready(running)
        yield running
    finally:
        stop_server(running)
