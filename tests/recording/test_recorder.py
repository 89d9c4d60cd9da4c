"""The recorder's policies: what is on disk when, how often it tries again, what it counts, under a clock of the test's."""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from types import SimpleNamespace

import pytest

from eventsh.errors import RecordingError
from eventsh.recording import recorder as recorder_module
from eventsh.recording import writer as writer_module
from eventsh.recording.format import RecordKind
from eventsh.recording.frames import Frame
from eventsh.recording.reader import Damage, Note
from eventsh.recording.recorder import Recorder, RecorderOptions
from eventsh.recording.writer import Limits, Writer
from tests.recording.sample import EPOCH, damages, datas, events, frame, is_open, items, notes, write

START = {"epoch": 5, "address": "unix:/x", "pid": 1, "by": "broker", "time_ns": EPOCH}
DEADLINE_S = 30.0
# A power failure may cost as much with the policy "interval".
SYNC_INTERVAL_S = 1.0


def wait_until(condition, what):
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.002)


class Disk:
    """Counts what is asked of the disk, and refuses it on demand."""

    def __init__(self, monkeypatch) -> None:
        self.syncs = self.writes = 0
        self.error: int | None = None
        self.sync_error: int | None = None
        self.on_sync = lambda: None
        real_write, real_sync = os.pwritev, os.fdatasync

        def pwritev(descriptor, parts, offset):
            self.writes += 1
            if self.error is not None:
                raise OSError(self.error, os.strerror(self.error))
            return real_write(descriptor, parts, offset)

        def fdatasync(descriptor):
            self.syncs += 1
            self.on_sync()
            if self.sync_error is not None:
                raise OSError(self.sync_error, os.strerror(self.sync_error))
            real_sync(descriptor)

        monkeypatch.setattr(os, "pwritev", pwritev)
        monkeypatch.setattr(os, "fdatasync", fdatasync)


class Clock:
    """Stands still until the test moves it."""

    def __init__(self, monkeypatch) -> None:
        self.now = 1000.0
        fake = SimpleNamespace(monotonic=lambda: self.now, time_ns=time.time_ns)
        monkeypatch.setattr(writer_module, "time", fake)
        monkeypatch.setattr(recorder_module, "time", fake)


@pytest.fixture
def disk(monkeypatch):
    return Disk(monkeypatch)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


class Looks:
    """Counts the turns of the recorder's thread, so that a test can wait for one that began after now."""

    def __init__(self, monkeypatch) -> None:
        self.ended = 0
        real = Recorder._work

        def work(recorder):
            real(recorder)
            self.ended += 1

        monkeypatch.setattr(Recorder, "_work", work)

    def wait(self, recorder):
        """Wake the thread, and wait for two turns: one may have begun already."""
        for _ in range(2):
            ended = self.ended
            recorder._wake.set()
            recorder._is_much.set()
            wait_until(lambda ended=ended: self.ended > ended, "it looks")


@pytest.fixture
def looks(monkeypatch):
    return Looks(monkeypatch)


# --- what is on disk ---


def test_always_syncs_every_write_before_it_counts_as_on_disk(tmp_path, disk, clock):
    recorder = Recorder(str(tmp_path / "a.evlog"), START, RecorderOptions(fsync="always"))
    assert disk.syncs == 1  # the start
    assert recorder.synced == 0
    seen = []
    disk.on_sync = lambda: seen.append((recorder.synced, recorder.status()["events"]))
    for number in range(1, 6):
        # Two events a frame: the last one of them counts.
        recorder.take(frame(2 * number - 1, "x", "y"))
        wait_until(lambda number=number: recorder.synced == 2 * number, "it is on disk")
        # The frame is in the file, and does not count before its own sync has ended.
        assert seen == [(2 * each, 2 * each + 2) for each in range(number)]
    recorder.close()
    assert disk.syncs == 7  # and the end


