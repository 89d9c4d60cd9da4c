"""The outbox at its bounds: to the event, to the byte, and to the call."""

from __future__ import annotations

from typing import Any

import pytest

from eventsh.core.outbox import Outbox
from eventsh.core.trace import Wait
from eventsh.errors import NotSerializable, PayloadTooLarge, QueueOverflow, UsageError
from eventsh.protocol.codec import SURE_BYTES
from eventsh.protocol.frame import BATCH_EVENTS, HEADER_BYTES, Flag, decode_header


def make(**options: Any) -> Outbox:
    return Outbox(**{"origin": 5, "pid": 42, "max_queue_len": 10_000, "max_payload_len": 65536, **options})


def post(outbox: Outbox, count: int = 1) -> None:
    for _ in range(count):
        outbox.post("s", "e", 1)


def state(outbox: Outbox) -> tuple[int, int, int, int, int]:
    return outbox.confirmed, outbox.numbered, outbox.number, outbox.queued, outbox.unconfirmed


# --- counts ---


def test_every_post_is_counted_from_its_post_to_its_confirmation():
    outbox = make()
    assert (state(outbox), outbox.has_unbatched, outbox.origin) == ((0, 0, 0, 0, 0), False, 5)
    assert outbox.queued_bytes == 0
    post(outbox, 3)
    assert (state(outbox), outbox.has_unbatched) == ((0, 0, 3, 3, 0), True)
    assert outbox.queued_bytes == 3
    (frame,) = outbox.take()
    assert (state(outbox), outbox.has_unbatched) == ((0, 3, 3, 3, 3), False)
    assert outbox.queued_bytes == len(frame)
    post(outbox, 2)
    assert (state(outbox), outbox.has_unbatched) == ((0, 3, 5, 5, 3), True)
    assert outbox.queued_bytes == len(frame) + 2
    outbox.confirm(1)
    assert (state(outbox), outbox.has_unbatched) == ((1, 3, 5, 4, 2), True)
    outbox.confirm(1)
    outbox.confirm(0)
    assert state(outbox) == (1, 3, 5, 4, 2)
    assert outbox.queued_bytes == len(frame) + 2
    outbox.confirm(3)
    assert (state(outbox), outbox.queued_bytes) == ((3, 3, 5, 2, 0), 2)
    (frame,) = outbox.take()
    assert (decode_header(frame).origin_seq, decode_header(frame).count) == (4, 2)
    outbox.confirm(5)
    assert (state(outbox), outbox.queued_bytes) == ((5, 5, 5, 0, 0), 0)


@pytest.mark.parametrize("limit", [1, 2, 7])
def test_the_queue_holds_exactly_its_limit(limit):
    outbox = make(max_queue_len=limit)
    for _ in range(3):
        for _ in range(limit):
            post(outbox)
        with pytest.raises(QueueOverflow) as caught:
            post(outbox)
        assert (caught.value.queued, caught.value.limit) == (limit, limit)
        outbox.take()
        outbox.confirm(outbox.number)


def test_a_limit_can_be_changed_at_any_time():
    outbox = make(max_queue_len=2, max_payload_len=100, max_queue_bytes=10_000)
    post(outbox, 2)
    outbox.max_queue_len = 3
    assert outbox.max_queue_len == 3
    post(outbox)
    with pytest.raises(QueueOverflow):
        post(outbox)
    outbox.max_queue_len = 1
    with pytest.raises(QueueOverflow):
        post(outbox)
    outbox.max_queue_len = 100
    outbox.post("s", "e", "x" * 88)
    with pytest.raises(PayloadTooLarge):
        outbox.post("s", "e", "x" * 89)
    outbox.max_payload_len = 101
    assert outbox.max_payload_len == 101
    outbox.post("s", "e", "x" * 89)
    with pytest.raises(PayloadTooLarge):
        outbox.post("s", "e", "x" * 90)
    outbox.max_queue_bytes = 150
    assert outbox.max_queue_bytes == 150
    with pytest.raises(QueueOverflow, match="max_queue_bytes"):
        post(outbox)


