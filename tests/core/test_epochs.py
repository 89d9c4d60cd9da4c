"""Epoch numbers: one clock gives an order, two clocks none, but for the broker's own."""

from __future__ import annotations

from itertools import pairwise, permutations

from eventsh.core.epochs import EpochOrder, encode_epoch

SECOND_NS = 1_000_000_000
YEAR_NS = 365 * 24 * 3600 * SECOND_NS
A, B, C = (b"boot A", b"boot B", b"boot C")
# What version 0.1.0 took: nanoseconds since 1970.
FIRST_VERSION = 1_795_763_990_771_127_200


def test_an_epoch_fits_into_63_bits_and_is_larger_than_all_of_the_first_version():
    for clock in (A, B, C, b""):
        for age_ns in (0, SECOND_NS, YEAR_NS, 40 * YEAR_NS):
            assert FIRST_VERSION + 40 * YEAR_NS < encode_epoch(clock, age_ns) < 1 << 63


def test_epochs_of_one_clock_are_ordered_by_its_time():
    order = EpochOrder(encode_epoch(A, SECOND_NS))
    for clock in (A, B):
        epochs = [encode_epoch(clock, age_ns) for age_ns in (0, 4096, 50_000, SECOND_NS, YEAR_NS, 8 * YEAR_NS)]
        assert len(set(epochs)) == len(epochs)
        for earlier, later in pairwise(epochs):
            assert order.is_later(later, earlier)
            assert not order.is_later(earlier, later)
            assert not order.is_later(later, later)


def test_epochs_of_all_other_clocks_came_before_those_of_the_broker():
    for own, other in permutations((A, B, C), 2):
        order = EpochOrder(encode_epoch(own, 5 * SECOND_NS))
        before, after = encode_epoch(other, YEAR_NS), encode_epoch(own, SECOND_NS)
        assert order.is_later(after, before)
        assert not order.is_later(before, after)
        assert order.is_of_other_boot(before)
        assert not order.is_of_other_boot(after)


def test_epochs_of_two_other_clocks_have_no_order():
    order = EpochOrder(encode_epoch(A, SECOND_NS))
    one, other = encode_epoch(B, SECOND_NS), encode_epoch(C, 2 * SECOND_NS)
    assert not order.is_later(one, other)
    assert not order.is_later(other, one)


def test_a_clock_that_ran_out_of_bits_is_another_clock():
    order = EpochOrder(encode_epoch(A, 10 * YEAR_NS))
    assert order.is_of_other_boot(encode_epoch(A, YEAR_NS))
    assert order.is_later(encode_epoch(A, 10 * YEAR_NS), encode_epoch(A, YEAR_NS))


def test_epochs_of_the_first_version_are_older_than_all_others_and_of_no_other_boot():
    order = EpochOrder(encode_epoch(A, SECOND_NS))
    for clock in (A, B):
        assert order.is_later(encode_epoch(clock, 0), FIRST_VERSION)
        assert not order.is_later(FIRST_VERSION, encode_epoch(clock, 0))
    assert order.is_later(FIRST_VERSION + 1, FIRST_VERSION)
    assert not order.is_of_other_boot(FIRST_VERSION)


def test_a_sort_by_key_contradicts_no_known_order():
    order = EpochOrder(encode_epoch(A, SECOND_NS))
    epochs = [FIRST_VERSION, 7, *(encode_epoch(clock, age_ns) for clock in (A, B, C) for age_ns in (0, SECOND_NS))]
    ordered = sorted(epochs, key=order.key)
    for place, epoch in enumerate(ordered):
        assert not any(order.is_later(before, epoch) for before in ordered[:place])