def test_never_asks_for_no_sync_from_start_to_end(tmp_path, disk, clock, looks):
    path = tmp_path / "a.evlog"
    options = RecorderOptions(fsync="never", limits=Limits(max_bytes=4096))
    recorder = Recorder(str(path), START, options)
    for number in range(1, 51):
        recorder.take(frame(number, "x" * 200))
        clock.now += 10
    looks.wait(recorder)
    assert recorder.synced is None
    recorder.close()
    assert disk.syncs == 0
    assert len(list(events(items(path)))) == 50


def test_interval_syncs_once_an_interval_and_only_what_is_new(tmp_path, disk, clock, looks):
    recorder = Recorder(str(tmp_path / "a.evlog"), START, RecorderOptions(fsync="interval"))
    assert disk.syncs == 1
    for number in range(1, 4):
        for _ in range(3):
            recorder.take(frame(number, "x"))
            looks.wait(recorder)
        assert disk.syncs == number
        clock.now += SYNC_INTERVAL_S - 0.01
        looks.wait(recorder)
        assert disk.syncs == number
        clock.now += 0.02
        looks.wait(recorder)
        assert disk.syncs == number + 1
    clock.now += 100
    looks.wait(recorder)
    assert disk.syncs == 4  # nothing is new
    assert recorder.synced is None
    recorder.close()
    assert disk.syncs == 5


def test_interval_syncs_the_last_events_though_none_follow(tmp_path, disk, clock, looks):
    recorder = Recorder(str(tmp_path / "a.evlog"), START)
    recorder.take(frame(1, "x"))
    wait_until(lambda: recorder.status()["events"] == 1, "it is written")
    clock.now += SYNC_INTERVAL_S
    wait_until(lambda: disk.syncs == 2, "its thread looks again by itself")
    recorder.close()


@pytest.mark.parametrize(("fsync", "syncs"), [("never", 0), ("interval", 1), ("always", 2)])
def test_a_writer_syncs_as_the_policy_says(tmp_path, disk, clock, fsync, syncs):
    writer = Writer(str(tmp_path / "a.evlog"), fsync=fsync)
    dirty = [writer.is_dirty]
    writer.start(START)
    for _ in range(2):
        writer.write([(frame(1, "x"), -1)])
        dirty.append(writer.is_dirty)
        clock.now += SYNC_INTERVAL_S * 0.5
        writer.sync_if_due()
        # Not twice for the same.
        writer.sync_if_due()
    assert disk.syncs == syncs
    assert [*dirty, writer.is_dirty] == [False, True, True, fsync == "never"]
    clock.now += SYNC_INTERVAL_S * 5
    writer.sync_if_due()
    assert disk.syncs == syncs
    writer.finish()
    assert disk.syncs == syncs + (fsync != "never")
    writer.close()


def test_on_change_is_called_when_more_is_on_disk(tmp_path, disk):
    changed = []
    recorder = Recorder(
        str(tmp_path / "a.evlog"),
        START,
        RecorderOptions(fsync="always"),
        on_change=lambda: changed.append(recorder.synced),
    )
    for number in (1, 2, 3):
        recorder.take(frame(number, "x"))
        wait_until(lambda number=number: changed == list(range(1, number + 1)), "it is on disk")
    # A hole accounts for the events in it.
    recorder.add(RecordKind.HOLE, {"missed": 2, "first_seq": 4, "last_seq": 5, "reason": "gone", "epoch": 5})
    wait_until(lambda: changed == [1, 2, 3, 5], "the hole is on disk")
    # A number that was reached is never taken back.
    recorder.take(frame(2, "again"))
    wait_until(lambda: changed == [1, 2, 3, 5, 5], "it is on disk")
    recorder.close()


