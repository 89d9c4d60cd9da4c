"""Files: going on with one, cutting its tail off, rotation, compression, errors of the disk."""

from __future__ import annotations

import errno
import os
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from eventsh.errors import RecordingError
from eventsh.protocol.frame import HEADER
from eventsh.recording.format import RecordKind
from eventsh.recording.frames import Frame
from eventsh.recording.reader import Reader, Start
from eventsh.recording.recorder import Recorder, RecorderOptions
from eventsh.recording.segments import Compressor, segment_paths
from eventsh.recording.writer import Limits, Writer, open_locked
from tests.recording.sample import (
    EPOCH,
    SECOND,
    damages,
    datas,
    events,
    frame,
    is_open,
    items,
    notes,
    small_file,
    write,
)

START = {"epoch": 5, "address": "unix:/x", "pid": 1, "by": "broker", "time_ns": EPOCH}
DEADLINE_S = 30.0


def wait_until(condition, what):
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.005)


# --- one file ---


def test_a_file_is_its_owners_alone_and_is_not_left_open(tmp_path):
    path = tmp_path / "a.evlog"
    write(path, [frame(1, "x")])
    assert path.stat().st_mode & 0o777 == 0o600
    assert not is_open(str(path))


def test_a_recording_can_be_continued_after_its_end(tmp_path):
    path = tmp_path / "a.evlog"
    write(path, [frame(1, "x"), frame(2, "y")], checkpoint_bytes=100)
    writer = write(path, [frame(1, "z")], epoch=6, checkpoint_bytes=100)
    assert (writer.events, writer.repaired_bytes) == (3, 0)
    found = items(path)
    assert not damages(found)
    assert [(event.epoch, event.data) for event in events(found)] == [(5, "x"), (5, "y"), (6, "z")]
    assert [item.first for item in found if isinstance(item, Frame)] == [1, 2, 3]


def test_cut_at_every_byte_it_is_continued_behind_the_last_whole_record(tmp_path):
    whole = small_file(closed=False)
    path = tmp_path / "a.evlog"
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        before = datas(items(path, one_file=True))
        writer = write(path, [frame(50, "new")])
        found = items(path, one_file=True)
        assert not damages(found), size
        assert datas(found) == [*before, "new"]
        assert writer.events == len(before) + 1


@pytest.mark.parametrize("content", [b"x", b"#!/bin/sh\nexit 1\n" * 9, b"\x89PNG\r\n\x1a\n" * 9])
def test_what_is_no_recording_is_left_alone(tmp_path, content):
    path = tmp_path / "a.evlog"
    path.write_bytes(content)
    with pytest.raises(RecordingError, match="no recording"):
        Writer(str(path))
    assert path.read_bytes() == content
    assert not is_open(str(path))


def test_two_do_not_write_to_one_file(tmp_path):
    first = Writer(str(tmp_path / "a.evlog"))
    with pytest.raises(RecordingError, match="another process records to it"):
        Writer(str(tmp_path / "a.evlog"))
    first.close()
    Writer(str(tmp_path / "a.evlog")).close()


def test_where_no_file_can_be_made_the_error_names_it(tmp_path):
    with pytest.raises(RecordingError, match=r"nowhere/a\.evlog: No such file"):
        Writer(str(tmp_path / "nowhere" / "a.evlog"))


# --- several ---


def test_files_are_rotated_by_size_and_read_as_one(tmp_path):
    path = tmp_path / "a.evlog"
    write(path, [frame(number, "x" * 200) for number in range(1, 101)], limits=Limits(max_bytes=4096))
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names[-1] == "a.evlog"
    assert names[0] == "a.0000.evlog"
    assert len(names) > 5
    assert all(file.stat().st_size <= 4096 for file in tmp_path.iterdir())
    found = items(path)
    assert not damages(found)
    assert [event.seq for event in events(found)] == list(range(1, 101))
    assert {event.epoch for event in events(found)} == {5}
    assert [item.first for item in found if isinstance(item, Frame)] == list(range(1, 101))
    # Each of them can be read by itself too.
    assert datas(items(tmp_path / names[1]))


