"""Sequences and the examples taken from their files."""

import pytest

from adapters.benchmark.tasks import SEQUENCES, read_sequence, sequence_tasks
from adapters.data import DataError


def test_built_in_sequences():
    assert set(SEQUENCES["s4"]) == set(SEQUENCES["s4-2"]) == set(SEQUENCES["s4-3"])
    assert sequence_tasks("y2") == ("amazon", "yelp")
    assert [len(names) for names in SEQUENCES.values()] == [4, 4, 4, 6, 6, 2, 4]


def test_a_list_of_names():
    assert sequence_tasks("b, a") == ("b", "a")


@pytest.mark.parametrize("sequence", ["a,b,a", ",", ""])
def test_no_task_or_one_twice(sequence):
    with pytest.raises(DataError, match="holds"):
        sequence_tasks(sequence)


def test_a_missing_task_names_those_that_are_there(data_dir):
    with pytest.raises(DataError, match="no task 'nosuch'.*colours, names, sums"):
        read_sequence(data_dir, ("colours", "nosuch"), 1, 1, 0)


def test_the_seed_chooses_training_examples_and_never_the_questions(data_dir):
    one, again, other = (read_sequence(data_dir, ("colours",), 3, 2, seed)[0] for seed in (0, 0, 1))
    assert (len(one.train), len(one.test)) == (3, 2)
    assert one == again and one.digest == again.digest
    assert one.train != other.train and one.test == other.test and one.digest != other.digest


def test_files_shorter_than_asked_are_taken_whole(data_dir):
    (task,) = read_sequence(data_dir, ("sums",), 1000, 1000, 0)
    assert (len(task.train), len(task.test)) == (8, 4)
    assert [e.prompt for e in task.test][0].startswith("Add the numbers")