def test_a_failed_sync_is_a_hole_of_unknown_size_and_holds_up_nobody(tmp_path, disk, clock, looks):
    path = tmp_path / "a.evlog"
    changed = []
    recorder = Recorder(
        str(path), START, RecorderOptions(fsync="always"), on_change=lambda: changed.append(recorder.synced)
    )
    disk.sync_error = errno.EIO
    recorder.take(frame(1, "x"))
    wait_until(lambda: recorder.status()["state"] == "paused", "it pauses")
    assert recorder.synced is None
    wait_until(lambda: changed == [None], "those that waited are told")
    disk.sync_error = None
    clock.now += 60
    looks.wait(recorder)
    wait_until(lambda: recorder.status()["state"] == "recording", "it goes on")
    assert recorder.status()["error"] is None
    recorder.close()
    (hole,) = notes(items(path), RecordKind.HOLE)
    assert (hole["missed"], hole["reason"]) == (None, os.strerror(errno.EIO))


# --- when the thread writes ---


def test_the_limits_and_delays_of_a_recorder():
    assert RecorderOptions().pending_bytes == 64 * 1024 * 1024
    # A killed process loses no more than this, in seconds or in bytes.
    assert recorder_module._DELAY_S == 0.02
    assert recorder_module._WAKE_BYTES == 1024 * 1024
    assert (RecorderOptions().fsync, RecorderOptions().compress, RecorderOptions().fresh) == ("interval", False, False)


def test_small_frames_wait_for_each_other(tmp_path, monkeypatch, disk):
    monkeypatch.setattr(recorder_module, "_DELAY_S", 1e6)
    recorder = Recorder(str(tmp_path / "a.evlog"), START, RecorderOptions(fsync="never"))
    before = disk.writes
    for number in range(1, 1001):
        recorder.take(frame(number, "x"))
    recorder.close()
    # Two parts a frame, 1024 a call; and the end.
    assert disk.writes - before == 3
    assert recorder.status()["events"] == 1000


def test_a_mebibyte_is_written_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(recorder_module, "_DELAY_S", 1e6)
    recorder = Recorder(str(tmp_path / "a.evlog"), START)
    for number in range(1, 13):
        recorder.take(frame(number, "x" * 100_000))
    wait_until(lambda: recorder.status()["events"] > 0, "it is written")
    recorder.close()


def test_always_does_not_wait_for_more(tmp_path, monkeypatch):
    monkeypatch.setattr(recorder_module, "_DELAY_S", 1e6)
    recorder = Recorder(str(tmp_path / "a.evlog"), START, RecorderOptions(fsync="always"))
    for number in range(1, 4):
        recorder.take(frame(number, "x"))
        wait_until(lambda number=number: recorder.synced == number, "it is on disk")
    recorder.close()


@pytest.mark.parametrize("kind", [RecordKind.MARKER, RecordKind.HOLE, RecordKind.START])
def test_a_record_of_another_kind_is_written_by_itself(tmp_path, kind):
    path = tmp_path / "a.evlog"
    recorder = Recorder(str(path), START)
    recorder.add(kind, {"epoch": 6, "missed": 1, "name": "n"})
    wait_until(lambda: len(notes(items(path), kind)) == 1 + (kind is RecordKind.START), "it is written")
    recorder.close()


def test_records_and_frames_keep_their_order_and_workers(tmp_path):
    path = tmp_path / "a.evlog"
    recorder = Recorder(str(path), START)
    for number in range(1, 31):
        recorder.take(frame(number, number), number % 4)
        if number % 5 == 0:
            recorder.add(RecordKind.MARKER, {"name": str(number), "time_ns": 1})
        if number == 20:
            recorder.add(RecordKind.START, {**START, "epoch": 9})
    recorder.close()
    found = items(path)
    assert not damages(found)
    assert [item.worker for item in found if isinstance(item, Frame)] == [number % 4 for number in range(1, 31)]
    assert [event.epoch for event in events(found)] == [5] * 20 + [9] * 10
    places = [
        (each.facts["name"], each.events) for each in found if isinstance(each, Note) and each.kind is RecordKind.MARKER
    ]
    assert places == [(str(number), number) for number in range(5, 31, 5)]


