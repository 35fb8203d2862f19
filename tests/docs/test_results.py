"""The measured cells in docs/results are those that the code of today would look for."""

from pathlib import Path

import pytest

from adapters.benchmark.cells import Cell
from adapters.benchmark.methods import KINDS, Method
from adapters.benchmark.records import CellResult
from tests.docs.documents import REPO

CELLS = sorted((REPO / "docs/results/cells").glob("*.json"))


def test_there_are_some() -> None:
    assert {path.name.rpartition("-")[0] for path in CELLS} >= {"seta", "per-task"}


@pytest.mark.parametrize("path", [pytest.param(path, id=path.stem) for path in CELLS])
def test_a_cell_is_found_under_its_key(path: Path) -> None:
    """A setting, a task list or a method's revision that has changed since makes another key: such a cell must go."""
    result = CellResult.model_validate_json(path.read_bytes())
    kind = KINDS[result.kind]
    cell = Cell(Method(result.method, kind, kind.settings.model_validate(result.settings)), result.run)
    assert (cell.key, f"{cell.stem}.json") == (result.key, path.name)
