"""What a client remembers of the events that it has, and what it reports of them to a new broker."""

from __future__ import annotations

import pytest

from eventsh.core import memory as memory_module
from eventsh.core.memory import REMEMBERED, Memory
from eventsh.core.standing import Standing
from eventsh.protocol.frame import Flag, Kind, encode_frame
from eventsh.protocol.messages import Gap, Taken


def unique(key: bytes) -> bytearray:
    return encode_frame(Kind.EVENTS, len(key).to_bytes(2, "little") + key + b"[]", flags=Flag.UNIQUE, count=1)


def remember() -> Memory:
    return Memory(lambda: 100.0)


def keys_of(memory: Memory) -> list[str]:
    taken = memory.tell(memory.told + 1)
    return [] if taken is None else [row[3] for row in taken.events]


def test_only_what_is_marked_as_resent_is_a_repeat():
    memory = remember()
    memory.seen[7] = 5
    memory.note_unique(7, 9, 1, unique(b"k"))
    for flags, number, expected in (
        (Flag.RESENT, 5, True),
        (Flag.RESENT, 6, False),
        (Flag.RESENT, 1, True),
        (0, 5, False),
        (Flag.UNIQUE, 9, False),
        (Flag.UNIQUE | Flag.RESENT, 9, True),
        (Flag.UNIQUE | Flag.RESENT, 5, False),
        (Flag.UNIQUE | Flag.RESENT, 10, False),
        (Flag.RESENT, 9, False),
    ):
        assert memory.is_repeat(flags, 7, number) is expected, (flags, number)
    assert not memory.is_repeat(Flag.RESENT, 8, 1)
    # A number below the first one does not exist.
    assert not memory.is_repeat(Flag.RESENT | Flag.UNIQUE, 8, 9)


def test_a_broker_hears_of_unique_events_until_it_has_answered():
    memory = remember()
    had = memory.has_uniques
    assert memory.tell(1) is None
    assert memory.told == 1
    memory.note_unique(7, 9, 123, unique(b"ab"))
    memory.note_unique(8, 2, 124, unique(b"c"))
    assert [had, memory.has_uniques] == [False, True]
    # The broker that gave them out knows.
    assert memory.tell(1) is None
    for _ in range(2):
        taken = memory.tell(2)
        assert isinstance(taken, Taken)
        assert taken.events == [[7, 9, 123, "6162"], [8, 2, 124, "63"]]
    memory.told = 2
    assert memory.tell(2) is None
    assert memory.told == 2


def test_the_oldest_unique_events_are_forgotten_by_number(monkeypatch):
    monkeypatch.setattr(memory_module, "_REMEMBERED_UNIQUES", 3)
    memory = remember()
    for number in range(1, 4):
        memory.note_unique(7, number, number, unique(b"k"))
    assert len(keys_of(memory)) == 3
    # One that comes again is the newest.
    memory.note_unique(7, 1, 10, unique(b"new"))
    memory.note_unique(7, 4, 11, unique(b"k"))
    taken = memory.tell(5)
    assert taken is not None
    assert taken.events == [[7, 3, 3, "6b"], [7, 1, 10, "6e6577"], [7, 4, 11, "6b"]]


def test_the_oldest_unique_events_are_forgotten_by_the_bytes_of_their_keys(monkeypatch):
    monkeypatch.setattr(memory_module, "_REMEMBERED_KEY_BYTES", 10)
    memory = remember()
    for number, key in enumerate((b"aaaa", b"bbb", b"ccc"), 1):
        memory.note_unique(7, number, 1, unique(key))
    assert keys_of(memory) == ["61616161", "626262", "636363"]
    # Noted again with another key: the bytes of the one before are free.
    memory.note_unique(7, 1, 1, unique(b"a"))
    memory.note_unique(7, 4, 1, unique(b"ddd"))
    assert len(keys_of(memory)) == 4
    memory.note_unique(7, 5, 1, unique(b"e"))
    assert keys_of(memory) == ["636363", "61", "646464", "65"]
    memory._key_bytes = 99
    memory.recount()
    memory.note_unique(7, 6, 1, unique(b"ff"))
    assert len(keys_of(memory)) == 5
    # A key that is longer than all that may be remembered is forgotten at once.
    memory.note_unique(7, 7, 1, unique(b"g" * 11))
    assert not memory.has_uniques
    memory.note_unique(7, 8, 1, unique(b"h" * 10))
    assert keys_of(memory) == ["68" * 10]


def test_as_much_is_remembered_as_fits_into_one_frame():
    assert REMEMBERED == 65536
    assert (memory_module._REMEMBERED_UNIQUES, memory_module._REMEMBERED_KEY_BYTES) == (16384, 2 * 1024 * 1024)


# --- how far a client got in the posts of each broker ---


def test_brokers_and_slots_of_long_ago_are_forgotten_oldest_first():
    standing = Standing()
    for epoch in range(1, 20):
        standing.begin(10 * epoch, epoch - 1, (epoch, epoch - 1))
        standing.begin(10 * epoch, epoch - 1, (epoch, epoch - 1))
    assert (standing.place, standing.confirmed) == ((190, 0), 0)
    assert standing.places(19) == [[19, 190, 0], *([epoch, epoch + 1, epoch] for epoch in range(18, 3, -1))]
    assert standing.places(0) == standing.places(19)[1:]
    for number in range(130):
        standing.note_holder({"worker_id": number, "posts": number}, 19)
    standing.note_holder({"worker_id": 2, "posts": 7}, 20)
    standing.note_holder({"worker_id": 3, "posts": None}, 20)
    assert standing.vacant == [*([number, 19, number] for number in range(4, 130)), [2, 20, 7]]


@pytest.mark.parametrize(
    ("gap", "posts", "places"),
    [
        (Gap(5, 1, 5, "r", posts=20), 20, [[2, 20, 3], [1, 8, 6]]),
        (Gap(5, 1, 5, "r", posts=4), 10, [[2, 10, 3], [1, 8, 6]]),
        (Gap(5, 1, 5, "r", posts=20, exact=False), 20, [[2, 20, 3], [1, 8, 6]]),
        (Gap(5, 1, 5, "r", epoch=1, posts=9), 10, [[2, 10, 3], [1, 9, 6]]),
        (Gap(5, 1, 5, "r", epoch=1, posts=7), 10, [[2, 10, 3], [1, 8, 6]]),
    ],
)
def test_a_gap_moves_a_place_on_and_never_back(gap, posts, places):
    standing = Standing()
    standing.begin(10, 1, (8, 6))
    standing.confirmed = 3
    standing.take_gap(gap)
    assert standing.posts == posts
    assert standing.places(2) == places