def test_files_are_rotated_by_age_also_while_nothing_happens(tmp_path):
    path = tmp_path / "a.evlog"
    recorder = Recorder(str(path), START, RecorderOptions(limits=Limits(max_age_s=0.05)))
    recorder.take(frame(1, "first"))
    wait_until((tmp_path / "a.0000.evlog").exists, "it is rotated")
    recorder.take(frame(2, "second"))
    recorder.close()
    found = items(path)
    assert not damages(found)
    assert datas(found) == ["first", "second"]
    # A file without events is not rotated: there would be one each 50 ms, for ever.
    assert len(list(tmp_path.iterdir())) <= 3


def test_a_frame_larger_than_a_file_may_be_gets_one_of_its_own(tmp_path):
    path = tmp_path / "a.evlog"
    write(path, [frame(number, "x" * 9000) for number in range(1, 4)], limits=Limits(max_bytes=4096))
    assert len(list(tmp_path.iterdir())) == 3
    assert [event.seq for event in events(items(path))] == [1, 2, 3]


def test_a_rotated_recording_is_continued_with_the_right_numbers(tmp_path):
    path = tmp_path / "a.evlog"
    limits = Limits(max_bytes=4096)
    write(path, [frame(number, "x" * 200) for number in range(1, 51)], limits=limits)
    writer = write(path, [frame(number, "x" * 200) for number in range(51, 101)], limits=limits)
    assert writer.events == 100
    found = items(path)
    assert not damages(found)
    assert [event.seq for event in events(found)] == list(range(1, 101))


def test_a_missing_file_in_the_middle_is_noticed(tmp_path):
    path = tmp_path / "a.evlog"
    write(path, [frame(number, "x" * 200) for number in range(1, 51)], limits=Limits(max_bytes=4096))
    (tmp_path / "a.0001.evlog").unlink()
    assert ["segment 1 is missing" in damage.reason for damage in damages(items(path))] == [True]


def test_killed_in_the_midst_of_a_rotation_nothing_is_lost(tmp_path):
    path = tmp_path / "a.evlog"
    write(path, [frame(number, "x" * 200) for number in range(1, 51)], limits=Limits(max_bytes=4096))
    path.rename(tmp_path / "a.evlog.next")
    write(path, [frame(51, "new")])
    assert [event.seq for event in events(items(path))] == list(range(1, 52))


@pytest.mark.parametrize("is_packed", [False, True])
def test_where_the_last_file_was_moved_away_the_next_one_follows_those_that_are_left(tmp_path, is_packed):
    path = tmp_path / "a.evlog"
    limits = Limits(max_bytes=4096)
    write(path, [frame(number, "x" * 200) for number in range(1, 51)], limits=limits)
    path.rename(tmp_path / "incident.evlog")
    before = [event.seq for event in events(items(path))]
    if is_packed:
        pack_all(path)
    write(path, [frame(number, "y" * 200) for number in range(1, 51)], limits=limits, epoch=6)
    found = items(path)
    assert not damages(found)
    assert [event.seq for event in events(found)] == [*before, *range(1, 51)]
    assert [item.first for item in found if isinstance(item, Frame)] == list(range(1, len(before) + 51))
    with pytest.raises(RecordingError, match="files of an older recording are there"):
        Writer(str(tmp_path / "a.evlog"), fresh=path.unlink() is None)


def pack_all(path):
    compressor = Compressor()
    compressor.take_up(str(path))
    wait_until(lambda: not list(path.parent.glob("*.????.evlog")), "all are compressed")
    compressor.close()


@pytest.mark.parametrize("name", ["a.0000.evlog", "a.0000.evlog.zst"])
def test_a_rotation_never_replaces_a_file_that_is_there(tmp_path, name):
    path = tmp_path / "a.evlog"
    write(path, [frame(1, "x")])
    (tmp_path / name).write_bytes(b"another one's")
    write(path, [frame(number, "x" * 200) for number in range(2, 51)], limits=Limits(max_bytes=4096))
    assert (tmp_path / name).read_bytes() == b"another one's"
    assert [event.seq for event in events(items(path, one_file=True))] == list(range(1, 51))


