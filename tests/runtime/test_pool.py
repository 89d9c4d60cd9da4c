from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from eventsh.runtime.backoff import MAX_RESTARTS
from tests.runtime.supervisor import MAX_WORKERS

SUPERVISOR = str(Path(__file__).with_name("supervisor.py"))
ROOT = str(Path(__file__).parents[2])
# Every process that a pool starts one after the other takes a second or two where many others run.
DEADLINE_S = 60.0


def wait_until(condition: Callable[[], object], what: str, deadline_s: float = DEADLINE_S) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, f"not within {deadline_s} s: {what}"
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    """Whether `pid` still runs; a zombie that its parent has not fetched does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


class Supervised:
    """A running supervisor program and the journal of its children."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, workers: int, *, stop_timeout_s: float = 5.0, **popen: object) -> Supervised:
        with (self.directory / "stdout").open("wb") as stdout, (self.directory / "stderr").open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, SUPERVISOR, str(self.directory), str(workers), str(stop_timeout_s)],
                stdout=stdout,
                stderr=stderr,
                env={**os.environ, "PYTHONPATH": ROOT},
                **popen,  # type: ignore[call-overload]
            )
        return self

    def start_ready(self, workers: int, **more: object) -> Supervised:
        self.start(workers, **more)  # type: ignore[arg-type]
        wait_until(lambda: "pool ready" in self.output, "the pool is ready")
        return self

    def behave(self, name: str, *words: str) -> None:
        (self.directory / f"{name}.behaviour").write_text(" ".join(words))

    def signal(self, number: signal.Signals) -> None:
        assert self.process
        self.process.send_signal(number)

    def exit_status(self) -> int:
        assert self.process
        return self.process.wait(DEADLINE_S)

    @property
    def output(self) -> str:
        return (self.directory / "stdout").read_text()

    @property
    def log(self) -> str:
        return (self.directory / "stderr").read_text()

    @property
    def journal(self) -> list[tuple[str, int, str]]:
        path = self.directory / "journal"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(name, int(pid), what) for name, pid, what in map(str.split, lines)]

    def pids(self, name: str, what: str = "started") -> list[int]:
        return [pid for who, pid, did in self.journal if (who, did) == (name, what)]

    def living(self) -> set[int]:
        return {pid for _, pid, _ in self.journal if is_alive(pid)}

    def clean_up(self) -> None:
        if self.process:
            with suppress(ProcessLookupError):
                self.process.kill()
            self.process.wait()
        for pid in self.living():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Supervised]:
    supervised = Supervised(tmp_path)
    yield supervised
    supervised.clean_up()


