"""Task `smart_home`: an English smart-home command → the name of its intent, such as HassTurnOn.

The package holds sentence templates: `(a|b)` one of, `[a]` perhaps, `(a;b)` both in any order, `<rule>` a named
part, `{list}` a slot. A template is expanded to patterns at random, slots are filled last. Templates that differ
only in slot names or time units ("add {n} hours", "add {n} minutes") form one group, and a phrasing that two groups
can produce is kept in the first only, so none is on both sides of the split.
"""

import json
import random
import re
from functools import cache
from pathlib import Path
from typing import Any

from adapters.demo.examples import SEED, Row, Task, drop_conflicts, drop_near_duplicates
from adapters.demo.smart_home_slots import NAMES, NUMBERS, WORDS
from adapters.demo.wheels import Wheel, read_member

MEMBER = "home_assistant_intents/data/en.json"
WHEEL = Wheel(
    "home-assistant-intents", "2026.10.27", "256eb1e4fc6e6f4943d0ba4e089c9639d74d0e9d62ccddeb7148bc168de55e40"
)
# Enough to fill a large class from few templates; the draw takes a template's sentences in turn with the others'.
DRAWS_PER_TEMPLATE = 40
NEAR_DUPLICATE = 0.8
CLOSING = {"(": ")", "[": "]", "<": ">", "{": "}"}


def load(wheel: Path) -> list[Row]:
    """Rows sampled from every English template of the wheel."""
    return rows_from(json.loads(read_member(wheel, MEMBER)))


def rows_from(data: dict[str, Any], *, draws: int = DRAWS_PER_TEMPLATE, seed: int = SEED) -> list[Row]:
    """Rows of a parsed intents file (`intents`, `expansion_rules`, `lists`)."""
    owner: dict[str, str] = {}
    rows = []
    for intent, block, template in _templates(data):
        rng = random.Random(f"{seed}/{intent}/{block.get('requires_context')}/{template}")
        group = skeleton(template)
        for _ in range(draws):
            pattern = " ".join(expand(template, data["expansion_rules"], rng).split())
            if owner.setdefault(phrasing(pattern), group) == group:
                rows.append(Row(fill(pattern, block, data, rng), intent, group))
    return drop_near_duplicates(drop_conflicts(rows), NEAR_DUPLICATE)


def skeleton(template: str) -> str:
    """A template without slot names and time units: what makes two templates the same phrasing."""
    return re.sub(r"\b(hour|minute|second)", "unit", mask(template))


def phrasing(pattern: str) -> str:
    """A pattern without slot names and word order: "turn on the light" and "turn the light on" are one phrasing."""
    return " ".join(sorted(mask(pattern).split()))


def mask(pattern: str) -> str:
    return re.sub(r"\{[^}]*\}", "{}", pattern)


def expand(template: str, rules: dict[str, str], rng: random.Random) -> str:
    """One random pattern of a template: plain words and `{list}` slots."""
    out, at = [], 0
    while at < len(template):
        opening = template[at]
        if opening not in CLOSING:
            out.append(opening)
            at += 1
            continue
        end = _closing(template, at)
        out.append(_expand_group(opening, template[at + 1 : end], rules, rng))
        at = end + 1
    return "".join(out)


def _expand_group(opening: str, body: str, rules: dict[str, str], rng: random.Random) -> str:
    if opening == "{":
        return "{" + body.split(":")[0] + "}"
    if opening == "<":
        return expand(rules[body], rules, rng)
    if opening == "[" and rng.random() < 0.5:
        return ""
    choices = _split_top(body, "|")
    if len(choices) > 1:
        return expand(rng.choice(choices), rules, rng)
    parts = list(_split_top(body, ";"))
    if len(parts) == 1:
        return expand(body, rules, rng)
    rng.shuffle(parts)
    return " ".join(expand(part, rules, rng) for part in parts)


def fill(pattern: str, block: dict[str, Any], data: dict[str, Any], rng: random.Random) -> str:
    """The pattern with a value for each slot; a `{name}` fits the domain its template is for."""
    domains = (block.get("requires_context") or {}).get("domain") or []
    known = [domain for domain in domains if domain in NAMES] or ["light"]

    def value(match: re.Match[str]) -> str:
        slot = match[1]
        if slot == "name":
            return rng.choice(NAMES[rng.choice(known)])
        if slot in NUMBERS:
            return str(rng.choice(NUMBERS[slot]))
        if slot in WORDS:
            return rng.choice(WORDS[slot])
        choice = rng.choice(data["lists"][slot]["values"])
        return expand(choice["in"], data["expansion_rules"], rng)

    return " ".join(re.sub(r"\{(\w+)\}", value, pattern).split())


def _templates(data: dict[str, Any]) -> list[tuple[str, dict[str, Any], str]]:
    return [
        (intent, block, template)
        for intent, body in sorted(data["intents"].items())
        for block in body["data"]
        for template in block["sentences"]
    ]


@cache
def _closing(template: str, start: int) -> int:
    """Index of the bracket that closes the one at `start`."""
    depth = 0
    for at in range(start, len(template)):
        depth += (template[at] == template[start]) - (template[at] == CLOSING[template[start]])
        if depth == 0:
            return at
    raise ValueError(f"template {template!r} does not close the {template[start]!r} at {start}")


@cache
def _split_top(body: str, separator: str) -> tuple[str, ...]:
    """Parts of `body` at the separators that are inside no bracket."""
    parts, depth = [""], 0
    for char in body:
        depth += (char in CLOSING) - (char in CLOSING.values())
        if char == separator and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    return tuple(parts)


TASK = Task("smart_home", "Which smart-home intent does this command express?", WHEEL, load)
