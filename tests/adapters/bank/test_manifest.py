"""The manifest's schema: what it refuses, and that equal manifests have equal bytes."""

from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from adapters.bank import (
    TARGETS,
    BankError,
    BankNotFound,
    BankTooLarge,
    BaseModelInfo,
    ExpertInfo,
    GateInfo,
    Manifest,
    TaskInfo,
)
from adapters.bank.manifest import version_for

from .factory import BASE, make_bank

DIGESTS = st.integers(0, 16**64 - 1).map("{:064x}".format)
NAMES = st.text("az09_.-", max_size=63).map("x".__add__)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | FLOATS | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner),
    max_leaves=8,
)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    names = draw(st.lists(NAMES, unique=True, max_size=4))
    generation = draw(st.integers(1, 99_999_999)) if names else 0
    tasks = [
        TaskInfo(
            name=name,
            generation=draw(st.integers(1, generation)),
            num_train=draw(st.integers(0, 10**6)),
            num_test=draw(st.integers(0, 10**6)),
            metrics=draw(st.dictionaries(st.text("abc_%", max_size=8), FLOATS, max_size=3)),
        )
        for name in names
    ]
    members = draw(st.lists(st.sets(st.sampled_from(names), min_size=1), max_size=4)) if names else []
    experts = [
        ExpertInfo(
            id=f"expert{number}",
            kind="unique" if len(chosen) == 1 else "shared",
            tasks=tuple(name for name in names if name in chosen),
            rank=draw(st.integers(1, 64)),
            num_blocks=draw(st.integers(1, 1000)),
            object=draw(DIGESTS.map(lambda digest, number=number: f"{number}{digest[1:]}")),  # type: ignore[misc]
            object_bytes=draw(st.integers(1, 1 << 32)),
        )
        for number, chosen in enumerate(members)
    ]
    return Manifest(
        generation=generation,
        parent=generation - 1 if names else None,
        created=draw(st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))),
        base=BASE,
        trunk_layers=draw(st.integers(0, BASE.num_layers - 1)),
        block_size=draw(st.sampled_from([1, 2, 4, 8])),
        targets=tuple(draw(st.lists(st.sampled_from(TARGETS), unique=True, min_size=1))),
        tasks=tuple(tasks),
        experts=tuple(experts),
        membership=tuple(tuple(int(name in chosen) for chosen in members) for name in names),
        gate=GateInfo(kind=draw(st.sampled_from(["analytic", "softmax"])), object="f" * 64, object_bytes=1),
        accuracy_matrix=tuple(
            tuple(draw(st.lists(st.floats(0, 100), min_size=row + 1, max_size=row + 1))) for row in range(len(names))
        ),
        settings=draw(st.dictionaries(st.text(st.characters(codec="utf-8")), JSON, max_size=4)),
    )


def reversed_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: reversed_keys(inner) for key, inner in reversed(value.items())}
    return [reversed_keys(inner) for inner in value] if isinstance(value, list) else value


@settings(deadline=None, max_examples=60)
@given(manifests())
def test_round_trip_and_canonical_bytes(manifest: Manifest) -> None:
    data = manifest.to_bytes()
    again = Manifest.from_bytes(data)
    assert again == manifest
    assert again.to_bytes() == data
    assert data.endswith(b"}\n")
    shuffled = Manifest(**dict(reversed(dict(manifest).items())) | {"settings": reversed_keys(manifest.settings)})
    assert shuffled.to_bytes() == data


@settings(deadline=None, max_examples=100)
@given(manifests(), st.data())
def test_any_bytes_are_a_manifest_or_a_typed_error(manifest: Manifest, data: st.DataObject) -> None:
    content = bytearray(manifest.to_bytes())
    for position in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
        content[position] = data.draw(st.integers(0, 255))
    try:
        parsed = Manifest.from_bytes(bytes(content))
    except BankError:
        return
    assert Manifest.from_bytes(parsed.to_bytes()) == parsed


GATE = GateInfo(kind="analytic", object="f" * 64, object_bytes=9)
TASKS = (
    TaskInfo(name="a", generation=1, num_train=1, num_test=1),
    TaskInfo(name="b", generation=2, num_train=1, num_test=1),
)
UNIQUE = ExpertInfo(id="a.unique", kind="unique", tasks=("a",), rank=2, num_blocks=3, object="1" * 64, object_bytes=9)
SHARED = ExpertInfo(id="ab", kind="shared", tasks=("a", "b"), rank=2, num_blocks=3, object="2" * 64, object_bytes=9)
VALID: dict[str, Any] = {
    "generation": 2,
    "parent": 1,
    "created": datetime(2026, 1, 1, tzinfo=UTC),
    "base": BASE,
    "trunk_layers": 1,
    "block_size": 4,
    "targets": ("v_proj",),
    "tasks": TASKS,
    "experts": (UNIQUE, SHARED),
    "membership": ((1, 1), (0, 1)),
    "gate": GATE,
    "accuracy_matrix": ((50.0,), (40.0, 60.0)),
}


