"""The writer call by call: limits, rotation, going on with a file, and what it leaves after an error."""

from __future__ import annotations

import errno
import os
import time
from types import SimpleNamespace

import pytest

from eventsh.errors import RecordingError
from eventsh.recording import writer as writer_module
from eventsh.recording.format import (
    FILE_HEADER_BYTES,
    RECORD_BYTES,
    FileHeader,
    RecordDecoder,
    RecordKind,
    decode_checkpoint,
    decode_file_header,
    encode_file_header,
)
from eventsh.recording.frames import Frame
from eventsh.recording.reader import Note
from eventsh.recording.writer import Limits, SyncError, Writer
from tests.recording.sample import EPOCH, SECOND, damages, datas, events, frame, is_open, items, notes, write

START = {"epoch": 5, "address": "unix:/x", "pid": 1, "by": "broker", "time_ns": EPOCH}
# What a frame needs beside itself: its head, a checkpoint before it, and the end of the file.
BESIDE = RECORD_BYTES + 2 * (RECORD_BYTES + 64)


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=1000.0)
    fake = SimpleNamespace(monotonic=lambda: clock.now, time_ns=time.time_ns)
    monkeypatch.setattr(writer_module, "time", fake)
    return clock


def opened(path, **options):
    writer = Writer(str(path), **{"fsync": "never", **options})
    writer.start(START)
    return writer


def names(directory):
    return sorted(each.name for each in directory.iterdir())


def fail(number=errno.EIO):
    def failing(*_, **__):
        raise OSError(number, os.strerror(number))

    return failing


# --- a new file ---


def test_a_new_file_has_a_header_and_counts_from_0(tmp_path):
    path = tmp_path / "a.evlog"
    before = time.time_ns()
    writer = Writer(str(path))
    assert (writer.events, writer.epoch, writer.size_bytes, writer.repaired_bytes) == (0, 0, FILE_HEADER_BYTES, 0)
    assert (writer.is_dirty, writer.done, writer.fsync, writer.path) == (False, 0, "interval", str(path))
    header = decode_file_header(path.read_bytes())
    assert (header.segment, header.events) == (0, 0)
    assert before <= header.created_ns <= time.time_ns()
    writer.start(START)
    writer.write([(frame(1, "x", "y"), 3), (frame(3, "z"), -1)])
    assert (writer.events, writer.epoch, writer.done) == (3, 5, 2)
    assert writer.size_bytes == path.stat().st_size
    writer.close()
    writer.close()
    assert [item.worker for item in items(path) if isinstance(item, Frame)] == [3, -1]


def test_the_end_of_a_file_says_how_many_events_it_has_and_when_it_was(tmp_path):
    path = tmp_path / "a.evlog"
    before = time.time_ns()
    write(path, [frame(1, "x", "y")])
    (end,) = notes(items(path), RecordKind.END)
    assert before <= end.pop("time_ns") <= time.time_ns()
    assert end == {"events": 2}


def test_a_fresh_file_must_not_be_there(tmp_path):
    path = tmp_path / "a.evlog"
    Writer(str(path), fresh=True).close()
    before = path.read_bytes()
    with pytest.raises(RecordingError, match=r"can't record to .*a\.evlog: File exists"):
        Writer(str(path), fresh=True)
    assert path.read_bytes() == before
    # One that is only about to get its name is not continued by a fresh one.
    path.rename(tmp_path / "a.evlog.next")
    Writer(str(path), fresh=True).close()
    assert names(tmp_path) == ["a.evlog", "a.evlog.next"]


def test_an_unfinished_rotation_gives_way_to_a_file_that_is_there(tmp_path):
    path = tmp_path / "a.evlog"
    write(path, [frame(1, "x")])
    (tmp_path / "a.evlog.next").write_bytes(b"left behind")
    write(path, [frame(2, "y")])
    assert datas(items(path)) == ["x", "y"]
    assert (tmp_path / "a.evlog.next").read_bytes() == b"left behind"


@pytest.mark.parametrize("size", range(FILE_HEADER_BYTES))
def test_a_header_that_was_not_whole_is_written_anew(tmp_path, size):
    path = tmp_path / "a.evlog"
    path.write_bytes(encode_file_header(FileHeader(0, 1, 0))[:size])
    writer = write(path, [frame(1, "x")])
    assert writer.repaired_bytes == size
    assert datas(items(path)) == ["x"]
    path.write_bytes(b"\x89EVLOG\r\n"[: min(size, 7)] + b"x" * (size >= 1))
    if size:
        with pytest.raises(RecordingError, match="it is no recording"):
            Writer(str(path))


# --- going on ---