@pytest.mark.parametrize(("limit", "half"), [(100, 50), (101, 50), (1, 0)])
def test_half_empty_is_half_of_the_limit_and_no_more(limit, half):
    outbox = make(max_queue_len=limit)
    by_bytes = make(max_queue_bytes=limit * 10)
    post(outbox, half)
    by_bytes.post_body(b"x" * (limit * 5), 1, pid=1)
    at_half = [outbox.is_half_empty, by_bytes.is_half_empty]
    post(outbox)
    by_bytes.post_body(b"x", 1, pid=1)
    assert [*at_half, outbox.is_half_empty, by_bytes.is_half_empty] == [True, True, False, False]


# --- calls of the owner ---


def test_the_owner_is_called_by_each_post_while_it_sleeps():
    calls: list[int] = []
    awake = bytearray(1)
    outbox: Outbox = make(on_post=lambda: calls.append(outbox.number), is_awake=awake)
    post(outbox, 2)
    outbox.post_receipt("s", "e", 1)
    outbox.post_body(b"[]", 2, pid=1)
    # The event is there when the owner is called.
    assert calls == [1, 2, 3, 5]
    awake[0] = 1
    post(outbox)
    outbox.post_unique("s", "e", 1, "k")
    assert calls == [1, 2, 3, 5]
    assert outbox.is_awake is awake
    assert len(make().is_awake) == 1


def test_an_owner_that_can_send_at_once_is_called_for_every_two_batches():
    calls: list[int] = []
    outbox: Outbox = make(on_many=lambda: calls.append(outbox.number))
    post(outbox, 2000)
    # The first post of all counts the room in the queue, and calls it too.
    assert calls == list(range(0, 2000, 2 * BATCH_EVENTS + 1))


def test_an_owner_that_sends_when_called_is_called_as_often():
    calls = []

    def send() -> None:
        calls.append(outbox.number)
        outbox.take()
        outbox.confirm(outbox.numbered)

    outbox = make(on_many=send)
    post(outbox, 5000)
    assert all(number <= outbox.number for number in calls)
    assert 5000 // (2 * 600 + 2) <= len(calls) <= 5000 // (2 * BATCH_EVENTS)
    post_alone = make(on_many=lambda: calls.append(-1))
    for _ in range(2 * BATCH_EVENTS + 5):
        post_alone.post_receipt("s", "e", 1)
    assert calls[-1] == -1


# --- posts ---


def test_names_are_encoded_once_and_limits_hold_for_each():
    outbox = make(max_payload_len=50)
    for source, event in (("s", "e"), ("s", "f"), ("t", "e"), ("s", "e")):
        room = 50 - len(f'["{source}","{event}",""]')
        outbox.post(source, event, "x" * room)
        with pytest.raises(PayloadTooLarge) as caught:
            outbox.post(source, event, "x" * (room + 1))
        assert (caught.value.source, caught.value.event) == (source, event)
        assert (caught.value.size_bytes, caught.value.limit_bytes) == (51, 50)
    assert len(outbox._known_names) == 3


def test_a_name_may_be_of_a_subclass_and_is_the_string_itself():
    class Name(str):
        __slots__ = ()

        def __hash__(self) -> int:
            raise AssertionError("the code of a subclass ran")

        __eq__ = __hash__  # type: ignore[assignment]

    outbox = make()
    outbox.post("s", "e", 1)
    outbox.post(Name("s"), "e", 2)
    outbox.post("s", Name("e"), 3)
    (frame,) = outbox.take()
    assert bytes(frame[HEADER_BYTES:]).count(b'"s","e"') >= 1
    assert decode_header(frame).count == 3


