"""One bus of this process: what it has registered and posted, in and out of a configuration.

Knows nothing of how a program sees it; `Events` and `AsyncEvents` are its faces.
"""

from __future__ import annotations

import asyncio

# These two, and not only when a bus's own thread first needs them: in a child that is forked in the midst of an import, the
# module stays locked for ever.
import concurrent.futures.thread  # noqa: F401
import contextlib
import logging
import os
import threading
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import eventsh.transports.stream  # noqa: F401 - see above
from eventsh.core.outbox import Outbox
from eventsh.core.registry import Registry
from eventsh.core.session import Session
from eventsh.errors import ConfigureError, EventError
from eventsh.options import Options
from eventsh.plugins import plugins
from eventsh.runtime.client import Client
from eventsh.runtime.endpoint import SECURITY_OPTIONS, absolute_paths, complete_options, find_endpoint
from eventsh.runtime.host import pid_space
from eventsh.runtime.hosted import LoopThread
from eventsh.runtime.threads import check_threads
from eventsh.runtime.token import client_proofs

if TYPE_CHECKING:
    from eventsh.address import Address
    from eventsh.runtime.client import Deliveries

__all__ = ["Bus", "attach_anew_after_fork", "default_bus", "open_buses", "unconfigured_buses"]

_log = logging.getLogger("eventsh")

# What a client is while it is configured; the broker knows it by these, or they are in use.
_FIXED_OPTIONS = ("worker_id", "role", "take_unique", "broker", "ring_size", *SECURITY_OPTIONS)


class Bus:
    """What outlives a configuration: the handlers, and what was posted before it.

    `lock` guards the outbox where several threads use the bus, and `registry_lock` the handlers.
    """

    def __init__(self, *, threaded: bool) -> None:
        self.threaded = threaded
        self.registry = Registry()
        self.client: Client | None = None
        self.loop: asyncio.AbstractEventLoop | None = None
        self.thread: LoopThread | None = None
        self.address: Address | None = None
        self.options = Options()
        # Told of each post, once plugins are loaded and one of them wants to know.
        self.on_posted: Callable[[str, str, Any, str | None], None] | None = None
        # For a program that shows what goes on: what stands between its client and its handlers.
        self.tap: Callable[[Deliveries], Deliveries] | None = None
        self.renew_locks()
        self.renew()
        _buses.add(self)
        _survive_forks()

    def renew_locks(self) -> None:
        """Have locks that nobody holds; in a forked child, threads that do not exist here may hold the old ones."""
        self.lock = threading.Lock()
        # Apart from the other one, and may be taken twice by a thread: a warning about a weak handler can end up in a
        # handler of the program's logging that registers or posts.
        self.registry_lock: AbstractContextManager[Any] = (
            threading.RLock() if self.threaded else contextlib.nullcontext()
        )
        # One thread at a time configures or closes.
        self.lifecycle_lock: AbstractContextManager[Any] = (
            threading.RLock() if self.threaded else contextlib.nullcontext()
        )

    def renew(self) -> None:
        """Begin as a client that no broker knows yet, with nothing posted."""
        self.outbox = Outbox(
            origin=int.from_bytes(os.urandom(4), "little") or 1,
            pid=os.getpid(),
            max_queue_len=self.options.max_queue_len,
            max_payload_len=self.options.max_payload_len,
            on_batch=self._wake,
        )
        self.session = Session(self.outbox, self.registry, identity=os.urandom(16).hex(), host=pid_space())

    def _ask_plugins(self) -> None:
        if plugins().has_impl("eventsh_event_posted"):

            def tell(source: str, event: str, data: Any, unique: str | None) -> None:
                plugins().call("eventsh_event_posted", source=source, event=event, data=data, unique=unique)

            self.on_posted = tell

    def _wake(self) -> None:
        if (client := self._client_at_work()) is not None:
            client.sender.wake()

    def wake_local(self) -> None:
        """Something was posted to this process alone."""
        if (client := self._client_at_work()) is not None:
            client.wake_local()

    def _client_at_work(self) -> Client | None:
        # Another thread may close the bus at any time.
        client, loop = self.client, self.loop
        return None if loop is None or loop.is_closed() else client

    def apply(self, options: Options) -> None:
        """Take options into use, now and in the next configuration."""
        self.options = options
        self.outbox.max_queue_len = self.session.inbox.max_queue_len = options.max_queue_len
        self.outbox.max_payload_len = options.max_payload_len
        self.session.inbox.timeout_s = options.timeout
        if self.client is not None:
            self.client.change(options)

    def plan(self, address: str | None, values: dict[str, Any]) -> Callable[[], None] | None:
        """Check a configuration. Gives what starts the client, to be called in its loop; None when one is at work,
        which then has the new options. Raises ConfigureError, and nothing has changed."""
        if self.loop is not None and self.loop.is_closed():
            # Its program ended the loop without closing the bus.
            if self.outbox.queued:
                _log.warning("%s: %d posts were not confirmed when their loop ended", self.address, self.outbox.queued)
            self.forget_client()
        if self.client is not None:
            self._change(address, values)
            return None
        options = complete_options(values)
        new_proof = client_proofs(options.token_file)
        transport, found = find_endpoint(address, options)

        def start() -> None:
            session = self.session
            session.become(options.role)
            session.worker_id = options.worker_id
            session.new_proof = new_proof
            session.take_unique = options.role == "worker" if options.take_unique is None else options.take_unique
            self.address = found
            self.apply(options)
            self.outbox.window = options.max_queue_len
            self.loop = asyncio.get_running_loop()
            self.client = Client(
                transport,
                found,
                options,
                session,
                self.registry,
                lock=self.lock if self.threaded else None,
                tap=self.tap,
                on_plugins=self._ask_plugins,
            )
            self.client.start()

        return start

    def _change(self, address: str | None, values: dict[str, Any]) -> None:
        if address is not None and str(find_endpoint(address)[1]) != str(self.address):
            raise ConfigureError(
                f"already configured at {self.address}: close() before another address", option="address"
            )
        options = self.options.replace(**absolute_paths(values))
        for name in _FIXED_OPTIONS:
            if getattr(options, name) != getattr(self.options, name):
                raise ConfigureError(f"{name} can't change while configured: close() first", option=name)
        with self.lock:
            self.apply(options)

    def registered(self) -> None:
        """A handler was registered: it may be the first, for which events wait."""
        if self.session.inbox.has_work:
            self.wake_local()

    def working_client(self) -> Client:
        if self.client is None or self.loop is None or self.loop.is_closed():
            raise EventError("not configured: call configure() first")
        return self.client

    def attach(self, address: str | None, values: dict[str, Any]) -> None:
        """Configure in the running loop. Raises ConfigureError."""
        start = self.plan(address, values)
        if start is not None:
            start()

    def host(self, address: str | None, values: dict[str, Any]) -> None:
        """Configure in a loop of its own, in a thread of its own. Raises ConfigureError."""
        start = self.plan(address, values)
        if start is None:
            return
        check_threads()

        async def begin() -> None:
            start()

        self.thread = LoopThread("eventsh")
        self.thread.run(begin())

    async def close(self, *, leave: bool, timeout: float | None) -> None:
        """Handle what was given, confirm what was posted, and detach. In the loop of the client."""
        client = self.client
        if self.loop is not None and self.loop is not asyncio.get_running_loop():
            self.forget_client()
        elif client is not None:
            await client.close(leave=leave, timeout=self.options.timeout if timeout is None else timeout)
            # Another call may have closed it meanwhile, and a third one configured the bus anew.
            if self.client is client:
                # What is posted in another thread comes before this, or waits for the next `configure`.
                with self.lock:
                    self.client = self.loop = self.address = None
                    self.renew()

    def give_up(self) -> None:
        """Let go of a client whose thread a handler does not give back. Should it ever, the thread ends."""
        assert self.client is not None
        assert self.loop is not None
        _log.warning("%s: closed while a handler was still at work: its thread could not be stopped", self.address)
        self.loop.call_soon_threadsafe(self.client.give_up)
        self.forget_client()

    def forget_client(self) -> None:
        self.client = self.loop = self.thread = self.address = None
        self.renew()

    def configuration(self) -> tuple[str, dict[str, Any]]:
        """The address, and the options, with which another process configures itself like this one. It has a slot of its
        own."""
        values = {field.name: getattr(self.options, field.name) for field in fields(self.options)}
        return str(self.address), {**values, "worker_id": None}


