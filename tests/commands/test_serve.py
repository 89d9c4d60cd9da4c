from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from eventsh.address import parse_address
from eventsh.api import Events
from eventsh.commands.serve import ServeArguments
from eventsh.errors import ConfigureError

SERVING = str(Path(__file__).with_name("serving.py"))
ROOT = str(Path(__file__).parents[2])
DEADLINE_S = 60.0

HANDLERS = """
import os
import time
import eventsh

@eventsh.on("test")
def handle(data, event, source, pid):
    with open({journal!r}, "a") as journal:
        journal.write(f"{{os.getpid()}} {version} {{event}} {{data}}\\n")
    if event == "hang":
        while True:
            time.sleep(1)

@eventsh.on("eventsh", "stopping")
def stopping(data, event, source, pid):
    with open({journal!r}, "a") as journal:
        journal.write(f"{{os.getpid()}} {version} stopping {{data['worker_id']}}\\n")
"""


def wait_until(condition: Callable[[], object], what: str, deadline_s: float = DEADLINE_S) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, f"not within {deadline_s} s: {what}"
        time.sleep(0.01)


def descendants(pid: int) -> set[int]:
    """Every process below `pid` that is not a zombie."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                children.setdefault(int(parent), []).append(int(stat.parent.name))
    found, rest = set(), [pid]
    while rest:
        below = children.get(rest.pop(), [])
        found.update(below)
        rest += below
    return found


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Served:
    """A running `serve` with a handlers file that keeps a journal."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.sockets = directory / "run"
        self.address = f"unix:{self.sockets}/events.sock"
        self.handlers = directory / "handlers.py"
        self.process: subprocess.Popen[bytes] | None = None
        self.write_handlers("v1")

    def write_handlers(self, version: str) -> None:
        self.handlers.write_text(HANDLERS.format(journal=str(self.directory / "journal"), version=version))

    def start(self, workers: int, *handlers: str, stop_timeout_s: float = DEADLINE_S) -> Served:
        with (self.directory / "stdout").open("wb") as stdout, (self.directory / "stderr").open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, SERVING, self.address, str(workers), str(stop_timeout_s), *handlers],
                stdout=stdout,
                stderr=stderr,
                env={**os.environ, "PYTHONPATH": ROOT},
            )
        return self

    def start_ready(self, workers: int, *handlers: str, **more: float) -> Served:
        self.start(workers, *handlers, **more)
        wait_until(lambda: "Ctrl-C" in self.output, "it is ready")
        return self

    def signal(self, number: signal.Signals) -> None:
        assert self.process
        self.process.send_signal(number)

    def exit_status(self) -> int:
        assert self.process
        return self.process.wait(DEADLINE_S)

    def post(self, event: str, data: Any = None) -> None:
        with Events(self.address, broker="never", role="observer") as events:
            events.wait_ready(DEADLINE_S)
            events.post("test", event, data)
            events.flush(DEADLINE_S)

    @property
    def output(self) -> str:
        return (self.directory / "stdout").read_text()

    @property
    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.directory / "stderr").read_text().splitlines()]

    def logged(self, text: str) -> bool:
        return text in (self.directory / "stderr").read_text()

    @property
    def journal(self) -> list[list[str]]:
        path = self.directory / "journal"
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []

    def handled(self, event: str, version: str = "v1") -> set[str]:
        """The pids that handled it, each exactly once."""
        pids = [pid for pid, by, what, *_ in self.journal if (by, what) == (version, event)]
        assert len(pids) == len(set(pids)), f"handled twice: {self.journal}"
        return set(pids)

    def assert_clean(self, *descendants: int) -> None:
        assert not [pid for pid in descendants if is_alive(pid)], "an orphan"
        assert not self.sockets.exists() or not list(self.sockets.iterdir()), "something is left behind"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    served = Served(tmp_path)
    yield served
    if served.process:
        below = descendants(served.process.pid)
        served.process.kill()
        served.process.wait()
        for pid in below:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def test_it_says_where_it_listens_and_what_to_type_next(served):
    served.start_ready(1, str(served.handlers))
    pid = served.process.pid
    assert f"listening at {served.address} (pid {pid})" in served.output
    assert f"""eventsh post --address {served.address} source event '<"k":1>'""" in served.output
    assert f"kill -HUP {pid}" in served.output


def test_every_worker_handles_what_is_posted_and_tells_stopping_in_the_end(served):
    served.start_ready(3, str(served.handlers))
    served.post("one", {"k": 1})
    wait_until(lambda: len(served.handled("one")) == 3, "three workers have handled it")
    below = descendants(served.process.pid)
    served.signal(signal.SIGTERM)
    assert served.exit_status() == 0
    assert served.handled("stopping") == served.handled("one")
    served.assert_clean(*below)
    assert not [entry for entry in served.log if entry["level"] not in ("info", "debug")]


def test_without_handlers_events_are_printed_escaped(served):
    served.start_ready(1)
    served.post("one\x1b", "two\nlines")
    wait_until(lambda: '[worker 0] test one\\x1b "two\\nlines"\n' in served.output, "the event is printed")


