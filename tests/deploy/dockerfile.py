"""Dockerfile and .dockerignore as far as this repository writes them, read for tests."""

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

REPO = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Stage:
    """One `FROM ... AS name`: its base and its instructions, in order, as (INSTRUCTION, the rest of the line)."""

    name: str
    base: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def all(self, instruction: str) -> list[str]:
        return [rest for name, rest in self.instructions if name == instruction]

    def last(self, instruction: str) -> str:
        return self.all(instruction)[-1]

    def words(self, instruction: str) -> list[str]:
        """The exec form, `["a", "b"]`."""
        return [str(word) for word in json.loads(self.last(instruction))]

    @property
    def health_command(self) -> list[str]:
        return [str(word) for word in json.loads(self.last("HEALTHCHECK").partition(" CMD ")[2])]


def stages(path: Path = REPO / "Dockerfile") -> dict[str, Stage]:
    found: dict[str, Stage] = {}
    for instruction, rest in _lines(path):
        if instruction == "FROM":
            base, _, name = rest.partition(" AS ")
            found[name] = Stage(name, base)
        else:
            list(found.values())[-1].instructions.append((instruction, rest))
    return found


def copied(stage: Stage) -> list[str]:
    """What COPY takes from the build context."""
    lines = [shlex.split(rest) for rest in stage.all("COPY")]
    return [source for words in lines if not words[0].startswith("--from") for source in words[:-1]]


def ignored(path: PurePosixPath, patterns: list[str]) -> bool:
    """Whether .dockerignore keeps a file out: a pattern holds for a path and for all that is below it.

    Only the patterns that are used here: names from the root on, `*` within a name, and a leading `**/`.
    """
    starts = [path, *path.parents][:-1]
    return any(_pattern(pattern).fullmatch(str(start)) for pattern in patterns for start in starts)


def ignore_patterns(path: Path = REPO / ".dockerignore") -> list[str]:
    lines = [line.strip() for line in path.read_text().splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def context(root: Path = REPO) -> Iterator[PurePosixPath]:
    """The files that a build would be sent, relative to the root."""
    patterns, folders = ignore_patterns(root / ".dockerignore"), [root]
    while folders:
        for path in sorted(folders.pop().iterdir()):
            relative = PurePosixPath(path.relative_to(root))
            if ignored(relative, patterns):
                continue
            if path.is_dir() and not path.is_symlink():
                folders.append(path)
            else:
                yield relative


def _pattern(pattern: str) -> re.Pattern[str]:
    assert not pattern.startswith("!") and "?" not in pattern, f"{pattern}: not a pattern that this reads"
    anywhere = pattern.startswith("**/")
    text = re.escape(pattern.removeprefix("**/").strip("/")).replace(r"\*", "[^/]*")
    return re.compile(("(.*/)?" if anywhere else "") + text)


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    text = "\n".join(line for line in path.read_text().splitlines() if not line.lstrip().startswith("#"))
    for line in text.replace("\\\n", " ").splitlines():
        if line.strip():
            instruction, _, rest = line.strip().partition(" ")
            yield instruction.upper(), " ".join(rest.split())
