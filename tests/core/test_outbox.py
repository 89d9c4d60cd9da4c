from __future__ import annotations

import gc
import re
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventsh.core.batches import Batcher
from eventsh.core.outbox import Outbox
from eventsh.errors import EventError, NotSerializable, PayloadTooLarge, QueueOverflow, UsageError
from eventsh.protocol.codec import decode
from eventsh.protocol.frame import (
    BATCH_BYTES,
    BATCH_CONTAINERS,
    BATCH_EVENTS,
    HEADER_BYTES,
    MAX_BODY_BYTES,
    MAX_PAYLOAD_BYTES,
    Flag,
    FrameDecoder,
    Kind,
    decode_header,
)

ORIGIN, PID = 77, 4711


def make(*, max_queue_len=10240, max_payload_len=65536, **options):
    return Outbox(origin=ORIGIN, pid=PID, max_queue_len=max_queue_len, max_payload_len=max_payload_len, **options)


def runs_of(frame):
    header = decode_header(frame)
    body = bytes(frame[HEADER_BYTES:])
    if header.flags & Flag.UNIQUE:
        body = body[2 + int.from_bytes(body[:2], "little") :]
    return decode(body)


def events_of(frames):
    """Every event with its number, as a worker would read it."""
    events: list[tuple[int, tuple[str, str, Any]]] = []
    for frame in frames:
        header = decode_header(frame)
        assert (header.kind, header.pid, header.origin) == (Kind.EVENTS, PID, ORIGIN)
        assert header.length == len(frame) - HEADER_BYTES
        several = [(source, event, data) for source, event, run in runs_of(frame) for data in run]
        assert len(several) == header.count
        events += zip(range(header.origin_seq, header.origin_seq + header.count), several, strict=True)
    return events


def state_of(outbox):
    frames = outbox.take()
    return outbox.number, outbox.queued, [bytes(frame) for frame in frames]


# --- batches ---


def test_neighbours_with_one_source_and_event_share_a_run_and_order_is_kept():
    outbox = make()
    for source, event, data in [("a", "x", 1), ("a", "x", 2), ("b", "x", 3), ("b", "y", 4), ("a", "x", 5)]:
        outbox.post(source, event, data)
    (frame,) = outbox.take()
    assert runs_of(frame) == [["a", "x", [1, 2]], ["b", "x", [3]], ["b", "y", [4]], ["a", "x", [5]]]


def test_names_that_are_equal_but_not_the_same_object_share_a_run():
    outbox = make()
    for number in range(3):
        outbox.post(str(b"source", "ascii"), str(b"event", "ascii"), number)
    (frame,) = outbox.take()
    assert runs_of(frame) == [["source", "event", [0, 1, 2]]]


def test_posts_are_numbered_from_1_across_batches():
    outbox = make()
    outbox.post("s", "e", 1)
    outbox.post("s", "e", 2)
    first = outbox.take()
    outbox.post("s", "e", 3)
    assert events_of(first + outbox.take()) == [(number, ("s", "e", number)) for number in (1, 2, 3)]
    assert outbox.take() == []


def test_a_post_is_a_snapshot():
    outbox = make()
    data = {"list": [1]}
    outbox.post("s", "e", data)
    data["list"].append(2)
    assert events_of(outbox.take()) == [(1, ("s", "e", {"list": [1]}))]


def test_a_batch_is_closed_once_it_is_long():
    outbox = make()
    for _ in range(40):
        outbox.post("s", "e", "x" * 1000)
    frames = outbox.take()
    assert len(frames) > 1
    assert all(0.9 * BATCH_BYTES <= len(frame) < BATCH_BYTES + 1100 for frame in frames[:-1])


