"""Places in a recording as people write them."""

from __future__ import annotations

import re
from datetime import datetime

import pytest

from eventsh.errors import UsageError
from eventsh.recording.format import Checkpoint, RecordKind
from eventsh.recording.frames import Frame
from eventsh.recording.positions import Position, Span, first_time_ns, parse_position
from eventsh.recording.reader import Note, Reader
from eventsh.recording.writer import Writer
from tests.recording.sample import EPOCH, SECOND, damages, datas, frame, notes, write


@pytest.fixture
def reader(tmp_path):
    path = tmp_path / "a.evlog"
    writer = Writer(str(path), fsync="never")
    writer.start({"epoch": 5})
    writer.add(RecordKind.MARKER, {"name": "begin", "time_ns": EPOCH})
    writer.write([(frame(3, "a", "b"), -1)])
    writer.add(RecordKind.MARKER, {"name": "half", "time_ns": EPOCH})
    writer.write([(frame(5, "c"), -1)])
    writer.close()
    return Reader(str(path))


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("seq:1", "seq", 1),
        ("seq:0", "seq", 0),
        ("number:12", "number", 12),
        ("seq:" + "9" * 19, "seq", 10**19 - 1),
        ("marker:begin", "number", 1),
        ("marker:half", "number", 3),
        ("0s", "time_ns", EPOCH + 3 * SECOND),
        ("2s", "time_ns", EPOCH + 5 * SECOND),
        ("+1500ms", "time_ns", EPOCH + 4_500_000_000),
        ("2023-11-14T22:13:20.123456+00:00", "time_ns", EPOCH + 123_000_000),
        ("2023-11-14", "time_ns", int(datetime(2023, 11, 14).astimezone().timestamp()) * SECOND),
    ],
)
def test_a_place_is_a_time_or_a_number(reader, text, kind, value):
    assert parse_position(text, reader, "--from") == Position(kind, value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seq:" + "9" * 20, "is no number of an event"),
        ("seq:", "'' is no number of an event"),
        ("seq:-1", "'-1' is no number of an event"),
        ("number:1.5", "'1.5' is no number of an event"),
        ("number:٣", "is no number of an event"),
        ("2026-13-01", "is no time: write for example 2026-01-31T12:00:00"),
        ("0001-01-01", "is no time: write for example 2026-01-31T12:00:00"),
        ("soon", "is no place in a recording: write 10s (from the start)"),
        ("1e400s", "is no place in a recording"),
        ("marker:x", "there is no marker 'x'; there is 'begin', 'half'"),
        ("other:1", "is no place in a recording"),
    ],
)
def test_a_place_that_is_none_says_what_to_write(reader, text, message):
    with pytest.raises(UsageError, match=r"^--until: ") as caught:
        parse_position(text, reader, "--until")
    assert message in str(caught.value)


def test_long_texts_are_shortened_in_errors(reader):
    for text, shown in (
        ("x" * 500, 40),
        ("seq:" + "x" * 500, 40),
        ("2026-01-01" + "x" * 500, 40),
        ("marker:" + "x" * 500, 100),
    ):
        with pytest.raises(UsageError) as caught:
            parse_position(text, reader, "--from")
        assert max(map(len, re.findall(r"'([^']*)'", str(caught.value)))) == shown


def test_only_the_first_twenty_markers_are_named(tmp_path):
    path = str(tmp_path / "a.evlog")
    writer = Writer(path, fsync="never")
    writer.start({"epoch": 5})
    with pytest.raises(UsageError, match=r"there is none$"):
        parse_position("marker:x", Reader(path), "--from")
    for number in range(25):
        writer.add(RecordKind.MARKER, {"name": f"m{number}"})
    writer.close()
    with pytest.raises(UsageError, match=r"'m19'$"):
        parse_position("marker:x", Reader(path), "--from")


def test_a_recording_without_events_begins_at_0(tmp_path):
    path = str(tmp_path / "a.evlog")
    Writer(path, fsync="never").close()
    assert first_time_ns(Reader(path)) == 0
    assert parse_position("2s", Reader(path), "--from").value == 2 * SECOND


# --- spans ---


def span_of(path, begin=None, end=None):
    return list(Span(str(path), begin, end))


@pytest.fixture
def several(tmp_path):
    """Two epochs with markers, four events in each, in frames of two."""
    path = tmp_path / "a.evlog"
    writer = Writer(str(path), fsync="never", checkpoint_bytes=100)
    for epoch in (5, 6):
        writer.start({"epoch": epoch})
        for seq in (1, 3):
            stamp = EPOCH + (epoch * 100 + seq) * SECOND
            writer.write([(frame(seq, f"{epoch}-{seq}", f"{epoch}-{seq + 1}", time_ns=stamp), -1)])
            writer.add(RecordKind.MARKER, {"name": f"{epoch}-{seq}", "time_ns": stamp})
    writer.finish()
    writer.close()
    return path


