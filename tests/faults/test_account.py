"""The accounting itself: a harness that finds nothing proves something only if it finds what is there."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.account import FOR_EVER, Kill, Stay, account, percentile, recoveries_s
from tests.faults.ledger import Kind

RECORD = struct.Struct("<BxHIQQ")
POSTED = 5
POSTER = (100, 0, [(Kind.POSTED, 1, number) for number in range(1, POSTED + 1)])
ALL = [(Kind.STARTED, 0, 0), *((Kind.HANDLED, 1, number) for number in range(1, POSTED + 1))]

Line = tuple[int, int, int]
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_lives(*lives: tuple[int, int, list[Line]]) -> Path:
        for time_ns, (pid, slot, lines) in enumerate(lives):
            records = [
                RECORD.pack(kind, slot, poster, number, index) for index, (kind, poster, number) in enumerate(lines)
            ]
            (tmp_path / f"{pid}-{time_ns}.ledger").write_bytes(b"".join(records))
        return tmp_path

    return write_lives


def handled(*numbers: int) -> list[Line]:
    return [(Kind.STARTED, 0, 0), *((Kind.HANDLED, 1, number) for number in numbers)]


def test_what_every_place_handled_once_and_in_order_is_no_fault(write):
    found = account(write(POSTER, (1, 0, ALL), (2, 1, ALL)), [], one_epoch=True)
    assert not found.faults
    assert (found.places, found.posted, found.handled) == (2, 5, 10)


@pytest.mark.parametrize(
    ("lines", "fault"),
    [
        (handled(1, 2, 4, 5), {"lost": 1}),
        (handled(), {"lost": 5}),
        (handled(1, 2, 3, 2, 4, 5), {"twice": 1}),
        (handled(1, 3, 2, 4, 5), {"out_of_order": 1, "disagreed": 1}),
        (handled(1, 2, 3, 4, 5, 6), {"invented": 1}),
        ([*handled(1, 2, 3, 4), (Kind.SLOW, 1, 5)], {"cut_short": 1}),
        ([*ALL, (Kind.UNIQUE, 1, 1)], {"invented": 1}),
    ],
)
def test_a_fault_in_one_place_is_found(write, lines, fault):
    assert account(write(POSTER, (1, 0, ALL), (2, 1, lines)), [], one_epoch=True).faults == fault


def test_what_was_told_as_a_gap_is_not_lost(write):
    lines = [*handled(1, 2), (Kind.GAP, 0, 2), (Kind.HANDLED, 1, 5)]
    found = account(write(POSTER, (1, 0, lines)), [], one_epoch=True)
    assert not found.faults
    assert (found.handled, found.told, found.told_too_much) == (3, 2, 0)


def test_a_gap_that_tells_more_than_is_missing_is_counted(write):
    assert account(write(POSTER, (1, 0, [*ALL, (Kind.GAP, 0, 2)])), [], one_epoch=True).told_too_much == 2


def test_a_successor_may_repeat_what_a_killed_process_had_not_acknowledged(write):
    path = write(POSTER, (1, 0, handled(1, 2, 3)), (2, 0, handled(3, 4, 5)))
    found = account(path, [Kill(9, 1, 0)], one_epoch=True)
    assert not found.faults
    assert found.again == 1
    assert account(path, [], one_epoch=True).faults == {"again_without_death": 1}


def test_a_process_that_got_the_number_of_a_killed_one_was_not_killed(write):
    # Started at times 1 and 2 (the poster at 0), and the kill was between.
    path = write(POSTER, (1, 0, handled(1, 2, 3)), (1, 0, handled(3, 4)), (2, 0, handled(4, 5)))
    found = account(path, [Kill(1, 1, 0)], one_epoch=True)
    assert found.again == 1
    assert found.faults == {"again_without_death": 1}


def test_two_posters_in_different_orders_in_two_places_are_a_fault_within_one_epoch(write):
    other = (101, 0, [(Kind.POSTED, 2, 1)])
    one = [(Kind.STARTED, 0, 0), (Kind.HANDLED, 2, 1), *ALL[1:]]
    two = [*ALL, (Kind.HANDLED, 2, 1)]
    path = write(POSTER, other, (1, 0, one), (2, 1, two))
    assert account(path, [], one_epoch=True).faults == {"disagreed": 1}
    assert not account(path, [], one_epoch=False).faults


@pytest.mark.parametrize(
    ("numbers", "left_ns", "lost"),
    [
        ((3, 4, 5), FOR_EVER, 0),
        ((1, 2, 3), 4, 0),  # told to leave before the others were handled
        ((2, 3), FOR_EVER, 2),  # the last ones
        ((2, 4, 5), FOR_EVER, 1),
        ((), 0, 0),
    ],
)
def test_a_worker_that_comes_and_goes_must_have_all_that_was_posted_while_it_was_there(write, numbers, left_ns, lost):
    # It has joined at time 1, and number n is posted at n - 1 and handled in the other place at n.
    stay = [(Kind.STARTED, 0, 0), (Kind.JOINED, 1, 9), *((Kind.HANDLED, 1, number) for number in numbers)]
    found = account(write(POSTER, (1, 0, ALL), (2, 1, stay)), [], one_epoch=True, stays=[Stay(1, left_ns)])
    assert found.lost_in_stays == lost
    assert (found.places, found.stays, found.handled) == (1, 1, 5)


def test_a_unique_event_runs_once_and_again_only_after_a_death(write):
    poster = (100, 0, [(Kind.POSTED_KEY, 1, key) for key in (1, 2)])
    runs = [(Kind.STARTED, 0, 0), (Kind.UNIQUE, 1, 1)]
    path = write(poster, (1, 0, runs), (2, 1, runs))
    assert account(path, [], one_epoch=True).faults == {"keys_lost": 1, "keys_twice": 1}
    found = account(path, [Kill(9, 1, 0)], one_epoch=True)
    assert found.faults == {"keys_lost": 1}
    assert found.keys_again == 1


def test_a_slot_is_back_when_its_next_process_has_joined(write):
    path = write((1, 3, [(Kind.STARTED, 0, 0), *([(Kind.JOINED, 3, 9)] * 2)]))
    # The records' times are 0, 1, 2.
    assert recoveries_s(path, [Kill(1, 7, 3)]) == [1e-9]
    assert recoveries_s(path, [Kill(0, 7, None), Kill(1, 8, None)]) == [1e-9]


def test_percentiles_are_values_that_were_there():
    values = [float(number) for number in range(1, 101)]
    assert [percentile(values, share) for share in (0.5, 0.99, 1.0)] == [50.0, 99.0, 100.0]
    assert percentile([3.0], 0.99) == 3.0
