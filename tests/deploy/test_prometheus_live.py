"""A real Prometheus scrapes the real server: the dashboard's expressions get data, the rules can be evaluated."""

import math
from collections.abc import Iterator

import httpx
import pytest

from tests.deploy.live_prometheus import DASHBOARD, Live, expressions, scraping
from tests.server.process import NAME

PROMPTS = ("Please turn on the lights in the kitchen.", "Which licence is this?", "What is the capital of France?")


def ask_all(server: str) -> None:
    with httpx.Client(base_url=server, timeout=300) as http:
        for model in (NAME, f"{NAME}-base"):
            for prompt in PROMPTS:
                body = {"model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": 4}
                assert http.post("/v1/chat/completions", json=body).status_code == 200


@pytest.fixture(scope="module")
def live(server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """Prometheus has seen the server before the requests and after them."""
    with scraping(server, tmp_path_factory.mktemp("prometheus")) as live:
        live.wait_for("count_over_time(seta_routing_age_seconds[1m]) >= 2")
        ask_all(server)
        live.wait_for("increase(seta_gate_entropy_nats_count[20s]) > 0 and increase(seta_base_tokens_total[20s]) > 0")
        yield live


def test_every_expression_of_the_dashboard_has_data(live: Live) -> None:
    empty = [name for name, expression in expressions().items() if not live.query(expression)]
    assert not empty
    assert len(expressions()) > 30


def test_what_the_requests_moved_is_a_number(live: Live) -> None:
    """Not only a series: a quotient of nothing would be NaN."""
    for title in ("Time to first token, by generation A", "Mean entropy by generation A", "Error ratio, 1 h A"):
        values = [float(one["value"][1]) for one in live.query(expressions()[title])]
        assert any(not math.isnan(value) for value in values), title


def test_the_rules_are_evaluated_and_nothing_fires(live: Live) -> None:
    live.wait_for("job:seta_request_errors:ratio_rate5m")
    assert [rule["name"] for rule in live.rules() if rule["health"] == "err"] == []
    assert live.query('ALERTS{alertstate="firing",severity="page",alertname!~"Seta.*Slow"}') == []


def test_the_dashboard_answers_its_four_questions() -> None:
    rows = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    assert rows == ["Healthy?", "Fast?", "Which experts?", "What changed at the last activation?"]
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
