from __future__ import annotations

from eventsh.recording.hole import Hole
from tests.recording.sample import frame


def test_a_hole_counts_the_events_of_frames_and_spans_their_numbers():
    hole = Hole(5, "the disk is full", 1)
    assert hole.is_empty
    hole.miss(frame(7, "a", "b"))
    hole.miss(frame(9, "c"))
    facts = hole.facts()
    assert facts.pop("ended_ns") > 1
    assert facts == {
        "missed": 3,
        "first_seq": 7,
        "last_seq": 9,
        "reason": "the disk is full",
        "epoch": 5,
        "began_ns": 1,
    }


def test_what_nobody_can_count_makes_the_whole_hole_unknown():
    hole = Hole(5, "damaged", 1)
    hole.add(2, 3, 4)
    hole.add(None, 0, 0)
    hole.add(1, 8, 8)
    assert (hole.missed, hole.first_seq, hole.last_seq, hole.is_empty) == (None, 3, 8, False)


def test_a_hole_that_is_not_counted_yet_is_empty_and_has_no_numbers():
    hole = Hole(5, "gone", 1)
    assert (hole.missed, hole.first_seq, hole.last_seq, hole.is_empty) == (0, 0, 0, True)
    hole.add(0, 0, 0)
    assert hole.is_empty
    hole.add(1, 0, 0)
    assert (hole.missed, hole.is_empty) == (1, False)


def test_numbers_that_are_not_known_hide_none_that_are():
    hole = Hole(5, "gone", 1)
    hole.add(1, 0, 0)
    hole.add(1, 4, 6)
    hole.add(1, 0, 0)
    hole.add(1, 8, 9)
    assert (hole.missed, hole.first_seq, hole.last_seq) == (4, 4, 9)
    assert facts_without_times(hole) == {"missed": 4, "first_seq": 4, "last_seq": 9, "reason": "gone", "epoch": 5}


def facts_without_times(hole):
    return {name: value for name, value in hole.facts().items() if not name.endswith("_ns")}