def test_a_broker_alone_serves_clients_of_its_own(served):
    served.start_ready(0)
    got: list[Any] = []
    with Events(served.address, broker="never") as events:
        events.register(lambda data, *_: got.append(data), "test", "one")
        events.wait_ready(DEADLINE_S)
        events.post("test", "one", 5)
        wait_until(lambda: got == [5], "it is handled")
    assert len(descendants(served.process.pid)) == 1
    served.signal(signal.SIGINT)
    assert served.exit_status() == 0
    served.assert_clean()


def test_a_second_one_at_the_address_is_refused_and_disturbs_nobody(served, tmp_path):
    served.start_ready(1, str(served.handlers))
    done = subprocess.run(
        [sys.executable, SERVING, served.address, "1", "3"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": ROOT},
        timeout=DEADLINE_S,
    )
    assert done.returncode == 1
    assert done.stdout.startswith(f"error: a broker is already running at {served.address}")
    served.post("one")
    wait_until(lambda: len(served.handled("one")) == 1, "the first still works")


def test_a_reload_loads_the_file_anew_and_a_bad_file_keeps_the_old_workers(served):
    served.start_ready(2, str(served.handlers))
    served.handlers.write_text("import eventsh\neventsh.nonsense()\n")
    served.signal(signal.SIGHUP)
    wait_until(lambda: served.logged("the reload was given up"), "the reload is given up")
    assert served.logged(f"{served.handlers}:2: AttributeError")
    served.post("one")
    wait_until(lambda: len(served.handled("one")) == 2, "the old workers still handle")
    served.write_handlers("v2")
    served.signal(signal.SIGHUP)
    wait_until(lambda: served.logged("all workers are reloaded"), "the reload is done")
    served.post("two")
    wait_until(lambda: len(served.handled("two", "v2")) == 2, "the new workers handle")
    assert not served.handled("two", "v1")


def test_events_posted_during_reloads_are_handled_once_by_every_slot(served):
    served.start_ready(2, str(served.handlers))
    with Events(served.address, broker="never", role="observer") as events:
        events.wait_ready(DEADLINE_S)
        number = 0
        for reload in range(1, 4):
            served.signal(signal.SIGHUP)
            while (served.directory / "stderr").read_text().count("all workers are reloaded") < reload:
                events.post("test", "numbered", number)
                number += 1
                time.sleep(0.002)
        events.flush(DEADLINE_S)

    def numbers() -> list[int]:
        return sorted(int(entry[3]) for entry in served.journal if entry[2] == "numbered")

    wait_until(lambda: len(numbers()) >= 2 * number, "every event is handled")
    assert numbers() == sorted([*range(number)] * 2)


@pytest.mark.parametrize("which", ["broker", "worker"])
def test_what_is_killed_comes_back_and_misses_nothing(served, which):
    served.start_ready(2, str(served.handlers))
    served.post("one")
    wait_until(lambda: len(served.handled("one")) == 2, "both have handled the first")
    workers = {int(pid) for pid in served.handled("one")}
    victim = min(workers) if which == "worker" else (descendants(served.process.pid) - workers).pop()
    os.kill(victim, signal.SIGKILL)
    served.post("two")
    wait_until(lambda: len(served.handled("two")) == 2, "both slots have handled the second")
    assert str(victim) not in served.handled("two")


def test_a_second_signal_kills_a_worker_that_hangs_and_leaves_no_socket(served):
    served.start_ready(1, str(served.handlers))
    below = descendants(served.process.pid)
    served.post("hang")
    wait_until(lambda: served.handled("hang"), "the handler hangs")
    served.signal(signal.SIGINT)
    wait_until(lambda: served.logged("SIGINT: stopping"), "the stop has begun")
    served.signal(signal.SIGINT)
    assert served.exit_status() == 130
    served.assert_clean(*below)


def test_a_worker_that_hangs_is_killed_in_the_end(served):
    served.start_ready(1, str(served.handlers), stop_timeout_s=3.0)
    below = descendants(served.process.pid)
    served.post("hang")
    wait_until(lambda: served.handled("hang"), "the handler hangs")
    served.signal(signal.SIGTERM)
    assert served.exit_status() == 0
    assert served.logged("has not stopped within 3 s: killed")
    served.assert_clean(*below)


def test_when_it_is_killed_nothing_survives_and_no_socket_is_left(served):
    served.start_ready(2, str(served.handlers))
    below = descendants(served.process.pid)
    assert len(below) == 3
    served.signal(signal.SIGKILL)
    wait_until(lambda: not any(map(is_alive, below)), "every process has ended")
    assert len(served.handled("stopping")) == 2
    assert not (served.sockets / "events.sock").exists()
    served.process.wait()
    served.start_ready(1, str(served.handlers))


@pytest.mark.parametrize("workers", [-1, 1025])
def test_a_number_of_workers_that_can_not_be_is_refused(workers):
    with pytest.raises(ConfigureError, match="workers must be from 0 to 1024"):
        ServeArguments(parse_address("unix:/x"), workers)


def test_a_handlers_file_that_is_not_there_is_refused_before_anything_starts():
    with pytest.raises(ConfigureError, match=r"there is no file 'missing\.py'"):
        ServeArguments(parse_address("unix:/x"), 1, ("missing.py",))
