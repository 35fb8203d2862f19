"""Fetch the console's front-end libraries from npm into server/page/vendor: `python3 -m deploy.vendor`.

The page is served as it lies here, so users need no npm and no build step. To move to another version, change the table
and run this once; what it writes is committed. `packages.json` has the versions, npm's digests of the packages and ours
of the files; `tests/server/test_console.py` compares them.
"""

import hashlib
import io
import json
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any, Dict, NamedTuple, Tuple

PLACE = Path(__file__).resolve().parent.parent / "server" / "page" / "vendor"


class Package(NamedTuple):
    """`files`: where each of ours is in npm's package."""

    name: str
    version: str
    licence: str
    files: Dict[str, str]


PACKAGES = (
    Package("preact", "11.2.0", "MIT", {"preact.js": "dist/preact.mjs", "hooks.js": "hooks/dist/hooks.mjs"}),
    Package("htm", "3.1.1", "Apache-2.0", {"htm.js": "dist/htm.mjs"}),
    Package("uplot", "1.6.32", "MIT", {"uplot.js": "dist/uPlot.esm.js", "uplot.css": "dist/uPlot.min.css"}),
)
# A page without an import map cannot resolve a bare name, and there are no source maps here.
CHANGES = ((b'from"preact"', b'from"./preact.js"'), (b"//# sourceMappingURL=", b"// source map: "))


def main() -> None:
    PLACE.mkdir(parents=True, exist_ok=True)
    listed = [_fetch(package) for package in PACKAGES]
    (PLACE / "packages.json").write_text(json.dumps(listed, indent=1) + "\n")


def _fetch(package: Package) -> Dict[str, Any]:
    integrity, archive = _pack(package)
    with tarfile.open(fileobj=io.BytesIO(archive)) as members:
        files = {**package.files, f"{package.name}.LICENSE": "LICENSE"}
        data = {ours: _changed(_read(members, theirs)) for ours, theirs in files.items()}
    for ours, content in data.items():
        (PLACE / ours).write_bytes(content)
    return {
        "name": package.name,
        "version": package.version,
        "licence": package.licence,
        "integrity": integrity,
        "files": {ours: hashlib.sha256(content).hexdigest() for ours, content in data.items()},
    }


def _pack(package: Package) -> Tuple[str, bytes]:
    """npm's digest of the package, which npm has checked, and the package."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["npm", "pack", "--json", f"{package.name}@{package.version}"]
        run = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, check=True)
        (told,) = json.loads(run.stdout)
        return told["integrity"], (Path(folder) / told["filename"]).read_bytes()


def _read(members: tarfile.TarFile, path: str) -> bytes:
    file = members.extractfile(f"package/{path}")
    assert file is not None, f"{path} is no file"
    return file.read()


def _changed(content: bytes) -> bytes:
    for theirs, ours in CHANGES:
        content = content.replace(theirs, ours)
    return content


if __name__ == "__main__":
    main()