@pytest.mark.parametrize(
    ("events", "data", "containers"),
    [
        ("e", 1, 1),
        ("ef", 1, 2),
        ("e", {"id": 1}, 1),
        ("e", {"id": 1, "tags": ["a", "b"]}, 2),
        ("ef", {"id": 1, "tags": ["a", "b"]}, 4),
        ("e", [[]] * 9, 10),
    ],
)
def test_a_batch_holds_what_can_be_decoded_and_let_go_without_a_garbage_collection(events, data, containers):
    outbox = make()
    for number in range(5000):
        outbox.post("s", events[number % len(events)], data)
    frames = outbox.take()
    assert len(events_of(frames)) == 5000
    counts = [decode_header(frame).count for frame in frames]
    assert counts[0] == BATCH_EVENTS
    fitting = min(BATCH_CONTAINERS // containers, 600)
    assert all(0.9 * fitting <= count <= fitting for count in counts[1:-1])
    if containers > 4:
        # Of what is nested so much the first batch is too long: nothing was known of it.
        del frames[0]
    collected: list[str] = []

    def note(phase: str, info: dict[str, int]) -> None:
        collected.append(phase)

    gc.collect()
    gc.callbacks.append(note)
    try:
        for frame in frames:
            decode(memoryview(frame)[HEADER_BYTES:])
    finally:
        gc.callbacks.remove(note)
    assert not collected


def test_the_owner_is_called_by_the_first_post_while_it_sleeps_and_by_no_other():
    calls: list[int] = []

    def wake() -> None:
        outbox.is_awake[0] = True
        calls.append(outbox.number)

    outbox: Outbox = make(on_post=wake)
    outbox.post("s", "e", 1)
    outbox.post("s", "f", 1)
    outbox.post_unique("s", "e", 1, "key")
    assert calls == [1]
    for post in (
        lambda: outbox.post("s", "e", 1),
        lambda: outbox.post_unique("s", "e", 1, "key"),
        lambda: outbox.post_receipt("s", "e", 1),
        lambda: outbox.post_body(b'[["s","e",[1,2]]]', 2, pid=1),
    ):
        outbox.is_awake[0] = False
        outbox.take()
        post()
    assert calls == [1, 4, 5, 6, 8]


def test_an_owner_that_takes_at_once_gets_every_event():
    taken: list[bytearray] = []
    outbox: Outbox = make(on_post=lambda: taken.extend(outbox.take()))
    for number in range(1, 6):
        outbox.post("s", f"e{number % 2}", number)
    assert [number for number, _ in events_of(taken)] == [1, 2, 3, 4, 5]


def test_an_owner_that_sends_in_the_posting_thread_is_called_for_every_two_full_batches():
    taken: list[bytearray] = []
    outbox: Outbox = make(on_many=lambda: taken.extend(outbox.take()))
    for number in range(1, 2001):
        outbox.post("s", "e", number)
    counts = [decode_header(frame).count for frame in taken]
    assert len(counts) >= 4
    assert counts[0] == BATCH_EVENTS
    assert 2000 - sum(counts) <= 2 * BATCH_CONTAINERS
    assert events_of(taken + outbox.take()) == [(n, ("s", "e", n)) for n in range(1, 2001)]


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
names = st.sampled_from(["a", "b", 'qu"ote', "\u20ac", "x" * 30]) | st.text(min_size=1, max_size=6)
posts = st.lists(
    st.tuples(names, names, json_values, st.sampled_from(["post", "post", "post", "unique", "receipt", "take"])),
    max_size=25,
)


@settings(deadline=None, derandomize=True, max_examples=200)
@given(posts)
def test_batches_hold_exactly_what_was_posted(several):
    outbox = make()
    frames, expected = [], []
    for source, event, data, how in several:
        if how == "unique":
            outbox.post_unique(source, event, data, "key")
        elif how == "receipt":
            outbox.post_receipt(source, event, data)
        else:
            outbox.post(source, event, data)
        expected.append((source, event, orjson.loads(orjson.dumps(data))))
        if how == "take":
            frames += outbox.take()
    frames += outbox.take()
    assert events_of(frames) == list(enumerate(expected, 1))
    assert FrameDecoder().receive_data(b"".join(frames)) == frames


# --- events that travel alone ---


def test_a_unique_event_travels_alone_with_its_key_and_in_its_turn():
    outbox = make()
    outbox.post("s", "e", 1)
    outbox.post_unique("s", "e", 2, "käy", receipt=True)
    outbox.post("s", "e", 3)
    frames = outbox.take()
    assert events_of(frames) == [(number, ("s", "e", number)) for number in (1, 2, 3)]
    assert [decode_header(frame).flags for frame in frames] == [0, Flag.UNIQUE | Flag.RECEIPT, 0]
    assert frames[1][HEADER_BYTES:].startswith(b"\x04\x00" + "käy".encode())


def test_an_event_with_a_receipt_travels_alone():
    outbox = make()
    outbox.post("s", "e", 1)
    outbox.post_receipt("s", "e", 2)
    outbox.post("s", "e", 3)
    assert [decode_header(frame).flags for frame in outbox.take()] == [0, Flag.RECEIPT, 0]


@pytest.mark.parametrize("key", ["", None, 1, b"key", "x" * 65536])
def test_what_can_be_no_key_is_refused(key):
    outbox = make()
    with pytest.raises(UsageError):
        outbox.post_unique("s", "e", 1, key)
    assert state_of(outbox) == (0, 0, [])


def test_the_longest_key_and_the_largest_event_fit_into_the_largest_frame():
    outbox = make(max_payload_len=MAX_PAYLOAD_BYTES)
    outbox.post("s", "e", "x" * (BATCH_BYTES - 1000))
    outbox.post("n" * 1000, "e" * 1000, "x" * (MAX_PAYLOAD_BYTES - 2010))
    outbox.post_unique("s", "e", "x" * (MAX_PAYLOAD_BYTES - 65537 - 12), "k" * 65535)
    lengths = [decode_header(frame).length for frame in outbox.take()]
    assert len(lengths) == 2
    assert max(lengths) <= MAX_BODY_BYTES


# --- what is refused changes nothing ---


def test_the_limit_counts_the_whole_event_to_the_byte():
    envelope = len(orjson.dumps(["source", "event", ""]))
    for name in ("event", "event", "other"):
        outbox = make(max_payload_len=200)
        outbox.post("source", "event", 0)
        fits = "x" * (200 - envelope)
        outbox.post("source", name, fits)
        with pytest.raises(PayloadTooLarge) as caught:
            outbox.post("source", name, fits + "x")
        assert (caught.value.size_bytes, caught.value.limit_bytes) == (201, 200)
        for word in ("201", "200", "max_payload_len", "'source'", repr(name)):
            assert word in str(caught.value)
        assert outbox.number == 2


def test_a_unique_event_counts_with_its_key():
    outbox = make(max_payload_len=200)
    head = len(orjson.dumps(["s", "e", ""])) + 2 + len("key")
    outbox.post_unique("s", "e", "x" * (200 - head), "key")
    with pytest.raises(PayloadTooLarge):
        outbox.post_unique("s", "e", "x" * (201 - head), "key")
    assert outbox.number == 1


@pytest.mark.parametrize("size", [65_537, 655_350, 1024 * 1024])
def test_large_events_below_the_limit_pass(size):
    outbox = make(max_payload_len=2 * 1024 * 1024)
    outbox.post("s", "e", "x" * size)
    outbox.post_unique("s", "e", "y" * size, "key")
    assert [data for _, (_, _, data) in events_of(outbox.take())] == ["x" * size, "y" * size]


REFUSED = {
    "too large": lambda outbox: outbox.post("s", "e", "x" * 300),
    "too large, other names": lambda outbox: outbox.post("other" * 20, "e", "x" * 150),
    "too large, alone": lambda outbox: outbox.post_receipt("s", "e", "x" * 300),
    "too large, unique": lambda outbox: outbox.post_unique("s", "e", "x" * 300, "key"),
    "no JSON": lambda outbox: outbox.post("s", "e", {1, 2}),
    "no JSON, unique": lambda outbox: outbox.post_unique("s", "e", float("nan"), "key"),
    "no source": lambda outbox: outbox.post("", "e", 1),
    "no event": lambda outbox: outbox.post("s", None, 1),
    "no Unicode": lambda outbox: outbox.post("\ud800", "e", 1),
    "no key": lambda outbox: outbox.post_unique("s", "e", 1, ""),
}


@pytest.mark.parametrize("before", [0, 1, 3])
@pytest.mark.parametrize("how", REFUSED)
def test_a_refused_post_leaves_no_trace(how, before):
    told = []
    outbox, untouched = make(max_payload_len=200, on_post=lambda: told.append(1)), make(max_payload_len=200)
    for number in range(before):
        outbox.post("s", "e", number)
        untouched.post("s", "e", number)
    told.clear()
    with pytest.raises(EventError):
        REFUSED[how](outbox)
    assert told == []
    assert (outbox.number, outbox.queued) == (before, before)
    for each in (outbox, untouched):
        each.post("s", "e", "after")
        # The size of this one is taken by the run that is open: it must not be judged by another one's names.
        with pytest.raises(PayloadTooLarge):
            each.post("s", "e", "x" * 189)
        each.post("s", "e", "x" * 186)
    assert state_of(outbox) == state_of(untouched)


def test_nan_and_infinity_are_refused_as_they_are_nowhere_in_json():
    outbox = make()
    for value in (float("nan"), [float("inf")]):
        with pytest.raises(NotSerializable):
            outbox.post("s", "e", value)
    assert outbox.number == 0


def test_a_full_queue_refuses_every_kind_of_post_until_something_is_confirmed():
    outbox = make(max_queue_len=2)
    outbox.post("s", "e", 1)
    outbox.post("s", "e", 2)
    outbox.take()
    refusals = (
        lambda: outbox.post("s", "e", 3),
        lambda: outbox.post_unique("s", "e", 3, "key"),
        lambda: outbox.post_receipt("s", "e", 3),
    )
    for refused in refusals:
        with pytest.raises(QueueOverflow, match="post queue holds 2 events, its limit is 2"):
            refused()
    outbox.confirm(2)
    outbox.post("s", "e", 3)
    assert events_of(outbox.take()) == [(3, ("s", "e", 3))]


# --- the window, confirmations, reconnects ---


def take_batches(outbox, *sizes):
    """Post batches of these sizes, and take what may leave after each."""
    frames = []
    for size in sizes:
        for _ in range(size):
            outbox.post("s", "e", outbox.number + 1)
        frames += outbox.take()
    return frames


def numbers(frames):
    return [decode_header(frame).origin_seq for frame in frames]


def test_no_more_leaves_than_the_window_allows_until_something_is_confirmed():
    outbox = make()
    outbox.window = 5
    assert numbers(take_batches(outbox, 2, 2, 2)) == [1, 3]
    assert outbox.take() == []
    outbox.confirm(2)
    assert numbers(outbox.take()) == [5]


def test_a_batch_that_is_larger_than_the_window_leaves_alone():
    outbox = make()
    outbox.window = 2
    assert numbers(take_batches(outbox, 3, 1)) == [1]
    assert outbox.take() == []
    outbox.confirm(3)
    assert numbers(outbox.take()) == [4]


def test_a_batch_that_may_not_leave_yet_goes_on_growing():
    outbox = make()
    outbox.window = 2
    take_batches(outbox, 2)
    for _ in range(2):
        outbox.post("s", "e", 0)
        assert outbox.take() == []
    outbox.confirm(2)
    (frame,) = outbox.take()
    assert decode_header(frame).count == 2


def test_everything_counts_as_queued_until_it_is_confirmed():
    outbox = make()
    take_batches(outbox, 2, 1)
    outbox.post("s", "e", 4)
    assert outbox.queued == 4
    outbox.take()
    assert outbox.queued == 4
    outbox.confirm(3)
    assert outbox.queued == 1
    outbox.confirm(2)
    assert outbox.queued == 1
    outbox.confirm(4)
    assert outbox.queued == 0


def test_after_a_reconnect_what_is_not_confirmed_leaves_again_first_and_is_marked():
    outbox = make()
    first = take_batches(outbox, 2, 2, 1)
    outbox.confirm(2)
    outbox.post("s", "e", 6)
    outbox.rewind()
    again = outbox.take()
    assert numbers(again) == [3, 5, 6]
    assert [decode_header(frame).flags for frame in again] == [Flag.RESENT, Flag.RESENT, 0]
    assert events_of(again) == [*events_of(first)[2:], (6, ("s", "e", 6))]
    outbox.rewind()
    assert [decode_header(frame).flags for frame in outbox.take()] == [Flag.RESENT] * 3


def test_what_never_left_is_not_marked_as_resent():
    outbox = make()
    outbox.window = 2
    take_batches(outbox, 2, 2)
    outbox.rewind()
    outbox.window = 10
    assert [decode_header(frame).flags for frame in outbox.take()] == [Flag.RESENT, 0]


def test_a_mark_leaves_the_other_flags_of_a_frame_as_they_are():
    outbox = make()
    outbox.post_unique("s", "e", 1, "key", receipt=True)
    outbox.take()
    outbox.rewind()
    (frame,) = outbox.take()
    assert decode_header(frame).flags == Flag.UNIQUE | Flag.RECEIPT | Flag.RESENT


def test_what_is_confirmed_while_it_waits_to_leave_again_does_not_leave():
    outbox = make()
    take_batches(outbox, 1, 1)
    outbox.rewind()
    outbox.confirm(1)
    assert numbers(outbox.take()) == [2]


def test_another_origin_is_that_of_every_later_frame():
    outbox = make()
    outbox.rename(99)
    outbox.post("s", "e", 1)
    assert [decode_header(frame).origin for frame in outbox.take()] == [99]


def test_a_program_that_makes_up_names_does_not_fill_the_memory():
    outbox = make(max_queue_len=100_000)
    for number in range(10_000):
        outbox.post("s", f"order {number}", None)
    assert len(outbox._known_names) <= 4096
    assert [event for _, (_, event, _) in events_of(outbox.take())] == [f"order {n}" for n in range(10_000)]


def test_posted_events_wait_for_others_only_while_many_frames_are_under_way():
    outbox = make()
    for number in range(1, 41):
        outbox.post("s", "e", number)
        outbox.take(linger=True)
    assert outbox.has_unbatched
    sent = 40 - len(events_of(outbox.take()))
    assert 8 <= sent <= 32
    assert not outbox.has_unbatched

    outbox.post("s", "e", 41)
    assert outbox.take(linger=True) == []
    outbox.confirm(40)
    assert events_of(outbox.take(linger=True)) == [(41, ("s", "e", 41))]


def test_an_event_in_a_frame_of_its_own_does_not_wait_for_others():
    outbox = make()
    for number in range(1, 41):
        outbox.post("s", "e", number)
        outbox.take(linger=True)
    outbox.post_unique("s", "e", 41, "key")
    assert events_of(outbox.take(linger=True))[-1] == (41, ("s", "e", 41))


# --- the limit in bytes ---


def fill(outbox, post, *, limit=200_000):
    """Post until it is refused; give how many were accepted."""
    for number in range(limit):
        try:
            post(number)
        except QueueOverflow as error:
            return number, error
        if number % 100 == 0:
            outbox.take()
    raise AssertionError("never refused")


BYTES = {
    "short": (lambda outbox, n: outbox.post("s", "e", "x" * 98), 100),
    "long": (lambda outbox, n: outbox.post("s", "e", "x" * 4998), 5000),
    "alone": (lambda outbox, n: outbox.post_receipt("s", "e", "x" * 4998), 5000),
    "unique": (lambda outbox, n: outbox.post_unique("s", "e", "x" * 2998, f"{n:2000}"), 5000),
    "a body": (lambda outbox, n: outbox.post_body(b'[["s","e",["' + b"x" * 4980 + b'"]]]', 1, pid=1), 5000),
}


def post_mixed(outbox, number):
    outbox.post("s", "e", "x" * (4998 if number % 11 == 0 else 98))


@pytest.mark.parametrize("limit", [65_536, 1_000_000])
def test_long_and_short_data_share_the_bytes_of_the_queue(limit):
    outbox = make(max_queue_len=1_000_000, max_queue_bytes=limit)
    fill(outbox, lambda n: post_mixed(outbox, n))
    assert 0.9 * limit - 5000 <= outbox.queued_bytes <= limit


def test_a_queue_is_half_empty_only_in_events_and_in_bytes():
    outbox = make(max_queue_len=100, max_queue_bytes=100_000)
    assert outbox.is_half_empty
    for _ in range(11):
        outbox.post("s", "e", "x" * 5000)
    outbox.take()
    assert outbox.queued == 11
    assert not outbox.is_half_empty
    outbox.confirm(7)
    assert outbox.is_half_empty
    for _ in range(47):
        outbox.post("s", "e", 1)
    assert not outbox.is_half_empty


class Untouched:
    """Data that can be measured, and not written."""

    def __len__(self) -> int:
        return 60_000


@pytest.mark.parametrize("names", ["one", "two"])
def test_long_data_behind_the_end_of_a_batch_is_not_written_into_it(names):
    facts = [
        ("s", event, b'["s","e",[', b']],["s","e",[', 400, 65536) for event in ("e", "e" if names == "one" else "f")
    ]
    datas: list[Any] = [b'"' + b"x" * 60_000 + b'"', Untouched()]
    count, frame = Batcher().build(facts, datas, 1, pid=PID, origin=ORIGIN)
    assert count == 1
    assert events_of([frame]) == [(1, ("s", "e", "x" * 60_000))]


@pytest.mark.parametrize("how", BYTES)
def test_the_queue_holds_no_more_than_its_bytes_and_nearly_as_many(how):
    post, size = BYTES[how]
    outbox = make(max_queue_len=1_000_000, max_queue_bytes=1_000_000)
    accepted, error = fill(outbox, lambda n: post(outbox, n))
    assert 0.95 * 1_000_000 / size <= accepted <= 1_000_000 / size
    assert (error.unit, error.limit) == ("bytes", 1_000_000)
    assert 950_000 <= error.queued <= 1_000_000
    # Room is made by confirmations, in bytes as in events, and no post in between was lost.
    outbox.window = 1_000_000
    assert sum(decode_header(frame).count for frame in outbox.take()) <= accepted == outbox.numbered
    outbox.confirm(accepted // 2)
    again, _ = fill(outbox, lambda n: post(outbox, accepted + n))
    assert 0.9 * (accepted // 2) <= again <= accepted // 2 + 1


def test_the_largest_event_fits_into_an_empty_queue_of_its_size():
    outbox = make(max_payload_len=10_000, max_queue_bytes=10_000)
    outbox.post("s", "e", "x" * 9980)
    with pytest.raises(QueueOverflow, match="max_queue_bytes"):
        outbox.post("s", "e", "x" * 9980)
    outbox.take()
    outbox.confirm(1)
    outbox.post("s", "e", "x" * 9980)


# --- the reserve of handlers ---


class Caller:
    """Whether the present caller is a handler."""

    def __init__(self) -> None:
        self.is_handler = False
        self.asked = 0

    def __call__(self) -> bool:
        self.asked += 1
        return self.is_handler


def fill_up(outbox, data, *, limit=100_000):
    """Post until the queue is full; give the number of events that went in, and the error."""
    for count in range(limit):
        try:
            outbox.post("s", "e", data)
        except QueueOverflow as error:
            return count, error
    raise AssertionError("the queue has no limit")


def test_handlers_may_fill_the_queue_to_twice_its_length_and_others_may_not():
    caller = Caller()
    outbox = make(max_queue_len=100, is_handler=caller)
    assert fill_up(outbox, 1)[0] == 100
    caller.is_handler = True
    count, error = fill_up(outbox, 2)
    assert (count, error.queued, error.limit, error.of_handlers) == (100, 200, 200, True)
    assert re.search(r"for handlers is 200 \(twice max_queue_len\).* raise max_queue_len", str(error))
    with pytest.raises(QueueOverflow):
        outbox.post_unique("s", "e", 3, "key")
    caller.is_handler = False
    outbox.take()
    outbox.confirm(100)
    # What handlers hold counts for all.
    count, error = fill_up(outbox, 3)
    assert (count, error.limit, error.of_handlers) == (0, 100, False)
    outbox.take()
    outbox.confirm(150)
    assert fill_up(outbox, 3)[0] == 50
    caller.is_handler = True
    assert fill_up(outbox, 4)[0] == 100


@pytest.mark.parametrize(("size", "limit"), [(10, 50_000), (200, 1_000_000), (5_000, 1_000_000)])
def test_handlers_may_fill_the_queue_to_twice_its_bytes_and_others_may_not(size, limit):
    caller = Caller()
    outbox = make(max_queue_len=1_000_000, max_queue_bytes=limit, is_handler=caller)
    _, error = fill_up(outbox, "x" * size)
    assert (error.unit, error.limit) == ("bytes", limit)
    assert 0.9 * limit < outbox.queued_bytes <= limit
    caller.is_handler = True
    _, error = fill_up(outbox, "x" * size, limit=1_000_000)
    assert (error.unit, error.limit, error.of_handlers) == ("bytes", 2 * limit, True)
    assert 1.9 * limit < outbox.queued_bytes <= 2 * limit
    caller.is_handler = False
    assert fill_up(outbox, "x" * size)[0] == 0


def test_whether_the_caller_is_a_handler_is_only_asked_where_the_queue_is_full():
    caller = Caller()
    outbox = make(max_queue_len=100_000, is_handler=caller)
    outbox.post("s", "e", 1)
    caller.asked = 0
    for _ in range(10_000):
        outbox.post("s", "e", 1)
    assert caller.asked <= 2
