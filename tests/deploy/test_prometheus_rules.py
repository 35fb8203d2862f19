"""The rules and the alerts: promtool runs their test cases; what they rest on is what the server has."""

import re
import subprocess
from pathlib import Path
from typing import Any

import yaml

from server.histogram import LATENCY_BUCKETS
from seta_runtime.stats import ENTROPY_BUCKETS, PROBABILITY_BUCKETS
from tests.deploy.prometheus import REPO, promtool

RULES = REPO / "deploy" / "prometheus"


def rules_of(name: str) -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load((RULES / name).read_text())["groups"] for rule in group["rules"]]


def cases() -> list[dict[str, Any]]:
    return [case for path in RULES.glob("*_test.yml") for case in yaml.safe_load(path.read_text())["tests"]]


def run(*arguments: str | Path) -> str:
    done = subprocess.run([promtool(), *arguments], cwd=RULES, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_files_are_valid() -> None:
    run("check", "rules", "recording.yml", "alerts.yml")
    run("check", "config", "prometheus.yml")


def test_alerts_fire_when_they_should_and_not_when_they_should_not() -> None:
    assert "FAILED" not in run("test", "rules", "alerts_test.yml", "days_test.yml")


def test_a_wrong_expectation_is_noticed(tmp_path: Path) -> None:
    text = (RULES / "alerts_test.yml").read_text().replace("recording.yml", str(RULES / "recording.yml"))
    wrong = tmp_path / "wrong.yml"
    wrong.write_text(
        text.replace("- alerts.yml", f"- {RULES / 'alerts.yml'}").replace("severity: page", "severity: no")
    )
    assert subprocess.run([promtool(), "test", "rules", wrong], capture_output=True).returncode != 0


def test_every_alert_is_seen_to_fire_and_to_stay_quiet() -> None:
    checks = [check for case in cases() for check in case["alert_rule_test"]]
    fires = {check["alertname"] for check in checks if check["exp_alerts"]}
    quiet = {check["alertname"] for check in checks if not check["exp_alerts"]}
    assert {rule["alert"] for rule in rules_of("alerts.yml")} == fires == quiet


def test_limits_are_bounds_of_buckets() -> None:
    """A limit between two bounds would match no series, and its alert never fire."""
    bounds = {repr(bound) for bound in (*LATENCY_BUCKETS, *ENTROPY_BUCKETS, *PROBABILITY_BUCKETS)}
    used = {found for rule in rules_of("recording.yml") for found in re.findall(r'le="([^"]*)"', rule["expr"])}
    assert used and used <= bounds
