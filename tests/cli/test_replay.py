"""`eventsh replay`, as people run it: into pools of real processes, and at a terminal."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from eventsh.commands.outcome import Exit
from tests.cli.pool import COMMAND, DEADLINE_S, environment, run, wait_until
from tests.cli.roundtrip import MarkingPool, replay, round_trip
from tests.recording.sample import EPOCH, SECOND, events, frame, items, write

MS = 1_000_000


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MarkingPool]:
    pool = MarkingPool(tmp_path_factory.mktemp("replayed"))
    pool.run("post", "load", "first")
    wait_until(lambda: len(pool.marks()) == 2, "it handles events")
    yield pool
    assert pool.stop() == 0


@pytest.fixture
def fresh(pool: MarkingPool) -> MarkingPool:
    pool.forget()
    return pool


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """Ten events, 50 ms apart, the last of them unique."""
    path = tmp_path / "a.evlog"
    frames = [frame(number, number, source="load", time_ns=EPOCH + number * 50 * MS) for number in range(1, 10)]
    write(path, [*frames, frame(10, 10, source="load", key="key", time_ns=EPOCH + 500 * MS)])
    return path


def test_a_mixed_load_is_recorded_and_replayed_and_the_ledgers_are_equal(tmp_path):
    round_trip(tmp_path, 1000)


def test_events_come_at_their_times_and_in_their_order(fresh, recording):
    played = replay(fresh, recording)
    assert played["events"] == 10
    # Never early: that is no question of the machine's speed.
    assert played["seconds"] >= 0.45
    assert 0 < played["achieved"] <= 1.01
    assert played["late_p99_s"] is not None
    wait_until(lambda: len(fresh.marks()) == 19, "all is handled")
    for pid in {mark[0] for mark in fresh.marks()}:
        mine = [data for worker, _, data, _ in fresh.marks() if worker == pid and data != 10]
        assert mine == list(range(1, 10))
    assert sum(mark[2] == 10 for mark in fresh.marks()) == 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--speed", "max", "--count", "4"], [1, 2, 3, 4]),
        (["--speed", "100", "--from", "seq:4", "--until", "seq:6"], [4, 5, 6]),
        (["--rate", "2000", "--event", "none*"], []),
        (["--speed", "max", "--max-gap", "1ms", "--source", "l*", "--count", "2", "--loop", "3"], [1, 2] * 3),
        (["--max-gap", "1ms"], list(range(1, 11))),
        (["--speed", "max", "--map-source", "load=renamed"], list(range(1, 11))),
        (["--speed", "max", "--map-source", "load=nobody"], []),
    ],
)
def test_what_is_asked_for_is_replayed(fresh, recording, arguments, expected):
    replay(fresh, recording, *arguments)
    unique = expected.count(10)
    wait_until(lambda: len(fresh.marks()) >= 2 * len(expected) - unique, "all is handled")
    assert Counter(mark[2] for mark in fresh.marks()) == Counter(
        {data: count * (1 if data == 10 else 2) for data, count in Counter(expected).items()}
    )


def test_unique_events_go_to_the_worker_that_had_them_or_to_all(pool, tmp_path):
    from eventsh.recording.writer import Writer

    path = tmp_path / "u.evlog"
    writer = Writer(str(path), fsync="never")
    writer.start({"epoch": 5})
    writer.write([(frame(number, number, source="load", key="same"), 1) for number in range(1, 9)])
    writer.finish()
    writer.close()
    pids = {worker["worker_id"]: worker["pid"] for worker in pool.status()["workers"]}
    for choice, count in (("worker", 8), ("again", 8), ("all", 16)):
        pool.forget()
        replay(pool, path, "--speed", "max", "--unique", choice)
        wait_until(partial(pool.has_marks, count), choice)
        assert len(pool.marks()) == count
        if choice == "worker":
            assert {mark[0] for mark in pool.marks()} == {pids[1]}


def test_a_dry_run_says_what_would_be_posted(fresh, recording):
    done = fresh.run("replay", str(recording), "--dry-run", "--speed", "2")
    assert done.out == "would post 10 events, 1 of them unique, in 0.2 s\n          10  load\n"
    assert (
        json.loads(fresh.run("replay", str(recording), "--dry-run", "--speed", "max", "--json").out)["seconds"] is None
    )
    assert fresh.marks() == []


def test_it_is_never_silent_about_the_pool_that_is_recorded(tmp_path, recording):
    path = tmp_path / "live.evlog"
    live = MarkingPool(tmp_path / "live", "--record", str(path))
    try:
        live.run("post", "load", "e", "1")
        done = live.run("replay", str(path), "--to", live.address, "--yes")
        assert done.status == 2
        assert "records into this very file" in done.err
        done = live.run("replay", str(recording), "--to", live.address, "--speed", "max")
        assert done.status == 2
        assert "is recorded into" in done.err
        copy = tmp_path / "copy.evlog"
        shutil.copy(path, copy)
        done = live.run("replay", str(copy), "--to", live.address, "--speed", "max")
        assert "that is the pool which was recorded" in done.err
        assert live.run("replay", str(copy), "--to", live.address, "--speed", "max", "--yes").status == 0
        wait_until(lambda: [mark[3] for mark in live.marks()] == [False, False, True, True], "it is replayed")
    finally:
        live.stop()
    # What was replayed is recorded, and known as such.
    assert [event.replayed for event in events(items(path)) if event.source == "load"] == [False, True]


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        ([], 2, "say where to replay to: --to ADDRESS"),
        (["--to", "{to}", "--speed", "0"], 2, "--speed must be a number above 0 or max"),
        (["--to", "{to}", "--speed", "1", "--rate", "5"], 2, "--rate and --speed exclude each other"),
        (["--to", "{to}", "--map-source", "x"], 2, "--map-source must be A=B"),
        (["--to", "{to}", "--map-source", "load=eventsh"], 2, "eventsh's own events"),
        (["--to", "{to}", "--unique", "x"], 2, "--unique must be again, worker or all"),
        (["--to", "{to}", "--from", "x"], 2, "is no place in a recording"),
        (["--to", "{to}", "--wait-workers", "9", "--timeout", "2s"], 4, "2 of 9 workers are attached"),
    ],
)
def test_what_can_not_be_done_is_one_line(pool, recording, arguments, status, text):
    done = pool.run("replay", str(recording), *(each.format(to=pool.address) for each in arguments))
    assert (done.status, done.out) == (status, "")
    assert text in done.err
    assert done.err.count("\n") == 1


def test_a_file_that_is_none_and_a_pool_that_is_none_are_told(pool, tmp_path, recording):
    done = pool.run("replay", str(tmp_path / "none.evlog"), "--to", pool.address)
    assert (done.status, "there is no file" in done.err) == (1, True)
    done = pool.run("replay", str(recording), "--to", f"unix:{tmp_path}/none.sock")
    assert done.status == Exit.NO_BROKER


def test_what_is_damaged_is_replayed_as_far_as_it_can_be_read(fresh, recording):
    data = recording.read_bytes()
    recording.write_bytes(data[: len(data) // 2])
    played = replay(fresh, recording, "--speed", "max")
    assert 0 < played["events"] < 10
    assert len(played["damages"]) == 1
    assert "cut off" in played["damages"][0]


def test_an_event_over_the_brokers_limit_ends_it_with_a_line(fresh, tmp_path):
    path = tmp_path / "large.evlog"
    write(path, [frame(1, "ok", source="load"), frame(2, "x" * 100_000, source="load")])
    done = fresh.run("replay", str(path), "--to", fresh.address, "--speed", "max")
    assert done.status == 2
    assert "over the limit of 65536" in done.err


def test_at_a_terminal_it_asks_shows_how_far_it_is_and_obeys_keys(fresh, tmp_path):
    path = tmp_path / "slow.evlog"
    write(path, [frame(number, number, source="load", time_ns=EPOCH + number * 100 * SECOND) for number in range(1, 6)])
    primary, secondary = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "replay", str(path)],
        env=environment(fresh.address),
        stdin=secondary,
        stdout=secondary,
        stderr=secondary,
        start_new_session=True,
    )
    os.close(secondary)
    shown = b""

    def read_until(text: bytes) -> None:
        nonlocal shown
        while text not in shown:
            assert select.select([primary], [], [], DEADLINE_S)[0], (text, shown)
            piece = os.read(primary, 4096)
            assert piece
            shown += piece
        shown = shown.partition(text)[2]

    try:
        read_until(b"replay 5 events into")
        read_until(b"[y/N] ")
        os.write(primary, b"y\n")
        read_until(b"20%")
        assert len(fresh.marks()) <= 2
        os.write(primary, b" ")
        read_until(b"paused")
        os.write(primary, b"\x1b[C")
        read_until(b"40%")
        os.write(primary, b"\x1b[C")
        read_until(b"60%")
        wait_until(lambda: len(fresh.marks()) == 6, "three are handled")
        os.write(primary, b" " + b"+" * 3)
        read_until(b"x8")
        os.write(primary, b"+" * 12)
        read_until(b"replayed 5 events")
        assert process.wait(DEADLINE_S) == 0
    finally:
        os.close(primary)
        if process.poll() is None:
            process.kill()
            process.wait()
    wait_until(lambda: len(fresh.marks()) == 10, "all is handled")


def test_a_recording_that_is_not_there_is_told_before_a_broker_is_looked_for(tmp_path):
    done = run(f"unix:{tmp_path}/e.sock", "replay", f"{tmp_path}/none.evlog", "--yes")
    assert (done.status, done.out) == (1, "")
    assert "there is no file" in done.err


def test_a_place_that_is_none_is_refused_before_a_broker_is_looked_for(recording, tmp_path):
    done = run(f"unix:{tmp_path}/e.sock", "replay", str(recording), "--yes", "--from", "x")
    assert (done.status, done.out) == (2, "")
    assert "--from: 'x' is no place in a recording" in done.err
