"""The frames of a recording as single events, and single events as frames."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from eventsh.errors import RecordingError
from eventsh.protocol.frame import Flag, Kind, decode_header, encode_frame
from eventsh.recording import frames as frames_module
from eventsh.recording.frames import (
    Frame,
    RecordedEvent,
    Repeats,
    choose,
    cut,
    encode_events,
    encode_runs,
    events_of,
    runs_of,
)
from tests.recording.sample import EPOCH, SECOND, frame

TWO = RecordedEvent("app", "e", 1, 4711, 10, EPOCH + 10 * SECOND, 5, 7, 20)


def recorded(data: bytes, worker: int = -1) -> list[RecordedEvent]:
    return list(events_of(Frame(data, 5, worker, 100)))


def test_events_have_the_numbers_and_the_stamp_of_their_frame():
    assert recorded(frame(10, 1, 2, number=20)) == [TWO, replace(TWO, data=2, seq=11, origin_number=21)]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (0, {}),
        (Flag.RESENT, {"resent": True}),
        (Flag.REPLAYED, {"replayed": True}),
        (Flag.RECEIPT | Flag.TRACE, {}),
        (Flag.RESENT | Flag.REPLAYED, {"resent": True, "replayed": True}),
    ],
)
def test_the_flags_of_a_frame_are_those_of_its_events(flags, expected):
    assert recorded(frame(10, 1, number=20, flags=flags)) == [replace(TWO, **expected)]


@pytest.mark.parametrize(("worker", "expected"), [(-1, None), (0, 0), (3, 3)])
def test_a_unique_event_has_its_key_and_its_worker(worker, expected):
    assert recorded(frame(10, 1, number=20, key="k\u00e9"), worker) == [replace(TWO, unique="k\u00e9", worker=expected)]


def test_a_key_that_is_no_text_is_an_error_but_a_lone_surrogate_is_kept():
    data = frame(10, 1, number=20, key="abc").replace(b"abc", b"\xed\xb3\xbf")
    assert recorded(data) == [replace(TWO, unique="\udcff")]
    with pytest.raises(RecordingError, match="event 10 has a key that is no text"):
        recorded(frame(10, 1, key="abc").replace(b"abc", b"\xff\xff\xff"))


@pytest.mark.parametrize("body", [b"", b"{}", b'[["app","e",[1,2]]]', b'[["eventsh","gap",[1]]]'])
def test_a_body_that_is_no_batch_of_its_count_names_the_event(body):
    data = bytes(encode_frame(Kind.EVENTS, body, count=1, origin=7, seq=10))
    with pytest.raises(RecordingError, match="event 10 can't be read: "):
        runs_of(Frame(data, 5, -1, 1))


def test_eventshs_own_events_may_have_its_source():
    data = frame(10, 1, source="eventsh", event="gap", origin=0)
    assert runs_of(Frame(data, 5, -1, 1)) == [["eventsh", "gap", [1]]]
    with pytest.raises(RecordingError):
        runs_of(Frame(frame(10, 1, source="eventsh", event="gap"), 5, -1, 1))


def test_a_frame_knows_its_count_and_time():
    found = Frame(frame(10, 1, 2, 3), 5, -1, 1)
    assert (found.events, found.time_ns) == (3, EPOCH + 10 * SECOND)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"unique": "k"},
        {"unique": "\udcff" * 300},
        {"replayed": True},
        {"resent": True},
        {"pid": 1, "origin": 2, "origin_number": 3, "seq": 4, "time_ns": 5},
    ],
)
def test_events_that_are_encoded_again_are_the_same(changes):
    event = replace(TWO, **changes)
    data = encode_events([event])
    assert recorded(data) == [event]
    assert decode_header(data).kind == Kind.EVENTS


@pytest.mark.parametrize(
    ("names", "runs"),
    [
        (["ae", "ae", "af", "bf", "ae"], [["a", "e", [10, 11]], ["a", "f", [12]], ["b", "f", [13]], ["a", "e", [14]]]),
        (["ae", "be", "ae"], [["a", "e", [10]], ["b", "e", [11]], ["a", "e", [12]]]),
        (["ae", "af", "ae"], [["a", "e", [10]], ["a", "f", [11]], ["a", "e", [12]]]),
    ],
)
def test_neighbours_with_the_same_names_share_a_run(names, runs):
    events = [
        replace(TWO, seq=number, origin_number=number + 10, source=source, event=event, data=number)
        for number, (source, event) in enumerate(names, 10)
    ]
    data = encode_events(events)
    assert runs_of(Frame(data, 5, -1, 1)) == runs
    assert recorded(data) == events


def test_an_event_of_which_nothing_more_is_known_has_zeros():
    event = RecordedEvent("app", "e", 1, 4711)
    assert (event.seq, event.time_ns, event.epoch, event.origin, event.origin_number) == (0, 0, 0, 0, 0)
    assert (event.unique, event.worker, event.replayed, event.resent) == (None, None, False, False)


def test_data_that_can_not_be_written_again_is_an_error():
    deep: list[Any] = []
    for _ in range(300):
        deep = [deep]
    with pytest.raises(RecordingError, match="an event can't be written again: "):
        encode_runs([["a", "e", [deep]]])
    assert encode_runs([("a", "e", [1])]) == b'[["a","e",[1]]]'


def test_chosen_rows_keep_worker_epoch_and_place():
    whole = Frame(frame(10, *range(4)), 6, 2, 100)
    assert choose(whole, lambda event: event.data == 3) == [
        Frame(encode_events([list(events_of(whole))[3]]), 6, 2, 103)
    ]
    first, second = choose(whole, lambda event: event.data in (0, 2))
    assert [(each.first, each.epoch, each.worker) for each in (first, second)] == [(100, 6, 2), (102, 6, 2)]


def test_a_cut_is_a_range_of_events():
    whole = Frame(frame(10, *range(5)), 6, 2, 100)
    for low in range(5):
        for high in range(low + 1, 6):
            part = cut(whole, low, high)
            assert (part.first, part.epoch, part.worker) == (100 + low, 6, 2)
            assert list(events_of(part)) == list(events_of(whole))[low:high]


# --- repeats ---


def has(repeats: Repeats, *numbers: int, key: str | None = None, origin: int = 7, flags: int = 0) -> bool:
    return repeats.has(frame(1, *numbers, number=numbers[0], key=key, origin=origin, flags=flags))


def test_a_batch_that_is_sent_again_is_known_up_to_its_last_number():
    repeats = Repeats()
    assert not has(repeats, 5, 6, 7)
    for number, expected in ((5, True), (7, True), (8, False), (8, True)):
        assert has(repeats, number, flags=Flag.RESENT) == expected, number
    # Another poster's numbers are its own.
    assert not has(repeats, 5, origin=8, flags=Flag.RESENT)
    assert has(repeats, 5, origin=8, flags=Flag.RESENT)


def test_only_what_is_marked_as_sent_again_is_a_repeat():
    repeats = Repeats()
    for _ in range(2):
        assert not has(repeats, 5)
        assert not has(repeats, 5, key="k")
    # A poster that begins anew with the same origin.
    assert not has(repeats, 1)
    assert not has(repeats, 2, flags=Flag.RESENT)


def test_unique_events_are_known_one_by_one():
    repeats = Repeats()
    assert not has(repeats, 5, key="k")
    assert not has(repeats, 4, key="k", flags=Flag.RESENT)
    assert not has(repeats, 5, key="k", origin=8, flags=Flag.RESENT)
    assert not has(repeats, 5, flags=Flag.RESENT)
    assert has(repeats, 5, key="k", flags=Flag.RESENT)
    assert has(repeats, 4, key="k", flags=Flag.RESENT)


def test_eventshs_own_events_are_never_repeats():
    repeats = Repeats()
    for _ in range(2):
        assert not has(repeats, 5, origin=0, flags=Flag.RESENT)


def test_the_longest_unused_posters_and_uniques_are_forgotten(monkeypatch):
    monkeypatch.setattr(frames_module, "_REMEMBERED", 3)
    repeats = Repeats()
    for origin in (1, 2, 3):
        assert not has(repeats, 5, origin=origin)
        assert not has(repeats, 5, origin=origin, key="k")
    assert not has(repeats, 6, origin=1)
    assert not has(repeats, 5, origin=4)
    assert [has(repeats, 5, origin=origin, flags=Flag.RESENT) for origin in (1, 3, 4)] == [True] * 3
    assert not has(repeats, 5, origin=2, flags=Flag.RESENT)
    assert not has(repeats, 5, origin=4, key="k")
    resent = [has(repeats, 5, origin=origin, key="k", flags=Flag.RESENT) for origin in (2, 3, 4, 1)]
    assert resent == [True, True, True, False]


def test_as_many_are_known_as_a_worker_remembers():
    repeats = Repeats()
    count = 65536
    for origin in range(1, count + 2):
        repeats.has(bytes(encode_frame(Kind.EVENTS, count=1, origin=origin, origin_seq=1)))
    resent = [
        bytes(encode_frame(Kind.EVENTS, count=1, origin=each, origin_seq=1, flags=Flag.RESENT)) for each in (1, 2)
    ]
    assert [repeats.has(data) for data in resent] == [False, False]
    assert len(repeats._last) == count