def test_one_write_takes_two_mebibytes(tmp_path, monkeypatch, disk):
    gate = threading.Event()
    sizes = []
    real = Writer.write

    def slow(writer, frames):
        assert gate.wait(DEADLINE_S)
        frames = list(frames)
        sizes.append(sum(len(data) for data, _ in frames))
        real(writer, frames)

    monkeypatch.setattr(Writer, "write", slow)
    recorder = Recorder(str(tmp_path / "a.evlog"), START, RecorderOptions(fsync="never"))
    size = len(frame(1, "x" * 100_000))
    for number in range(1, 101):
        recorder.take(frame(number, "x" * 100_000))
    gate.set()
    recorder.close()
    assert sum(sizes) == 100 * size
    # The first one began with what was there.
    assert all(2**21 <= each < 2**21 + size for each in sizes[1:-1])
    assert len(sizes) >= 5


# --- what it says ---


def test_the_status_of_a_recorder(tmp_path, looks):
    path = tmp_path / "a.evlog"
    recorder = Recorder(str(path), START)
    recorder.take(frame(1, "x", "y"))
    looks.wait(recorder)
    assert recorder.status() == {
        "state": "recording",
        "path": str(path),
        "events": 2,
        "bytes": path.stat().st_size,
        "pending_bytes": 0,
        "fsync": "interval",
        "holes": 0,
        "missed": 0,
        "error": None,
    }
    recorder.close()


def test_the_path_of_a_recorder_is_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recorder = Recorder("a.evlog", START)
    assert recorder.path == str(tmp_path / "a.evlog")
    recorder.close()
    assert not is_open(recorder.path)


def test_the_status_names_a_file_that_is_not_compressed(tmp_path):
    path = tmp_path / "a.evlog"
    recorder = Recorder(str(path), START, RecorderOptions(compress=True))
    assert recorder.status()["error"] is None
    assert recorder._compressor is not None
    recorder._compressor.add(str(tmp_path / "gone"))
    wait_until(lambda: "gone is not compressed" in (recorder.status()["error"] or ""), "it is in the status")
    threads = [thread.name for thread in threading.enumerate()]
    assert {"eventsh-record", "eventsh-compress"} <= set(threads)
    recorder.close()
    threads = [thread.name for thread in threading.enumerate()]
    assert not {"eventsh-record", "eventsh-compress"} & set(threads)


def test_a_repaired_file_is_logged_with_the_bytes_cut_off(tmp_path, caplog):
    path = tmp_path / "a.evlog"
    write(path, [frame(1, "x")])
    Recorder(str(path), START).close()
    assert not caplog.records
    path.write_bytes(path.read_bytes() + b"unfinished")
    Recorder(str(path), START).close()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.name == "eventsh.recording"
    assert "10 bytes" in record.getMessage()
    assert str(path) in record.getMessage()


def test_a_recorder_that_can_not_begin_leaves_nothing_open(tmp_path, disk):
    threads = threading.active_count()
    path = tmp_path / "a.evlog"
    write(path, [frame(1, "x")])
    disk.error = errno.ENOSPC
    with pytest.raises(RecordingError, match=r"can't record to .*a\.evlog: No space left on device"):
        Recorder(str(path), START, RecorderOptions(compress=True))
    disk.error = None
    disk.sync_error = errno.EIO
    for fsync in ("interval", "always"):
        with pytest.raises(RecordingError, match="Input/output error"):
            Recorder(str(path), START, RecorderOptions(fsync=fsync))
    Recorder(str(path), START, RecorderOptions(fsync="never")).close()
    with pytest.raises(RecordingError, match="File exists"):
        Recorder(str(path), START, RecorderOptions(fresh=True, compress=True))
    assert not is_open(str(path))
    assert threading.active_count() == threads