def test_a_file_that_is_continued_knows_all_that_came_before(tmp_path):
    path = tmp_path / "a.evlog"
    writer = opened(path, checkpoint_bytes=300)
    for number in range(1, 11):
        writer.write([(frame(2 * number, "x", "y"), -1)])
    writer.close()
    following = Writer(str(path), fsync="never", checkpoint_bytes=1)
    assert (following.events, following.epoch, following.repaired_bytes) == (20, 5, 0)
    assert following.size_bytes == path.stat().st_size
    following.write([(frame(30, "z"), -1) for _ in range(3)])
    following.close()
    records = RecordDecoder().receive_data(path.read_bytes()[FILE_HEADER_BYTES:])
    checkpoints = [decode_checkpoint(record) for record in records if record.kind == RecordKind.CHECKPOINT]
    assert [each.previous for each in checkpoints] == [0, *(each.offset for each in checkpoints[:-1])]
    assert len(checkpoints) >= 6
    # The first one of the new writer has the state that the old one left.
    first = checkpoints[-3]
    assert (first.events, first.epoch, first.seq, first.time_ns) == (20, 5, 21, EPOCH + 20 * SECOND)


def test_the_epoch_and_the_count_behind_the_last_checkpoint_are_found(tmp_path):
    path = tmp_path / "a.evlog"
    writer = opened(path, checkpoint_bytes=1)
    writer.write([(frame(1, "x"), -1)])
    writer.start({**START, "epoch": 9})
    writer.close()
    for _ in range(2):
        following = Writer(str(path), fsync="never")
        assert (following.epoch, following.events) == (9, 1)
        following.close()


def test_an_unfinished_tail_is_cut_off_and_counted(tmp_path):
    path = tmp_path / "a.evlog"
    write(path, [frame(1, "x"), frame(2, "y")], finish=False)
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    writer = Writer(str(path), fsync="never")
    size = RECORD_BYTES + len(frame(2, "y"))
    assert (writer.repaired_bytes, writer.events, writer.size_bytes) == (size - 3, 1, len(whole) - size)
    assert path.stat().st_size == len(whole) - size
    writer.close()


def test_a_long_file_is_continued_past_what_one_read_gives(tmp_path, monkeypatch):
    monkeypatch.setattr(writer_module, "_READ_BYTES", 100)
    path = tmp_path / "a.evlog"
    write(path, [frame(number, "x" * 200) for number in range(1, 21)], checkpoint_bytes=1 << 20)
    writer = Writer(str(path), fsync="never")
    assert (writer.events, writer.repaired_bytes) == (20, 0)
    writer.close()


# --- limits ---


def test_a_file_is_exactly_as_long_as_it_may_be(tmp_path):
    path = tmp_path / "a.evlog"
    writer = opened(path, limits=Limits(max_bytes=None))
    begin = writer.size_bytes
    writer.close()
    path.unlink()
    size = RECORD_BYTES + len(frame(1, "x"))
    # Three frames, and beside the last of them what a frame needs.
    limit = begin + 2 * size + len(frame(1, "x")) + BESIDE
    for max_bytes, first in ((limit, 3), (limit - 1, 2), (limit + 1, 3)):
        directory = tmp_path / str(max_bytes)
        directory.mkdir()
        writer = opened(directory / "a.evlog", limits=Limits(max_bytes=max_bytes))
        writer.write((frame(number, "x"), -1) for number in range(1, 5))
        assert writer.done == 4
        writer.finish()
        writer.close()
        assert len(datas(items(directory / "a.0000.evlog", one_file=True))) == first
        assert all(each.stat().st_size <= max_bytes for each in directory.iterdir())


def test_a_file_without_events_is_never_rotated(tmp_path, clock):
    path = tmp_path / "a.evlog"
    writer = opened(path, limits=Limits(max_bytes=50, max_age_s=5))
    for _ in range(3):
        clock.now += 100
        writer.rotate_if_due()
        writer.write([])
    assert names(tmp_path) == ["a.evlog"]
    writer.write([(frame(1, "x"), -1)])
    assert names(tmp_path) == ["a.evlog"]
    writer.write([(frame(2, "x"), -1)])
    assert names(tmp_path) == ["a.0000.evlog", "a.evlog"]
    writer.close()


