"""The command lines and the code that README.md and docs/*.md show."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
OURS = ("seta", "make", "python", "python3", ".venv/bin/python")
SHELL = ("cd", "chmod", "cp", "export", "for", "mkdir")
CLIENTS = tuple(f"build/clients/bin/{name}" for name in ("pip", "lm_eval", "inspect"))
OTHERS = (*SHELL, *CLIENTS, "curl", "docker", "kubectl", "openssl", "pip", "promtool", "ray")
ASSIGNMENT = re.compile(r"[A-Z_]+=")


@dataclass(frozen=True)
class Code:
    """A line of a code block, or a span of inline code; `language` is what a fence says, "" where there is none."""

    where: str
    text: str
    language: str = ""


@dataclass(frozen=True)
class Command:
    """One program with its arguments. `is_whole` is False where the text leaves something out with "..."."""

    where: str
    words: tuple[str, ...]
    is_whole: bool = True


def documents() -> Iterator[tuple[str, str]]:
    """(path in the repository, text) of every document that shows commands."""
    for path in [REPO / "README.md", *sorted((REPO / "docs").glob("*.md"))]:
        yield str(path.relative_to(REPO)), path.read_text(encoding="utf-8")


def block_lines(name: str, text: str) -> Iterator[Code]:
    """Every line of the fenced and the indented code blocks; one that goes on, or a loop, takes the next along."""
    fence: str | None = None
    begun = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if line.startswith("```"):
            fence = line[3:].strip() if fence is None else None
        elif fence is not None or line.startswith("    "):
            begun += line.strip()
            if begun.endswith("\\"):
                begun = begun[:-1] + " "
                continue
            if begun.startswith("for ") and not line.strip().startswith("done"):
                begun += "\n"
                continue
            yield Code(f"{name}:{number}", begun, fence or "")
            begun = ""


def spans(name: str, text: str) -> Iterator[Code]:
    """Every span of inline code outside the blocks."""
    inside = False
    for number, line in enumerate(text.splitlines(), start=1):
        inside ^= line.startswith("```")
        if not inside and not line.startswith("    "):
            yield from (Code(f"{name}:{number}", found) for found in re.findall(r"`([^`]+)`", line))


def fences(name: str, text: str, language: str) -> Iterator[Code]:
    """Whole fenced blocks of a language."""
    for found in re.finditer(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        yield Code(f"{name}:{text.count(chr(10), 0, found.start()) + 1}", found[1], language)


def commands(code: Code) -> Iterator[Command]:
    """The commands of a line; none if it does not begin with a program that we know."""
    first = code.text.split(" ", 1)[0]
    if first not in OURS + OTHERS and not ASSIGNMENT.match(first):
        return
    if first == "for":  # a loop is one command
        yield Command(code.where, tuple(code.text.partition(";")[0].split()))
        return
    reader = shlex.shlex(code.text, posix=True, punctuation_chars="&|;")
    reader.whitespace_split, reader.commenters = True, "#"
    words: list[str] = []
    for word in [*reader, ";"]:
        if not set(word) <= set("&|;"):
            words.append(word)
        elif words:
            yield _command(code.where, words)
            words = []


def _command(where: str, words: list[str]) -> Command:
    """Without variables before the program, marks of what is optional, and the dots of what is left out."""
    while ASSIGNMENT.match(words[0]):
        words = words[1:]
    if words[0] != "curl":
        words = [word.removeprefix("[") for word in words]
        words = [word if "[" in word else word.removesuffix("]") for word in words]
    whole = [word for word in words if word not in ("...", "…")]
    return Command(where, tuple(whole), is_whole=len(whole) == len(words))