# --- while nothing can be written ---


def pause(recorder, disk, looks, first=1):
    """Let a frame of two events meet an error of the disk."""
    disk.error = errno.EIO
    recorder.take(frame(first, "lost", "lost"))
    wait_until(lambda: recorder.status()["state"] == "paused", "it pauses")
    looks.wait(recorder)


def test_it_tries_again_after_half_a_second_and_then_less_often(tmp_path, disk, clock, looks, caplog):
    recorder = Recorder(str(tmp_path / "a.evlog"), START)
    expected = [0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0]
    clock.now += 100
    for number, wait_s in enumerate(expected):
        pause(recorder, disk, looks, first=10 * number + 1)
        for _ in range(2):
            # Also an attempt that fails is followed by the same wait.
            clock.now += wait_s - 0.01
            before = disk.writes
            looks.wait(recorder)
            assert disk.writes == before, wait_s
            clock.now += 0.02
            looks.wait(recorder)
            assert disk.writes == before + 1, wait_s
        disk.error = None
        clock.now += wait_s + 0.01
        looks.wait(recorder)
        assert recorder.status()["state"] == "recording"
        # Once for each pause, and once for each end of one.
        texts = [record.getMessage() for record in caplog.records]
        assert sum("recording pauses: Input/output error" in text for text in texts) == number + 1
        assert sum("recording goes on; 2 events are not in it" in text for text in texts) == number + 1
        clock.now += 9.9
    # What fails again only later is waited for as at first.
    clock.now += 0.2
    pause(recorder, disk, looks, first=1000)
    clock.now += 0.51
    before = disk.writes
    looks.wait(recorder)
    assert disk.writes == before + 1
    disk.error = None
    recorder.close()


def test_a_paused_recorder_counts_what_it_misses_and_when(tmp_path, disk, clock, looks):
    path = tmp_path / "a.evlog"
    recorder = Recorder(str(path), START)
    begun = time.time_ns()
    pause(recorder, disk, looks, first=3)
    recorder.take(frame(5, "lost"))
    recorder.add(RecordKind.HOLE, {"missed": 4, "first_seq": 6, "last_seq": 9, "reason": "gone", "epoch": 5})
    recorder.add(RecordKind.HOLE, {"missed": 1, "reason": "gone", "epoch": 5})
    looks.wait(recorder)
    status = recorder.status()
    assert (status["state"], status["error"]) == ("paused", os.strerror(errno.EIO))
    assert (status["missed"], status["holes"], status["pending_bytes"], status["events"]) == (8, 1, 0, 0)
    ended = time.time_ns()
    disk.error = None
    clock.now += 60
    looks.wait(recorder)
    status = recorder.status()
    assert (status["state"], status["missed"], status["holes"]) == ("recording", 8, 1)
    recorder.close()
    (hole,) = notes(items(path), RecordKind.HOLE)
    assert begun <= hole.pop("began_ns") <= ended <= hole.pop("ended_ns") <= time.time_ns()
    assert hole == {"missed": 8, "first_seq": 3, "last_seq": 9, "reason": os.strerror(errno.EIO), "epoch": 5}


def test_a_hole_of_unknown_size_makes_a_pause_unknown(tmp_path, disk, clock, looks):
    recorder = Recorder(str(tmp_path / "a.evlog"), START)
    pause(recorder, disk, looks)
    recorder.add(RecordKind.HOLE, {"missed": None, "reason": "gone", "epoch": 5})
    looks.wait(recorder)
    assert (recorder.status()["missed"], recorder.status()["holes"]) == (0, 1)
    disk.error = None
    recorder.close()


