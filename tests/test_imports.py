"""The direction of imports: adapters ← seta_runtime ← server; loadtest imports none of them; the first and the last
never import vLLM."""

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = {"adapters", "seta_runtime", "server", "loadtest", "deploy", "tests"}
MAY_IMPORT = {
    "adapters": {"adapters"},
    "seta_runtime": {"adapters", "seta_runtime"},
    "server": {"adapters", "seta_runtime", "server"},
    "loadtest": {"loadtest"},
    "deploy": {"deploy"},
    "deploy/ray": {"adapters", "seta_runtime"},
}
WITHOUT_VLLM = ("adapters", "loadtest")
# Run in a fresh process: import every module of a package, then print the roots of all that was imported.
IMPORT_ALL = """
import importlib, pkgutil, sys
package = importlib.import_module(sys.argv[1])
for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    if not module.name.endswith(".__main__"):
        importlib.import_module(module.name)
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


def files(package: str) -> list[Path]:
    """Without those of a directory below that has rules of its own."""
    inner = [name for name in MAY_IMPORT if name.startswith(f"{package}/")]
    found = sorted((ROOT / package).rglob("*.py"))
    return [path for path in found if not any(path.is_relative_to(ROOT / name) for name in inner)]


def imported_roots(path: Path) -> Iterator[tuple[int, str]]:
    """(line, top-level package) of every import anywhere in the file, those inside functions included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        elif isinstance(node, ast.ImportFrom):
            names = [resolve(path, node.level, node.module)]
        elif isinstance(node, ast.Call) and is_import_module(node) and isinstance(node.args[0], ast.Constant):
            names = [str(node.args[0].value)]
        yield from ((node.lineno, name.partition(".")[0]) for name in names)


def resolve(path: Path, level: int, module: str | None) -> str:
    package = ".".join(path.relative_to(ROOT).parent.parts)
    return importlib.util.resolve_name("." * level + (module or ""), package)


def is_import_module(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    return name in {"import_module", "__import__"} and bool(call.args)


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_direction(package):
    assert files(package), f"{package} has no files"
    forbidden = OURS - MAY_IMPORT[package]
    found = [
        f"{path.relative_to(ROOT)}:{line} imports {root}"
        for path in files(package)
        for line, root in imported_roots(path)
        if root in forbidden or (root == "vllm" and package in (*WITHOUT_VLLM, "deploy"))
    ]
    assert not found


def test_the_walk_sees_every_kind_of_import(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "server").mkdir()
    module = tmp_path / "server" / "x.py"
    module.write_text(
        "import a.b\nfrom c import d\nfrom . import e\nfrom .f import g\n"
        "def h():\n    import vllm.i\nimportlib.import_module('j.k')\n__import__('l')\n"
    )
    assert {root for _, root in imported_roots(module)} == {"a", "c", "server", "vllm", "j", "l"}


@pytest.mark.parametrize("package", WITHOUT_VLLM)
def test_importing_it_does_not_import_vllm(package):
    run = subprocess.run([sys.executable, "-c", IMPORT_ALL, package], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    roots = set(run.stdout.split())
    assert package in roots
    assert not roots & ({"vllm"} | OURS - {package})
