"""`serve --record`, `record` and the flight recorder, as people run them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from eventsh.recording.format import RecordKind
from tests.cli.pool import COMMAND, DEADLINE_S, Pool, environment, wait_until
from tests.recording.sample import damages, events, items, notes

FAILING = """
import eventsh

@eventsh.on("bad")
def fail(data, event, source, pid):
    raise ValueError(data)
"""


@contextmanager
def serving(directory: Path, *flags: str, workers: int = 2) -> Iterator[Pool]:
    pool = Pool(directory, *flags, workers=workers)
    try:
        yield pool
        assert pool.stop() == 0
    finally:
        pool.stop()


@contextmanager
def recording(pool: Pool, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    process = pool.start("record", *arguments)
    try:
        assert process.stderr is not None
        assert process.stderr.readline() == b"eventsh: recording; Ctrl-C ends it\n"
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def broker_pid(pool: Pool) -> int:
    pid = pool.status()["broker"]["pid"]
    assert isinstance(pid, int)
    return pid


def of_app(path: Path) -> list[Any]:
    return [event for event in events(items(path)) if event.source != "eventsh"]


def test_serve_records_all_that_crosses_the_broker_with_who_got_unique_events(tmp_path):
    path = tmp_path / "rec.evlog"
    with serving(tmp_path, "--record", str(path)) as pool:
        pool.run("post", "test", "e", "1", "--count", "500")
        assert pool.run("post", "test", "u", '"once"', "--unique", "key").status == 0
        assert pool.run("record", "--mark", "half time").status == 0
        state = pool.status()["recording"]
        assert (state["state"], state["path"]) == ("recording", str(path))
        assert f"record   {path} (recording)" in pool.run("status").out
    found = items(path)
    assert not damages(found)
    assert [event.data for event in of_app(path)] == [1] * 500 + ["once"]
    seqs = [event.seq for event in events(found)]
    assert seqs == list(range(1, len(seqs) + 1))
    unique = of_app(path)[-1]
    assert unique.unique == "key"
    assert unique.worker in (0, 1)
    assert notes(found, RecordKind.MARKER)[0]["name"] == "half time"
    assert len(notes(found, RecordKind.END)) == 1
    assert notes(found, RecordKind.START)[0]["address"] == pool.address


def test_after_kill_9_of_the_broker_the_next_one_goes_on_with_the_file(tmp_path):
    path = tmp_path / "rec.evlog"
    with serving(tmp_path, "--record", str(path), "--record-fsync", "always", workers=1) as pool:
        assert pool.run("post", "test", "e", "1", "--count", "300").status == 0
        first = broker_pid(pool)
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: pool.is_served_anew(first), "another broker serves")
        assert pool.run("post", "test", "e", "2", "--count", "300").status == 0
        # A post is confirmed only once it is on disk, so all of them are there already.
        assert [event.data for event in of_app(path)] == [1] * 300 + [2] * 300
    found = items(path)
    assert not damages(found)
    assert len({event.epoch for event in events(found)}) == 2


def test_a_disk_that_is_full_stops_recording_and_nothing_else(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("only root can mount a file system")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(disk)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        path = disk / "rec.evlog"
        with serving(tmp_path, "--record", str(path), "--record-fsync", "always", workers=1) as pool:
            assert pool.run("post", "test", "e", '"before"').status == 0
            filler = disk / "filler"
            left = os.statvfs(disk)
            filler.write_bytes(bytes(left.f_bavail * left.f_frsize))
            assert pool.run("post", "test", "e", json.dumps("x" * 50000), "--count", "10").status == 0
            state = pool.status()["recording"]
            assert (state["state"], state["error"]) == ("paused", "the disk is full")
            assert "paused: the disk is full" in pool.run("status").out
            assert "recording pauses: the disk is full" in pool.err
            filler.unlink()
            wait_until(lambda: pool.status()["recording"]["state"] == "recording", "it goes on")
            assert pool.run("post", "test", "e", '"after"').status == 0
            assert len(pool.handled("e").popitem()[1]) == 12
        found = items(path)
        assert not damages(found)
        missed = sum(hole["missed"] for hole in notes(found, RecordKind.HOLE))
        assert missed > 0
        data = [event.data for event in of_app(path)]
        assert (data[0], data[-1], len(data) + missed) == ("before", "after", 12)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--record", "/nowhere/rec.evlog"], "can't record to /nowhere/rec.evlog: No such file or directory"),
        (["--record", __file__], "it is no recording"),
        (["--record-max-size", "1"], "--record-max-size must be a whole number of bytes of at least 4096"),
        (["--flight-recorder", "1MB", "--flight-dir", "/nowhere"], "'/nowhere' is no directory"),
    ],
)
def test_serve_says_at_once_that_it_can_not_record(tmp_path, flags, text):
    done = subprocess.run(
        [*COMMAND, "serve", "--workers", "0", *flags],
        env=environment(f"unix:{tmp_path}/e.sock"),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode in (1, 2)
    assert text in done.stderr
    assert done.stderr.count("\n") == 1


# --- as an observer ---


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    directory = tmp_path_factory.mktemp("pool")
    (directory / "failing.py").write_text(FAILING)
    flags = ("--handlers", str(directory / "failing.py"), "--flight-recorder", "1MB", "--flight-dir", str(directory))
    pool = Pool(directory, *flags, workers=1)
    yield pool
    assert pool.stop() == 0


def finish(process: subprocess.Popen[bytes]) -> str:
    out, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0
    return out.decode()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_running_broker_is_recorded_until_a_signal(pool, tmp_path, number):
    path = tmp_path / "a.evlog"
    with recording(pool, str(path)) as process:
        pool.run("post", "test", "e", "1", "--count", "20")
        process.send_signal(number)
        assert "recorded 20 events in" in finish(process)
    assert [event.data for event in of_app(path)] == [1] * 20
    assert not damages(items(path))
    assert len(notes(items(path), RecordKind.END)) == 1


def test_globs_choose_and_the_size_ends_it(pool, tmp_path):
    by_glob, by_size = tmp_path / "glob.evlog", tmp_path / "size.evlog"
    with (
        recording(pool, str(by_glob), "--source", "glob*", "--event", "[ab]", "--json") as first,
        recording(pool, str(by_size), "--max-size", "4096") as second,
    ):
        pool.run("post", "globs", "a", "1")
        pool.run("post", "globs", "c", "2")
        pool.run("post", "other", "a", "3")
        pool.run("post", "globs", "b", json.dumps("x" * 5000))
        assert "recorded" in finish(second)
        wait_until(lambda: len(of_app(by_glob)) == 2, "both are recorded")
        first.send_signal(signal.SIGINT)
        facts = json.loads(finish(first))
    assert (facts["events"], facts["missed"], facts["reason"]) == (2, 0, "signal")
    assert [event.event for event in of_app(by_glob)] == ["a", "b"]
    assert by_size.stat().st_size <= 4096
    assert [event.data for event in of_app(by_size)] == [1, 2, 3]


def test_the_time_ends_it(pool, tmp_path):
    with recording(pool, str(tmp_path / "a.evlog"), "--for", "200ms", "--json") as process:
        assert json.loads(finish(process))["reason"] == "time"


def test_paths_that_are_no_text_are_recorded_and_told(tmp_path):
    directory = tmp_path / b"d\xff".decode(errors="surrogateescape")
    directory.mkdir()
    flags = ("--record", str(directory / "a.evlog"), "--flight-recorder", "1MB", "--flight-dir", str(directory))
    with serving(tmp_path, *flags, workers=1) as pool:
        assert pool.status()["recording"]["path"] == str(tmp_path / r"d\udcff" / "a.evlog")
        assert pool.run("record", "--mark", "here").status == 0
        assert json.loads(pool.run("record", "--flight").out)["path"].startswith(str(tmp_path / r"d\udcff"))
        with recording(pool, str(directory / "b.evlog")) as process:
            process.send_signal(signal.SIGINT)
            finish(process)
    for name in "ab":
        found = items(directory / f"{name}.evlog")
        assert not damages(found)
        assert notes(found, RecordKind.START)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_it_is_attached_ends_it_without_a_word_or_a_file(tmp_path, number):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{tmp_path}/e.sock")
        listener.listen()
        listener.settimeout(DEADLINE_S)
        process = subprocess.Popen(
            [*COMMAND, "record", str(tmp_path / "a.evlog")],
            env=environment(f"unix:{tmp_path}/e.sock"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        connection, _ = listener.accept()
        with connection:
            process.send_signal(number)
            assert process.communicate(timeout=DEADLINE_S) == (b"", b"")
    assert process.returncode == -signal.SIGINT
    assert not (tmp_path / "a.evlog").exists()


@pytest.mark.parametrize("is_read", [True, False], ids=["", "nobody reads what it says"])
def test_what_came_while_the_broker_was_gone_is_a_hole(tmp_path, is_read):
    path = tmp_path / "a.evlog"
    with serving(tmp_path, workers=1) as pool, recording(pool, str(path)) as process:
        pool.run("post", "test", "e", "1")
        first = broker_pid(pool)
        assert process.stderr is not None
        if not is_read:
            process.stderr.close()
        os.kill(first, signal.SIGKILL)
        if is_read:
            assert b"the broker is gone" in process.stderr.readline()
            assert b"recording" in process.stderr.readline()
        wait_until(lambda: pool.is_served_anew(first), "another broker serves")
        wait_until(lambda: pool.status()["broker"]["observers"] == 1, "it is attached again")
        pool.run("post", "test", "e", "2")
        wait_until(lambda: len(of_app(path)) == 2, "it is recorded")
        process.send_signal(signal.SIGINT)
        out = finish(process)
    assert "an unknown number are missing, in 1 hole" in out
    assert [event.data for event in of_app(path)] == [1, 2]
    assert len({event.epoch for event in of_app(path)}) == 2
    assert [hole["reason"] for hole in notes(items(path), RecordKind.HOLE)] == ["the broker was gone"]


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        ([], 2, "say where to record"),
        (["a.evlog", "--for", "x"], 2, "--for: 'x' is no length of time"),
        (["a.evlog", "--fsync", "always"], 2, "--fsync must be never or interval"),
        (["/nowhere/a.evlog"], 1, "can't record to /nowhere/a.evlog"),
        (["--mark", "x"], 1, "this broker records nothing: start it with --record FILE"),
        (["--mark", "x", "--flight"], 2, "--mark and --flight"),
        (["--mark", b"\xff".decode(errors="surrogateescape")], 2, "is not UTF-8"),
    ],
)
def test_what_can_not_be_done_is_one_line(pool, arguments, status, text):
    done = pool.run("record", *arguments)
    assert done.status == status
    assert text in done.err
    assert "Traceback" not in done.err


def test_without_a_broker_the_status_is_3(tmp_path):
    done = subprocess.run(
        [*COMMAND, "record", str(tmp_path / "a.evlog")],
        env=environment(f"unix:{tmp_path}/none.sock"),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 3
    assert not (tmp_path / "a.evlog").exists()


# --- the flight recorder ---


def test_the_flight_recorder_is_written_on_request_on_a_signal_and_when_a_handler_fails(pool):
    pool.run("post", "test", "flight", "1", "--count", "10")
    done = pool.run("record", "--flight")
    assert done.status == 0, done.err
    asked = Path(json.loads(done.out)["path"])
    assert len([event for event in of_app(asked) if event.event == "flight"]) == 10
    known = set(pool.directory.glob("flight-*.evlog"))
    pool.process.send_signal(signal.SIGUSR2)

    def new() -> set[Path]:
        found = set(pool.directory.glob("flight-*.evlog")) - known
        return {path for path in found if notes(items(path), RecordKind.END)}

    wait_until(new, "it is written after the signal")
    by_signal = new().pop()
    assert notes(items(by_signal), RecordKind.MARKER)[0]["name"] == "SIGUSR2"
    known.add(by_signal)
    pool.run("post", "bad", "e", '"why it failed"')
    wait_until(new, "it is written after the failure")
    last = list(events(items(new().pop())))[-1]
    assert last.event == "handler_error"
    assert last.data["error_text"] == "why it failed"
    known |= new()
    # Many failures are one incident.
    pool.run("post", "bad", "e", "--count", "5")
    end = time.monotonic() + 0.3
    while time.monotonic() < end:
        assert not new()
        time.sleep(0.05)