def test_the_last_hundred_markers_of_a_pause_are_kept(tmp_path, disk, clock, looks):
    path = tmp_path / "a.evlog"
    recorder = Recorder(str(path), START)
    pause(recorder, disk, looks)
    for number in range(150):
        recorder.add(RecordKind.MARKER, {"name": str(number), "time_ns": 1})
    recorder.add(RecordKind.START, {**START, "epoch": 6})
    looks.wait(recorder)
    disk.error = None
    clock.now += 60
    looks.wait(recorder)
    recorder.take(frame(1, "after"))
    recorder.close()
    found = items(path)
    assert [marker["name"] for marker in notes(found, RecordKind.MARKER)] == [str(each) for each in range(51, 150)]
    assert [event.epoch for event in events(found)] == [6]
    (hole,) = notes(found, RecordKind.HOLE)
    assert hole["epoch"] == 5


@pytest.mark.parametrize(("kind", "asks"), [(errno.ENOSPC, True), (errno.EDQUOT, True), (errno.EIO, False)])
def test_a_full_disk_is_tried_again_once_it_has_room_for_what_it_refused(
    tmp_path, monkeypatch, disk, clock, looks, kind, asks
):
    sizes = []
    has_room = False

    def room(writer, size):
        sizes.append(size)
        return has_room

    monkeypatch.setattr(Writer, "has_room", room)
    recorder = Recorder(str(tmp_path / "a.evlog"), START)
    disk.error = kind
    data = frame(1, "x" * 1000)
    recorder.take(data)
    wait_until(lambda: recorder.status()["state"] == "paused", "it pauses")
    expected = os.strerror(kind) if kind == errno.EIO else "the disk is full"
    assert recorder.status()["error"] == expected
    disk.error = None
    clock.now += 60
    looks.wait(recorder)
    assert sizes == ([len(data)] if asks else [])
    assert recorder.status()["state"] == ("paused" if asks else "recording")
    has_room = True
    clock.now += 60
    looks.wait(recorder)
    assert recorder.status()["state"] == "recording"
    recorder.close()


def test_after_a_pause_the_events_of_the_hole_count_as_on_disk(tmp_path, disk, clock, looks):
    changed = []
    recorder = Recorder(
        str(tmp_path / "a.evlog"),
        START,
        RecorderOptions(fsync="always"),
        on_change=lambda: changed.append(recorder.synced),
    )
    pause(recorder, disk, looks, first=8)
    assert changed == [None]
    disk.error = None
    clock.now += 60
    looks.wait(recorder)
    assert recorder.synced == 9
    assert changed == [None, 9]
    recorder.close()


def test_a_recorder_closed_in_a_pause_writes_its_hole_or_logs_that_it_can_not(tmp_path, disk, clock, looks, caplog):
    path = tmp_path / "a.evlog"
    for is_broken in (False, True):
        path.unlink(missing_ok=True)
        caplog.clear()
        recorder = Recorder(str(path), START)
        pause(recorder, disk, looks)
        if not is_broken:
            disk.error = None
        recorder.close()
        disk.error = None
        errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
        assert len(notes(items(path), RecordKind.HOLE)) == (not is_broken)
        assert len(errors) == 2 * is_broken
        assert is_broken == any("a hole that could not be recorded" in text for text in errors)
        assert is_broken == any("end of the recording could not be written" in text for text in errors)
        assert not is_open(str(path))


