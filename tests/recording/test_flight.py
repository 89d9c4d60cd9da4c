"""The flight recorder: a ring of the last frames, and the file that it becomes."""

from __future__ import annotations

import errno
import os
import time
from types import SimpleNamespace

import pytest

from eventsh.errors import RecordingError
from eventsh.recording import flight
from eventsh.recording.flight import Ring, flight_path, write_flight
from eventsh.recording.format import RecordKind
from eventsh.recording.frames import Frame
from eventsh.recording.writer import Writer
from tests.recording.sample import EPOCH, damages, datas, frame, is_open, items, notes

START = {"epoch": 5, "address": "unix:/x", "pid": 1, "by": "broker", "time_ns": EPOCH}
# An entry of the ring costs this beside its frame.
ENTRY_BYTES = 200


def ring_of(max_bytes, count):
    ring = Ring(max_bytes)
    for number in range(count):
        ring.take(frame(2 * number + 1, "x", "y"), number)
    return ring


def test_a_ring_keeps_the_last_frames_that_fit_and_counts_their_events():
    size = len(frame(1, "x", "y")) + ENTRY_BYTES
    for max_bytes, kept in ((3 * size, 3), (3 * size - 1, 2), (4 * size - 1, 3), (10 * size, 5)):
        ring = ring_of(max_bytes, 5)
        assert [worker for _, worker in ring.frames()] == list(range(5))[-kept:]
        assert (ring.events, ring.size_bytes) == (2 * kept, kept * size)


def test_an_empty_ring_has_nothing():
    ring = Ring(1)
    assert (ring.events, ring.size_bytes, ring.frames()) == (0, 0, [])


def test_a_ring_keeps_its_last_frame_however_large():
    ring = ring_of(1, 3)
    assert [worker for _, worker in ring.frames()] == [2]
    assert ring.events == 2


def test_a_flight_gets_a_name_of_the_local_time_that_no_file_has(tmp_path, monkeypatch):
    now = time.struct_time((2026, 1, 31, 12, 5, 9, 5, 31, 0))
    monkeypatch.setattr(flight, "time", SimpleNamespace(strftime=time.strftime, localtime=lambda: now))
    first, second, third = (str(tmp_path / f"flight-20260131-120509{tail}.evlog") for tail in ("", "-2", "-3"))
    assert flight_path(str(tmp_path), None) == first
    # A flight that is about to be written has no file yet.
    assert flight_path(str(tmp_path), first) == second
    os.close(os.open(first, os.O_CREAT))
    assert flight_path(str(tmp_path), None) == second
    assert flight_path(str(tmp_path), second) == third
    os.close(os.open(second, os.O_CREAT))
    assert flight_path(str(tmp_path), first) == third


def test_a_flight_is_a_finished_recording_that_names_its_reason(tmp_path):
    path = str(tmp_path / "f.evlog")
    frames: list[tuple[bytes | bytearray, int]] = [(frame(number, number), number % 3) for number in range(1, 1301)]
    before = time.time_ns()
    assert write_flight(path, frames, START, "a handler failed") == (path, 1300)
    assert not is_open(path)
    found = items(tmp_path / "f.evlog")
    assert not damages(found)
    assert datas(found) == list(range(1, 1301))
    assert [item.worker for item in found if isinstance(item, Frame)] == [worker for _, worker in frames]
    assert notes(found, RecordKind.START) == [{**START, "reason": "a handler failed"}]
    (marker,) = notes(found, RecordKind.MARKER)
    assert marker["name"] == "a handler failed"
    assert before <= marker["time_ns"] <= time.time_ns()
    assert [end["events"] for end in notes(found, RecordKind.END)] == [1300]


def test_a_flight_never_continues_a_file_that_is_there(tmp_path):
    path = tmp_path / "f.evlog"
    write_flight(str(path), [(frame(1, "x"), -1)], START, "first")
    before = path.read_bytes()
    with pytest.raises(RecordingError, match="File exists"):
        write_flight(str(path), [(frame(2, "y"), -1)], START, "second")
    assert path.read_bytes() == before


def test_a_disk_that_refuses_a_flight_is_an_error_that_names_the_file(tmp_path, monkeypatch):
    path = str(tmp_path / "f.evlog")

    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Writer, "finish", fail)
    with pytest.raises(RecordingError, match=r"can't write .*f\.evlog: No space left on device"):
        write_flight(path, [(frame(1, "x"), -1)], START, "r")
    assert not is_open(path)
