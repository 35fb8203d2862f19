"""deploy/compose.yml: what it mounts exists, what it says the server understands, nothing secret is in it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.commands import parse
from tests.deploy.dockerfile import REPO, stages

DEPLOY = REPO / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
CUDA: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.cuda.yml").read_text())
PROMETHEUS: dict[str, Any] = yaml.safe_load((DEPLOY / "prometheus" / "compose.yml").read_text())
DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana" / "seta.json").read_text())
ADMIN_PORT = 8001


def filled(text: str) -> str:
    """Compose's own interpolation, with every variable at its default."""
    return re.sub(r"\$\{\w+(?::[-?]([^}]*))?\}", lambda match: match[1] or "", text)


def served() -> dict[str, Any]:
    """The options that the server's container starts with."""
    return parse(stages()["cpu"].words("ENTRYPOINT") + [filled(word) for word in SERVICES["server"]["command"]])


def published(service: str) -> dict[str, str]:
    """Port in the container → address on the host."""
    ports = [filled(port).rsplit(":", 2) for port in SERVICES[service].get("ports", [])]
    return {inside: address for address, _, inside in ports}


def test_the_server_understands_its_options() -> None:
    options = served()
    assert (options["port"], options["admin_port"], options["name"]) == (8000, ADMIN_PORT, "seta")
    assert options["shutdown_seconds"] < int(SERVICES["server"]["stop_grace_period"].rstrip("s")) - 10


def test_what_the_server_is_told_to_read_is_mounted() -> None:
    options, mounts = served(), {one["target"]: one for one in SERVICES["server"]["volumes"]}
    assert mounts[options["model"]]["read_only"] and not mounts[str(options["bank"])].get("read_only")
    for option in ("api_keys_file", "admin_keys_file"):
        path: Path = options[option]
        assert str(path.parent) == "/run/secrets" and path.name in SERVICES["server"]["secrets"]


def test_only_clients_reach_the_server_from_elsewhere() -> None:
    everything = {(name, inside): address for name in SERVICES for inside, address in published(name).items()}
    assert set(everything.values()) == {"127.0.0.1"}
    free = [port for port in SERVICES["server"]["ports"] if port.startswith("${SETA_ADDRESS")]
    assert [port.rsplit(":", 1)[1] for port in free] == ["8000"]
    assert ("server", str(ADMIN_PORT)) in everything


def test_every_secret_is_a_file_and_used() -> None:
    assert all(set(secret) == {"file"} for secret in COMPOSE["secrets"].values())
    used = {name for service in SERVICES.values() for name in service.get("secrets", [])}
    assert used == set(COMPOSE["secrets"])
    text = (DEPLOY / "compose.yml").read_text()
    assert "sha256:" not in text and not re.search(r"seta-[A-Za-z0-9_-]{40}", text)
    assert "/deploy/secrets/" in (REPO / ".gitignore").read_text().splitlines()


def test_files_that_are_mounted_exist() -> None:
    sources = [one["source"] for service in SERVICES.values() for one in service.get("volumes", [])]
    local = [DEPLOY / source for source in sources if source.startswith("./")]
    assert len(local) == 3 and all(path.exists() for path in local)
    volumes = {one["source"] for s in SERVICES.values() for one in s.get("volumes", []) if one["type"] == "volume"}
    assert volumes == set(COMPOSE["volumes"])


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_confined(name: str) -> None:
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"] and service["security_opt"] == ["no-new-privileges:true"]
    assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory"}
    if name != "learn":  # it ends by itself, and somebody watches it
        assert service["restart"] == "unless-stopped" and "test" in service["healthcheck"]
    assert re.fullmatch(r"[\w./-]+:(cpu|v?\d+\.\d+\.\d+)", service["image"]), "pinned by version"


def test_what_another_container_waits_for_has_a_health_check() -> None:
    for service in SERVICES.values():
        for name, needed in service.get("depends_on", {}).items():
            assert needed == {"condition": "service_healthy"} and "healthcheck" in SERVICES[name]


def test_learning_goes_to_the_admin_listener_with_its_key() -> None:
    options = parse([*SERVICES["learn"]["entrypoint"], "--task", "/tasks/new.jsonl"])
    assert options["activate"] == f"http://server:{ADMIN_PORT}"
    assert options["key_file"].name in SERVICES["learn"]["secrets"]
    assert served()["admin_host"] == "0.0.0.0"


def test_prometheus_scrapes_the_port_that_the_server_listens_on() -> None:
    command = SERVICES["prometheus"]["command"]
    assert "--config.file=/etc/prometheus/compose.yml" in command
    (job,) = PROMETHEUS["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"server:{served()['port']}"]}]
    assert Path(job["authorization"]["credentials_file"]).name in SERVICES["prometheus"]["secrets"]


def test_prometheus_job_and_rules_are_those_of_the_example() -> None:
    example = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    assert PROMETHEUS["scrape_configs"][0]["job_name"] == example["scrape_configs"][0]["job_name"] == "seta"
    assert PROMETHEUS["rule_files"] == example["rule_files"]
    assert all((DEPLOY / "prometheus" / name).is_file() for name in PROMETHEUS["rule_files"])


def test_grafana_has_the_data_source_that_the_dashboard_asks_for() -> None:
    (source,) = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"]
    assert source["isDefault"] and source["url"] == "http://prometheus:9090"
    (variable,) = [one for one in DASHBOARD["templating"]["list"] if one["type"] == "datasource"]
    assert variable["query"] == source["type"]
    asked = set(re.findall(r'"uid": "(\$[^"]*)"', (DEPLOY / "grafana/seta.json").read_text()))
    assert asked == {f"${{{variable['name']}}}"}


def test_grafana_finds_the_dashboard_where_it_is_mounted() -> None:
    (provider,) = yaml.safe_load((DEPLOY / "grafana/provisioning/dashboards/seta.yml").read_text())["providers"]
    targets = [one["target"] for one in SERVICES["grafana"]["volumes"]]
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home in targets and str(Path(home).parent) == provider["options"]["path"]


def test_cuda_is_the_other_target_with_a_gpu() -> None:
    for name, service in CUDA["services"].items():
        assert service["image"] == "seta:cuda" and name in SERVICES
        (device,) = service["deploy"]["resources"]["reservations"]["devices"]
        assert device["capabilities"] == ["gpu"]
    assert CUDA["services"]["server"]["build"]["target"] in stages()
