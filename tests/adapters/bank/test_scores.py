"""Block scores: an optional object that a generation carries; banks without any are as they were."""

import json
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from adapters.bank import Bank, BankCorrupt, BankNotFound, Manifest, ScoresInfo, expert_sites
from adapters.bank.objects import object_path

from .factory import make_bank, make_tensors, next_manifest

SCORES = {"count": torch.ones(1), "layers.1.v_proj": torch.randn(2, 4, generator=torch.Generator().manual_seed(0))}


def publish_with_scores(bank: Bank, task: str, scores: dict[str, torch.Tensor] = SCORES) -> Manifest:
    ref = bank.put_object(scores)
    manifest = next_manifest(bank, bank.manifest(), task)
    manifest = manifest.model_copy(update={"format_version": 2, "scores": ScoresInfo(**ref._asdict())})
    bank.publish(manifest)
    return manifest


def scores_file(bank: Bank) -> Path:
    scores = bank.manifest().scores
    assert scores is not None
    return bank.root / object_path(scores.object)


def test_scores_come_back_bit_for_bit_and_older_generations_have_none(tmp_path: Path) -> None:
    bank = make_bank(tmp_path)
    published = publish_with_scores(bank, "gamma")
    assert Bank.open(tmp_path).manifest() == published
    loaded = bank.load_scores(bank.manifest())
    assert loaded is not None and loaded.keys() == SCORES.keys()
    assert all(torch.equal(loaded[name], SCORES[name]) for name in SCORES)
    assert bank.load_scores(bank.manifest(2)) is None


def test_a_manifest_without_scores_is_what_version_1_software_reads(tmp_path: Path) -> None:
    data = json.loads(make_bank(tmp_path).manifest().to_bytes())
    assert data["format_version"] == 1 and "scores" not in data


def test_scores_need_version_2(tmp_path: Path) -> None:
    fields = dict(make_bank(tmp_path).manifest()) | {"scores": ScoresInfo(object="f" * 64, object_bytes=9)}
    with pytest.raises(ValidationError, match="scores need format_version 2, found 1"):
        Manifest(**fields)
    assert Manifest(**fields | {"format_version": 2}).refs[-1].object == "f" * 64


def test_scores_stay_while_a_generation_needs_them(tmp_path: Path) -> None:
    bank = make_bank(tmp_path)
    publish_with_scores(bank, "gamma")
    old = scores_file(bank)
    publish_with_scores(bank, "delta", {**SCORES, "count": torch.full((1,), 2.0)})
    assert bank.gc(grace_seconds=0).num_files == 0 and old.exists()
    bank.gc(keep=[], grace_seconds=0)
    assert not old.exists() and scores_file(bank).exists()
    assert bank.verify() == []


def test_an_archive_carries_them(tmp_path: Path) -> None:
    bank = make_bank(tmp_path / "source")
    publish_with_scores(bank, "gamma")
    bank.export(None, tmp_path / "archive.tar")
    target = Bank.create(tmp_path / "target")
    target.import_(tmp_path / "archive.tar")
    assert target.verify() == [] and target.load_scores(target.manifest()) is not None


def test_damaged_and_missing_scores_are_found(tmp_path: Path) -> None:
    bank = make_bank(tmp_path)
    manifest = publish_with_scores(bank, "gamma")
    data = scores_file(bank).read_bytes()
    scores_file(bank).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(BankCorrupt, match="its bytes were altered"):
        bank.load_scores(manifest)
    assert [problem.partition(":")[0] for problem in bank.verify()] == ["generation 3"]
    scores_file(bank).unlink()
    with pytest.raises(BankNotFound):
        bank.export(None, tmp_path / "archive.tar")
    assert len(bank.verify()) == 1


def test_scores_that_are_not_finite_are_not_published(tmp_path: Path) -> None:
    with pytest.raises(BankCorrupt, match="scores of generation 3: count holds NaN"):
        publish_with_scores(make_bank(tmp_path), "gamma", {**SCORES, "count": torch.tensor([float("nan")])})


def test_an_experts_sites_in_order() -> None:
    tensors = make_tensors({(3, "v_proj"): [(0, 2)], (1, "v_proj"): [(0, 0), (1, 3)], (1, "o_proj"): [(1, 1)]})
    sites = list(expert_sites(tensors))
    assert [(site.layer, site.target) for site in sites] == [(1, "o_proj"), (1, "v_proj"), (3, "v_proj")]
    for site in sites:
        stem = f"layers.{site.layer}.{site.target}."
        assert (
            site.blocks is tensors[stem + "blocks"] and site.a is tensors[stem + "A"] and site.b is tensors[stem + "B"]
        )
