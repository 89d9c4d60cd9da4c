"""How many events share a frame, to the byte and to the container."""

from __future__ import annotations

from typing import Any

import pytest

from eventsh.core.batches import Alone, Batcher
from eventsh.protocol.codec import decode
from eventsh.protocol.frame import BATCH_BYTES, BATCH_CONTAINERS, BATCH_EVENTS, HEADER_BYTES, Flag, Kind, decode_header

LEAST = 50


def names(source: str = "s", event: str = "e") -> Any:
    start = f'["{source}","{event}",['.encode()
    return (source, event, start, b"]]," + start, 400, 65536)


SAME = names()


def build(facts: list[Any], datas: list[bytes], batcher: Batcher | None = None, first: int = 1):
    count, frame = (batcher or Batcher()).build(facts, datas, first, pid=3, origin=5)
    header = decode_header(frame)
    assert (header.length, header.kind, header.count) == (len(frame) - HEADER_BYTES, Kind.EVENTS, count)
    return header, bytes(frame[HEADER_BYTES:])


def test_a_frame_has_the_stamps_of_its_poster_and_none_of_the_broker():
    header, body = build([SAME, SAME], [b"1", b"2"], first=9)
    assert (header.flags, header.pid, header.origin, header.origin_seq, header.seq, header.time_ns) == (
        0,
        3,
        5,
        9,
        0,
        0,
    )
    assert body == b'[["s","e",[1,2]]]'


def test_neighbours_with_the_same_names_share_a_run():
    a, b = names("a"), names("b")
    for facts, expected in (
        ([a], '[["a","e",[0]]]'),
        ([a, b], '[["a","e",[0]],["b","e",[1]]]'),
        ([a, a, b, b, a], '[["a","e",[0,1]],["b","e",[2,3]],["a","e",[4]]]'),
        ([a, b, b], '[["a","e",[0]],["b","e",[1,2]]]'),
        # Equal ones that are not the same object are runs of their own, and decode to the same events.
        ([a, names("a"), b], '[["a","e",[0]],["a","e",[1]],["b","e",[2]]]'),
    ):
        header, body = build(facts, [str(place).encode() for place in range(len(facts))])
        assert body.decode() == expected
        assert header.count == len(facts)


def test_a_batch_ends_before_an_event_that_travels_alone():
    alone = Alone(Flag.RECEIPT)
    for facts, count in (
        ([SAME, alone], 1),
        ([SAME, names("b"), alone, SAME], 2),
        ([SAME, SAME, SAME, alone, alone], 3),
    ):
        header, body = build(facts, [b"7"] * len(facts))
        assert header.count == count
        assert sum(len(datas) for _, _, datas in decode(body)) == count


def test_an_event_alone_has_its_own_body_and_facts():
    header, body = build([Alone(Flag.UNIQUE | Flag.DIRECTED, 3, 77, 9), SAME], [b"body", b"1"], first=4)
    assert body == b"body"
    assert (header.flags, header.count, header.pid, header.origin, header.origin_seq, header.seq) == (
        33,
        3,
        77,
        5,
        4,
        9,
    )
    header, _ = build([Alone(0)], [b"body"])
    assert (header.flags, header.count, header.pid, header.seq) == (0, 1, 3, 0)
    assert build([Alone(0, pid=0)], [b""])[0].pid == 0


@pytest.mark.parametrize(
    ("sizes", "count"),
    [
        ([BATCH_BYTES], 1),
        ([BATCH_BYTES + 1], 1),
        ([BATCH_BYTES, 1], 1),
        ([BATCH_BYTES - 1, 1], 2),
        ([BATCH_BYTES - 1, 1, 1], 2),
        ([BATCH_BYTES - 1, 2, 1], 2),
        ([BATCH_BYTES // 2, BATCH_BYTES // 2 - 1, 1, 1], 3),
        ([1, BATCH_BYTES * 5, 1], 2),
        ([1] * 100, 100),
    ],
)
def test_a_batch_ends_with_the_event_that_reaches_its_bytes(sizes, count):
    header, body = build([SAME] * len(sizes), [b"1" * size for size in sizes])
    assert header.count == count
    assert len(body) == len(b'[["s","e",[') + sum(sizes[:count]) + count - 1 + len(b"]]]")


# --- what the next batch may be ---


def learned(count: int, data: bytes, facts: list[Any] | None = None) -> int:
    batcher = Batcher()
    assert batcher.events == BATCH_EVENTS
    build(facts or [SAME] * count, [data] * count, batcher)
    return batcher.events


def test_a_short_batch_says_nothing_of_the_next_one():
    assert learned(LEAST - 1, b"[[[1]]]") == BATCH_EVENTS
    assert learned(LEAST, b"[[[1]]]") != BATCH_EVENTS


@pytest.mark.parametrize(
    ("data", "each"), [(b"[]", 1), (b"{}", 1), (b'{"a":[1,2]}', 2), (b"[[],[],[{}]]", 5), (b'{"a":{"b":{"c":1}}}', 3)]
)
def test_the_next_batch_has_as_many_containers_as_decode_without_the_collector(data, each):
    events = learned(150, data)
    assert BATCH_CONTAINERS * 0.9 <= events * each <= BATCH_CONTAINERS * 1.05
    # The end of the batch is looked at, not the whole.
    batcher = Batcher()
    flat = b'"' + b"x" * (len(data) - 2) + b'"'
    build([SAME] * 1200, [flat] * 400 + [data] * 800, batcher)
    assert BATCH_CONTAINERS * 0.9 <= batcher.events * each <= BATCH_CONTAINERS * 1.05


def test_flat_events_are_bounded_in_number_and_long_ones_in_bytes():
    assert learned(200, b"1") == BATCH_CONTAINERS
    # 150 bytes and a comma: 32 KiB are 217 of them.
    assert BATCH_BYTES // 152 - 3 <= learned(150, b'"' + b"x" * 148 + b'"') <= BATCH_BYTES // 151
    assert learned(60, b'"' + b"x" * 500 + b'"') == BATCH_BYTES * 60 // (60 * 503 + 53)
    assert learned(100, b"[" * 30 + b"]" * 30) == LEAST


def test_runs_count_as_containers_too():
    events = learned(200, b"1", [names(), names("b")] * 100)
    assert BATCH_CONTAINERS / 2 * 0.9 <= events <= BATCH_CONTAINERS / 2 * 1.05
