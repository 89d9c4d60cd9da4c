"""A bus over forks and over handlers that don't return."""

from __future__ import annotations

import os
import threading
import time

import pytest

from eventsh.api import Events
from eventsh.hookspecs import hookimpl
from eventsh.plugins import DISABLE_ENV, PluginManager
from eventsh.runtime import client
from eventsh.runtime.bus import Bus


def test_a_child_forked_before_configure_is_no_ones_double():
    bus = Bus(threaded=True)
    bus.outbox.post("app", "parents", 1)
    parents = bus.session.identity, bus.outbox.origin
    read, write = os.pipe()
    child = os.fork()
    if not child:
        own = bus.session.identity != parents[0] and bus.outbox.origin != parents[1]
        os.write(write, bytes([own, bus.outbox.pid == os.getpid(), bus.outbox.queued]))
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        assert list(pipe.read()) == [True, True, 0]
    os.waitpid(child, 0)
    assert (bus.session.identity, bus.outbox.origin) == parents
    assert bus.outbox.queued == 1


def test_a_worker_s_plugins_are_told_before_what_a_broker_brings_and_while_posting_still_works(monkeypatch):
    events = Events("inproc:hooks")
    seen: list[str] = []

    class Plugin:
        @hookimpl
        def eventsh_worker_started(self, worker_id):
            seen.append(f"worker {worker_id}")

        @hookimpl
        def eventsh_worker_stopping(self):
            events.post("app", "last")

    manager = PluginManager({DISABLE_ENV: "all"})
    manager.register(Plugin(), "plugin")
    monkeypatch.setattr(client, "plugins", lambda: manager)
    events.register(lambda data, event, *_: seen.append(event))
    events.post("app", "first")
    events.configure()
    events.wait_ready(10)
    events.close(timeout=10)
    assert [each for each in seen if each in ("worker 0", "first", "last")] == ["worker 0", "first", "last"]


def test_close_does_not_wait_for_ever_for_a_handler_that_does_not_return(caplog: pytest.LogCaptureFixture):
    events = Events("inproc:hangs", timeout=0.2)
    others = set(threading.enumerate())
    begun, end = threading.Event(), threading.Event()

    def hang(*_: object) -> None:
        begun.set()
        end.wait()

    events.register(hang, "app", "hang")
    events.configure()
    events.post("app", "hang")
    assert begun.wait(10)
    threads = [thread for thread in threading.enumerate() if thread.name == "eventsh" and thread not in others]
    assert len(threads) == 1
    try:
        started = time.monotonic()
        events.close()
        assert time.monotonic() - started < 10
        assert not events.configured()
        assert "its thread could not be stopped" in caplog.text
        # A new one can be had at once.
        events.configure()
        events.wait_ready(10)
        events.close(timeout=5)
    finally:
        end.set()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