@pytest.mark.parametrize("source", ["eventsh"])
def test_the_source_of_the_broker_is_refused_in_every_kind_of_post(source):
    outbox = make()
    for refused in (
        lambda: outbox.post(source, "e", 1),
        lambda: outbox.post_unique(source, "e", 1, "k"),
        lambda: outbox.post_receipt(source, "e", 1),
    ):
        with pytest.raises(UsageError, match="the source 'eventsh' is eventsh's own"):
            refused()
    assert outbox.number == 0


@pytest.mark.parametrize("size", [SURE_BYTES - 2, SURE_BYTES - 1, SURE_BYTES])
def test_data_of_any_length_is_checked_for_what_json_has_not(size):
    outbox = make()
    post(outbox)
    deep: Any = []
    for _ in range(200):
        deep = [deep]
    for bad in ([float("nan")], ["x" * (size - 10), float("nan")], deep, ["u" * size, float("inf")]):
        with pytest.raises(NotSerializable):
            outbox.post("s", "e", bad)
    for good in ("x" * size, ["null", None], "u", ["x" * size, None], {"a": None}):
        outbox.post("s", "e", good)
    assert outbox.number == 6


@pytest.mark.parametrize(
    ("options", "flags"),
    [
        ({}, Flag.UNIQUE),
        ({"receipt": True}, Flag.UNIQUE | Flag.RECEIPT),
        ({"trace": True}, Flag.UNIQUE | Flag.RECEIPT | Flag.TRACE),
        ({"receipt": True, "trace": True}, Flag.UNIQUE | Flag.RECEIPT | Flag.TRACE),
    ],
)
def test_a_unique_post_asks_for_what_it_is_told_to(options, flags):
    outbox = make()
    outbox.post_unique("s", "e", 1, "k" * 300, **options)
    (frame,) = outbox.take()
    assert decode_header(frame).flags == flags
    assert bytes(frame[HEADER_BYTES:]) == b"\x2c\x01" + b"k" * 300 + b'[["s","e",[1]]]'
    traced = make()
    traced.post_receipt("s", "e", 1, trace=True)
    assert decode_header(traced.take()[0]).flags == Flag.RECEIPT | Flag.TRACE


def test_a_key_has_at_most_65535_bytes():
    outbox = make(max_payload_len=200_000)
    outbox.post_unique("s", "e", 1, "é" * 32767 + "k")
    outbox.post_unique("s", "e", 1, "\udcff")
    with pytest.raises(UsageError, match="the unique key is 65536 bytes long, over the limit of 65535"):
        outbox.post_unique("s", "e", 1, "é" * 32768)
    assert outbox.number == 2


@pytest.mark.parametrize("how", ["unique", "receipt"])
def test_an_event_alone_counts_to_the_byte_too(how):
    outbox = make(max_payload_len=100)
    head = 2 + 3 if how == "unique" else 0
    room = 100 - len('["s","e",""]') - head

    def each(data: str) -> None:
        if how == "unique":
            outbox.post_unique("s", "e", data, "key")
        else:
            outbox.post_receipt("s", "e", data)

    each("x" * room)
    with pytest.raises(PayloadTooLarge) as caught:
        each("x" * (room + 1))
    assert (caught.value.size_bytes, caught.value.limit_bytes) == (101, 100)


def test_a_body_is_posted_whole_or_not_at_all():
    outbox = make(max_queue_len=5)
    # One that is longer than the queue passes while it is empty.
    outbox.post_body(b"[]", 9, pid=7)
    assert outbox.queued == 9
    with pytest.raises(QueueOverflow) as caught:
        outbox.post_body(b"[]", 1, pid=7)
    assert (caught.value.queued, caught.value.limit) == (9, 5)
    (frame,) = outbox.take()
    header = decode_header(frame)
    assert (header.count, header.pid, header.origin_seq, header.seq, header.flags) == (9, 7, 1, 0, 0)
    outbox.confirm(9)
    post(outbox, 2)
    outbox.post_body(b"[]", 3, pid=7)
    with pytest.raises(QueueOverflow):
        outbox.post_body(b"[]", 1, pid=7)
    assert outbox.queued == 5