def changed(model: Any, **changes: Any) -> Any:
    """A copy that pydantic has not validated, as its parts are when they are read from a file."""
    return model.model_copy(update=changes).model_dump()


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "generation 0 with tasks": ({"generation": 0, "parent": None}, "generation 0 has no parent"),
    "no parent": ({"parent": None}, "parent None"),
    "parent not earlier": ({"parent": 2}, "parent 2 of generation 2"),
    "task from the future": (
        {"tasks": (TASKS[0], changed(TASKS[1], generation=3))},
        "task b was learned in generation 3",
    ),
    "same task twice": ({"tasks": (TASKS[0], changed(TASKS[1], name="a"))}, "task names must be unique"),
    "same expert twice": ({"experts": (UNIQUE, changed(SHARED, id="a.unique"))}, "expert ids must be unique"),
    "bad task name": ({"tasks": (changed(TASKS[0], name="A b"), TASKS[1])}, "match pattern"),
    "long task name": ({"tasks": (changed(TASKS[0], name="a" * 65), TASKS[1])}, "match pattern"),
    "task name with newline": ({"tasks": (changed(TASKS[0], name="a\n"), TASKS[1])}, "match pattern"),
    "expert lists other tasks": ({"experts": (changed(UNIQUE, tasks=("b",)), SHARED)}, "membership column says"),
    "membership column differs": ({"membership": ((0, 1), (1, 1))}, "membership column says"),
    "expert nobody uses": ({"membership": ((0, 1), (0, 1))}, "membership column says"),
    "membership lacks a row": ({"membership": ((1, 1),)}, "membership is not 2 tasks x 2 experts"),
    "membership lacks a column": ({"membership": ((1,), (0, 1))}, "membership is not 2 tasks x 2 experts"),
    "membership not 0 or 1": ({"membership": ((1, 2), (0, 1))}, "less than or equal to 1"),
    "unique of two tasks": ({"experts": (UNIQUE, changed(SHARED, kind="unique"))}, "unique but has 2"),
    "shared by one task": ({"experts": (changed(UNIQUE, kind="shared"), SHARED)}, "shared but has 1"),
    "one object, two sizes": (
        {"experts": (UNIQUE, changed(SHARED, object="1" * 64, object_bytes=8))},
        "objects have two sizes",
    ),
    "upper-case digest": ({"gate": changed(GATE, object="F" * 64)}, "match pattern"),
    "huge object": ({"gate": changed(GATE, object_bytes=1 << 40)}, "less than or equal"),
    "trunk takes every layer": ({"trunk_layers": 4}, "leaves no layer"),
    "block does not divide": ({"block_size": 3}, "does not divide v_proj"),
    "block does not divide another": ({"targets": ("q_proj", "v_proj"), "block_size": 16}, "does not divide v_proj"),
    "same target twice": ({"targets": ("v_proj", "v_proj")}, "targets must be unique"),
    "unknown target": ({"targets": ("lm_head",)}, "'q_proj', 'k_proj'"),
    "accuracy lacks a row": ({"accuracy_matrix": ((50.0,),)}, "accuracy_matrix has rows"),
    "accuracy square": ({"accuracy_matrix": ((50.0, 0.0), (40.0, 60.0))}, "accuracy_matrix has rows"),
    "accuracy over 100": ({"accuracy_matrix": ((50.0,), (40.0, 101.0))}, "less than or equal to 100"),
    "accuracy NaN": ({"accuracy_matrix": ((50.0,), (40.0, float("nan")))}, "finite|greater than"),
    "metric NaN": ({"tasks": (changed(TASKS[0], metrics={"loss": float("nan")}), TASKS[1])}, "finite"),
    "settings NaN": ({"settings": {"lr": float("nan")}}, "not JSON compliant|finite"),
    "settings lone surrogate": ({"settings": {"text": "\ud800"}}, "surrogate|unicode"),
    "settings huge": ({"settings": {"text": "x" * (1 << 20)}}, "as JSON, at most"),
    "created without a zone": ({"created": datetime(2026, 1, 1)}, "timezone"),
    "unknown key": ({"extra": 1}, "Extra inputs"),
}