def test_a_file_is_rotated_by_age_from_the_moment_it_was_begun(tmp_path, clock):
    path = tmp_path / "a.evlog"
    writer = opened(path, limits=Limits(max_age_s=60))
    for number in range(1, 4):
        writer.write([(frame(number, "x"), -1)])
        clock.now += 59.9
        writer.rotate_if_due()
        assert len(names(tmp_path)) == number
        clock.now += 0.1 + 1e-9
        writer.rotate_if_due()
        assert len(names(tmp_path)) == number + 1
    writer.close()
    assert datas(items(path)) == ["x"] * 3
    forever = opened(tmp_path / "b.evlog")
    forever.write([(frame(1, "x"), -1)])
    clock.now += 1e9
    forever.rotate_if_due()
    forever.close()
    assert not (tmp_path / "b.0000.evlog").exists()


# --- rotation ---


def test_each_file_begins_with_the_start_and_knows_the_events_before(tmp_path):
    path = tmp_path / "a.evlog"
    finished: list[str] = []
    writer = opened(path, checkpoint_bytes=1, on_finished=finished.append)
    for seq in (1, 3, 5):
        writer.write([(frame(seq, "x", "y"), -1)])
        if seq == 3:
            writer.start({**START, "epoch": 6, "by": "next"})
        if seq < 5:
            before = time.time_ns()
            writer.rotate()
            header = decode_file_header(path.read_bytes())
            assert (header.segment, header.events) == ((seq + 1) // 2, seq + 1)
            assert before <= header.created_ns <= time.time_ns()
            assert writer.size_bytes == path.stat().st_size
            assert not is_open(finished[-1])
    writer.finish()
    writer.close()
    assert finished == [str(tmp_path / "a.0000.evlog"), str(tmp_path / "a.0001.evlog")]
    assert names(tmp_path) == ["a.0000.evlog", "a.0001.evlog", "a.evlog"]
    # Each of them ends in good order and says by itself whose events it has.
    found = [items(tmp_path / name, one_file=True) for name in names(tmp_path)]
    assert [len(notes(each, RecordKind.END)) for each in found] == [1, 1, 1]
    assert notes(found[1], RecordKind.START) == [START, {**START, "epoch": 6, "by": "next"}]
    assert notes(found[2], RecordKind.START) == [{**START, "epoch": 6, "by": "next"}]
    assert [note.events for note in found[2] if isinstance(note, Note)] == [4, 6]
    assert [event.epoch for event in events(found[2])] == [6, 6]
    # A checkpoint at the start of a file has the state of the one before.
    records = RecordDecoder().receive_data((tmp_path / "a.0001.evlog").read_bytes()[FILE_HEADER_BYTES:])
    checkpoint = next(decode_checkpoint(record) for record in records if record.kind == RecordKind.CHECKPOINT)
    assert (checkpoint.events, checkpoint.epoch, checkpoint.seq, checkpoint.time_ns) == (2, 5, 2, EPOCH + SECOND)


def test_a_rotation_keeps_the_file_locked(tmp_path):
    path = tmp_path / "a.evlog"
    writer = opened(path)
    writer.write([(frame(1, "x"), -1)])
    writer.rotate()
    with pytest.raises(RecordingError, match="another process records to it"):
        Writer(str(path))
    writer.close()


@pytest.mark.parametrize("name", ["open", "rename", "pwritev"])
def test_a_rotation_that_fails_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, clock, caplog, name):
    path = tmp_path / "a.evlog"
    writer = opened(path, limits=Limits(max_age_s=1))
    writer.write([(frame(1, "x"), -1)])
    clock.now += 5
    calls = []
    real = getattr(os, name)
    descriptors = len(os.listdir("/proc/self/fd"))

    def failing(*args):
        calls.append(args)
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, name, failing)
    for _ in range(3):
        writer.rotate_if_due()
    # It is tried again only after a while, and logged once each time.
    assert len(calls) == 1
    (record,) = caplog.records
    assert record.name == "eventsh.recording"
    assert record.getMessage() == f"{path}: no new file can be begun, the old one grows on: Read-only file system"
    clock.now += 9.9
    writer.rotate_if_due()
    assert len(calls) == 1
    clock.now += 0.2
    writer.rotate_if_due()
    assert (len(calls), len(caplog.records)) == (2, 2)
    monkeypatch.setattr(os, name, real)
    assert names(tmp_path) == ["a.evlog"]
    assert len(os.listdir("/proc/self/fd")) == descriptors
    writer.write([(frame(2, "y"), -1)])
    clock.now += 11
    writer.rotate_if_due()
    writer.close()
    assert datas(items(path)) == ["x", "y"]
    assert names(tmp_path) == ["a.0000.evlog", "a.evlog"]


