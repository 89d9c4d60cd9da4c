"""gunicorn with its hooks: who takes part, and what happens when workers come and go."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

import eventsh
from eventsh.errors import ConfigureError
from eventsh.integrations.gunicorn import hooks, worker_exit
from tests.integrations.servers import DEADLINE_S, Start, gunicorn, require, wait_until, witness


@pytest.mark.parametrize("preload", [(), ("--preload",)], ids=["each-loads", "preload"])
def test_a_request_posts_every_worker_handles_and_the_master_takes_no_part(start: Start, preload: tuple[str, ...]):
    server = start(gunicorn, "--workers", "3", *preload)
    workers = server.wait_attached(3)
    assert server.process.pid not in workers
    poster = server.post("e", data="1")
    server.wait_handled("e", workers)
    assert {(line.source, line.data, line.poster) for line in server.lines("e")} == {("app", "1", poster)}
    for _ in range(6):
        server.post("once", unique="k")
    server.post("last")
    server.wait_handled("last", workers)
    assert len(server.lines("once")) == 1
    assert server.stop() == 0
    # Each has been closed in order, and told so.
    assert {line.pid for line in server.lines("stopping")} == workers
    assert server.lines("gap") == []


def test_a_preloaded_application_that_configures_itself_leaves_no_master_attached(start: Start):
    plain = "from eventsh.integrations.gunicorn import post_fork, pre_fork, worker_exit"
    server = start(gunicorn, "--workers", "2", "--preload", hooks=plain, CONFIGURE_AT_IMPORT="1")
    workers = server.wait_attached(2)
    assert server.process.pid not in workers
    server.post("e")
    server.wait_handled("e", workers)
    # Those that are forked much later, after a reload of the configuration, know the address too.
    server.process.send_signal(signal.SIGHUP)
    successors = server.wait_attached(2, without=workers)
    server.post("after")
    server.wait_handled("after", successors)
    assert {line.pid for line in server.lines("after")} == successors


@pytest.mark.parametrize("preload", [(), ("--preload",)], ids=["each-loads", "preload"])
def test_the_successor_of_a_killed_worker_takes_part(start: Start, preload: tuple[str, ...]):
    server = start(gunicorn, "--workers", "3", *preload)
    before = server.wait_attached(3)
    server.post("before")
    server.wait_handled("before", before)
    killed = min(before)
    os.kill(killed, signal.SIGKILL)
    after = server.wait_attached(3, without={killed})
    assert len(after - before) == 1
    server.post("after")
    server.wait_handled("after", after)
    assert server.lines("gap") == []


def test_a_successor_gets_what_was_posted_while_it_was_loading(start: Start, directory: Path):
    gate = directory / "gate"
    server = start(gunicorn, "--workers", "2", IMPORT_GATE=str(gate))
    (killed, other) = server.wait_attached(2)
    gate.touch()
    os.kill(killed, signal.SIGKILL)
    wait_until((directory / "gate.reached").exists, lambda: "no successor loads the application")
    server.post("meanwhile")
    server.wait_handled("meanwhile", {other})
    gate.unlink()
    successor = server.wait_attached(2, without={killed}) - {other}
    server.wait_handled("meanwhile", {other} | successor)
    assert server.lines("gap") == []


def test_a_worker_aborted_for_timeout_leaves_its_events_to_a_successor(start: Start, directory: Path):
    # In this time a worker has to start, and what follows has to happen, on a busy machine too.
    server = start(gunicorn, "--workers", "2", "--timeout", "6")
    before = server.wait_attached(2)
    # One of them begins a unique event that it will never finish, and so do its requests.
    server.get(f"/post-and-go?event=freeze&data={directory}/once&unique=k")
    wait_until(lambda: bool(server.lines("freeze")), lambda: server.lines("freeze"))
    frozen = server.lines("freeze")[0].pid
    (other,) = before - {frozen}

    met = Path(server.journal + ".met")

    def meets_frozen() -> bool:
        with suppress(TimeoutError):
            server.get("/", timeout_s=0.3)
        return met.exists()

    wait_until(meets_frozen, lambda: "the frozen worker accepts nothing")
    # Not waited for: it is not confirmed while a worker that lives is stuck.
    wait_until(lambda: server.get("/post-and-go?event=meanwhile") == other, lambda: "the other worker answers nothing")
    successor = server.wait_attached(2, without={frozen}) - {other}
    assert "WORKER TIMEOUT" in server.log.read_text()
    server.wait_handled("meanwhile", {other} | successor)
    # The unique event was begun again, by one of those that live.
    wait_until(lambda: len(server.lines("freeze")) == 2, lambda: server.lines("freeze"))
    assert server.lines("freeze")[1].pid in {other} | successor
    assert server.lines("gap") == []


def test_a_reload_under_load_loses_nothing_and_handles_nothing_twice(start: Start):
    server = start(gunicorn, "--workers", "2")
    generations = [server.wait_attached(2)]
    posted: list[str] = []
    done = threading.Event()

    def load() -> None:
        # On a slow machine it goes on until there was some load.
        while not done.is_set() or len(posted) <= 20:
            number = str(len(posted))
            server.post("load", data=number)
            posted.append(number)
            time.sleep(0.005)

    poster = threading.Thread(target=load)
    poster.start()
    try:
        for _ in range(2):
            server.process.send_signal(signal.SIGHUP)
            generations.append(server.wait_attached(2, without=set().union(*generations)))
    finally:
        done.set()
        poster.join(DEADLINE_S)
    server.post("last")
    server.wait_handled("last", generations[-1])
    lines = server.lines("load")
    assert max(Counter((line.pid, line.data) for line in lines).values()) == 1
    # Posted while at least two workers were attached, so each was handled by two or more.
    handled_by = Counter(line.data for line in lines)
    assert [number for number in posted if handled_by[number] < 2] == []
    assert len(posted) > 20
    # No worker has a hole in what it handled.
    for pid in set().union(*generations):
        numbers = [int(line.data) for line in lines if line.pid == pid]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers))) if numbers else True
    assert server.lines("gap") == []


def test_every_post_of_the_shutdown_of_a_uvicorn_worker_arrives(start: Start, directory: Path):
    require("uvicorn_worker")
    with witness(directory) as seen:
        worker = ("--worker-class", "uvicorn_worker.UvicornWorker", "--workers", "2")
        server = start(gunicorn, *worker, app="tests.integrations.asgi_app:default", AT_SHUTDOWN="6000")
        workers = server.wait_attached(2)
        server.stop()
        # uvicorn raises the signal again that it was sent: gunicorn's hook must run all the same.
        seen.wait_all("e", range(6000), server, times=2)
        assert {line.pid for line in server.lines("stopping")} == workers


@pytest.mark.parametrize("worker", ["sync", "gthread"])
def test_workers_recycled_after_each_few_requests_deliver_every_post(start: Start, directory: Path, worker: str):
    with witness(directory) as seen:
        arguments = ("--worker-class", worker, "--workers", "2", "--max-requests", "2")
        server = start(gunicorn, *arguments)
        server.wait_attached(2)
        requests, posted = 8, 500
        pids = {server.get(f"/post-many?count={posted}") for _ in range(requests)}
        assert len(pids) > 2
        seen.wait_all("e", range(posted), server, times=requests)
        # Successors have taken over the places of those that ended: nobody waits for a process that is gone.
        server.wait_only(2)
        assert server.lines("gap") == []


def test_a_monkey_patched_worker_says_why_it_can_not_take_part(start: Start):
    require("gevent")
    server = start(gunicorn, "--worker-class", "gevent")
    server.wait_logged("ConfigureError")
    assert server.process.wait(DEADLINE_S) != 0
    assert "monkey" in server.log.read_text()
    assert not server.attached()


def test_wrong_options_keep_the_server_from_starting(start: Start):
    wrong = "from eventsh.integrations.gunicorn import hooks\npre_fork, post_fork, worker_exit = hooks(timeout=-1)"
    server = start(gunicorn, hooks=wrong)
    assert server.process.wait(DEADLINE_S) != 0
    assert "timeout must be a number of seconds above 0" in server.log.read_text()


@pytest.mark.parametrize("wrong", [{"tiemout": 1}, {"address": "nowhere:/x"}], ids=str)
def test_hooks_refuse_what_configure_would(wrong: dict[str, object]):
    with pytest.raises(ConfigureError):
        hooks(**wrong)  # type: ignore[arg-type]


def test_worker_exit_for_another_process_does_nothing():
    events = eventsh.configure("inproc:worker-exit")
    try:
        worker_exit(None, SimpleNamespace(pid=os.getpid() + 1, nr=0, max_requests=10))
        assert events.configured()
        worker_exit(None, SimpleNamespace(pid=os.getpid(), nr=0, max_requests=10))
        assert not events.configured()
    finally:
        events.close()
