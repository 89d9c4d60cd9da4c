"""uWSGI with `attach_workers` and with `configure` alone, forked after the application is loaded and before."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integrations.servers import Start, uwsgi, witness

PREFORK_AND_LAZY = pytest.mark.parametrize("lazy", [(), ("--lazy-apps",)], ids=["prefork", "lazy-apps"])


@PREFORK_AND_LAZY
def test_every_worker_handles_an_event_once_and_the_master_none(start: Start, lazy: tuple[str, ...]):
    server = start(uwsgi, "--master", "--processes", "3", *lazy)
    workers = server.wait_attached(3)
    assert server.process.pid not in workers
    poster = server.post("e", data="1")
    server.wait_handled("e", workers)
    assert {(line.data, line.poster) for line in server.lines("e")} == {("1", poster)}
    for _ in range(6):
        server.post("once", unique="k")
    server.post("last")
    server.wait_handled("last", workers)
    assert len(server.lines("once")) == 1
    if not lazy:
        # The hooks of others are called as well.
        assert {line.pid for line in server.lines("hook-before")} == workers
        assert {line.pid for line in server.lines("hook-after")} == workers
    server.stop()
    assert {line.pid for line in server.lines("stopping")} == workers
    assert server.lines("gap") == []


@PREFORK_AND_LAZY
def test_a_reload_and_recycled_workers_lose_nothing(start: Start, directory: Path, lazy: tuple[str, ...]):
    with witness(directory) as seen:
        recycle = ("--max-requests", "2", "--min-worker-lifetime", "0")
        server = start(uwsgi, "--master", "--processes", "2", *recycle, *lazy)
        first = server.wait_attached(2)
        server.process.send_signal(signal.SIGHUP)
        server.wait_attached(2, without=first)
        requests, posted = 8, 500
        pids = {server.get(f"/post-many?count={posted}") for _ in range(requests)}
        assert len(pids) > 2
        seen.wait_all("e", range(posted), server, times=requests)
        # Successors have taken over the places of those that ended: nobody waits for a process that is gone.
        server.wait_only(2)
        assert server.lines("gap") == []


@pytest.mark.parametrize("arguments", [("--master",), ()], ids=["prefork", "no-master"])
def test_every_worker_of_an_application_that_calls_configure_handles_an_event(start: Start, arguments: tuple[str, ...]):
    app = "tests.integrations.wsgi_app:app"
    server = start(uwsgi, "--processes", "2", *arguments, app=app, CONFIGURE_AT_IMPORT="1")
    workers = server.wait_attached(2)
    # Without a master, the process that loads the application is the first worker.
    assert (server.process.pid in workers) == (not arguments)
    try:
        server.post("e")
        server.wait_handled("e", workers)
    finally:
        if not arguments:
            # Nobody else ends it.
            (other,) = workers - {server.process.pid}
            os.kill(other, signal.SIGKILL)


def test_uwsgi_without_threads_is_refused_at_once():
    # uWSGI 2.0.27 and newer always have threads: this is how an older one looks like.
    program = """
import sys, types
sys.modules["uwsgi"] = types.SimpleNamespace(has_threads=0, worker_id=lambda: 1, mule_id=lambda: 0)
import eventsh
for configure in (eventsh.configure, eventsh.Events("inproc:u").configure):
    try:
        configure()
    except eventsh.ConfigureError as error:
        print(error)
from eventsh.integrations.uwsgi import attach_workers
try:
    attach_workers()
except eventsh.ConfigureError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.count("--enable-threads") == 3, (done.stdout, done.stderr)


def test_a_wait_in_the_process_that_loads_the_application_says_where_to_wait():
    program = """
import sys, types
no = lambda: 0
sys.modules["uwsgi"] = types.SimpleNamespace(has_threads=1, worker_id=no, mule_id=no, i_am_the_spooler=no)
import eventsh
eventsh.configure()
try:
    eventsh.wait_ready(5)
except eventsh.EventError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True)
    assert "wait in a worker" in done.stdout, (done.stdout, done.stderr)