def test_a_rotation_whose_sync_fails_is_an_error_of_the_disk(tmp_path, monkeypatch, clock):
    path = tmp_path / "a.evlog"
    writer = opened(path, limits=Limits(max_age_s=1), fsync="interval")
    writer.write([(frame(1, "x"), -1)])
    clock.now += 5
    monkeypatch.setattr(os, "fdatasync", fail())
    with pytest.raises(SyncError) as caught:
        writer.rotate_if_due()
    assert (caught.value.errno, caught.value.strerror) == (errno.EIO, os.strerror(errno.EIO))
    assert writer.is_dirty
    assert names(tmp_path) == ["a.evlog"]
    writer.close()


# --- errors ---


@pytest.mark.parametrize("written", [0, 1, 50])
def test_after_an_error_the_file_ends_with_a_whole_record(tmp_path, monkeypatch, written):
    path = tmp_path / "a.evlog"
    writer = opened(path, checkpoint_bytes=100)
    writer.write([(frame(1, "x"), -1)])
    before, size = path.read_bytes(), writer.size_bytes
    real = os.pwritev

    def partly(descriptor, parts, offset):
        if written:
            real(descriptor, [b"".join(parts)[:written]], offset)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwritev", partly)
    with pytest.raises(OSError, match="No space left"):
        writer.write([(frame(2, "y"), -1), (frame(3, "y"), -1)])
    assert path.read_bytes() == before
    assert (writer.done, writer.events, writer.size_bytes) == (0, 1, size)
    # Even where that can't be cut off, the next write goes over it.
    monkeypatch.setattr(os, "ftruncate", fail())
    with pytest.raises(OSError, match="No space left"):
        writer.add(RecordKind.MARKER, {"name": "m"})
    monkeypatch.setattr(os, "pwritev", real)
    writer.write([(frame(2, "z" * 100), -1)])
    writer.close()
    assert datas(items(path)) == ["x", "z" * 100]
    assert not damages(items(path))


def test_after_an_error_it_is_known_how_many_frames_are_in_the_files(tmp_path, monkeypatch):
    path = tmp_path / "a.evlog"
    writer = opened(path, limits=Limits(max_bytes=2048))
    real = writer.rotate
    rotations = 0

    def rotate():
        nonlocal rotations
        real()
        rotations += 1
        if rotations == 2:
            monkeypatch.setattr(os, "pwritev", fail(errno.ENOSPC))

    monkeypatch.setattr(writer, "rotate", rotate)
    with pytest.raises(OSError, match="No space left"):
        writer.write((frame(number, "x" * 200), -1) for number in range(1, 51))
    writer.close()
    assert writer.done == writer.events == len(datas(items(path))) > 5


def test_a_write_goes_on_where_the_system_took_only_a_part(tmp_path, monkeypatch):
    path = tmp_path / "a.evlog"
    real = os.pwritev
    monkeypatch.setattr(
        os, "pwritev", lambda descriptor, parts, offset: real(descriptor, [b"".join(parts)[:7]], offset)
    )
    # The first writes into a file that follows another one, too.
    write(path, [frame(number, "x" * 50) for number in range(1, 4)], limits=Limits(max_bytes=400))
    assert len(names(tmp_path)) > 1
    assert not damages(items(path))
    assert datas(items(path)) == ["x" * 50] * 3


def test_one_call_takes_no_more_parts_than_the_system_allows(tmp_path, monkeypatch):
    path = tmp_path / "a.evlog"
    sizes = []
    real = os.pwritev

    def pwritev(descriptor, parts, offset):
        sizes.append(len(parts))
        return real(descriptor, parts, offset)

    monkeypatch.setattr(os, "pwritev", pwritev)
    write(path, [frame(number, "x") for number in range(1, 1101)])
    assert max(sizes) == 1024
    assert len(datas(items(path))) == 1100


def test_room_is_that_for_users_in_bytes(tmp_path, monkeypatch):
    writer = opened(tmp_path / "a.evlog")
    monkeypatch.setattr(os, "fstatvfs", lambda _: SimpleNamespace(f_bavail=10, f_frsize=512))
    assert writer.has_room(5120)
    assert not writer.has_room(5121)
    writer.close()


def test_a_recording_that_follows_finished_files_counts_on(tmp_path):
    path = tmp_path / "a.evlog"
    writer = opened(path)
    for seq in (1, 3, 5):
        writer.write([(frame(seq, "x", "y"), -1)])
        writer.rotate()
    writer.close()
    path.unlink()
    following = Writer(str(path), fsync="never")
    header = decode_file_header(path.read_bytes())
    assert (header.segment, header.events, following.events) == (3, 6, 6)
    following.start(START)
    following.rotate_if_due()
    following.write([(frame(9, "z"), -1)])
    following.close()
    assert [item.first for item in items(path) if isinstance(item, Frame)] == [1, 3, 5, 7]
