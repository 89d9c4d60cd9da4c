from __future__ import annotations

from eventsh.core.broker.keys import KeyTable


def test_a_key_is_taken_for_the_timeout_and_not_longer():
    uniques = KeyTable(0.04, 10)
    uniques.take(b"k", 100.0)
    assert uniques.is_taken(b"k", 100.0)
    assert uniques.is_taken(b"k", 100.039)
    assert not uniques.is_taken(b"k", 100.04)
    assert not uniques.is_taken(b"other", 100.0)


def test_a_key_that_expired_can_be_taken_anew_and_then_lasts_as_long_again():
    uniques = KeyTable(0.04, 10)
    uniques.take(b"k", 100.0)
    uniques.take(b"k", 100.1)
    assert uniques.is_taken(b"k", 100.13)
    assert not uniques.is_taken(b"k", 100.15)
    assert len(uniques) == 1


def test_a_key_taken_anew_does_not_keep_older_ones_from_expiring():
    uniques = KeyTable(1.0, 10)
    uniques.take(b"a", 0.0)
    uniques.take(b"b", 0.5)
    uniques.take(b"a", 1.0)
    uniques.expire(1.5)
    assert len(uniques) == 1
    assert uniques.is_taken(b"a", 1.5)


def test_100_000_keys_at_once_let_no_repeat_through_and_then_all_go():
    uniques = KeyTable(5.0, 1_000_000)
    keys = [str(number).encode() for number in range(100_000)]
    for number, key in enumerate(keys):
        assert not uniques.is_taken(key, number * 1e-5)
        uniques.take(key, number * 1e-5)
    assert all(uniques.is_taken(key, 4.9) for key in keys)
    uniques.expire(5.5)
    assert len(uniques) == 49_999
    uniques.expire(6.0)
    assert len(uniques) == 0


def test_a_full_table_has_room_again_once_a_key_expires():
    uniques = KeyTable(1.0, 2)
    uniques.take(b"a", 0.0)
    assert not uniques.is_full(0.0)
    uniques.take(b"b", 0.5)
    assert uniques.is_full(0.9)
    assert not uniques.is_full(1.0)
    assert len(uniques) == 1
