"""Recordings as lines of JSON: each member of a line, what a line may leave out, and how lines become frames again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import orjson
import pytest

from eventsh.errors import UsageError
from eventsh.protocol.codec import encode_data
from eventsh.protocol.frame import BATCH_BYTES, BATCH_EVENTS
from eventsh.recording.format import RecordKind
from eventsh.recording.frames import Frame, RecordedEvent, events_of
from eventsh.recording.reader import Note
from eventsh.recording.text import Rows, event_members, note_members, parse_line

EVENT = RecordedEvent("app", "e", {"a": 1}, 71, 9, 1_700, 17, 3, 4)
MEMBERS = {
    "source": "app", "event": "e", "data": {"a": 1}, "pid": 71, "seq": 9, "time_ns": 1_700, "epoch": 17, "origin": 3,
    "number": 4,
}  # fmt: skip


def parse(members: Any, before: RecordedEvent | None = None) -> Any:
    return parse_line(orjson.dumps(members), "line 3", before)


def refusal(members: Any) -> str:
    with pytest.raises(UsageError, match=r"^line 3: ") as caught:
        parse(members)
    return str(caught.value)


@pytest.mark.parametrize(
    ("event", "more"),
    [
        (EVENT, {}),
        (replace(EVENT, unique="k"), {"unique": "k"}),
        (replace(EVENT, unique="a\udcffb"), {"unique_hex": "61edb3bf62"}),
        (replace(EVENT, worker=0), {"worker": 0}),
        (replace(EVENT, replayed=True), {"replayed": True}),
        (replace(EVENT, resent=True), {"resent": True}),
        (replace(EVENT, data=None), {"data": None}),
    ],
)
def test_a_line_says_all_of_an_event_and_reads_back_as_it(event, more):
    assert event_members(event) == {**MEMBERS, **more}
    assert parse(event_members(event), replace(EVENT, pid=1, seq=1, epoch=1, origin=1)) == event


@pytest.mark.parametrize("kind", [RecordKind.START, RecordKind.HOLE, RecordKind.MARKER, RecordKind.END])
def test_a_line_of_another_record_says_its_kind_and_facts(kind):
    line = note_members(Note(kind, {"epoch": 7}, 3, 0))
    assert line == {"record": kind.name.lower(), "epoch": 7}
    assert parse(line) == (kind, {"epoch": 7})


def test_the_first_line_by_hand_is_event_1_of_epoch_1():
    found = parse({"source": "app", "event": "e"})
    assert found == RecordedEvent("app", "e", None, pid=0, seq=1, time_ns=0, epoch=1, origin=1, origin_number=1)


def test_members_that_a_line_leaves_out_are_counted_on():
    found = parse({"source": "app", "event": "e", "data": 5}, replace(EVENT, unique="k", worker=2, resent=True))
    assert found == RecordedEvent("app", "e", 5, 71, 10, 1_700, 17, 3, 5)


@pytest.mark.parametrize(("member", "bits"), [
    ("pid", 32), ("seq", 64), ("time_ns", 64), ("epoch", 64), ("origin", 32), ("number", 64),
])  # fmt: skip
def test_a_number_fills_its_bits_and_no_more(member, bits):
    name = "origin_number" if member == "number" else member
    for value in (0, 1, 2**bits - 1):
        assert getattr(parse({**MEMBERS, member: value}), name) == value
    for bad in (-1, 2**bits if bits < 64 else -(2**63), 1.0, True, "1", None):
        assert refusal({**MEMBERS, member: bad}).endswith(f"{member} must be a whole number of at most {bits} bits")


def test_a_worker_is_a_slot_of_16_bits():
    assert parse({**MEMBERS, "worker": 65535}).worker == 65535
    assert parse({**MEMBERS, "worker": None}).worker is None
    for bad in (65536, -1, True, "1"):
        assert refusal({**MEMBERS, "worker": bad}).endswith("worker must be the number of a slot")


def test_a_key_is_1_to_65535_bytes_of_text():
    for key in ("k", "k" * 65535, "é" * 32767 + "k"):
        assert parse({**MEMBERS, "unique": key}).unique == key
    for bad in ("", "k" * 65536, "é" * 32768, 5, ["k"]):
        assert "unique must be a key" in refusal({**MEMBERS, "unique": bad})
    for bad in ("6", "zz", "ff", 5, ""):
        assert "unique" in refusal({**MEMBERS, "unique_hex": bad})


@pytest.mark.parametrize("flag", ["replayed", "resent"])
def test_a_flag_is_true_and_nothing_else(flag):
    assert getattr(parse({**MEMBERS, flag: True}), flag) is True
    for other in (False, 1, "true", None):
        assert getattr(parse({**MEMBERS, flag: other}), flag) is False


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"", "not JSON: "),
        (b'{"source":', "at character "),
        (b"[1]", "not an object"),
        (b"null", "not an object"),
        (b'{"record":5}', "no record is called 5; there are start, hole, marker, end"),
        (b'{"record":"events"}', "no record is called 'events'"),
        (b'{"record":"start"}', "a start needs an epoch"),
        (b'{"record":"start","epoch":-1}', "a start needs an epoch"),
        (b'{"record":"start","epoch":true}', "a start needs an epoch"),
        (b'{"event":"e"}', "source"),
        (b'{"source":"s","event":""}', "event"),
        (b'{"source":"s","event":"e","data":18446744073709551616}', "beyond 64 bits"),
    ],
)
def test_a_line_that_is_no_record_is_refused_with_its_place(line, message):
    with pytest.raises(UsageError, match=r"^line 3: ") as caught:
        parse_line(line, "line 3", None)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_only_a_start_needs_an_epoch():
    assert parse({"record": "start", "epoch": 2**64 - 1}) == (RecordKind.START, {"epoch": 2**64 - 1})
    assert parse({"record": "hole"}) == (RecordKind.HOLE, {})


# --- rows ---


def event(number: int, **changes: Any) -> RecordedEvent:
    return replace(EVENT, seq=number, origin_number=number, data=number, **changes)


def rows_of(events: list[RecordedEvent]) -> list[tuple[list[RecordedEvent], int, int]]:
    rows = Rows()
    found = [row for each in events for row in rows.add(each)]
    found += rows.take()
    assert not list(rows.take())
    return [(list(events_of(Frame(data, epoch, worker, 1))), epoch, worker) for data, epoch, worker in found]


def test_neighbours_of_one_poster_become_one_frame():
    events = [event(1), event(2, source="other"), event(3, event="f")]
    assert rows_of(events) == [(events, 17, -1)]
    assert rows_of([]) == []


@pytest.mark.parametrize(
    "change",
    [
        {"pid": 1},
        {"time_ns": 1},
        {"epoch": 1},
        {"origin": 1},
        {"seq": 7},
        {"origin_number": 7},
        {"worker": 1},
        {"replayed": True},
        {"resent": True},
        {"unique": "k", "worker": 1},
    ],
)
def test_an_event_that_differs_in_its_stamps_begins_another_frame(change):
    first, second = event(1), replace(event(2), **change)
    expected = [([first], 17, -1), ([second], change.get("epoch", 17), change.get("worker", -1))]
    assert rows_of([first, second]) == expected
    assert rows_of([second, first]) == expected[::-1]


def test_unique_events_are_alone_though_they_are_neighbours():
    events = [event(number, unique="k", worker=0) for number in (1, 2)]
    assert rows_of(events) == [([each], 17, 0) for each in events]


def test_a_frame_has_as_many_events_as_a_batch():
    found = rows_of([event(number) for number in range(1, 2 * BATCH_EVENTS + 2)])
    assert [len(events) for events, _, _ in found] == [BATCH_EVENTS, BATCH_EVENTS, 1]


def test_a_frame_has_as_many_bytes_as_a_batch():
    names = len(EVENT.source) + len(EVENT.event)
    half = "x" * (BATCH_BYTES // 2 - names - len(encode_data("")))
    fit, over = ([replace(event(1), data=half), replace(event(2), data=half + tail)] for tail in ("", "x"))
    assert [len(events) for events, _, _ in rows_of([*fit, event(3)])] == [2, 1]
    assert [len(events) for events, _, _ in rows_of([*over, event(3)])] == [1, 2]