def test_while_another_process_has_the_next_file_the_old_one_grows_on(tmp_path):
    path = tmp_path / "a.evlog"
    recorder = Recorder(str(path), START, RecorderOptions(limits=Limits(max_bytes=4096)))
    other = open_locked(f"{path}.next", 0)
    for number in range(1, 51):
        recorder.take(frame(number, "x" * 200))
    wait_until(lambda: recorder.status()["events"] == 50, "all are written")
    recorder.close()
    os.close(other)
    assert [event.seq for event in events(items(path))] == list(range(1, 51))


def test_an_error_of_the_disk_in_a_rotation_is_a_hole_of_unknown_size(tmp_path, monkeypatch, caplog):
    real = os.fdatasync
    is_broken = False

    def fdatasync(descriptor):
        if is_broken:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(descriptor)

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    path = tmp_path / "a.evlog"
    recorder = Recorder(str(path), START, RecorderOptions(limits=Limits(max_bytes=4096)))
    is_broken = True
    for number in range(1, 31):
        recorder.take(frame(number, "x" * 200))
    wait_until(lambda: recorder.status()["state"] == "paused", "it pauses")
    is_broken = False
    wait_until(lambda: recorder.status()["state"] == "recording", "it goes on")
    recorder.close()
    found = items(path)
    assert not damages(found)
    (hole,) = notes(found, RecordKind.HOLE)
    assert (hole["missed"], hole["reason"]) == (None, os.strerror(errno.EIO))
    assert "no new file" not in caplog.text


def test_what_is_rotated_and_compressed_while_it_is_read_is_read_to_the_end(tmp_path):
    path = tmp_path / "a.evlog"
    writer = Writer(str(path), fsync="never", checkpoint_bytes=500)
    writer.start(START)
    for number in range(1, 4):
        writer.write((frame(10 * number + each, "x" * 200), -1) for each in range(10))
        if number < 3:
            writer.rotate()
    whole = Reader(str(path))
    late = Reader(str(path), start=Start(partial(is_before, 35)))
    under_way = iter(Reader(str(path)))
    first = next(item for item in under_way if isinstance(item, Frame))
    writer.rotate()
    writer.write([(frame(40, "new"), -1)])
    pack_all(path)
    assert [event.seq for event in events([first, *under_way])] == [*range(10, 41)]
    found = list(whole)
    assert not damages(found)
    assert [event.seq for event in events(found)] == [*range(10, 41)]
    seqs = [event.seq for event in events(late)]
    assert seqs[0] <= 35
    assert seqs[-1] == 40
    writer.close()


def test_a_file_that_is_rotated_before_it_is_opened_is_not_passed_over(tmp_path):
    path = tmp_path / "a.evlog"
    writer = Writer(str(path), fsync="never")
    writer.start(START)
    writer.write([(frame(1, "x"), -1)])
    reader = Reader(str(path))
    writer.rotate()
    writer.write([(frame(2, "x"), -1)])
    assert [event.seq for event in events(reader)] == [1, 2]
    writer.close()


def test_what_an_earlier_process_left_uncompressed_is_compressed(tmp_path):
    path = tmp_path / "a.evlog"
    write(path, [frame(number, "x" * 200) for number in range(1, 51)], limits=Limits(max_bytes=4096))
    (tmp_path / "a.0001.evlog.zst.part").write_bytes(b"begun")
    recorder = Recorder(str(path), START, RecorderOptions(compress=True))
    wait_until(lambda: not list(tmp_path.glob("*.????.evlog")), "all are compressed")
    recorder.close()
    assert not list(tmp_path.glob("*.part"))
    assert [event.seq for event in events(items(path))] == list(range(1, 51))


