"""Learning with Split-on-Share end to end: who holds which block, what may change and what may not (eq. 6-9)."""

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console

from adapters import learn as learn_module
from adapters.backbone import Backbone
from adapters.bank import Bank, Manifest
from adapters.gate import load_gate
from adapters.learn import learn
from adapters.learner import Learner, open_learner
from adapters.routed import RoutedModel
from tests.adapters.learning import QUICK, THREE, THREE_TEST, expert_rows, objects

pytestmark = pytest.mark.usefixtures("few_general_prompts")

ELASTIC = QUICK.model_copy(
    update={"steps": 6, "density": 0.5, "sharing": "elastic", "share_at_least": 2, "keep_at_least": 2}
)


@pytest.fixture(scope="module", params=["elastic analytic", "frozen analytic", "elastic softmax"])
def learner(
    request: pytest.FixtureRequest,
    few_general_prompts: None,
    tiny_model: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Learner:
    """Three tasks learned, each sharing what it can with those before it."""
    sharing, gate = request.param.split()
    settings = ELASTIC.model_copy(update={"sharing": sharing, "gate": gate})
    learner = open_learner(tmp_path_factory.mktemp("shared") / "bank", tiny_model, settings)
    for name, examples in THREE.items():
        learn(learner, name, examples, THREE_TEST[name])
    return learner


@pytest.fixture(scope="module")
def shared_bank(learner: Learner) -> Bank:
    return learner.bank


def sharing_of(manifest: Manifest) -> str:
    return str(manifest.settings["sharing"])


def test_tasks_share_experts_and_have_some_of_their_own(shared_bank: Bank) -> None:
    manifest = shared_bank.manifest()
    assert shared_bank.verify() == []
    assert {expert.kind for expert in manifest.experts} == {"unique", "shared"}
    assert manifest.experts[0].id == "colours.unique"
    sizes = {len(expert.tasks) for expert in manifest.experts}
    assert sizes == {1, 2, 3}, "an expert that two share is split again by the third"
    assert [len(row) for row in manifest.accuracy_matrix] == [1, 2, 3]


def test_a_block_belongs_to_exactly_one_expert_for_ever(shared_bank: Bank) -> None:
    """And what an older task had, it still has: through an expert of its own or a shared one."""
    before: dict[str, set[object]] = {}
    for generation in (1, 2, 3):
        manifest = shared_bank.manifest(generation)
        rows = {expert.id: set(expert_rows(shared_bank, manifest, expert.id)) for expert in manifest.experts}
        assert sum(map(len, rows.values())) == len(set().union(*rows.values()))
        of_task = {
            task.name: set().union(*(rows[e.id] for e in manifest.experts if task.name in e.tasks))
            for task in manifest.tasks
        }
        assert all(before[name] == of_task[name] for name in before)
        before = of_task


def test_what_is_not_shared_keeps_its_bytes(shared_bank: Bank) -> None:
    """Isolation (eq. 8): every block of an earlier unique expert, split or not, and of every earlier expert that the
    new task does not share. Shared blocks learn on if sharing is elastic, and only then."""
    num_same = num_learned = 0
    for generation in (2, 3):
        old, new = shared_bank.manifest(generation - 1), shared_bank.manifest(generation)
        name = new.tasks[-1].name
        before = {block: row for e in old.experts for block, row in expert_rows(shared_bank, old, e.id).items()}
        for expert in new.experts:
            for block, row in expert_rows(shared_bank, new, expert.id).items():
                if block not in before:
                    assert expert.tasks == (name,)
                elif name not in expert.tasks or sharing_of(new) == "frozen":
                    assert row == before[block]
                    num_same += 1
                else:
                    num_learned += row != before[block]
    assert num_same
    assert bool(num_learned) == (sharing_of(shared_bank.manifest()) == "elastic")


def test_an_expert_that_was_not_cut_is_the_same_object(shared_bank: Bank) -> None:
    for generation in (2, 3):
        old, new = shared_bank.manifest(generation - 1), shared_bank.manifest(generation)
        sizes = {expert.id: expert.num_blocks for expert in new.experts}
        for expert in old.experts:
            if sizes.get(expert.id) == expert.num_blocks:
                assert expert in new.experts


def test_the_stored_generation_computes_what_was_measured(learner: Learner, tiny_model: str) -> None:
    manifest = learner.bank.manifest()
    routed = RoutedModel.of(Backbone.load(Path(tiny_model)), learner.bank, manifest)
    assert list(routed.experts) == list(learner.model.experts)
    gate = load_gate(manifest, learner.bank.load_gate(manifest))
    for data in learner.held_out.values():
        data.route(gate)
        assert any(bool(weights.any()) for weights in data.weights)
        with torch.no_grad():
            found = routed.forward(data.trunk, data.weights)
            assert torch.equal(found, learner.model.forward(data.trunk, data.weights))


@torch.no_grad()
def test_frozen_sharing_leaves_older_tasks_outputs_to_the_bit(learner: Learner, tiny_model: str) -> None:
    """Elastic sharing does not. The gate's decisions are left out of it: every token is the first task's."""
    if learner.gate.columns == "experts":
        pytest.skip("its columns are not tasks")
    data = learner.held_out["colours"]
    always = [torch.ones(len(trunk), 1) for trunk in data.trunk]
    first = RoutedModel.of(Backbone.load(Path(tiny_model)), learner.bank, learner.bank.manifest(1))
    expected = first.forward(data.trunk, always)
    assert not torch.equal(expected, first.forward(data.trunk, [torch.zeros_like(w) for w in always]))
    is_same = torch.equal(learner.model.forward(data.trunk, always), expected)
    assert is_same == (learner.settings.sharing == "frozen")


def test_a_later_task_writes_no_object_of_an_earlier_generation(shared_bank: Bank) -> None:
    names = {n: {ref.object for ref in shared_bank.manifest(n).refs} for n in (1, 2, 3)}
    assert {f"{name}.safetensors" for found in names.values() for name in found} <= set(objects(shared_bank.root))
    assert shared_bank.gc(grace_seconds=0).num_files == 0, "nothing was written in vain"


def test_an_older_task_that_was_not_measured_is_named(
    tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where shared experts learn on; not where they stay as they are."""
    said: dict[str, str] = {}
    for sharing in ("elastic", "frozen"):
        monkeypatch.setattr("adapters.learn.console", Console(file=io.StringIO(), width=200))
        settings = ELASTIC.model_copy(update={"steps": 1, "sharing": sharing, "targets": ("v_proj",)})
        learner = open_learner(tmp_path / sharing, tiny_model, settings)
        for name in ("colours", "sums"):
            learner.held_out.clear()
            learn(learner, name, THREE[name], THREE_TEST[name])
        said[sharing] = learn_module.console.file.getvalue()  # type: ignore[attr-defined]
    expected = "colours: share sub-blocks with sums that learned on, and were not measured"
    assert expected in said["elastic"] and expected not in said["frozen"]
