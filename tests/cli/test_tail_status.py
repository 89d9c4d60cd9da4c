from __future__ import annotations

import json
import os
import pty
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from eventsh.cli.report import show_status
from tests.cli.pool import DEADLINE_S, Pool, run, wait_until

UNSAFE = set("\x1b\x07\n\x7f\u009b\u202e\u2028")
NASTY = f"[2J{''.join(sorted(UNSAFE))}"


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    pool = Pool(tmp_path_factory.mktemp("pool"))
    yield pool
    assert pool.stop() == 0


class Watched:
    """A running `eventsh tail`, whose standard error is read until it says that it watches."""

    def __init__(self, pool: Pool, *arguments: str, **streams: Any) -> None:
        self.process = pool.start("tail", *arguments, **streams)
        assert self.process.stderr is not None
        assert self.process.stderr.readline() == b"eventsh: watching; Ctrl-C ends it\n"

    def finish(self) -> str:
        """Its output, once it has ended well by itself."""
        out, err = self.process.communicate(timeout=DEADLINE_S)
        assert (self.process.returncode, err) == (0, b"")
        return str((out or b"").decode())


@contextmanager
def watching(pool: Pool, *arguments: str, **streams: Any) -> Iterator[Watched]:
    watched = Watched(pool, *arguments, **streams)
    try:
        yield watched
    finally:
        if watched.process.poll() is None:
            watched.process.kill()
        watched.process.communicate()


def test_events_are_lines_on_stdout_until_the_count(pool):
    with watching(pool, "lines", "--count", "2") as watched:
        pool.run("post", "lines", "one", '<"k":1>')
        pool.run("post", "lines", "two")
        pool.run("post", "lines", "three")
        lines = watched.finish().splitlines()
    assert len(lines) == 2
    assert re.fullmatch(r'\d\d:\d\d:\d\d\.\d{3} \d+ lines one \{"k":1\}', lines[0])
    assert lines[1].endswith(" lines two null")


@pytest.mark.parametrize(
    ("patterns", "seen"),
    [
        (["globs"], ["purge", "purge_all", "set"]),
        (["glob?", "purge*"], ["purge", "purge_all"]),
        (["g*", "[!p]*"], ["set"]),
        (["globs", "purge"], ["purge"]),
        (["*", "set"], ["set"]),
    ],
)
def test_patterns_choose_sources_and_events(pool, patterns, seen):
    with watching(pool, *patterns, "--count", str(len(seen)), "--format", "{event}") as watched:
        for event in ("purge", "purge_all", "set"):
            pool.run("post", "globs", event)
        assert watched.finish().split() == seen


def test_json_is_one_object_a_line(pool):
    with watching(pool, "json", "--count", "3", "--json") as watched:
        done = pool.run("post", "json", "e", '{"deep": [1, "é"]}', "--count", "3")
        events = [json.loads(line) for line in watched.finish().splitlines()]
    assert done.status == 0
    assert [event["data"] for event in events] == [{"deep": [1, "é"]}] * 3
    assert all(event["source"] == "json" and event["event"] == "e" and event["pid"] > 0 for event in events)
    numbers = [event["seq"] for event in events]
    assert numbers == [numbers[0], numbers[0] + 1, numbers[0] + 2]
    assert all(event["time_ns"] > 1_700_000_000_000_000_000 for event in events)


def test_data_as_deep_as_it_may_be_is_json_too(pool):
    deep = "[" * 200 + "]" * 200
    with watching(pool, "deep", "--count", "1", "--json") as watched:
        assert pool.run("post", "deep", "e", deep).status == 0
        assert f'"data":{deep},' in watched.finish()


def test_a_template_has_its_fields_filled_in(pool):
    with watching(pool, "template", "--count", "1", "--format", r"{source}/{event}\t{data[k][1]} {data[x]}") as watched:
        pool.run("post", "template", "e", '{"k": [1, "two"]}')
        assert watched.finish() == "template/e\ttwo -\n"


@pytest.mark.parametrize("flags", [[], ["--json"], ["--format", "{source} {event} {data} {data[k]}"]], ids=str)
def test_no_raw_control_character_gets_out(pool, flags):
    with watching(pool, "nasty*", "--count", "1", *flags) as watched:
        pool.run("post", f"nasty{NASTY}", f"e{NASTY}", json.dumps({"k": NASTY, NASTY: 1}))
        line = watched.finish()
    assert line.endswith("\n")
    assert not UNSAFE & set(line[:-1])
    if flags == ["--json"]:
        assert json.loads(line)["data"] == {"k": NASTY, NASTY: 1}


