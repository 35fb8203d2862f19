"""The benchmark's arithmetic: paired ratios, bytes and FLOPs per token, what a point asks for."""

import json
from pathlib import Path
from typing import Any

import pytest

from adapters.bank import Bank
from seta_runtime.bench.points import POINTS, Point, prompts_for
from seta_runtime.bench.report import added_per_token, noise, ratio, ratios, summarise, write_report

RATES = {
    "plain": {"decode_1": [10.0, 20.0, 40.0], "decode_8": [80.0, 100.0, 120.0]},
    "routed": {"decode_1": [9.0, 19.0, 20.0], "decode_8": [40.0, 90.0, 120.0], "mixed_8": [36.0, 90.0, 60.0]},
}


def test_ratios_are_paired_by_round() -> None:
    """0.9, 0.95, 0.5: the median is 0.9; the ratio of the medians would be 0.95."""
    assert ratio(RATES, "routed", "plain", "decode_1") == pytest.approx(0.9)
    assert ratio(RATES, "routed", "nobody", "decode_1") is None


def test_what_was_not_measured_is_left_out() -> None:
    found = ratios(RATES)
    assert found["routed_vs_base"] == {"decode_1": 0.9, "decode_8": 0.9}
    assert found["routed_vs_vllm_lora"] == {}
    assert found["two_generations_vs_one"] == {"decode_8": 0.9}


def test_noise_is_plain_vllms_own_spread() -> None:
    assert noise(RATES) == pytest.approx(1.5)


def test_a_prefill_prompt_has_its_length_and_a_decode_prompt_its_own() -> None:
    rendered = [[1, 2, 3], [4, 5]]
    assert prompts_for(Point("p", 3, 7, 1), rendered) == [
        [1, 2, 3, 1, 2, 3, 1],
        [4, 5, 4, 5, 4, 5, 4],
        [1, 2, 3, 1, 2, 3, 1],
    ]
    assert prompts_for(Point("d", 3, 0, 8), rendered) == [[1, 2, 3], [4, 5], [1, 2, 3]]
    assert {point.name for point in POINTS} == {"decode_1", "decode_8", "decode_32", "prefill"}


def test_added_work_of_the_demo_bank_by_hand(demo_bank: Path) -> None:
    """Every sub-block of rank 32 and edge 64 has 32 x 64 values in A and as many in B, two bytes each."""
    bank = Bank.open(demo_bank)
    manifest = bank.manifest()
    values = [2 * e.num_blocks * 32 * 64 for e in manifest.experts]
    added = added_per_token(bank)
    assert added["expert_bytes"] == 2 * sum(values) / len(values)
    assert 0 < added["share_of_base_flops"] < 0.05


def test_the_report_is_a_table_and_one_file(
    demo_bank: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engines = {
        "plain": {"rss_bytes": 1 << 30},
        "routed": {"rss_bytes": (1 << 30) + (14 << 20), "load_seconds": [0.4, 0.2]},
    }
    write_report(tmp_path, summarise(RATES, engines, [15.0, 14.0, 19.0], Bank.open(demo_bank)))
    found = json.loads((tmp_path / "bench.json").read_text())
    assert found["ratios"]["routed_vs_base"]["decode_8"] == 0.9
    assert found["server_ready_seconds"]["median"] == 15.0
    assert found["memory"]["over_plain_bytes"] == 14 << 20
    assert "server ready after 15.0 s" in capsys.readouterr().out
    check_plots((tmp_path / "bench.html").read_text(), found)


def check_plots(page: str, found: dict[str, Any]) -> None:
    """Every ratio and every rate is a bar with its value; what was not measured has no plot."""
    values = [f"{v:.3f}" for by in found["ratios"].values() for v in by.values()]
    values += [f"{v:,.1f}" for by in found["tokens_per_second"].values() for v in by.values()]
    assert page.count('<rect class="bar') == len(values) and all(f">{value}</text>" in page for value in values)
    assert "Every request routed, to plain vLLM" in page and "vLLM&#x27;s own LoRA" not in page
    assert "spread by up to 150 %" in page and "http" not in page