ALL = [f"{epoch}-{seq}" for epoch in (5, 6) for seq in (1, 2, 3, 4)]


@pytest.mark.parametrize("first", range(10))
@pytest.mark.parametrize("last", range(10))
def test_a_span_by_number_is_that_of_a_list(several, first, last):
    assert datas(span_of(several, f"number:{first}", f"number:{last}")) == ALL[max(0, first - 1) : last]


@pytest.mark.parametrize("first", range(6))
@pytest.mark.parametrize("last", range(6))
def test_a_span_by_seq_is_of_the_first_epoch(several, first, last):
    expected = [
        text for text in ALL if (text[0] == "6" or int(text[2]) >= first) and text[0] == "5" and int(text[2]) <= last
    ]
    assert datas(span_of(several, f"seq:{first}", f"seq:{last}")) == expected
    assert datas(span_of(several, f"seq:{first}")) == [text for text in ALL if text[0] == "6" or int(text[2]) >= first]


def test_a_span_by_time_has_whole_frames(several):
    for begin, end, expected in (
        ("0s", "0s", ALL[:2]),
        ("1s", "2s", ALL[2:4]),
        ("2s", "2s", ALL[2:4]),
        ("2s", "100s", ALL[2:6]),
        ("3s", None, ALL[4:]),
        ("200s", None, []),
    ):
        assert datas(span_of(several, begin, end)) == expected, (begin, end)


def test_a_span_that_has_begun_keeps_events_that_a_clock_set_back_stamped(tmp_path):
    path = tmp_path / "a.evlog"
    stamps = [(1, 10), (2, 20), (3, 5), (4, 30)]
    write(path, [frame(seq, seq, time_ns=EPOCH + seconds * SECOND) for seq, seconds in stamps])
    assert datas(span_of(path, "10s")) == [2, 3, 4]
    assert datas(span_of(path, "10s", "15s")) == [2, 3]


def test_the_records_between_the_events_of_a_span_are_in_it(several):
    whole = span_of(several)
    assert [marker["name"] for marker in notes(whole, RecordKind.MARKER)] == ["5-1", "5-3", "6-1", "6-3"]
    part = span_of(several, "number:3", "number:6")
    assert datas(part) == ALL[2:6]
    # From its first event to its last one.
    assert [item.facts.get("name") for item in part if isinstance(item, Note)] == ["5-3", None, "6-1"]
    cut_short = span_of(several, "number:3", "number:5")
    assert [item.facts.get("name") for item in cut_short if isinstance(item, Note)] == ["5-3", None]
    assert isinstance(cut_short[-1], Frame)


def test_a_span_until_a_marker_ends_before_the_events_that_follow_it(several):
    assert datas(span_of(several, "marker:5-1", "marker:6-1")) == ALL[2:6]
    assert datas(span_of(several, None, "marker:5-1")) == ALL[:2]
    # An event of the same number that is not a marker's is in it.
    assert datas(span_of(several, None, "number:3")) == ALL[:3]


def test_damage_before_a_span_is_in_it(tmp_path):
    path = tmp_path / "a.evlog"
    write(path, [frame(1, "x")])
    path.write_bytes(path.read_bytes() + b"cut")
    assert len(damages(span_of(path, "seq:9"))) == 1


def test_a_span_of_one_file_does_not_read_the_others(tmp_path):
    path = tmp_path / "a.evlog"
    writer = Writer(str(path), fsync="never")
    writer.start({"epoch": 5})
    for seq in (1, 2, 3):
        writer.write([(frame(seq, seq), -1)])
        if seq < 3:
            writer.rotate()
    writer.close()
    assert datas(Span(str(tmp_path / "a.0001.evlog"), one_file=True)) == [2]
    assert datas(Span(str(path), one_file=True)) == [3]
    assert datas(Span(str(path), "number:3", one_file=True)) == [3]
    assert datas(Span(str(path))) == [1, 2, 3]


@pytest.mark.parametrize(
    ("begin", "before", "here"),
    [
        ("number:5", (0, 0, 4, 5, 1, EPOCH), (0, 0, 5, 5, 1, EPOCH)),
        ("seq:3", (0, 0, 9, 5, 2, EPOCH), (0, 0, 9, 5, 3, EPOCH)),
        ("seq:3", (0, 0, 9, 5, 2, EPOCH), (0, 0, 9, 6, 2, EPOCH)),
        ("1s", (0, 0, 9, 5, 2, EPOCH + 502 * SECOND - 1), (0, 0, 9, 5, 2, EPOCH + 502 * SECOND)),
    ],
)
def test_a_span_seeks_to_a_checkpoint_before_it(several, begin, before, here):
    start = Span(str(several), begin).reader._start
    assert start is not None
    assert start.is_before(Checkpoint(*before))
    assert not start.is_before(Checkpoint(*here))
    assert Span(str(several)).reader._start is None