def test_a_file_that_can_not_be_compressed_stops_nothing(tmp_path):
    (tmp_path / "a.evlog.zst").write_bytes(b"another one's")
    for name in "ab":
        write(tmp_path / f"{name}.evlog", [frame(1, "x")])
    compressor = Compressor()
    # A path that no system takes is no OSError.
    compressor.add(f"{tmp_path}/\0")
    compressor.add(str(tmp_path / "a.evlog"))
    wait_until(lambda: "is there already" in (compressor.error or ""), "it is told")
    assert (tmp_path / "a.evlog.zst").read_bytes() == b"another one's"
    compressor.add(str(tmp_path / "b.evlog"))
    wait_until(lambda: not (tmp_path / "b.evlog").exists(), "the next one is compressed")
    compressor.close()


def test_finished_files_are_compressed_and_read_as_before(tmp_path):
    path = tmp_path / "a.evlog"
    recorder = Recorder(str(path), START, RecorderOptions(limits=Limits(max_bytes=8192), compress=True))
    for number in range(1, 201):
        recorder.take(frame(number, "x" * 200))
    wait_until(lambda: len(list(tmp_path.glob("*.zst"))) >= 3, "three are compressed")
    recorder.close()
    assert not list(tmp_path.glob("*.part"))
    found = items(path)
    assert not damages(found)
    assert [event.seq for event in events(found)] == list(range(1, 201))
    # Sought in, too.
    for wanted in (1, 2, 100, 150, 200):
        reader = Reader(str(path), start=Start(partial(is_before, wanted)))
        seqs = [event.seq for event in events(reader)]
        assert seqs[0] <= wanted
        assert seqs[-1] == 200


def is_before(wanted, here):
    return here.seq < wanted


