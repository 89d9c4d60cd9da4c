"""Places, spans, choices, and what is posted of them."""

from __future__ import annotations

import json
from datetime import datetime

import pytest

from eventsh.errors import RecordingError, UsageError
from eventsh.protocol.frame import Flag, Kind, encode_frame
from eventsh.recording.format import RecordKind
from eventsh.recording.frames import Frame, choose, events_of
from eventsh.recording.player import Choice, pieces
from eventsh.recording.positions import Span
from eventsh.recording.writer import Writer
from tests.recording.sample import EPOCH, SECOND, events, frame, items, write


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """30 events in frames of three, a second apart, a marker in the middle."""
    path = tmp_path_factory.mktemp("span") / "a.evlog"
    writer = Writer(str(path), fsync="never", checkpoint_bytes=300)
    writer.start({"epoch": 5})
    for first in range(1, 31, 3):
        if first == 16:
            writer.add(RecordKind.MARKER, {"name": "half", "time_ns": EPOCH})
        writer.write([(frame(first, first, first + 1, first + 2, time_ns=EPOCH + first * SECOND), -1)])
    writer.finish()
    writer.close()
    return path


def in_span(path, begin=None, end=None):
    return [event.data for event in events(Span(str(path), begin, end))]


def iso(seconds):
    return datetime.fromtimestamp(EPOCH / 1e9 + seconds).astimezone().isoformat()


@pytest.mark.parametrize(
    ("begin", "end", "expected"),
    [
        (None, None, range(1, 31)),
        ("seq:5", None, range(5, 31)),
        ("seq:5", "seq:11", range(5, 12)),
        ("number:2", "number:2", [2]),
        ("number:30", None, [30]),
        ("number:31", None, []),
        ("seq:1000", None, []),
        ("3s", None, range(4, 31)),
        ("2s", "6s", range(4, 10)),
        ("+2500ms", None, range(4, 31)),
        ("marker:half", None, range(16, 31)),
        (None, "marker:half", range(1, 16)),
        (iso(7), iso(13), range(7, 16)),
        (iso(1000), None, []),
        (None, iso(-1000), []),
    ],
)
def test_a_span_begins_and_ends_where_it_is_said(path, begin, end, expected):
    assert in_span(path, begin, end) == list(expected)


def test_the_events_of_a_frame_that_is_cut_keep_their_numbers(path):
    found = list(events(Span(str(path), "seq:5", "seq:6")))
    assert [(event.seq, event.origin_number) for event in found] == [(5, 5), (6, 6)]


@pytest.mark.parametrize(
    "text", ["x", "seq:", "seq:x", "number:-1", "2026-99-99", "marker:no", "seq:" + "9" * 50, "٣s"]
)
def test_what_is_no_place_is_told_in_one_line(path, text):
    with pytest.raises(UsageError, match=r"^--from: ") as error:
        Span(str(path), text)
    assert "\n" not in str(error.value)


def test_numbers_of_the_first_broker_are_meant_where_there_were_several(tmp_path):
    path = tmp_path / "a.evlog"
    write(path, [frame(1, "a1"), frame(2, "a2")], epoch=5)
    write(path, [frame(1, "b1"), frame(2, "b2")], epoch=6)
    assert in_span(path, "seq:2") == ["a2", "b1", "b2"]
    assert in_span(path, None, "seq:1") == ["a1"]
    assert in_span(path, "seq:9") == ["b1", "b2"]


def test_what_is_chosen_of_a_frame_are_the_rows_of_neighbours():
    whole = Frame(frame(10, *range(6)), 5, -1, 100)
    chosen = choose(whole, lambda event: event.data not in (0, 3))
    assert [[(event.seq, event.data) for event in events_of(each)] for each in chosen] == [
        [(11, 1), (12, 2)],
        [(14, 4), (15, 5)],
    ]
    assert [each.first for each in chosen] == [101, 104]
    assert choose(whole, lambda event: True) == [whole]
    assert choose(whole, lambda event: False) == []


def play(path, **choice):
    problems: list[object] = []
    found = list(pieces(items(path), Choice(**choice), on_damage=problems.append))
    assert not problems
    return [(json.loads(piece.body), piece) for piece in found]


def test_bodies_are_posted_as_they_were(tmp_path):
    path = tmp_path / "a.evlog"
    write(path, [frame(1, {"a": 1.0}, "ä"), frame(3, None, key="k")])
    (first, piece), (second, unique) = play(path)
    assert first == [["app", "e", [{"a": 1.0}, "ä"]]]
    assert (piece.events, piece.pid, piece.key, piece.number) == (2, 4711, None, 1)
    assert second == [["app", "e", [None]]]
    assert unique.key is not None
    assert unique.key.startswith(b"k ")