@pytest.mark.parametrize(("worker", "seq", "flag"), [(None, 0, 0), (0, 1, Flag.DIRECTED), (7, 8, Flag.DIRECTED)])
def test_a_body_can_be_for_one_worker(worker, seq, flag):
    outbox = make()
    outbox.post_body(b"[]", 1, pid=7, flags=Flag.UNIQUE | Flag.REPLAYED, key=b"key", worker=worker)
    (frame,) = outbox.take()
    header = decode_header(frame)
    assert (header.seq, header.flags) == (seq, Flag.UNIQUE | Flag.REPLAYED | flag)
    assert bytes(frame[HEADER_BYTES:]) == b"\x03\x00key[]"


# --- the limit in bytes ---


def test_long_data_is_accepted_as_long_as_there_is_room_for_it():
    # Beside a hundredth, which is kept so that not every post counts.
    outbox = make(max_queue_bytes=100_000)
    for _ in range(9):
        outbox.post("s", "e", "x" * 9_998)
    outbox.post("s", "e", "x" * 9_997)
    with pytest.raises(QueueOverflow) as caught:
        outbox.post("s", "e", "x" * 1000)
    assert (caught.value.queued, caught.value.limit, caught.value.unit) == (99_999, 100_000, "bytes")
    assert outbox.number == 10


def test_data_larger_than_the_whole_queue_passes_alone():
    outbox = make(max_queue_bytes=1000)
    outbox.post("s", "e", "x" * 5000)
    with pytest.raises(QueueOverflow):
        outbox.post("s", "e", "x" * 5000)
    outbox.take()
    outbox.confirm(1)
    outbox.post("s", "e", "x" * 5000)


# --- sending ---


def numbers(frames: list[bytearray]) -> list[tuple[int, int]]:
    return [(decode_header(frame).origin_seq, decode_header(frame).count) for frame in frames]


@pytest.mark.parametrize(("window", "first"), [(4, [1, 3]), (5, [1, 3]), (6, [1, 3, 5]), (3, [1]), (1, [1])])
def test_as_much_leaves_as_the_window_holds(window, first):
    outbox = make()
    outbox.window = 100
    for _ in range(3):
        post(outbox, 2)
        outbox.take()
    # The same when it leaves again.
    outbox.rewind()
    outbox.window = window
    assert [number for number, _ in numbers(outbox.take())] == first
    assert outbox.take() == []
    fresh = make()
    fresh.window = window
    sent = []
    for _ in range(3):
        post(fresh, 2)
        sent += [number for number, _ in numbers(fresh.take())]
    assert sent == first


def test_what_left_again_leaves_once_and_new_posts_follow():
    outbox = make()
    for _ in range(3):
        post(outbox)
        outbox.take()
    outbox.confirm(1)
    outbox.rewind()
    post(outbox)
    assert numbers(outbox.take()) == [(2, 1), (3, 1), (4, 1)]
    assert outbox.take() == []
    post(outbox)
    assert numbers(outbox.take()) == [(5, 1)]


def test_with_sixteen_frames_under_way_short_batches_wait():
    outbox = make()
    for number in range(16):
        post(outbox)
        assert len(outbox.take(linger=True)) == 1, number
    post(outbox)
    assert outbox.take(linger=True) == []
    assert len(outbox.take()) == 1
    outbox.confirm(1)
    post(outbox)
    assert outbox.take(linger=True) == []
    outbox.confirm(2)
    assert numbers(outbox.take(linger=True)) == [(18, 1)]
    # A full one does not wait.
    post(outbox, BATCH_EVENTS - 1)
    assert outbox.take(linger=True) == []
    post(outbox)
    assert numbers(outbox.take(linger=True)) == [(19, BATCH_EVENTS)]


def test_a_batch_that_ends_with_an_event_alone_does_not_wait():
    outbox = make()
    for _ in range(16):
        post(outbox)
        outbox.take()
    post(outbox, 2)
    outbox.post_receipt("s", "e", 1)
    assert numbers(outbox.take(linger=True)) == [(17, 2), (19, 1)]