@pytest.mark.parametrize("no_color", ["", "1"])
def test_colours_are_for_a_terminal_that_wants_them(pool, no_color, monkeypatch):
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setenv("TERM", "xterm")
    ours, theirs = pty.openpty()
    try:
        with watching(pool, "colour", "--count", "1", stdout=theirs) as watched:
            pool.run("post", "colour", "e", "1")
            watched.finish()
            line = os.read(ours, 4096).decode()
    finally:
        os.close(theirs)
        os.close(ours)
    assert ("\x1b[36mcolour\x1b[0m" in line) is not no_color
    assert ("\x1b" in line) is (not no_color)


def test_when_nobody_reads_any_more_it_ends_without_a_word(pool):
    with watching(pool, "closed") as watched:
        assert watched.process.stdout is not None
        pool.run("post", "closed", "e", "1")
        assert watched.process.stdout.readline().endswith(b" closed e 1\n")
        watched.process.stdout.close()
        # Without a further event.
        assert watched.process.wait(DEADLINE_S) == 0
        assert watched.process.stderr is not None
        assert watched.process.stderr.read() == b""


def test_a_full_disk_ends_it_with_one_line(pool):
    with open("/dev/full", "wb") as full, watching(pool, "full", stdout=full) as watched:
        pool.run("post", "full", "e", "1")
        _, err = watched.process.communicate(timeout=DEADLINE_S)
        assert (watched.process.returncode, err) == (
            1,
            b"eventsh: can't write the output: No space left on device\n",
        )


def test_ctrl_c_ends_it_by_the_signal_and_no_word(pool):
    with watching(pool) as watched:
        watched.process.send_signal(signal.SIGINT)
        assert watched.process.wait(DEADLINE_S) == -signal.SIGINT
        assert watched.process.communicate()[1] == b""


def test_it_attaches_again_to_a_new_broker_and_says_so(pool):
    with watching(pool, "again") as watched:
        os.kill(pool.status()["broker"]["pid"], signal.SIGKILL)
        assert watched.process.stderr is not None
        assert watched.process.stderr.readline().startswith(b"eventsh: the broker is gone; attaching again")
        assert (
            watched.process.stderr.readline() == b"eventsh: attached again; what was posted in between was not seen\n"
        )
        wait_until(lambda: pool.run("post", "again", "e").status == 0, "the new broker has the workers")
        assert watched.process.stdout is not None
        assert watched.process.stdout.readline().endswith(b" again e null\n")


def test_status_tells_of_the_broker_and_of_each_worker(pool):
    pool.run("post", "test", "status", "--count", "3")
    pool.wait_handled("status", [None] * 3)

    def settled() -> bool:
        # Handled is acknowledged a moment later.
        return all(worker["queued"] == 0 for worker in pool.status()["workers"])

    wait_until(settled, "nothing is queued")
    status = pool.status()
    broker = status["broker"]
    assert {"pid", "epoch", "uptime_s", "address", "connections", "observers", "events"} <= broker.keys()
    assert broker["address"] == pool.address
    with suppress(PermissionError):
        os.kill(broker["pid"], 0)
    workers = status["workers"]
    assert [worker["worker_id"] for worker in workers] == [0, 1, 2, 3]
    assert {worker["pid"] for worker in workers} == pool.handled("status").keys()
    for worker in workers:
        assert {"queued", "handled", "dropped", "failed"} <= worker.keys()
        assert (worker["state"], worker["dropped"], worker["failed"]) == ("attached", 0, 0)
        assert worker["handled"] >= 3


def test_status_fits_a_terminal_and_its_columns_line_up(pool):
    done = pool.run("status")
    assert (done.status, done.err) == (0, "")
    lines = done.out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == f"broker   {pool.address}" or len(pool.address) > 70
    heading = next(number for number, line in enumerate(lines) if line.startswith("worker"))
    table = lines[heading:]
    assert len(table) == 5
    assert {len(line) for line in table} == {len(table[0])}
    assert [line.split()[0] for line in table] == ["worker", "0", "1", "2", "3"]


def test_one_of_a_kind_is_not_told_as_many(capsys):
    ones = ("events", "unconfirmed", "held", "unique_keys", "ignored_repeats", "connections", "observers")
    show_status(
        {"broker": {"address": "unix:/x", "pid": 1, "uptime_s": 1.0, **dict.fromkeys(ones, 1)}, "workers": []},
        as_json=False,
    )
    out = capsys.readouterr().out
    assert "1 event crossed it" in out
    assert "1 key taken, 1 repeat ignored" in out
    assert "1 connection, 1 observer\n" in out


@pytest.mark.parametrize(
    "arguments",
    [
        ("status",),
        ("tail",),
        ("post", "a", "b"),
        ("handlers",),
        ("record", "/nowhere/x.evlog"),
        ("serve", "--workers", "0"),
    ],
)
def test_an_address_inside_of_a_process_is_refused_in_one_line(arguments):
    done = run("inproc:x", *arguments)
    assert (done.status, done.out) == (2, "")
    assert done.err == "eventsh: address: no other process can be reached at inproc:x\n"