def test_eventshs_own_events_are_left_out_and_what_was_sent_twice_comes_once(tmp_path):
    path = tmp_path / "a.evlog"
    write(
        path,
        [
            frame(1, "own", source="eventsh", origin=0),
            frame(2, "a", "b", number=1),
            frame(4, "c", number=3),
            frame(5, "u", key="k", number=4),
            # A new broker: the poster does not know what the last one handed out.
            frame(1, "c", number=3, flags=Flag.RESENT),
            frame(2, "u", key="k", number=4, flags=Flag.RESENT),
            frame(3, "d", number=5, flags=Flag.RESENT),
        ],
    )
    assert [body[0][2] for body, _ in play(path)] == [["a", "b"], ["c"], ["u"], ["d"]]


def test_sources_are_renamed_and_pieces_cut(tmp_path):
    path = tmp_path / "a.evlog"
    write(path, [frame(1, *range(5)), frame(6, "u", key="k")])
    found = play(path, sources={"app": "test"}, largest=2)
    assert [body for body, _ in found] == [
        [["test", "e", [0, 1]]],
        [["test", "e", [2, 3]]],
        [["test", "e", [4]]],
        [["test", "e", ["u"]]],
    ]
    assert [piece.number for _, piece in found] == [1, 3, 5, 6]
    assert [piece.events for _, piece in found] == [2, 2, 1, 1]


def test_unique_events_can_go_to_the_same_worker_or_to_all(tmp_path):
    path = tmp_path / "a.evlog"
    writer = Writer(str(path), fsync="never")
    writer.start({"epoch": 5})
    writer.write([(frame(1, 1, key="k"), 3)])
    writer.finish()
    writer.close()
    ((_, again),) = play(path)
    ((_, worker),) = play(path, unique="worker")
    ((body, everybody),) = play(path, unique="all")
    assert (again.worker, worker.worker, everybody.worker) == (None, 3, None)
    assert worker.key is not None
    assert everybody.key is None
    assert body == [["app", "e", [1]]]


@pytest.mark.parametrize("body", [b"{}", b"[1]", b'[["app","e",1]]', b'[["eventsh","gap",[1]]]', b"[[", b"\xff\xff"])
def test_a_body_that_is_no_batch_is_never_posted(tmp_path, body):
    hostile = bytearray(frame(1, "x"))
    hostile[40:] = body
    hostile[:4] = len(body).to_bytes(4, "little")
    path = tmp_path / "a.evlog"
    write(path, [bytes(hostile)])
    with pytest.raises(RecordingError):
        play(path)


def test_a_long_recording_is_sought_in_and_not_read(tmp_path):
    path = tmp_path / "a.evlog"
    data = "x" * 4000
    write(path, (frame(number, data) for number in range(1, 5001)))
    span = Span(str(path), "seq:4900")
    assert next(events(span)).seq == 4900
    read = sum(isinstance(item, Frame) for item in span.reader)
    assert read < 300


# --- pieces ---


def test_a_piece_says_whose_and_when_it_was(tmp_path):
    path = tmp_path / "a.evlog"
    write(path, [frame(1, "a", "b"), frame(3, "c", time_ns=EPOCH + 77)])
    (_, first), (_, second) = play(path)
    assert (first.events, first.pid, first.time_ns, first.number) == (2, 4711, EPOCH + SECOND, 1)
    assert (second.events, second.time_ns, second.number) == (1, EPOCH + 77, 3)
    assert (first.key, first.worker) == (None, None)


def test_a_unique_event_gets_a_key_of_its_own_for_each_time_it_ran(tmp_path):
    path = tmp_path / "a.evlog"
    write(path, [frame(1, "a", key="k"), frame(10, "b", key="k")])
    write(path, [frame(1, "c", key="k")], epoch=255)
    assert [piece.key for _, piece in play(path)] == [b"k 5-1", b"k 5-10", b"k ff-1"]
    assert [piece.key for _, piece in play(path, key_suffix="x.")] == [b"k x.5-1", b"k x.5-10", b"k x.ff-1"]
    assert [piece.key for _, piece in play(path, unique="all")] == [None] * 3
    assert [body for body, _ in play(path, unique="all")] == [[["app", "e", [each]]] for each in "abc"]


