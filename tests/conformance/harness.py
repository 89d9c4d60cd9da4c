"""What the conformance cases stand on: brokers with chosen options, and workers to post through and to look into.

A worker is a process of its own where the transport crosses processes, else a bus in this one. Either kind has a ledger
of what its handlers were given, and takes the same calls. Nothing here waits without a deadline.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from inspect import isawaitable
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

from eventsh.api import AsyncEvents, Events
from eventsh.errors import QueueOverflow
from eventsh.testing.addresses import free_port
from eventsh.testing.broker import (
    BrokerHandle,
    BrokerProcess,
    HostedBroker,
    broker_status,
    crosses_processes,
    start_broker,
)
from eventsh.testing.recorder import DEADLINE_S
from eventsh.testing.remote import Remote

__all__ = [
    "DEADLINE_S",
    "FACES",
    "TRANSPORTS",
    "BrokerHandle",
    "BrokerProcess",
    "Bus",
    "HostedBroker",
    "Ledger",
    "LocalWorker",
    "Pool",
    "ProcessWorker",
    "Seen",
    "Station",
    "Worker",
    "crosses_processes",
    "start_broker",
    "start_worker",
    "start_workers",
    "wait_until",
]

T = TypeVar("T")

FACES = ("Events", "AsyncEvents")
# Few enough that the loop turns often, as in a program that does something between its posts.
POSTS_A_TURN = 20
WORKER_PROGRAM = str(Path(__file__).with_name("worker.py"))


# From a directory and a number to an address that nobody uses. A further transport is one line here.
TRANSPORTS: dict[str, Callable[[Path, int], str]] = {
    "unix": lambda directory, number: f"unix:{directory}/{number}.sock",
    "tcp": lambda directory, number: f"tcp://127.0.0.1:{free_port()}",
    "shm": lambda directory, number: f"shm:{directory}/{number}.sock",
    "inproc": lambda directory, number: f"inproc:{directory}/{number}",
}


def wait_until(condition: Callable[[], bool], shown: Callable[[], object]) -> None:
    """Wait until `condition` holds; `shown` tells what was there instead."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"it stayed at {shown()}")
        time.sleep(0.005)


class Seen(NamedTuple):
    """One call of a handler."""

    source: str
    event: str
    data: Any
    pid: int | None


class Ledger:
    """What handlers were given, in order. Written in the bus's thread, read and waited for in the test's."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._seen: list[Seen] = []
        self._counts: Counter[tuple[str, str]] = Counter()

    def record(self, data: Any, event: str, source: str, pid: int | None) -> None:
        """A handler."""
        with self._changed:
            self._seen.append(Seen(source, event, data, pid))
            self._counts[source, event] += 1
            self._changed.notify_all()

    def named(self, name: str) -> Callable[..., None]:
        """A handler that records its own name in place of the data."""

        def handler(data: Any, event: str, source: str, pid: int | None) -> None:
            self.record(name, event, source, pid)

        return handler

    def of(self, source: str) -> list[Seen]:
        with self._changed:
            return [seen for seen in self._seen if seen.source == source]

    def everything(self) -> list[Seen]:
        with self._changed:
            return list(self._seen)

    def count(self, source: str) -> dict[str, int]:
        """How often each event of `source` was seen."""
        with self._changed:
            return {event: count for (of, event), count in self._counts.items() if of == source}

    def wait(self, source: str, event: str, count: int = 1) -> None:
        """Wait until `event` of `source` was seen `count` times."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._counts[source, event] >= count, DEADLINE_S):
                raise TimeoutError(f"{event!r} of {source!r} was not seen {count} times: {self._counts}")


