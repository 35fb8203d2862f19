"""A real Prometheus on a free loopback port with a data folder of its own, scraping one server every second."""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.deploy.prometheus import REPO, prometheus
from tests.server.process import free_port

RULES = REPO / "deploy" / "prometheus"
DASHBOARD = json.loads((REPO / "deploy" / "grafana" / "seta.json").read_text())
_START_SECONDS = 60.0


def expressions() -> dict[str, str]:
    """Every expression of the dashboard, by panel and letter, with Grafana's variables filled in."""
    found = {
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in DASHBOARD["panels"]
        for target in panel.get("targets", [])
    }
    found |= {one["name"]: one["expr"] for one in DASHBOARD["annotations"]["list"]}
    return {
        name: expr.replace("$job", "seta").replace("$__rate_interval", "20s").replace("[1h]", "[20s]")
        for name, expr in found.items()
    }


class Live:
    def __init__(self, url: str) -> None:
        self._http = httpx.Client(base_url=url, timeout=10)

    def query(self, expression: str) -> list[dict[str, Any]]:
        answer = self._http.get("/api/v1/query", params={"query": expression}).json()
        assert answer["status"] == "success", (expression, answer)
        return list(answer["data"]["result"])

    def wait_for(self, expression: str, seconds: float = 30.0) -> None:
        deadline = time.monotonic() + seconds
        while not self.query(expression):
            assert time.monotonic() < deadline, f"no data for {expression}: {self.targets()}"
            time.sleep(0.2)

    def targets(self) -> Any:
        return self._http.get("/api/v1/targets").json()["data"]["activeTargets"]

    def rules(self) -> list[dict[str, Any]]:
        groups = self._http.get("/api/v1/rules").json()["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]

    def is_ready(self) -> bool:
        try:
            return self._http.get("/-/ready").status_code == 200
        except httpx.HTTPError:
            return False


@contextmanager
def scraping(server: str, folder: Path) -> Iterator[Live]:
    """`server`: the base URL whose /metrics is scraped as job "seta", with our rules."""
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(RULES / name) for name in ("recording.yml", "alerts.yml")],
        "scrape_configs": [{"job_name": "seta", "static_configs": [{"targets": [server.removeprefix("http://")]}]}],
    }
    path, port = folder / "prometheus.yml", free_port()
    path.write_text(json.dumps(config))  # JSON is YAML
    arguments = [f"--config.file={path}", f"--storage.tsdb.path={folder / 'data'}"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [prometheus(), *arguments, f"--web.listen-address=127.0.0.1:{port}"],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"GOMAXPROCS": "1"},
        )
    live = Live(f"http://127.0.0.1:{port}")
    try:
        deadline = time.monotonic() + _START_SECONDS
        while not live.is_ready():
            assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.1)
        yield live
    finally:
        process.terminate()
        process.wait(30)