_default: Bus | None = None
_buses: weakref.WeakSet[Bus] = weakref.WeakSet()
_forks_survived = False
# Loops of the parent process, in its forked child. They share the parent's kernel objects, so they must never be closed
# here, not even by the garbage collector.
_parents_loops: list[Any] = []


def open_buses() -> list[Bus]:
    """Every bus of this process that is configured."""
    return [bus for bus in list(_buses) if bus.client is not None]


def unconfigured_buses() -> list[Bus]:
    """Every other bus of this process: what was posted on it waits for a `configure`."""
    return [bus for bus in list(_buses) if bus.client is None]


def _survive_forks() -> None:
    global _forks_survived
    if not _forks_survived:
        _forks_survived = True
        # Its lock is held across a fork, and freed in the child by a hook of its own, which must be registered, and so be
        # called, before ours: ours starts a loop that uses it.
        import concurrent.futures.thread  # noqa: F401

        os.register_at_fork(after_in_child=attach_anew_after_fork)


def attach_anew_after_fork() -> None:
    """In a forked child: let go of what is the parent's. A bus with a thread becomes a client of the child's own, with
    the handlers that were registered; one in a loop of the program's is not configured any more, as that loop is not
    the child's. What the parent posted is the parent's to send."""
    for bus in list(_buses):
        bus.renew_locks()
        client, thread = bus.client, bus.thread
        if client is None:
            # Configured later, it must not be taken for its parent, or for another child, by the broker.
            bus.renew()
            continue
        _parents_loops.append((client, thread))
        address, values = bus.configuration()
        client.abandon()
        bus.forget_client()
        if thread is not None:
            bus.host(address, values)


def default_bus() -> Bus:
    """This process's one default bus, which the functions of the package `eventsh` act on."""
    global _default
    if _default is None:
        _default = Bus(threaded=True)
    return _default
