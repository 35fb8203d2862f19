"""The admin API without an engine: what each route answers, and that a refusal says what and why."""

import json
from typing import Any

import pytest

from adapters.bank import Bank
from server import console
from server.access import Access
from server.admin import PREFIX
from server.app import build_admin_app
from server.keys import KeyRing, line_for
from tests.server.admin_app import Admin, code_of
from tests.server.house import House
from tests.server.routes import assert_every_route_needs_a_key

KEY, ADMIN_KEY = "seta-Alices-key", "seta-Roots-key"


def test_list_generations(admin: Admin) -> None:
    admin.house.ask()
    admin.house.ask("demo-base")
    answer = admin.ask("GET", "/generations").json()
    assert (answer["serving"], answer["max_resident"], answer["base_in_flight"]) == (4, 2, 1)
    assert answer["rollback_to"] == 3
    assert answer["problems"] == []
    assert [one["generation"] for one in answer["generations"]] == [0, 1, 2, 3, 4, 5]
    manifest = admin.house.bank.manifest(4)
    assert answer["generations"][4] == {
        "generation": 4,
        "state": "serving",
        "model": "demo@4",
        "is_pinned": False,
        "is_on_disk": True,
        "in_flight": 1,
        "object_bytes": sum(ref.object_bytes for ref in manifest.refs),
        "resident_bytes": 1000,
        "created": "2026-01-02T03:04:05Z",
        "parent": 3,
        "tasks": ["alpha", "beta", "gamma", "delta"],
        "manifest_sha256": manifest.digest,
    }
    assert answer["generations"][5]["state"] == "on disk"
    assert answer["generations"][5]["resident_bytes"] is None


def test_a_bank_that_is_gone_or_damaged_is_a_problem_not_a_failure(admin: Admin) -> None:
    root = admin.house.bank.root
    (root / "generations/00002.json").write_text("{")
    answer = admin.ask("GET", "/generations").json()
    assert len(answer["problems"]) == 1 and "generations/00002.json" in answer["problems"][0]
    root.rename(root.with_name("gone"))
    answer = admin.ask("GET", "/generations").json()
    assert [(one["generation"], one["is_on_disk"]) for one in answer["generations"]] == [(4, False)]
    assert len(answer["problems"]) == 1
    assert str(root.parent) not in json.dumps(answer)


def test_list_experts(admin: Admin) -> None:
    answer = admin.ask("GET", "/experts").json()
    assert (answer["generation"], answer["total_tokens"], answer["base_tokens"]) == (4, 100, 60)
    shares = {one["id"]: (one["kind"], one["tasks"], one["tokens"], one["token_share"]) for one in answer["experts"]}
    assert shares["alpha.unique"] == ("unique", ["alpha"], 30, 0.3)
    assert shares["beta.unique"] == ("unique", ["beta"], 0, 0.0)
    manifest = admin.house.bank.manifest(4)
    assert answer["experts"][0]["object"] == manifest.experts[0].object
    assert answer["experts"][0]["object_bytes"] == manifest.experts[0].object_bytes


def test_activate_and_roll_back(admin: Admin) -> None:
    answer = admin.post("/activate", generation=5, expected_generation=4).json()
    assert (answer["serving"], answer["previous"]) == (5, 4)
    assert admin.states()[5] == "serving" and admin.states()[4] == "resident"
    again = admin.post("/activate", generation=5, expected_generation=4).json()
    assert (again["serving"], again["previous"]) == (5, 5)
    refused = admin.post("/activate", generation=3, expected_generation=4)
    assert code_of(refused, 409) == "generation_mismatch"
    assert refused.json()["error"]["details"] == {"serving": 5}
    assert admin.ask("GET", "/generations").json()["rollback_to"] == 4
    answer = admin.post("/rollback").json()
    assert (answer["serving"], answer["previous"]) == (4, 5)
    assert admin.ask("GET", "/generations").json()["rollback_to"] == 3
    assert admin.house.bank.current() == 4


def test_it_is_told_what_a_roll_back_would_serve(admin: Admin) -> None:
    """What served before, not the parent; the parent where nothing did; nothing where there is none."""
    for number, told in ((None, 3), (2, 4), (5, 2), (0, 5)):
        if number is not None:
            admin.post("/activate", generation=number)
        assert admin.ask("GET", "/generations").json()["rollback_to"] == told
    while (told := admin.ask("GET", "/generations").json()["rollback_to"]) is not None:
        assert admin.post("/rollback").json()["serving"] == told
    assert code_of(admin.post("/rollback"), 409) == "nothing_to_roll_back"


