"""The benchmark's report: bytes and FLOPs per token, what a point asks for, the file, the table and the plots."""

import json
from pathlib import Path
from typing import Any

import pytest

from adapters.bank import Bank
from seta_runtime.bench.groups import Group
from seta_runtime.bench.points import DECODE, ONE_PROMPT, Point, prompts_for
from seta_runtime.bench.report import Measured, added_per_token, noise, summarise, write_report
from seta_runtime.bench.slices import Slice

ONE, EIGHT = DECODE[:2]
GROUPS = [
    Group("base", ("plain", "routed"), (ONE, EIGHT), {"routed_vs_base": ("routed", "plain")}),
    Group("tasks", ("routed", "routed_64_tasks"), (EIGHT,), {"tasks64_vs_4": ("routed_64_tasks", "routed")}),
]
SPEEDS = {
    ("base", "decode_1"): {"plain": [10.0, 20.0, 40.0], "routed": [9.0, 19.0, 20.0]},
    ("base", "decode_8"): {"plain": [80.0, 100.0, 120.0], "routed": [40.0, 90.0, 120.0]},
    ("tasks", "decode_8"): {"routed": [100.0] * 3, "routed_64_tasks": [97.0, 96.0, 98.0]},
}
MEASURED: Measured = {
    where: [
        {engine: [Slice(8, [8 / speeds[i]], 8 / speeds[i], 0.01, 1)] for engine, speeds in by_engine.items()}
        for i in range(3)
    ]
    for where, by_engine in SPEEDS.items()
}


def test_noise_is_plain_vllms_own_spread() -> None:
    assert noise({"decode_1": [10.0, 20.0, 40.0], "decode_8": [80.0, 100.0, 120.0]}) == pytest.approx(27 / 20)


def test_a_prefill_prompt_has_its_length_and_a_decode_prompt_its_own() -> None:
    rendered = [[1, 2, 3], [4, 5]]
    prefill = Point("p", 3, 7)
    assert prompts_for(prefill, rendered, 0) == [[1, 2, 3, 1, 2, 3, 1], [4, 5, 4, 5, 4, 5, 4], [1, 2, 3, 1, 2, 3, 1]]
    assert prompts_for(Point("d", 3), rendered, 0) == [[1, 2, 3], [4, 5], [1, 2, 3]]
    assert prompts_for(Point("d", 3), rendered, 1) == [[4, 5], [1, 2, 3], [4, 5]]
    assert prefill.tokens_per_step == 21 and Point("d", 3).tokens_per_step == 3


def test_prefill_is_of_sixteen_prompts() -> None:
    rendered = [[number] for number in range(32)]
    assert [prompts_for(ONE_PROMPT, rendered, number)[0][0] for number in range(18)] == [*range(16), 0, 1]


def test_added_work_of_the_demo_bank_by_hand(demo_bank: Path) -> None:
    """Every sub-block of rank 16 and edge 64 has 16 x 64 values in A and as many in B, two bytes each."""
    bank = Bank.open(demo_bank)
    manifest = bank.manifest()
    values = [2 * e.num_blocks * 16 * 64 for e in manifest.experts]
    added = added_per_token(bank)
    assert added["expert_bytes"] == 2 * sum(values) / len(values)
    assert 0 < added["share_of_base_flops"] < 0.05


def test_the_report_is_tables_a_file_and_a_page(
    demo_bank: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engines = {
        "plain": {"rss_bytes": 1 << 30},
        "routed": {"rss_bytes": (1 << 30) + (14 << 20), "load_seconds": [0.4, 0.2]},
    }
    write_report(tmp_path, summarise(MEASURED, GROUPS, engines, [15.0, 14.0, 19.0], Bank.open(demo_bank)))
    found = json.loads((tmp_path / "bench.json").read_text())
    assert found["ratios"] == {"routed_vs_base": {"decode_1": 0.9, "decode_8": 0.9}, "tasks64_vs_4": {"decode_8": 0.97}}
    assert found["intervals"]["routed_vs_base"]["decode_1"]["clock"] == {"median": 0.9, "low": 0.5, "high": 0.95}
    assert found["tokens_per_second"]["routed"] == {"decode_1": 19.0, "decode_8": 90.0}, "of the first group"
    assert found["disturbance"]["tasks decode_8"]["routed"]["slices"] == 3
    assert found["server_ready_seconds"]["median"] == 15.0 and found["noise"] == 1.35
    assert found["memory"]["over_plain_bytes"] == 14 << 20
    printed = capsys.readouterr().out
    assert "server ready after 15.0 s" in printed and "spread by up to 135 %" in printed
    check_plots((tmp_path / "bench.html").read_text(), found)


def check_plots(page: str, found: dict[str, Any]) -> None:
    """Every ratio and every speed is a bar with its value; every ratio has its interval; nothing else has a plot."""
    ratios = [f"{v:.3f}" for by in found["ratios"].values() for v in by.values()]
    values = ratios + [f"{v:,.1f}" for by in found["tokens_per_second"].values() for v in by.values()]
    assert page.count('<rect class="bar') == len(values) and all(f">{value}</text>" in page for value in values)
    assert page.count('<path class="interval"') == len(ratios)
    assert "Every request routed, to plain vLLM" in page and "64 tasks, to 4 tasks" in page
    assert "vLLM&#x27;s own LoRA" not in page
    assert "spread by up to 135 %" in page and "http" not in page