def test_the_valid_one_is_valid() -> None:
    assert Manifest(**VALID).refs == (GATE.ref, UNIQUE.ref, SHARED.ref)


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    changes, message = REFUSED[case]
    with pytest.raises(ValidationError, match=message):
        Manifest(**VALID | changes)


def test_created_is_kept_in_whole_utc_seconds() -> None:
    local = datetime(2026, 1, 1, 12, 0, 0, 999, tzinfo=timezone(timedelta(hours=2)))
    manifest = Manifest(**VALID | {"created": local})
    assert manifest.created == datetime(2026, 1, 1, 10, tzinfo=UTC)
    assert b'"created": "2026-01-01T10:00:00Z"' in manifest.to_bytes()


def test_manifests_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Manifest(**VALID).generation = 3


def test_a_manifest_too_large_to_be_read_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapters.bank.manifest.MAX_MANIFEST_BYTES", 100)
    with pytest.raises(BankTooLarge, match="at most 100"):
        Manifest(**VALID).to_bytes()


def test_target_dims_are_those_of_the_checkpoint() -> None:
    """Qwen3-4B: 32 heads of 128 on a hidden size of 2560, so q_proj is not square."""
    qwen = BaseModelInfo(
        architecture="Qwen3ForCausalLM",
        num_layers=36,
        hidden_size=2560,
        intermediate_size=9728,
        num_attention_heads=32,
        num_kv_heads=8,
        head_size=128,
        vocab_size=151936,
        weights_sha256="0" * 64,
    )
    assert {target: qwen.target_dims(target) for target in TARGETS} == {
        "q_proj": (4096, 2560),
        "k_proj": (1024, 2560),
        "v_proj": (1024, 2560),
        "o_proj": (2560, 4096),
        "gate_proj": (9728, 2560),
        "up_proj": (9728, 2560),
        "down_proj": (2560, 9728),
    }


def test_an_expert_by_name(tmp_path: Path) -> None:
    manifest = make_bank(tmp_path).manifest()
    assert manifest.expert("beta.unique") == manifest.experts[1]
    with pytest.raises(BankNotFound, match="it has: alpha.unique, beta.unique"):
        manifest.expert("gamma")


def test_a_task_may_say_what_it_was_learned_from(tmp_path: Path) -> None:
    """By version 2; where it does not, the manifest's bytes are version 1's."""
    manifest = make_bank(tmp_path).manifest()
    assert b"recipe_sha256" not in manifest.to_bytes()
    fields = dict(manifest) | {
        "tasks": (manifest.tasks[0].model_copy(update={"recipe_sha256": "e" * 64}), manifest.tasks[1])
    }
    with pytest.raises(ValidationError, match="recipe_sha256 needs format_version 2, found 1"):
        Manifest(**fields)
    told = Manifest(**fields | {"format_version": 2})
    assert Manifest.from_bytes(told.to_bytes()) == told
    assert told.to_bytes().count(b"recipe_sha256") == 1
    with pytest.raises(ValidationError, match="recipe_sha256"):
        TaskInfo(name="a", generation=1, num_train=1, num_test=1, recipe_sha256="E" * 64)


def test_version_3_says_by_the_experts_lists_what_the_matrix_said(tmp_path: Path) -> None:
    old = make_bank(tmp_path).manifest()
    new = Manifest(**(dict(old) | {"format_version": 3}))
    assert new.membership == () and b"membership" not in new.to_bytes()
    assert Manifest.from_bytes(new.to_bytes()) == new
    assert new.experts_by_task == old.experts_by_task == [[0], [1]] and old.tasks_by_expert == [[0], [1]]


@pytest.mark.parametrize("tasks", [("gamma",), ("beta", "alpha"), ("alpha", "alpha")])
def test_version_3_refuses_lists_that_no_matrix_could_say(tmp_path: Path, tasks: tuple[str, ...]) -> None:
    old = make_bank(tmp_path).manifest()
    expert = old.experts[0].model_copy(update={"tasks": tasks, "kind": "unique" if len(tasks) == 1 else "shared"})
    with pytest.raises(ValidationError, match="not tasks of this manifest in order"):
        Manifest(**(dict(old) | {"format_version": 3, "experts": (expert, old.experts[1])}))
    with pytest.raises(ValidationError, match="is shared but has 1 task"):
        Manifest(**(dict(old) | {"format_version": 3, "experts": (changed(old.experts[0], kind="shared"),)}))


def test_the_oldest_version_that_holds_a_generation() -> None:
    assert [version_for(64, needs) for needs in (False, True)] == [1, 2]
    assert [version_for(65, needs) for needs in (False, True)] == [3, 3]