@pytest.mark.parametrize(("length", "kept"), [(65530, 65530), (65531, 65531), (65532, 65531), (65535, 65531)])
def test_a_key_stays_within_its_limit_with_its_suffix(tmp_path, length, kept):
    path = tmp_path / "a.evlog"
    write(path, [frame(1, "a", key="k" * length)])
    ((_, piece),) = play(path)
    assert piece.key == b"k" * kept + b" 5-1"
    assert len(piece.key) <= 65535


@pytest.mark.parametrize(("worker", "expected"), [(-1, None), (0, 0), (7, 7)])
def test_a_unique_event_is_for_the_worker_that_had_it_if_one_had(tmp_path, worker, expected):
    path = tmp_path / "a.evlog"
    writer = Writer(str(path), fsync="never")
    writer.start({"epoch": 5})
    writer.write([(frame(1, 1, key="k"), worker), (frame(2, 2), worker)])
    writer.close()
    found = play(path, unique="worker")
    assert [piece.worker for _, piece in found] == [expected, None]
    assert [piece.worker for _, piece in play(path, unique="again")] == [None, None]


def test_pieces_are_cut_only_above_the_largest_and_over_several_runs(tmp_path):
    path = tmp_path / "a.evlog"
    body = b'[["a","e",[0,1,2]],["b","e",[3]],["a","f",[4,5,6]]]'
    data = bytes(encode_frame(Kind.EVENTS, body, count=7, origin=7, pid=1, seq=1))
    write(path, [data])
    for largest, expected in (
        (7, [[["a", "e", [0, 1, 2]], ["b", "e", [3]], ["a", "f", [4, 5, 6]]]]),
        (4, [[["a", "e", [0, 1, 2]], ["b", "e", [3]]], [["a", "f", [4, 5, 6]]]]),
        (5, [[["a", "e", [0, 1, 2]], ["b", "e", [3]], ["a", "f", [4]]], [["a", "f", [5, 6]]]]),
        (1, [[["a", "e", [0]]], [["a", "e", [1]]], [["a", "e", [2]]], [["b", "e", [3]]], [["a", "f", [4]]],
             [["a", "f", [5]]], [["a", "f", [6]]]]),
    ):  # fmt: skip
        found = play(path, largest=largest)
        assert [body for body, _ in found] == expected
        sizes = [piece.events for _, piece in found]
        assert sizes == [sum(len(datas) for _, _, datas in body) for body in expected]
        assert [piece.number for _, piece in found] == [1 + sum(sizes[:place]) for place in range(len(sizes))]
    # As it stands in the frame, where nothing is changed.
    ((_, whole),) = play(path, largest=7)
    assert whole.body == body
    assert play(path)[0][1].body == body
    assert play(path, sources={"x": "y"})[0][1].body == body


def test_only_the_sources_that_are_named_are_renamed(tmp_path):
    path = tmp_path / "a.evlog"
    body = b'[["a","e",[0]],["b","e",[1]]]'
    write(path, [bytes(encode_frame(Kind.EVENTS, body, count=2, origin=7, seq=1))])
    ((found, _),) = play(path, sources={"a": "c"})
    assert found == [["c", "e", [0]], ["b", "e", [1]]]


def test_only_wanted_events_are_played_with_their_numbers(tmp_path):
    path = tmp_path / "a.evlog"
    write(path, [frame(1, *range(6)), frame(7, 6, key="k")])
    found = play(path, wanted=lambda event: event.data in (1, 2, 5, 6))
    assert [body[0][2] for body, _ in found] == [[1, 2], [5], [6]]
    assert [piece.number for _, piece in found] == [2, 6, 7]


def test_damage_and_frames_of_a_later_version_are_reported_and_other_records_are_not(tmp_path):
    path = tmp_path / "a.evlog"
    write(path, [frame(1, "a"), frame(2, "b", flags=64), frame(3, "c")])
    path.write_bytes(path.read_bytes() + b"cut")
    problems: list[object] = []
    found = list(pieces(items(path), Choice(), on_damage=problems.append))
    assert [json.loads(piece.body)[0][2] for piece in found] == [["a"], ["c"]]
    assert [type(problem).__name__ for problem in problems] == ["Note", "Damage"]


@pytest.mark.parametrize(("source", "event"), [("", "e"), ("app", ""), ("eventsh", "gap")])
def test_an_event_without_a_name_or_with_eventshs_own_is_never_posted(tmp_path, source, event):
    body = json.dumps([["app", "e", [0]], [source, event, [1]]]).encode()
    path = tmp_path / "a.evlog"
    write(path, [bytes(encode_frame(Kind.EVENTS, body, count=2, origin=7, seq=9))])
    with pytest.raises(RecordingError, match="event 9 "):
        play(path)
