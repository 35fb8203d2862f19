"""What the four tasks share: a labelled row, honest splits, balanced draws, the written form.

A split is honest when nothing a model could memorise is on both sides. Each row names its `group` (a sentence
template, a disease category, a kind of food); whole groups go to one side, and near-duplicates are dropped before.
"""

import math
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from adapters.demo.wheels import Wheel

SEED = 20260607
TRAIN_ROWS = 1800
TEST_ROWS = 300


@dataclass(frozen=True)
class Row:
    """One text with its answer, and the group that must stay on one side of the split."""

    text: str
    answer: str
    group: str


@dataclass(frozen=True)
class Task:
    """A task: its one-sentence instruction, its wheel, and how to read rows from that wheel."""

    name: str
    instruction: str
    wheel: Wheel
    load: Callable[[Path], list[Row]]
    test_share: float = 0.2

    def prompt(self, row: Row) -> str:
        return f"{self.instruction}\n{row.text}"


@dataclass(frozen=True)
class Split:
    """The two sides, each balanced over the answers and shuffled."""

    train: list[Row]
    test: list[Row]


def split(rows: Sequence[Row], test_share: float, *, min_train: int = 20, seed: int = SEED) -> Split:
    """Whole groups to one side, then up to TRAIN_ROWS and TEST_ROWS balanced over the answers.

    An answer with fewer than `min_train` rows to train on, or with none to test, is left out of both sides: it could
    not be learned, or not be measured.
    """
    test_groups = held_out_groups(rows, test_share, seed=seed)
    train = [row for row in rows if row.group not in test_groups]
    test = [row for row in rows if row.group in test_groups]
    train_count = Counter(row.answer for row in train)
    usable = {row.answer for row in test if train_count[row.answer] >= min_train}
    return Split(
        train=draw([row for row in train if row.answer in usable], TRAIN_ROWS, seed=seed),
        test=draw([row for row in test if row.answer in usable], TEST_ROWS, seed=seed),
    )


def held_out_groups(rows: Sequence[Row], test_share: float, *, seed: int = SEED) -> set[str]:
    """Groups for the test side: whole ones at random until they hold about `test_share` of each answer's rows.

    An answer of one group only has nothing to hold out.
    """
    groups_of: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        groups_of[row.answer][row.group] += 1
    rng = random.Random(seed)
    held_out: set[str] = set()
    for answer in sorted(groups_of):
        sizes = groups_of[answer]
        if len(sizes) > 1:
            held_out |= _some_groups(sizes, held_out, test_share * sizes.total(), rng)
    return held_out


def _some_groups(sizes: Counter[str], held_out: set[str], wanted: float, rng: random.Random) -> set[str]:
    """More groups of one answer, until with those in `held_out` they have `wanted` rows."""
    # A group can hold several answers: what an earlier answer held out counts for this one too.
    have = sum(size for group, size in sizes.items() if group in held_out)
    groups = sorted(set(sizes) - held_out)
    rng.shuffle(groups)
    # Twice the share in one group is too much, unless all groups are that large: then the smallest goes.
    fitting = [group for group in groups if sizes[group] <= 2 * wanted] or sorted(groups, key=lambda g: sizes[g])[:1]
    chosen: set[str] = set()
    for group in fitting:
        if have >= wanted:
            break
        chosen.add(group)
        have += sizes[group]
    return chosen


def draw(rows: Sequence[Row], size: int, *, seed: int = SEED) -> list[Row]:
    """At most `size` rows, as evenly as they last over the answers and, within an answer, over its groups."""
    rng = random.Random(seed)
    pools: dict[str, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in sorted(rows, key=lambda r: (r.answer, r.group, r.text)):
        pools[row.answer][row.group].append(row)
    per_answer = []
    for groups in pools.values():
        members = list(groups.values())
        rng.shuffle(members)
        for member in members:
            rng.shuffle(member)
        per_answer.append(interleave(members))
    drawn = interleave(per_answer)[:size]
    rng.shuffle(drawn)
    return drawn


def interleave(lists: Iterable[Sequence[Row]]) -> list[Row]:
    """The first of each list, then the second of each, and so on."""
    return [row for layer in zip_longest(*lists) for row in layer if row is not None]


def drop_conflicts(rows: Iterable[Row]) -> list[Row]:
    """One row per text; a text with two answers has no right one and goes altogether."""
    answers: dict[str, set[str]] = defaultdict(set)
    first: dict[str, Row] = {}
    for row in rows:
        answers[row.text.lower()].add(row.answer)
        first.setdefault(row.text.lower(), row)
    return [row for text, row in first.items() if len(answers[text]) == 1]


def drop_near_duplicates(rows: Iterable[Row], threshold: float, *, width: int = 1) -> list[Row]:
    """Keep a row only if no kept row of the same answer has a shingle Jaccard similarity of `threshold` or more.

    Only rows of one answer are compared: two near-identical texts with different answers ("version 2", "version 3")
    are the hardest items of a task, and a memoriser gets them wrong.
    """
    pool = [(row, shingles(row.text, width)) for row in rows]
    frequency = Counter(shingle for _, own in pool for shingle in own)
    kept: list[Row] = []
    index: dict[tuple[str, str], list[frozenset[str]]] = defaultdict(list)
    for row, own in pool:
        # Two sets this similar share one of their few rarest members, so only rows indexed under those can match.
        keys = [(row.answer, shingle) for shingle in _rarest(own, frequency, threshold)]
        if any(is_similar(own, other, threshold) for key in keys for other in index[key]):
            continue
        kept.append(row)
        for key in keys:
            index[key].append(own)
    return kept


def _rarest(own: frozenset[str], frequency: Counter[str], threshold: float) -> list[str]:
    """The first |own| - ceil(threshold |own|) + 1 shingles by rising frequency (prefix filtering)."""
    must_share = math.ceil(threshold * len(own) - 1e-9)
    return sorted(own, key=lambda shingle: (frequency[shingle], shingle))[: len(own) - must_share + 1]


def nearest_accuracy(sides: Split) -> float:
    """Test accuracy of copying the answer of the training text with the highest word Jaccard similarity.

    What memory alone reaches; a model has learned something only above it.
    """
    learned = [(shingles(row.text, 1), row.answer) for row in sides.train]
    right = 0
    for row in sides.test:
        own = shingles(row.text, 1)
        _, answer = max((len(own & other) / len(own | other), answer) for other, answer in learned)
        right += answer == row.answer
    return right / len(sides.test)


def shingles(text: str, width: int) -> frozenset[str]:
    """The set of `width` words in a row, case and punctuation ignored."""
    words = re.findall(r"[a-z0-9]+", text.lower())
    return frozenset(" ".join(words[i : i + width]) for i in range(max(1, len(words) - width + 1)))


def is_similar(a: frozenset[str], b: frozenset[str], threshold: float) -> bool:
    """Jaccard: |a ∩ b| / |a ∪ b| >= threshold."""
    common = len(a & b)
    return common >= threshold * (len(a) + len(b) - common)
