"""Row 9: what is recorded while the broker is killed again and again."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path

import eventsh
from eventsh.recording.format import RecordKind
from eventsh.recording.frames import Frame, Repeats
from eventsh.recording.reader import Damage, Reader
from tests.cli.pool import DEADLINE_S, Pool, wait_until
from tests.recording.sample import events, notes

KILLS = 3
AT_ONCE = 500


def broker_pid(pool: Pool) -> int:
    pid = pool.status()["broker"]["pid"]
    assert isinstance(pid, int)
    return pid


def recorded(path: Path) -> list[int]:
    """The data of the poster's events, each once."""
    repeats = Repeats()
    frames = [item for item in Reader(str(path)) if isinstance(item, Frame) and not repeats.has(item.data)]
    return [event.data for event in events(frames) if event.source == "test"]


def test_nothing_that_was_confirmed_is_missing_in_the_recording_after_kill_9_of_the_broker(tmp_path):
    path = tmp_path / "rec.evlog"
    pool = Pool(tmp_path, "--record", str(path), "--record-fsync", "always", "--record-max-size", "64KiB", workers=1)
    try:
        with eventsh.Events(pool.address, broker="never", role="observer") as bus:
            bus.wait_ready(DEADLINE_S)
            number = 0
            for _ in range(KILLS):
                for _ in range(AT_ONCE):
                    bus.post("test", "e", number)
                    number += 1
                victim = broker_pid(pool)
                os.kill(victim, signal.SIGKILL)
                wait_until(partial(pool.is_served_anew, victim), "another broker serves")
                bus.post("test", "e", number)
                number += 1
                bus.flush(DEADLINE_S)
                # All of it is confirmed now, so all of it is on disk, in its order and once.
                assert recorded(path) == list(range(number))
        found = list(Reader(str(path)))
        assert not [item for item in found if isinstance(item, Damage) and not item.is_cut]
        assert len({start["epoch"] for start in notes(found, RecordKind.START)}) == KILLS + 1
        pool.wait_handled("e", list(range(number)), workers=1)
    finally:
        pool.stop()
    assert not [item for item in Reader(str(path)) if isinstance(item, Damage)]