def test_frames_that_were_written_before_an_error_are_not_in_the_hole(tmp_path, monkeypatch, disk, clock, looks):
    path = tmp_path / "a.evlog"
    gate = threading.Event()
    real = Writer.write

    def slow(writer, frames):
        assert gate.wait(DEADLINE_S)
        real(writer, frames)

    monkeypatch.setattr(Writer, "write", slow)
    recorder = Recorder(str(path), START, RecorderOptions(fsync="never", limits=Limits(max_bytes=4096)))
    recorder.take(frame(0, "first"))
    for number in range(1, 31):
        recorder.take(frame(number, "x" * 200))
    # The first file is finished and the next one begun; the frames of that one meet the error.
    calls = 0
    whole = os.pwritev

    def pwritev(descriptor, parts, offset):
        nonlocal calls
        calls += 1
        if calls > 4:
            disk.error = errno.EIO
        return whole(descriptor, parts, offset)

    monkeypatch.setattr(os, "pwritev", pwritev)
    gate.set()
    wait_until(lambda: recorder.status()["state"] == "paused", "it pauses")
    looks.wait(recorder)
    monkeypatch.setattr(os, "pwritev", whole)
    disk.error = None
    clock.now += 60
    looks.wait(recorder)
    recorder.close()
    found = items(path)
    (hole,) = notes(found, RecordKind.HOLE)
    seqs = [event.seq for event in events(found)]
    assert hole["first_seq"] > 1
    assert seqs == list(range(hole["first_seq"]))
    assert (hole["last_seq"], hole["missed"]) == (30, 31 - hole["first_seq"])


def test_a_hole_that_passes_by_gives_its_numbers_to_a_pause_without_any(tmp_path, disk, clock, looks):
    path = tmp_path / "a.evlog"
    recorder = Recorder(str(path), START)
    disk.error = errno.EIO
    recorder.add(RecordKind.MARKER, {"name": "m"})
    wait_until(lambda: recorder.status()["state"] == "paused", "it pauses")
    assert (recorder.status()["missed"], recorder.status()["holes"]) == (0, 0)
    recorder.add(RecordKind.HOLE, {"missed": 4, "first_seq": 6, "last_seq": 9, "reason": "gone", "epoch": 5})
    looks.wait(recorder)
    disk.error = None
    clock.now += 60
    looks.wait(recorder)
    recorder.close()
    (hole,) = notes(items(path), RecordKind.HOLE)
    assert (hole["missed"], hole["first_seq"], hole["last_seq"]) == (4, 6, 9)


def test_a_frame_that_comes_while_the_last_turn_ends_is_written_by_close(tmp_path, monkeypatch):
    path = tmp_path / "a.evlog"
    reached, gate = threading.Event(), threading.Event()
    real = Writer.sync_if_due

    def slow(writer):
        reached.set()
        assert gate.wait(DEADLINE_S)
        real(writer)

    monkeypatch.setattr(Writer, "sync_if_due", slow)
    recorder = Recorder(str(path), START)
    recorder.take(frame(1, "first"))
    assert reached.wait(DEADLINE_S)
    # All of this turn is written, and the next one never begins.
    recorder.take(frame(2, "second"))
    closing = threading.Thread(target=recorder.close)
    closing.start()
    wait_until(lambda: recorder._closing, "it is being closed")
    gate.set()
    closing.join(DEADLINE_S)
    assert datas(items(path)) == ["first", "second"]


# --- a flood ---


def test_a_flood_begins_above_the_limit_and_is_logged_once(tmp_path, monkeypatch, looks, caplog):
    path = tmp_path / "a.evlog"
    gate = threading.Event()
    real = Writer.write

    def slow(writer, frames):
        assert gate.wait(DEADLINE_S)
        real(writer, frames)

    monkeypatch.setattr(Writer, "write", slow)
    size = len(frame(1, "x"))
    recorder = Recorder(str(path), START, RecorderOptions(fsync="never", pending_bytes=2 * size))
    # Three are more than the limit, so the fourth is missed.
    for number in range(1, 4):
        recorder.take(frame(number, "x"))
        assert recorder.status()["state"] == "recording"
    begun = time.time_ns()
    for number in range(4, 8):
        recorder.take(frame(number, "x"))
    status = recorder.status()
    assert (status["state"], status["missed"], status["holes"], status["pending_bytes"]) == ("paused", 4, 1, 3 * size)
    assert recorder.holes == 0
    assert not caplog.records
    gate.set()
    wait_until(lambda: recorder.status()["state"] == "recording", "it catches up by itself")
    recorder.close()
    assert (recorder.missed, recorder.holes) == (4, 1)
    (record,) = caplog.records
    assert "4 events are not recorded: the disk was too slow" in record.getMessage()
    found = items(path)
    assert datas(found) == ["x"] * 3
    (hole,) = notes(found, RecordKind.HOLE)
    assert begun <= hole["began_ns"] <= hole["ended_ns"]
    assert (hole["missed"], hole["first_seq"], hole["last_seq"], hole["epoch"]) == (4, 4, 7, 5)


