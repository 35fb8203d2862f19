"""Task `licences`: the licence notice of a source file or README → the SPDX id of the licence it names.

The package holds the notices that ScanCode matches against. Taken are rules that are plain notices of one licence
with an SPDX id of its own; that leaves out ScanCode's catch-alls (unknown, proprietary, other permissive), whose ids
start with LicenseRef. Notices that nearly repeat an earlier one of the same licence are dropped before the split.
"""

import re
from collections import Counter
from pathlib import Path

from adapters.demo.examples import Row, Task, drop_conflicts, drop_near_duplicates
from adapters.demo.wheels import Wheel, read_members

RULES = "licensedcode/data/rules/"
LICENCES = "licensedcode/data/licenses/"
WHEEL = Wheel("licensedcode-data", "32.1.0", "18f60bde6dbabbc0a925d45ed80089cdbb7168156a2a1c118737198f9b743b96")

MIN_CHARS = 40
# About 70 tokens: a longer notice would push the prompt beyond what the small demo model is trained on.
MAX_CHARS = 260
# A notice repeats another if it shares most phrases of three words with it, or nearly all words in any order.
NEAR_DUPLICATE_PHRASES = 0.6
NEAR_DUPLICATE_WORDS = 0.8
# Fewer than this and a licence has too few notices to be learned and measured.
MIN_NOTICES = 30


def load(wheel: Path) -> list[Row]:
    """Rows of the wheel's notices for the licences that have enough of them."""
    spdx_ids = spdx_ids_from(read_members(wheel, LICENCES, ".LICENSE"))
    return rows_from(read_members(wheel, RULES, ".RULE"), spdx_ids)


def rows_from(rules: dict[str, bytes], spdx_ids: dict[str, str], *, min_notices: int = MIN_NOTICES) -> list[Row]:
    """Rows of rule files (name → bytes), each its own group: near-duplicates are gone, so none needs company."""
    rows = []
    for name, content in rules.items():
        fields, body = parse(content)
        answer = spdx_ids.get(fields.get("license_expression", ""), "")
        if not answer or not is_plain_notice(fields):
            continue
        text = one_line(body)
        if MIN_CHARS <= len(text) <= MAX_CHARS:
            rows.append(Row(text, answer, group=name))
    unique = drop_near_duplicates(drop_conflicts(rows), NEAR_DUPLICATE_PHRASES, width=3)
    unique = drop_near_duplicates(unique, NEAR_DUPLICATE_WORDS)
    notices = Counter(row.answer for row in unique)
    return [row for row in unique if notices[row.answer] >= min_notices]


def spdx_ids_from(licences: dict[str, bytes]) -> dict[str, str]:
    """ScanCode key → SPDX id, for the licences that SPDX itself lists."""
    ids = {}
    for content in licences.values():
        fields, _ = parse(content)
        spdx_id = fields.get("spdx_license_key", "LicenseRef-none")
        if not spdx_id.startswith("LicenseRef"):
            ids[fields["key"]] = spdx_id
    return ids


def is_plain_notice(fields: dict[str, str]) -> bool:
    """A current notice that ScanCode fully trusts; lower relevance marks texts that only hint at the licence."""
    kinds = {key for key, value in fields.items() if key.startswith("is_") and value == "yes"}
    return kinds == {"is_license_notice"} and fields.get("relevance", "100") == "100"


def parse(content: bytes) -> tuple[dict[str, str], str]:
    """Top-level scalar fields of the front matter, and the body below it."""
    _, front, body = re.split(r"^---[ \r]*$", content.decode("utf-8"), maxsplit=2, flags=re.MULTILINE)
    fields = (line.partition(":") for line in front.splitlines() if line[:1].isalpha())
    return {key: value.strip() for key, _, value in fields}, body


def one_line(body: str) -> str:
    """A notice in one line, without comment marks."""
    # ScanCode marks required phrases with double braces: its own notation, no part of the notice.
    plain = body.replace("{{", "").replace("}}", "")
    return " ".join(" ".join(line.strip().lstrip("#*;/%! ").rstrip("* ") for line in plain.splitlines()).split())


TASK = Task("licences", "Which licence does this notice name?", WHEEL, load)
