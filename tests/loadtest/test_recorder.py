"""What outcomes add up to, and that it stays small."""

import random
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.recorder import MAX_LABELS, OTHER, Recorder
from loadtest.settings import Settings
from loadtest.timeline import MAX_SLICES, Timeline
from tests.loadtest.outcomes import SETTINGS, completed, failed


def recorder_of(*outcomes: object, settings: Settings = SETTINGS) -> Recorder:
    recorder = Recorder(settings, 0.0)
    for outcome in outcomes:
        recorder.add(outcome)  # type: ignore[arg-type]
    return recorder


def test_counts_by_task_generation_and_error() -> None:
    recorder = recorder_of(
        completed(task="a", generation="3", is_right=True),
        completed(task="a", generation="4", is_right=False),
        completed(task="b", generation="4", is_right=None),
        failed(kind="timeout", task="b"),
        failed(kind="timeout", task="a"),
    )
    assert (recorder.total.sent, recorder.total.completed, recorder.total.failed) == (5, 3, 2)
    assert {task: (one.sent, one.failed) for task, one in recorder.tasks.items()} == {"a": (3, 1), "b": (2, 1)}
    assert {name: one.completed for name, one in recorder.generations.items()} == {"3": 1, "4": 2}
    assert (recorder.errors, recorder.examples) == ({"timeout": 2}, {"timeout": "as said"})
    assert (recorder.total.right, recorder.total.asked, recorder.total.accuracy) == (1, 2, 50.0)
    assert recorder.total.output_tokens == 9
    assert recorder.total.itl.count == 6


def test_seconds_run_from_the_first_due_time_to_the_last_end() -> None:
    recorder = recorder_of(completed(due=2.0), completed(due=5.0, ttft=1.0, gaps=(0.5,)))
    assert recorder.seconds == pytest.approx(4.5)
    assert recorder.sending_seconds == pytest.approx(3.0)
    assert Recorder(SETTINGS, 0.0).seconds == 0.0


@pytest.mark.parametrize(
    ("limits", "good"),
    [
        ({}, True),
        ({"ttft_limit_ms": 101, "itl_limit_ms": 31, "e2e_limit_ms": 161}, True),
        ({"ttft_limit_ms": 99}, False),
        ({"itl_limit_ms": 29}, False),  # the mean of 10 and 50 ms
        ({"e2e_limit_ms": 159}, False),
    ],
)
def test_goodput_is_within_every_limit(limits: dict[str, float], good: bool) -> None:
    settings = Settings(scenario="steady", **limits)  # type: ignore[arg-type]
    recorder = recorder_of(completed(ttft=0.1, gaps=(0.01, 0.05)), failed(), settings=settings)
    assert recorder.total.good == good


def test_lateness_is_part_of_the_latency() -> None:
    recorder = recorder_of(completed(ttft=0.5, late=0.4))
    assert recorder.lateness.largest == pytest.approx(0.4)
    assert recorder.total.ttft.largest == pytest.approx(0.5)


def test_unfinished_requests_are_neither_completed_nor_failed() -> None:
    recorder = recorder_of(completed(task="a"))
    recorder.add_unfinished("a", 0.5, 1.0)
    total = recorder.tasks["a"]
    assert (total.sent, total.completed, total.failed, total.unfinished) == (2, 1, 0, 1)


def test_labels_from_outside_are_bounded() -> None:
    recorder = recorder_of(
        *(completed(task=f"t{index}", generation=f"g{index}" * 100) for index in range(3 * MAX_LABELS)),
        *(failed(kind=f"http {index}") for index in range(3 * MAX_LABELS)),
    )
    for labels in (recorder.tasks, recorder.generations, recorder.examples):
        assert len(labels) == MAX_LABELS + 1
        assert OTHER in labels
        assert all(len(label) <= 64 for label in labels)
    assert sum(one.sent for one in recorder.tasks.values()) == 6 * MAX_LABELS


@given(st.lists(st.floats(0, 5000), min_size=1, max_size=80))
def test_a_timeline_loses_nothing_and_stays_short(dues: list[float]) -> None:
    timeline = Timeline()
    for due in dues:
        timeline.add(completed(due=due), 0.0, "3", True)
    assert len(timeline.slices) <= MAX_SLICES
    for parts in (timeline.slices, timeline.blocks(20)):
        assert sum(part.sent for part in parts) == len(dues)
        assert sum(part.tokens for part in parts) == pytest.approx(3 * len(dues))
        assert sum(part.itl.count for part in parts) == 2 * len(dues)
    assert len(timeline.blocks(20)) <= 20
    for due in dues:
        assert timeline.slices[int(due / timeline.width)].sent > 0


def test_output_is_shown_when_it_came() -> None:
    timeline = Timeline()
    timeline.add(completed(due=0.1, ttft=1.0, gaps=(1.0, 1.0)), 0.0, None, True)
    assert [part.sent for part in timeline.slices] == [1, 0, 0, 0, 0, 0, 0]
    assert [part.tokens for part in timeline.slices] == [0, 0, 1, 0, 1, 0, 1]


def test_a_soak_does_not_fill_the_memory() -> None:
    """Once every slice and every bucket is in use, four times the requests take no more memory."""
    rng = random.Random(0)
    answers = [(rng.lognormvariate(-2, 0.3), tuple(rng.lognormvariate(-4, 0.3) for _ in range(4))) for _ in range(5)]
    recorder = Recorder(SETTINGS, 0.0)

    def add(numbers: range) -> int:
        for number in numbers:
            ttft, gaps = answers[number % len(answers)]
            recorder.add(completed(due=float(number), ttft=ttft, gaps=gaps))
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        few, many = add(range(1_000)), add(range(1_000, 4_000))
    finally:
        tracemalloc.stop()
    assert recorder.total.itl.count == 4 * 4_000
    assert many < 1.3 * few