class Bus:
    """A bus in this process behind the same blocking calls for both faces; the plain calls of AsyncEvents are made in its
    loop, which is asyncio's own and runs in a thread."""

    def __init__(self, face: str, address: str | None = None, **options: Any) -> None:
        self.face = face
        self._loop: asyncio.AbstractEventLoop | None = None
        self.events: Events | AsyncEvents
        if face == "Events":
            self.events = Events(address, **options)
            return
        # Raised here, before there is a thread to stop.
        self.events = AsyncEvents(address, **options)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="conformance", daemon=True)
        self._thread.start()

    def _do(self, method: str, *args: Any, **kwargs: Any) -> Any:
        call = getattr(self.events, method)
        if self._loop is None:
            return call(*args, **kwargs)

        async def do() -> Any:
            result = call(*args, **kwargs)
            return await result if isawaitable(result) else result

        return asyncio.run_coroutine_threadsafe(do(), self._loop).result(DEADLINE_S)

    def configure(self, address: str | None = None, **options: Any) -> Self:
        self._do("configure", address, **options)
        return self

    def configured(self) -> bool:
        return self.events.configured()

    def post(self, source: str, event: str, data: Any = None, unique: str | None = None) -> bool:
        return bool(self._do("post", source, event, data, unique))

    def post_steadily(self, posts: Iterable[tuple[Any, ...]]) -> None:
        """Post one after the other, and wait for room where there is none."""
        events, loop = self.events, self._loop
        if isinstance(events, Events):
            for post in posts:
                try:
                    events.post(*post)
                except QueueOverflow:
                    events.drain(DEADLINE_S)
                    events.post(*post)
            return

        async def post_all() -> None:
            for number, post in enumerate(posts):
                try:
                    events.post(*post)
                except QueueOverflow:
                    await events.drain(DEADLINE_S)
                    events.post(*post)
                if number % POSTS_A_TURN == 0:
                    await asyncio.sleep(0)

        assert loop is not None
        asyncio.run_coroutine_threadsafe(post_all(), loop).result(DEADLINE_S)

    def post_local(self, source: str, event: str, data: Any = None) -> bool:
        return bool(self._do("post_local", source, event, data))

    def register(self, callback: Callable[..., Any], source: str | None = None, *events: str) -> bool:
        return bool(self._do("register", callback, source, *events))

    def register_weak(self, callback: Callable[..., Any], source: str | None = None, *events: str) -> bool:
        return bool(self._do("register_weak", callback, source, *events))

    def unregister(self, callback: Callable[..., Any], source: str | None = None, *events: str) -> bool:
        return bool(self._do("unregister", callback, source, *events))

    def wait_ready(self, timeout: float | None = DEADLINE_S) -> None:
        self._do("wait_ready", timeout)

    def flush(self, timeout: float | None = DEADLINE_S) -> None:
        self._do("flush", timeout)

    def drain(self, timeout: float | None = DEADLINE_S) -> None:
        self._do("drain", timeout)

    def close(self, *, leave: bool = True, timeout: float | None = None) -> None:
        self._do("close", leave=leave, timeout=timeout)

    def status(self) -> dict[str, Any]:
        """The broker's own account."""
        address = self.events.address
        assert address is not None
        return broker_status(address)

    def in_loop(self, function: Callable[[], T]) -> T:
        """Call `function` in the loop of the configured bus, for what a case does to its connection."""

        async def do() -> T:
            return function()

        loop = self.events._bus.loop
        assert loop is not None
        return asyncio.run_coroutine_threadsafe(do(), loop).result(DEADLINE_S)

    def end(self) -> None:
        """Close it, whatever state it is in, and stop what runs it."""
        try:
            if self.events.configured():
                self.close(timeout=1.0)
        finally:
            if self._loop is not None and not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._loop.stop)
                self._thread.join(DEADLINE_S)
                self._loop.close()