def test_a_damaged_compressed_file_is_noticed(tmp_path):
    path = tmp_path / "a.evlog"
    recorder = Recorder(str(path), START, RecorderOptions(limits=Limits(max_bytes=8192), compress=True))
    for number in range(1, 101):
        recorder.take(frame(number, os.urandom(100).hex()))
    wait_until(lambda: list(tmp_path.glob("*.zst")), "one is compressed")
    recorder.close()
    first = segment_paths(str(path))[0]
    data = bytearray(Path(first).read_bytes())
    data[len(data) // 2] ^= 0xFF
    Path(first).write_bytes(data)
    assert len(damages(items(path))) == 1


# --- seeking ---


def test_a_place_is_found_by_number_time_and_count_without_what_is_before(tmp_path):
    path = tmp_path / "a.evlog"
    write(path, [frame(number, "x" * 50) for number in range(1, 2001)], checkpoint_bytes=2000)
    for wanted in (1, 2, 3, 777, 1000, 1999, 2000):
        for before in (
            lambda here, wanted=wanted: here.seq < wanted,
            lambda here, wanted=wanted: here.time_ns < EPOCH + wanted * SECOND,
            lambda here, wanted=wanted: here.events < wanted,
        ):
            found = items(path, start=Start(before))
            seqs = [event.seq for event in events(found)]
            assert seqs == list(range(seqs[0], 2001))
            assert seqs[0] <= wanted < seqs[0] + 20
            assert next(item.first for item in found if isinstance(item, Frame)) == seqs[0]
            assert next(events(found)).epoch == 5


def test_a_payload_that_looks_like_a_checkpoint_is_none(tmp_path):
    path = tmp_path / "a.evlog"
    inner = small_file()
    hostile = bytearray(frame(2, "x" * len(inner)))
    hostile[-len(inner) :] = inner
    write(path, [frame(1, "a"), bytes(hostile), frame(3, "b")], checkpoint_bytes=10**9)
    found = items(path, start=Start(lambda here: True))
    assert [HEADER.unpack_from(item.data)[7] for item in found if isinstance(item, Frame)] == [1, 2, 3]
    assert write(path, [frame(4, "c")]).events == 4


# --- trouble with the disk ---


class Disk:
    """Lets writing fail from some point on, as a full disk does: a part is written first."""

    def __init__(self, monkeypatch) -> None:
        self.full = False
        self.kind = errno.ENOSPC
        real = os.pwritev

        def pwritev(descriptor, parts, offset):
            if self.full:
                real(descriptor, [b"".join(parts)[:7]], offset)
                raise OSError(self.kind, os.strerror(self.kind))
            return real(descriptor, parts, offset)

        monkeypatch.setattr(os, "pwritev", pwritev)


@pytest.mark.parametrize("kind", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("fsync", ["never", "always"])
def test_on_an_error_recording_pauses_and_goes_on_with_the_hole_recorded(tmp_path, monkeypatch, kind, fsync):
    disk = Disk(monkeypatch)
    disk.kind = kind
    changes = threading.Semaphore(0)
    path = tmp_path / "a.evlog"
    recorder = Recorder(str(path), START, RecorderOptions(fsync=fsync), on_change=changes.release)
    recorder.take(frame(1, "before"))
    wait_until(lambda: recorder.status()["events"] == 1, "the first is written")
    disk.full = True
    recorder.take(frame(2, "lost", "lost too"))
    wait_until(lambda: recorder.status()["state"] == "paused", "it pauses")
    assert recorder.synced is None
    recorder.take(frame(4, "lost"))
    recorder.add(RecordKind.MARKER, {"name": "meanwhile", "time_ns": 1})
    wait_until(lambda: recorder.status()["missed"] == 3, "it counts what it misses")
    assert not damages(items(path))
    disk.full = False
    wait_until(lambda: recorder.status()["state"] == "recording", "it goes on")
    recorder.take(frame(5, "after"))
    wait_until(lambda: recorder.status()["events"] == 2, "what follows is written")
    if fsync == "always":
        wait_until(lambda: recorder.synced == 5, "it is on disk")
        assert changes.acquire(timeout=DEADLINE_S)
    recorder.close()
    found = items(path)
    assert not damages(found)
    assert datas(found) == ["before", "after"]
    (hole,) = notes(found, RecordKind.HOLE)
    assert (hole["missed"], hole["first_seq"], hole["last_seq"], hole["epoch"]) == (3, 2, 4, 5)
    assert hole["reason"] in ("the disk is full", os.strerror(errno.EIO))
    assert [marker["name"] for marker in notes(found, RecordKind.MARKER)] == ["meanwhile"]
    assert (recorder.missed, recorder.holes) == (3, 1)


def test_a_hole_is_written_once_even_if_going_on_fails_again(tmp_path, monkeypatch):
    disk = Disk(monkeypatch)
    path = tmp_path / "a.evlog"
    recorder = Recorder(str(path), START)
    disk.full = True
    recorder.take(frame(1, "lost"))
    wait_until(lambda: recorder.status()["state"] == "paused", "it pauses")
    recorder.add(RecordKind.MARKER, {"name": "meanwhile", "time_ns": 1})
    real = Writer.add
    refused = threading.Event()

    def add(writer, kind, facts):
        if kind is RecordKind.MARKER and not refused.is_set():
            refused.set()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(writer, kind, facts)

    monkeypatch.setattr(Writer, "add", add)
    disk.full = False
    assert refused.wait(DEADLINE_S)
    recorder.take(frame(2, "lost too"))
    wait_until(lambda: recorder.status()["state"] == "recording", "it goes on")
    recorder.close()
    found = items(path)
    assert [(hole["missed"], hole["last_seq"]) for hole in notes(found, RecordKind.HOLE)] == [(1, 1), (1, 2)]
    assert (recorder.missed, recorder.holes) == (2, 2)
    assert len(notes(found, RecordKind.MARKER)) == 1


def hold_writes(monkeypatch):
    """Let no write go on before the event that this gives is set."""
    go_on = threading.Event()
    real = os.pwritev

    def slow(descriptor, parts, offset):
        go_on.wait(DEADLINE_S)
        return real(descriptor, parts, offset)

    monkeypatch.setattr(os, "pwritev", slow)
    return go_on


def test_with_always_nothing_that_waits_for_a_slow_disk_counts_as_on_disk(tmp_path, monkeypatch):
    path = tmp_path / "a.evlog"
    changes = threading.Semaphore(0)
    options = RecorderOptions(fsync="always", pending_bytes=5000)
    recorder = Recorder(str(path), START, options, on_change=changes.release)
    go_on = hold_writes(monkeypatch)
    for number in range(1, 51):
        recorder.take(frame(number, "x" * 500))
    assert recorder.status()["state"] == "paused"
    assert recorder.synced == 0
    go_on.set()
    # Without anything further: the hole, too, is written by itself.
    wait_until(lambda: recorder.synced == 50, "all is on disk or accounted for")
    assert changes.acquire(timeout=DEADLINE_S)
    (hole,) = notes(items(path), RecordKind.HOLE)
    assert hole["last_seq"] == 50
    recorder.close()


def test_a_disk_that_is_too_slow_costs_a_hole_and_no_memory(tmp_path, monkeypatch):
    path = tmp_path / "a.evlog"
    recorder = Recorder(str(path), START, RecorderOptions(pending_bytes=10_000))
    go_on = hold_writes(monkeypatch)
    for number in range(1, 101):
        recorder.take(frame(number, "x" * 500))
    assert recorder.status()["pending_bytes"] < 12_000
    assert recorder.status()["state"] == "paused"
    missed = recorder.status()["missed"]
    go_on.set()
    wait_until(lambda: recorder.status()["pending_bytes"] == 0, "it has caught up")
    recorder.take(frame(101, "after"))
    recorder.close()
    found = items(path)
    (hole,) = notes(found, RecordKind.HOLE)
    assert hole["missed"] == missed > 50
    assert hole["last_seq"] == 100
    seqs = [event.seq for event in events(found)]
    assert seqs == [*range(1, hole["first_seq"]), 101]


def test_a_flood_that_meets_an_error_of_the_disk_is_counted_once(tmp_path, monkeypatch):
    path = tmp_path / "a.evlog"
    recorder = Recorder(str(path), START, RecorderOptions(pending_bytes=10_000))
    gate = threading.Semaphore(0)
    disk = Disk(monkeypatch)
    real = os.pwritev

    def gated(descriptor, parts, offset):
        assert gate.acquire(timeout=DEADLINE_S)
        return real(descriptor, parts, offset)

    monkeypatch.setattr(os, "pwritev", gated)
    for number in range(1, 101):
        recorder.take(frame(number, "x" * 500))
    flooded = recorder.status()["missed"]
    assert flooded > 50
    gate.release()
    wait_until(lambda: recorder.status()["pending_bytes"] <= 10_000, "there is room again")
    # What came in the flood is a hole of its own, and is still to be written when writing fails.
    recorder.take(frame(101, "lost"))
    wait_until(lambda: recorder.holes == 1, "the flood is over")
    disk.full = True
    gate.release(1000)
    wait_until(lambda: recorder.status()["error"] is not None, "it pauses")
    wait_until(lambda: recorder.status()["pending_bytes"] == 0, "it counts")
    written = recorder.status()["events"]
    assert (recorder.status()["missed"], recorder.status()["holes"]) == (101 - written, 1)
    disk.full = False
    wait_until(lambda: recorder.status()["state"] == "recording", "it goes on")
    recorder.close()
    (hole,) = notes(items(path), RecordKind.HOLE)
    assert (recorder.missed, recorder.holes) == (hole["missed"], 1) == (101 - written, 1)


def test_a_hole_that_somebody_else_tells_of_is_counted_too(tmp_path):
    recorder = Recorder(str(tmp_path / "a.evlog"), START)
    for missed in (4, None):
        recorder.add(RecordKind.HOLE, {"missed": missed, "reason": "the broker was gone", "epoch": 5})
    recorder.close()
    assert (recorder.status()["missed"], recorder.status()["holes"]) == (4, 2)


def test_a_directory_in_which_nothing_can_be_made_lets_the_old_file_grow(tmp_path, monkeypatch):
    real = os.rename

    def fail(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "rename", fail)
    path = tmp_path / "a.evlog"
    write(path, [frame(number, "x" * 200) for number in range(1, 51)], limits=Limits(max_bytes=4096))
    monkeypatch.setattr(os, "rename", real)
    assert [file.name for file in tmp_path.iterdir()] == ["a.evlog"]
    assert [event.seq for event in events(items(path))] == list(range(1, 51))