def test_the_broker_is_ready_before_the_first_worker_starts_and_the_first_worker_before_the_others(pool):
    pool.start_ready(3)
    journal = [(name, what) for name, _, what in pool.journal]
    assert journal[:4] == [
        ("broker", "started"),
        ("broker", "ready"),
        ("worker0", "started"),
        ("worker0", "ready"),
    ]
    assert {name for name, what in journal if what == "ready"} == {"broker", "worker0", "worker1", "worker2"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_workers_then_the_broker_and_the_status_is_0(pool, number):
    pool.start_ready(2)
    pool.signal(number)
    assert pool.exit_status() == 0
    journal = [(name, what) for name, _, what in pool.journal]
    assert journal[-2:] == [("broker", "stop"), ("broker", "ended")]
    assert {("worker0", "ended"), ("worker1", "ended")} <= set(journal[:-2])
    assert pool.output.endswith("clean 0\n")
    assert not pool.living()


def test_a_broker_alone_is_a_pool_too(pool):
    pool.start_ready(0)
    pool.signal(signal.SIGTERM)
    assert pool.exit_status() == 0
    assert {name for name, _, _ in pool.journal} == {"broker"}


def test_a_signal_during_the_start_stops_it(pool):
    pool.behave("worker0", "hang")
    pool.start(2, stop_timeout_s=0.2)
    wait_until(lambda: pool.pids("worker0", "hanging"), "the first worker hangs")
    pool.signal(signal.SIGTERM)
    assert pool.exit_status() == 0
    assert not pool.living()


@pytest.mark.parametrize("name", ["broker", "worker0"])
def test_what_is_killed_is_started_again(pool, name):
    pool.start_ready(2)
    os.kill(pool.pids(name)[0], signal.SIGKILL)
    wait_until(lambda: len(pool.pids(name, "ready")) == 2, f"{name} is back")
    assert "killed by SIGKILL; next start in 0.1 s" in pool.log
    others = {"broker", "worker0", "worker1"} - {name}
    assert all(len(pool.pids(other)) == 1 for other in others)


def test_a_worker_that_ends_by_itself_is_started_again_ever_more_slowly(pool):
    pool.start_ready(2)
    pool.behave("worker1", "brief")
    os.kill(pool.pids("worker1")[0], signal.SIGKILL)
    wait_until(lambda: len(pool.pids("worker1")) == 4, "worker 1 has been started four times")
    assert "exit status 0; next start in 0.2 s" in pool.log
    assert "exit status 0; next start in 0.4 s" in pool.log


@pytest.mark.parametrize(("word", "reason"), [("fail", "handlers.py:3: no good"), ("die", "exit status 3")])
def test_a_worker_that_can_not_start_is_given_up_and_everything_stops(pool, word, reason):
    pool.behave("worker0", word)
    pool.start(3)
    assert pool.exit_status() == 1
    assert f"giving up: worker 0 did not start in 6 attempts: {reason}" in pool.log
    assert len(pool.pids("worker0")) == 1 + MAX_RESTARTS
    assert not pool.pids("worker1"), "the others are not started on handlers that the first can't load"
    assert not pool.living()
    assert pool.log.count("Traceback") == (1 if word == "fail" else 0), "told once, not at every attempt"


def test_a_broker_that_can_not_start_is_given_up(pool):
    pool.behave("broker", "die")
    pool.start(1)
    assert pool.exit_status() == 1
    assert "giving up: broker did not start in 6 attempts: exit status 3" in pool.log


def test_a_worker_that_can_not_start_again_or_be_added_does_not_end_the_others(pool):
    pool.start_ready(2)
    pool.behave("worker1", "die")
    pool.behave("worker2", "fail")
    os.kill(pool.pids("worker1")[0], signal.SIGKILL)
    pool.signal(signal.SIGTTIN)
    reasons = ("exit status 3", "handlers.py:3: no good")
    failures = [f"before it was ready: {reason}; next start in" for reason in reasons]
    wait_until(
        lambda: all(pool.log.count(failure) > MAX_RESTARTS for failure in failures),
        "every quick restart is used up",
    )
    assert is_alive(pool.pids("worker0")[0])
    assert pool.process.poll() is None


def test_a_worker_that_does_not_stop_is_killed_after_the_timeout(pool):
    pool.behave("worker0", "stubborn")
    pool.start_ready(2, stop_timeout_s=0.3)
    pool.signal(signal.SIGTERM)
    assert pool.exit_status() == 0
    assert "worker 0 (pid" in pool.log
    assert "has not stopped within 0.3 s: killed" in pool.log
    assert not pool.living()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_second_signal_kills_at_once(pool, number, status):
    pool.behave("worker0", "stubborn")
    pool.behave("broker", "stubborn")
    pool.start_ready(2, stop_timeout_s=600.0)
    pool.signal(signal.SIGINT)
    wait_until(lambda: pool.pids("worker0", "stop"), "the stop has begun")
    pool.signal(number)
    wait_until(lambda: pool.process.poll() is not None or pool.pids("broker", "stop"), "the workers are killed")
    if pool.process.poll() is None:
        pool.signal(number)
    assert pool.exit_status() == status
    assert pool.output.endswith("clean -9\n")
    assert not pool.living()


def test_nothing_survives_a_supervisor_that_is_killed(pool):
    pool.behave("worker1", "stubborn")
    pool.start_ready(3)
    pool.signal(signal.SIGKILL)
    wait_until(lambda: not pool.living(), "every child has ended")
    stopped = {name for name, _, what in pool.journal if what == "ended"}
    assert stopped == {"broker", "worker0", "worker2"}, "they end in good order, and the one that does not is ended"


def test_a_supervisor_killed_while_a_worker_starts_leaves_nothing(pool):
    pool.behave("worker0", "hang")
    pool.start(1)
    wait_until(lambda: pool.pids("worker0", "hanging"), "the worker hangs")
    pool.signal(signal.SIGKILL)
    wait_until(lambda: not pool.living(), "every child has ended")


def test_what_a_handler_forked_ends_with_its_worker(pool):
    pool.behave("worker0", "fork")
    pool.start_ready(1)
    forked = pool.pids("worker0", "forked")
    assert len(forked) == 1
    os.kill(pool.pids("worker0")[0], signal.SIGKILL)
    wait_until(lambda: len(pool.pids("worker0", "ready")) == 2, "the worker is back")
    wait_until(lambda: not is_alive(forked[0]), "the forked process has ended")


def test_a_reload_replaces_worker_by_worker_each_once_its_successor_stands_by(pool):
    pool.start_ready(2)
    pool.signal(signal.SIGHUP)
    wait_until(lambda: "all workers are reloaded" in pool.log, "the reload is done")
    assert [(name, what) for name, _, what in pool.journal if name != "broker"][4:] == [
        ("worker0", "started"),
        ("worker0", "standby"),
        ("worker0", "hand_over"),
        ("worker0", "ended"),
        ("worker0", "ready"),
        ("worker1", "started"),
        ("worker1", "standby"),
        ("worker1", "hand_over"),
        ("worker1", "ended"),
        ("worker1", "ready"),
    ]
    assert len(pool.pids("broker")) == 1


def test_a_reload_that_fails_keeps_every_worker(pool):
    pool.start_ready(2)
    before = pool.living()
    pool.behave("worker0", "fail")
    pool.signal(signal.SIGHUP)
    wait_until(lambda: "the reload was given up" in pool.log, "the reload is given up")
    assert "can't take over: handlers.py:3: no good" in pool.log
    assert pool.living() == before
    pool.behave("worker0")
    pool.signal(signal.SIGHUP)
    wait_until(lambda: "all workers are reloaded" in pool.log, "the next reload is done")
    assert len(pool.living() & before) == 1, "the broker alone is as before"


def test_a_reload_does_not_wait_for_ever_for_a_worker_that_does_not_leave(pool):
    pool.behave("worker0", "stubborn")
    pool.start_ready(1, stop_timeout_s=0.3)
    old = pool.pids("worker0")[0]
    pool.behave("worker0")
    pool.signal(signal.SIGHUP)
    wait_until(lambda: "all workers are reloaded" in pool.log, "the reload is done")
    assert not is_alive(old)


def test_a_stop_in_the_middle_of_a_reload_ends_the_successor_too(pool):
    pool.start_ready(2, stop_timeout_s=0.3)
    pool.behave("worker0", "hang")
    pool.signal(signal.SIGHUP)
    wait_until(lambda: pool.pids("worker0", "hanging"), "the successor hangs")
    pool.signal(signal.SIGTERM)
    assert pool.exit_status() == 0
    assert not pool.living()


def test_a_worker_that_dies_while_its_successor_starts_is_replaced_all_the_same(pool):
    pool.start_ready(1)
    pool.signal(signal.SIGHUP)
    wait_until(lambda: len(pool.pids("worker0")) == 2, "the successor starts")
    os.kill(pool.pids("worker0")[0], signal.SIGKILL)
    wait_until(lambda: "all workers are reloaded" in pool.log, "the reload is done")
    wait_until(lambda: len(pool.living()) == 2, "one broker and one worker")


def test_sigttin_adds_a_worker_and_sigttou_has_the_last_one_leave(pool):
    pool.start_ready(1)
    pool.signal(signal.SIGTTIN)
    wait_until(lambda: pool.pids("worker1", "ready"), "a second worker")
    pool.signal(signal.SIGTTOU)
    wait_until(lambda: pool.pids("worker1", "ended"), "it has ended")
    assert pool.pids("worker1", "stop")
    assert len(pool.pids("worker0")) == 1
    assert "pool ready\n" in pool.output
    assert "2 workers are wanted" in pool.log
    assert "1 worker is wanted" in pool.log


def test_the_number_of_workers_has_limits(pool):
    pool.start_ready(MAX_WORKERS)
    pool.signal(signal.SIGTTIN)
    wait_until(lambda: "the number of workers stays 3: from 1 to 3 are allowed" in pool.log, "it is refused")
    pool.signal(signal.SIGTTOU)
    wait_until(lambda: len(pool.living()) == 3, "one has left")
    pool.signal(signal.SIGTTOU)
    wait_until(lambda: len(pool.living()) == 2, "another one has left")
    pool.signal(signal.SIGTTOU)
    wait_until(lambda: "the number of workers stays 1" in pool.log, "it is refused")


def test_a_broker_that_is_restarted_knows_the_present_number_of_workers(pool):
    pool.start_ready(1)
    pool.signal(signal.SIGTTIN)
    wait_until(lambda: pool.pids("worker1", "ready"), "a second worker")
    os.kill(pool.pids("broker")[0], signal.SIGKILL)
    wait_until(lambda: len(pool.pids("broker", "ready")) == 2, "the broker is back")
    assert [line for line in pool.output.splitlines() if line.startswith("broker for")] == [
        "broker for 1",
        "broker for 2",
    ]


def test_a_worker_is_added_only_once_the_one_that_leaves_its_place_has_ended(pool):
    pool.behave("worker1", "stubborn")
    pool.start_ready(2, stop_timeout_s=1.0)
    pool.signal(signal.SIGTTOU)
    wait_until(lambda: pool.pids("worker1", "stop"), "it is asked to leave")
    pool.behave("worker1")
    pool.signal(signal.SIGTTIN)
    wait_until(lambda: len(pool.pids("worker1", "ready")) == 2, "another one is there")
    assert "has not stopped within 1 s: killed" in pool.log
    assert not is_alive(pool.pids("worker1")[0])


def test_a_stop_ends_a_worker_that_is_leaving_too(pool):
    pool.behave("worker1", "stubborn")
    pool.start_ready(2, stop_timeout_s=0.5)
    pool.signal(signal.SIGTTOU)
    wait_until(lambda: pool.pids("worker1", "stop"), "it is asked to leave")
    pool.signal(signal.SIGTERM)
    assert pool.exit_status() == 0
    assert not pool.living()


def run_on_terminal(pool: Supervised, **more: object) -> int:
    """Start the pool with a terminal of its own; gives the terminal's other end."""
    ours, theirs = pty.openpty()
    path = os.ttyname(theirs)
    os.close(theirs)
    # Opening a terminal makes it the controlling one of a new session's leader.
    pool.start_ready(1, start_new_session=True, preexec_fn=lambda: os.close(os.open(path, os.O_RDWR)), **more)
    return ours


def test_the_end_of_the_terminal_stops_everything(pool):
    terminal = run_on_terminal(pool)
    os.close(terminal)
    assert pool.exit_status() == 0
    assert "the terminal is gone: stopping" in pool.log
    assert not pool.living()


def test_sighup_on_a_terminal_that_is_still_there_is_a_reload(pool):
    terminal = run_on_terminal(pool)
    pool.signal(signal.SIGHUP)
    wait_until(lambda: "all workers are reloaded" in pool.log, "the reload is done")
    os.close(terminal)


def test_ctrl_c_on_the_terminal_reaches_the_supervisor_alone_which_stops_in_order(pool):
    terminal = run_on_terminal(pool)
    os.write(terminal, b"\x03")
    assert pool.exit_status() == 0
    assert "SIGINT: stopping" in pool.log
    assert [what for name, _, what in pool.journal if name == "worker0"][-2:] == ["stop", "ended"]
    os.close(terminal)
