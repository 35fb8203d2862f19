"""Keys, files and locks of cells, without any model."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from adapters.benchmark.cells import Cell, CellStore, write_atomically
from adapters.benchmark.methods import parse_method
from adapters.benchmark.records import CellResult, Progress, Run, Stage
from adapters.data import DataError

RUN = Run(
    sequence="a,b",
    tasks=("a", "b"),
    data_sha256="d" * 64,
    num_train=(8, 8),
    num_test=(4, 4),
    seed=0,
    steps=2,
    base_sha256="b" * 64,
)


def cell(spec: str = "seq-lora", steps: int = 2, seed: int = 0, **changes: object) -> Cell:
    return Cell(parse_method(spec, steps, seed, {}), RUN.model_copy(update=changes))


def stage(*accuracy: float) -> Stage:
    return Stage(
        tasks=("a",),
        accuracy=accuracy,
        seconds=1.5,
        evaluation_seconds=0.5,
        tokens=100,
        loss=0.25,
        trained_parameters=8,
        held_parameters=8,
        peak_bytes=1 << 20,
        blocks=(3, 4),
    )


def result(of: Cell) -> CellResult:
    return CellResult(
        key=of.key,
        method=of.method.label,
        kind=of.method.kind.name,
        settings=of.method.settings.model_dump(mode="json"),
        run=of.run,
        stages=(stage(50.0), stage(25.0, 75.0)),
        finished="2026-01-01T00:00:00+00:00",
        versions={"python": "3.12"},
    )


@pytest.mark.parametrize(
    "other",
    [
        cell("per-task"),
        cell("seq-lora:rank=4"),
        cell(steps=3),
        cell(seed=1),
        cell(tasks=("b", "a")),
        cell(data_sha256="e" * 64),
        cell(base_sha256="c" * 64),
    ],
)
def test_whatever_changes_the_numbers_changes_the_key(other):
    assert other.key != cell().key


def test_a_method_that_computes_otherwise_now_has_another_key():
    old = cell()
    kind = replace(old.method.kind, revision=old.method.kind.revision + 1)
    assert Cell(replace(old.method, kind=kind), old.run).key != old.key


def test_names_alone_do_not_change_the_key():
    assert cell(sequence="the same tasks").key == cell("seq-lora:rank=8").key == cell().key


def test_compiled_or_not_it_is_the_same_cell():
    for name in ("seq-lora", "seta", "seta-paper"):
        assert cell(f"{name}:compile=true").key == cell(name).key


def test_a_result_and_progress_read_back_as_written(store: CellStore):
    one = cell()
    assert store.result(one) is None and store.progress(one) == Progress()
    store.save_progress(one, Progress(stages=(stage(50.0),)))
    store.finish(one, result(one))
    assert store.progress(one).stages == (stage(50.0),)
    assert store.result(one) == result(one)
    assert store.result(cell(seed=1)) is None


@pytest.mark.parametrize("content", [b"", b"{", b'{"key": "x"}', b"\xff"])
def test_a_spoilt_result_is_named(store: CellStore, content: bytes):
    store.root.mkdir()
    path = store.root / f"{cell().stem}.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"{path.name} cannot be used as a CellResult.*remove it"):
        store.result(cell())


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "x.json"
    write_atomically(path, b"old")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"] and path.read_bytes() == b"old"


CLAIM = """
import json, sys
from pathlib import Path
from tests.adapters.benchmark.test_cells import cell
from adapters.benchmark.cells import CellStore
with CellStore(Path(sys.argv[1])).claim(cell(seed=int(sys.argv[2]))) as is_ours:
    print(json.dumps(is_ours))
"""


def test_another_process_may_not_have_the_same_cell(store: CellStore):
    def claimed_elsewhere(seed: int) -> bool:
        command = [sys.executable, "-c", CLAIM, str(store.root), str(seed)]
        return json.loads(subprocess.run(command, capture_output=True, check=True, cwd=Path.cwd()).stdout)

    with store.claim(cell()) as is_ours:
        assert is_ours
        with store.claim(cell()) as again:
            assert not again
        assert not claimed_elsewhere(seed=0)
        assert claimed_elsewhere(seed=1)
    assert claimed_elsewhere(seed=0)