# --- waits, and other posters ---


def test_who_waits_for_a_post_is_known_by_its_number_until_forgotten():
    outbox = make()
    first, second, gone = Wait(), Wait(), Wait()
    post(outbox)
    outbox.post_receipt("s", "e", 1, wait=first)
    outbox.post_unique("s", "e", 1, "k", wait=second)
    outbox.post_receipt("s", "e", 1, wait=gone)
    outbox.forget(gone)
    assert outbox.waits == {}
    outbox.take()
    assert outbox.waits == {2: first, 3: second}
    outbox.forget(first)
    assert outbox.waits == {3: second}
    assert (first.is_abandoned, second.is_abandoned) == (True, False)
    outbox.renew(6, 43)
    assert outbox.waits == {}


def test_a_new_poster_begins_with_what_had_no_batch():
    outbox = make(is_awake=bytearray(b"\1"))
    for data in (1, 2):
        outbox.post("s", "e", data)
    outbox.take()
    outbox.confirm(1)
    outbox.post("s", "e", 3)
    outbox.renew(6, 43)
    assert (state(outbox), outbox.origin, outbox.pid, outbox.is_awake[0]) == ((0, 0, 1, 1, 0), 6, 43, 0)
    (frame,) = outbox.take()
    header = decode_header(frame)
    assert (header.origin, header.pid, header.origin_seq, header.flags) == (6, 43, 1, 0)
    assert bytes(frame[HEADER_BYTES:]) == b'[["s","e",[3]]]'


def test_what_the_poster_before_sent_takes_no_room_in_the_window_of_a_new_one():
    outbox = make()
    outbox.window = 2
    post(outbox, 2)
    outbox.take()
    outbox.renew(6, 43)
    post(outbox, 2)
    assert numbers(outbox.take()) == [(1, 2)]


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_a_forked_child_keeps_what_it_posted_itself(kept):
    outbox = make()
    for data in (1, 2, 3):
        outbox.post("s", "e", data)
    outbox.renew(6, 43, keep_last=kept)
    assert outbox.queued == kept
    bodies = [bytes(frame[HEADER_BYTES:]) for frame in outbox.take()]
    expected = [b"", b'[["s","e",[3]]]', b'[["s","e",[2,3]]]'][kept]
    assert bodies == ([expected] if kept else [])


def test_an_origin_that_is_taken_is_replaced():
    outbox = make()
    post(outbox)
    outbox.rename(9)
    assert (outbox.origin, state(outbox)) == (9, (0, 0, 1, 1, 0))
    assert [decode_header(frame).origin for frame in outbox.take()] == [9]


# --- forms that a broker can't read ---


def test_only_what_a_broker_can_not_read_is_emptied():
    outbox = make()
    post(outbox)
    outbox.take()
    outbox.post_body(b"{}[]", 2, pid=7, flags=64 | Flag.RECEIPT | Flag.TRACE)
    outbox.take()
    outbox.post_body(b"{}[]", 3, pid=8, flags=128 | Flag.REPLAYED)
    outbox.post_body(b"[]", 1, pid=9, flags=Flag.REPLAYED)
    post(outbox)
    outbox.rewind()
    assert outbox.withdraw(255) == 0
    assert outbox.withdraw(63) == 5
    assert outbox.withdraw(63) == 0
    found = [(*decode_header(frame)[2:7], bytes(frame[HEADER_BYTES:])) for frame in outbox.take()]
    resent = Flag.RESENT
    assert found == [
        (resent, 1, 42, 5, 1, b'[["s","e",[1]]]'),
        (resent | Flag.RECEIPT | Flag.TRACE, 2, 7, 5, 2, b"[]"),
        (0, 3, 8, 5, 4, b"[]"),
        (Flag.REPLAYED, 1, 9, 5, 7, b"[]"),
        (0, 1, 42, 5, 8, b'[["s","e",[1]]]'),
    ]