class Station:
    """A worker's inside: its bus, its ledger, and what tests ask of it. The names of its public methods are what a worker
    can be told to do; arguments and results are JSON."""

    def __init__(self, face: str, address: str, options: dict[str, Any]) -> None:
        self.ledger = Ledger()
        self.bus = Bus(face, address, **options)
        self._gate = threading.Event()
        self.bus.register(self.ledger.record)
        self.bus.register(self._burst, "conformance", "burst")
        self.bus.configure()

    def ready(self) -> int | None:
        self.bus.wait_ready()
        return self.bus.events.worker_id

    def post(self, source: str, event: str, data: Any, unique: str | None) -> bool:
        return self.bus.post(source, event, data, unique)

    def post_local(self, source: str, event: str, data: Any) -> bool:
        return self.bus.post_local(source, event, data)

    def post_many(self, source: str, event: str, first: int, count: int) -> None:
        """Post numbers one after the other."""
        self.bus.post_steadily((source, event, number, None) for number in range(first, first + count))

    def post_unique_keys(self, source: str, event: str, count: int) -> None:
        self.bus.post_steadily((source, event, number, f"{source} {number}") for number in range(count))

    def burst(self, calls: list[list[Any]]) -> bool:
        """Do several posts in one turn of the loop: nothing can arrive between them."""
        return self.bus.post_local("conformance", "burst", calls)

    def _burst(self, calls: Any, event: str, source: str, pid: int | None) -> None:
        for name, *arguments in calls:
            getattr(self.bus.events, name)(*arguments)

    def flush(self) -> None:
        self.bus.flush()

    def seen(self, source: str) -> list[Seen]:
        return self.ledger.of(source)

    def wait(self, source: str, event: str, count: int) -> None:
        self.ledger.wait(source, event, count)

    def count(self, source: str) -> dict[str, int]:
        return self.ledger.count(source)

    def hold(self, source: str, event: str) -> None:
        """Register an async handler that records "held", and does not return before `let_go`."""

        async def holder(data: Any, event: str, source: str, pid: int | None) -> None:
            self.ledger.record(data, "held", source, pid)
            while not self._gate.is_set():
                await asyncio.sleep(0.005)
            self.ledger.record(data, "let go", source, pid)

        self.bus.register(holder, source, event)

    def hold_lock(self, source: str, event: str, path: str) -> None:
        """Register a sync handler that takes the lock of the file `path`, records "locked", and keeps it until `let_go`:
        no worker's loop turns meanwhile."""

        def holder(data: Any, event: str, source: str, pid: int | None) -> None:
            with open(path, "rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                self.ledger.record(data, "locked", source, pid)
                self._gate.wait(DEADLINE_S)
                self.ledger.record(data, "unlocked", source, pid)

        self.bus.register(holder, source, event)

    def let_go(self) -> None:
        self._gate.set()

    def begin_close(self, leave: bool) -> None:
        """Close in the background: tests look at what happens meanwhile."""
        threading.Thread(
            target=self.bus.close, kwargs={"leave": leave, "timeout": DEADLINE_S}, name="close", daemon=True
        ).start()

    def close(self, leave: bool) -> list[Seen]:
        """Close; give everything that was ever seen."""
        self.bus.close(leave=leave)
        return self.ledger.everything()

    def status(self) -> dict[str, Any]:
        return self.bus.status()

    def end(self) -> None:
        self._gate.set()
        self.bus.end()


class Worker(ABC):
    """A worker as tests see it, wherever it is."""

    pid: int
    worker_id: int | None

    @abstractmethod
    def call(self, what: str, *arguments: Any) -> Any:
        """Call a method of its station."""

    @abstractmethod
    def end(self) -> None:
        """Close it if it still runs, and wait for its end."""

    @abstractmethod
    def complaints(self) -> str:
        """What it logged at WARNING or above, where that is known."""

    def ready(self) -> None:
        self.worker_id = self.call("ready")

    def post(self, source: str, event: str, data: Any = None, unique: str | None = None) -> bool:
        return bool(self.call("post", source, event, data, unique))

    def post_local(self, source: str, event: str, data: Any = None) -> bool:
        return bool(self.call("post_local", source, event, data))

    def post_many(self, source: str, event: str, first: int, count: int) -> None:
        self.call("post_many", source, event, first, count)

    def burst(self, *calls: list[Any]) -> None:
        self.call("burst", list(calls))

    def flush(self) -> None:
        self.call("flush")

    def seen(self, source: str) -> list[Seen]:
        return [Seen(*seen) for seen in self.call("seen", source)]

    def wait(self, source: str, event: str, count: int = 1) -> list[Seen]:
        """Wait until `event` of `source` was seen `count` times; give all that was seen of `source`."""
        self.call("wait", source, event, count)
        return self.seen(source)

    def hold(self, source: str, event: str) -> None:
        self.call("hold", source, event)

    def hold_lock(self, source: str, event: str, path: str) -> None:
        self.call("hold_lock", source, event, path)

    def let_go(self) -> None:
        self.call("let_go")

    def begin_close(self, *, leave: bool = True) -> None:
        self.call("begin_close", leave)

    def close(self, *, leave: bool = True) -> list[Seen]:
        return [Seen(*seen) for seen in self.call("close", leave)]

    def status(self) -> dict[str, Any]:
        answer: dict[str, Any] = self.call("status")
        return answer


class LocalWorker(Worker):
    """A bus in this process."""

    def __init__(self, face: str, address: str, options: dict[str, Any]) -> None:
        self.pid = os.getpid()
        self._station = Station(face, address, options)

    def call(self, what: str, *arguments: Any) -> Any:
        return getattr(self._station, what)(*arguments)

    def end(self) -> None:
        self._station.end()

    def complaints(self) -> str:
        return ""


class ProcessWorker(Worker):
    """A station in a process of its own."""

    def __init__(self, face: str, address: str, options: dict[str, Any], log: Path) -> None:
        self._log = log
        with log.open("ab") as stderr:
            self._remote = Remote([WORKER_PROGRAM, face, address, json.dumps(options)], stderr=stderr)
        self.pid = self._remote.pid

    def call(self, what: str, *arguments: Any) -> Any:
        try:
            return self._remote.call(what, *arguments)
        except RuntimeError as error:
            error.add_note(self._log.read_text())
            raise

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        self._remote.kill()

    def end(self) -> None:
        # At the end of its input it closes its bus.
        self._remote.end()

    def complaints(self) -> str:
        return self._log.read_text()


def start_worker(face: str, address: str, log: Path, *, wait: bool = True, **options: Any) -> Worker:
    """Start a worker and wait until it is attached; without `wait` call its `ready` later. It only starts a broker if
    told so."""
    options = {"broker": "never", **options}
    worker: Worker
    if crosses_processes(address):
        worker = ProcessWorker(face, address, options, log)
    else:
        worker = LocalWorker(face, address, options)
    if wait:
        worker.ready()
    return worker


def start_workers(face: str, address: str, log: Path, count: int, **options: Any) -> list[Worker]:
    """Start workers 0 to `count` - 1, all at once."""
    workers = [start_worker(face, address, log, wait=False, worker_id=number, **options) for number in range(count)]
    for worker in workers:
        worker.ready()
    return workers


@dataclass
class Pool:
    """A broker and its workers. Tests that share one keep to sources and unique keys of their own."""

    broker: BrokerHandle
    workers: list[Worker]

    def settle(self, source: str, *, posters: Iterable[Worker] = ()) -> list[list[Seen]]:
        """What each worker has seen of `source`, once all that `posters` (the first worker) posted has arrived.

        Each of them posts a marker: events of one poster stay in their order, so nothing of theirs can come later.
        """
        markers = 0
        for poster in posters or self.workers[:1]:
            poster.post(source, "marker")
            markers += 1
        seen = [worker.wait(source, "marker", markers) for worker in self.workers]
        return [[one for one in of_worker if one.event != "marker"] for of_worker in seen]

    def stop(self) -> None:
        for worker in self.workers:
            worker.end()
        self.broker.stop()