@pytest.mark.parametrize("end", ["close", "add"])
def test_a_flood_ends_with_the_next_record(tmp_path, monkeypatch, end):
    path = tmp_path / "a.evlog"
    gate = threading.Event()
    real = Writer.write

    def slow(writer, frames):
        assert gate.wait(DEADLINE_S)
        real(writer, frames)

    monkeypatch.setattr(Writer, "write", slow)
    recorder = Recorder(str(path), START, RecorderOptions(fsync="never", pending_bytes=10))
    recorder.add(RecordKind.START, {**START, "epoch": 6})
    for number in range(1, 4):
        recorder.take(frame(number, "x"))
    if end == "add":
        recorder.add(RecordKind.MARKER, {"name": "after", "time_ns": 1})
        assert (recorder.holes, recorder.missed) == (1, 2)
    threading.Timer(0.05, gate.set).start()
    recorder.close()
    found = items(path)
    (hole,) = notes(found, RecordKind.HOLE)
    assert (hole["missed"], hole["epoch"]) == (2, 6)
    kinds = [item.kind for item in found if isinstance(item, Note)]
    expected = (
        [RecordKind.HOLE, RecordKind.MARKER, RecordKind.END] if end == "add" else [RecordKind.HOLE, RecordKind.END]
    )
    assert kinds[2:] == expected


def test_the_hole_of_a_flood_comes_before_the_frame_that_ends_it(tmp_path, monkeypatch):
    path = tmp_path / "a.evlog"
    gate, reached = threading.Semaphore(0), threading.Semaphore(0)
    real = Writer.write

    def slow(writer, frames):
        reached.release()
        assert gate.acquire(timeout=DEADLINE_S)
        real(writer, frames)

    monkeypatch.setattr(Writer, "write", slow)
    recorder = Recorder(str(path), START, RecorderOptions(fsync="never", pending_bytes=2000))
    recorder.take(frame(1, "x" * 1500))
    assert reached.acquire(timeout=DEADLINE_S)
    recorder.take(frame(2, "x" * 1000))
    recorder.take(frame(3, "missed"))
    gate.release()
    # The second one is on its way, and there is room again.
    assert reached.acquire(timeout=DEADLINE_S)
    recorder.take(frame(4, "after"))
    assert (recorder.holes, recorder.missed) == (1, 1)
    gate.release(10)
    recorder.close()
    found = items(path)
    kinds = ["frame" if isinstance(item, Frame) else item.kind for item in found if not isinstance(item, Damage)]
    assert kinds == [RecordKind.START, "frame", "frame", RecordKind.HOLE, "frame", RecordKind.END]


def test_a_flood_that_begins_just_after_the_thread_has_caught_up_is_written_too(tmp_path):
    recorder = Recorder(str(tmp_path / "a.evlog"), START, RecorderOptions(fsync="never"))
    # As `take` does after it has seen a full queue, which the thread empties at that moment.
    recorder._miss_in_flood(frame(1, "x"))
    wait_until(lambda: recorder.holes == 1, "the thread looks once more")
    recorder.close()


def test_a_flood_that_the_other_thread_has_ended_is_not_ended_twice(tmp_path):
    recorder = Recorder(str(tmp_path / "a.evlog"), START)
    recorder._end_flood()
    assert (recorder.holes, recorder.missed) == (0, 0)
    recorder.close()
    assert not notes(items(tmp_path / "a.evlog"), RecordKind.HOLE)