def test_too_many_generations(admin: Admin) -> None:
    admin.house.ask()
    admin.post("/activate", generation=5)
    refused = admin.post("/activate", generation=3)
    assert code_of(refused, 429) == "too_many_generations"
    assert refused.headers["retry-after"] == "5"
    assert [one["generation"] for one in refused.json()["error"]["details"]["holders"]] == [4, 5]


def test_retire(admin: Admin) -> None:
    admin.house.ask()
    admin.post("/activate", generation=5)
    assert admin.post("/retire", generation=4).json() == {"generation": 4, "in_flight": 1}
    assert admin.states()[4] == "retiring"
    admin.end_requests()
    assert admin.states()[4] == "on disk"
    assert code_of(admin.post("/retire", generation=4), 404) == "not_in_memory"
    assert code_of(admin.post("/retire", generation=5), 409) == "in_service"


def test_pin(admin: Admin) -> None:
    assert admin.ask("POST", "/generations/2/pin").json() == {
        "generation": 2,
        "is_pinned": True,
        "resident_bytes": 1000,
    }
    assert code_of(admin.post("/retire", generation=2), 409) == "pinned"
    assert admin.ask("DELETE", "/generations/2/pin").json()["is_pinned"] is False
    assert code_of(admin.ask("DELETE", "/generations/3/pin"), 404) == "not_in_memory"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "generation"),
        ({"generation": "5"}, "generation"),
        ({"generation": -1}, "generation"),
        ({"generation": 5.0}, "generation"),
        ({"generation": True}, "generation"),
        ({"generation": 5, "expected": 4}, "expected"),
        ({"generation": 5, "expected_generation": "4"}, "expected_generation"),
        ({"generation": 10**12}, "generation"),
    ],
)
def test_a_wrong_order_names_the_field(admin: Admin, body: dict[str, Any], param: str) -> None:
    response = admin.post("/activate", **body)
    assert code_of(response, 400) == "invalid_value"
    assert response.json()["error"]["param"] == param
    assert admin.house.loader.loads == [4]


def test_what_is_not_an_order(admin: Admin) -> None:
    assert code_of(admin.ask("POST", "/activate", content=b"generation=5"), 415) == "unsupported_media_type"
    large = {"generation": 5, "x": "x" * (64 << 10)}
    assert code_of(admin.ask("POST", "/activate", json=large), 413) == "request_too_large"
    assert code_of(admin.ask("POST", "/generations/x/pin"), 400) == "invalid_value"
    missing = admin.ask("GET", "/generations/missing")  # not a generation of that name
    assert (code_of(missing, 405), missing.headers["allow"]) == ("method_not_allowed", "POST")
    assert code_of(admin.post("/activate", generation=99), 404) == "not_in_bank"
    assert code_of(admin.ask("GET", "/nothing"), 404) == "not_found"
    assert code_of(admin.ask("GET", "/activate"), 405) == "method_not_allowed"


def test_while_the_server_loads_or_stops(admin: Admin) -> None:
    admin.house.service.is_stopping = True
    assert code_of(admin.ask("GET", "/generations"), 503) == "stopping"
    admin.house.service.is_stopping = False
    admin.house.service.serving = None
    assert code_of(admin.post("/rollback"), 503) == "loading"


def test_every_route_needs_an_admin_key(bank: Bank) -> None:
    house = House(bank)
    clients, admins = (KeyRing(key, lambda key=key: line_for("somebody", key)) for key in (KEY, ADMIN_KEY))  # type: ignore[misc]
    house.service.access = Access(clients, admins)
    house.service.serving = None
    assert_every_route_needs_a_key(build_admin_app(house.service), ADMIN_KEY, KEY, set(console.OPEN_PATHS))


class TestOpenApi:
    def test_every_route_and_what_it_takes(self, admin: Admin) -> None:
        document = admin.ask("GET", "/openapi.json").json()
        assert set(document["paths"]) == {
            PREFIX + path
            for path in (
                "/generations",
                "/generations/missing",
                "/generations/{generation}",
                "/generations/{generation}/pin",
                "/bank",
                "/experts",
                "/activate",
                "/rollback",
                "/retire",
            )
        }
        body = document["paths"][f"{PREFIX}/activate"]["post"]["requestBody"]
        schema = body["content"]["application/json"]["schema"]
        assert schema["required"] == ["generation"] and schema["additionalProperties"] is False

    def test_refusals_are_documented(self, admin: Admin) -> None:
        document = admin.ask("GET", "/openapi.json").json()
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                answers = set(operation["responses"])
                assert {"200", "401", "403", "405", "500", "503"} <= answers, (path, method)
                if "parameters" in operation or "requestBody" in operation:
                    assert "400" in answers, (path, method)
        assert document["security"] == [{"key": []}]
        text = json.dumps(document)
        assert "HTTPValidationError" not in text
        assert text.count('"$ref"') > 20
