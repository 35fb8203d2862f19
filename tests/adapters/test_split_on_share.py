"""Split-on-Share (eq. 6, 7): hand cases, and what must hold for any sets of blocks."""

from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.blocks import Block
from adapters.split_on_share import Blocks, shared_id, split_layer, split_on_share


def row(layer: int, *columns: int) -> Blocks:
    return frozenset((layer, "v_proj", 0, column) for column in columns)


def test_a_layer_is_cut_into_what_both_want_and_the_rest() -> None:
    old, new = row(1, 0, 1, 2, 3, 4), row(1, 2, 3, 4, 5)
    assert split_layer(old, new, 3, 2) == (row(1, 2, 3, 4), row(1, 0, 1))


def test_too_small_an_intersection_is_not_shared() -> None:
    """|I| = 3 < tau_ect = 4; at tau_ect = 3 it is shared."""
    old, new = row(1, 0, 1, 2, 3, 4), row(1, 2, 3, 4, 5)
    assert split_layer(old, new, 4, 2) == (frozenset(), old)
    assert split_layer(old, new, 4, 9) == (frozenset(), old), "eq. 6 comes before eq. 7"


def test_too_small_a_rest_is_shared_as_well() -> None:
    """|R| = 2 < tau_trt = 3; at tau_trt = 2 it stays."""
    old, new = row(1, 0, 1, 2, 3, 4), row(1, 2, 3, 4, 5)
    assert split_layer(old, new, 3, 3) == (old, frozenset())
    assert split_layer(old, new, 3, 2)[1] == row(1, 0, 1)


def test_nothing_in_common_is_not_shared_even_without_thresholds() -> None:
    assert split_layer(row(1, 0), row(1, 1), 0, 5) == (frozenset(), row(1, 0))


def test_three_tasks_by_hand() -> None:
    """Thresholds 2 and 2. Layer 1: a and c have columns 0, 1 in common; of b's, c wants only one. Layer 2: c wants all
    of b but column 7, a rest of one, so all of b's is shared. New for c: column 9 of layer 1."""
    a, b = row(1, 0, 1, 2, 3), row(1, 4, 5, 6) | row(2, 5, 6, 7)
    new = row(1, 0, 1, 4, 9) | row(2, 5, 6)
    split = split_on_share({"a": a, "b": b}, new, 2, 2)
    assert split.shared == {"a": row(1, 0, 1), "b": row(2, 5, 6, 7)}
    assert split.remainder == {"a": row(1, 2, 3), "b": row(1, 4, 5, 6)}
    assert split.own == row(1, 9)


BLOCKS = st.tuples(st.integers(0, 2), st.sampled_from(["v_proj", "o_proj"]), st.integers(0, 2), st.integers(0, 3))
TASKS = st.lists(st.frozensets(BLOCKS, min_size=1), min_size=1, max_size=6)
THRESHOLDS = st.integers(0, 6)


@settings(max_examples=200, deadline=None)
@given(tasks=TASKS, share_at_least=THRESHOLDS, keep_at_least=THRESHOLDS)
def test_a_sequence_of_tasks_keeps_every_block_in_exactly_one_expert(
    tasks: list[frozenset[Block]], share_at_least: int, keep_at_least: int
) -> None:
    """Nothing is lost, nothing is there twice, and the experts' tasks are what the splits say."""
    experts: dict[str, Blocks] = {}
    members: dict[str, tuple[str, ...]] = {}
    for number, new in enumerate(tasks):
        name = f"t{number}"
        held = frozenset().union(*experts.values())
        split = split_on_share(experts, new, share_at_least, keep_at_least)
        for expert_id, old in dict(experts).items():
            shared, remainder = split.shared[expert_id], split.remainder[expert_id]
            assert shared | remainder == old and not shared & remainder
            _check_thresholds(old, new, shared, remainder, share_at_least, keep_at_least)
            experts[expert_id] = remainder
            if shared:
                tasks_of = (*members[expert_id], name)
                assert shared_id(tasks_of) not in experts, "two experts with the same tasks"
                experts[shared_id(tasks_of)] = shared
                members[shared_id(tasks_of)] = tasks_of
        assert split.own == new - held
        experts[f"{name}.unique"], members[f"{name}.unique"] = split.own, (name,)
        union = frozenset().union(*experts.values())
        assert union == held | new
        assert sum(map(len, experts.values())) == len(union)


def _check_thresholds(
    old: Blocks, new: Blocks, shared: Blocks, remainder: Blocks, share_at_least: int, keep_at_least: int
) -> None:
    """In every layer that shares, enough was in common; what stays behind there is nothing or enough."""
    for layer in {block[0] for block in shared}:
        assert len([b for b in old & new if b[0] == layer]) >= max(1, share_at_least)
        left = len([b for b in remainder if b[0] == layer])
        assert left == 0 or left >= keep_at_least


def test_a_shared_experts_id_is_stable_distinct_and_short() -> None:
    assert shared_id(["smart_home", "foods"]) == "smart_home.shared.1b4dc8c9487a"
    assert shared_id(["a", "b.c"]) != shared_id(["a.b", "c"])
    assert len(shared_id([f"{number:x<64}" for number in range(1000)])) <= 128
