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
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
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
from eventsh.runtime.election import forget_starts
from eventsh.runtime.endpoint import SECURITY_OPTIONS, absolute_paths, complete_options, find_endpoint
from eventsh.runtime.exits import prepare_exits, raise_exit
from eventsh.runtime.forks import call_in_uwsgi_workers, is_before_uwsgi_forks, new_fork_flag
from eventsh.runtime.host import pid_space
from eventsh.runtime.hosted import LoopThread, check_threads
from eventsh.runtime.token import client_proofs
from eventsh.runtime.unsent import UnsentPosts

if TYPE_CHECKING:
    from eventsh.address import Address
    from eventsh.core.delivery import Delivery
    from eventsh.core.inbox import Inbox
    from eventsh.runtime.client import Deliveries

__all__ = ["Bus", "default_bus", "open_buses", "unconfigured_buses"]

_log = logging.getLogger("eventsh")

# What configuring or closing may take beyond the timeout.
_LIFECYCLE_S = 5.0
_NO_LOOP = (
    "AsyncEvents needs a running asyncio loop: configure() it in one, or use Events, which has a thread of its own"
)
_NO_TRIO = (
    "AsyncEvents needs a running asyncio loop, and trio has none: use Events, which has a thread of its own, or run the"
    " server with asyncio"
)
# What a client is while it is configured; the broker knows it by these, or they are in use.
_FIXED_OPTIONS = ("worker_id", "role", "take_unique", "broker", "ring_size", *SECURITY_OPTIONS)


class Bus:
    """What outlives a configuration: the handlers, and what was posted before it.

    Any thread may post and register.
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
        # Receives each KeyboardInterrupt and SystemExit out of a handler.
        self.on_exit: Callable[[BaseException], None] = raise_exit
        # The program that attaches this bus itself, in its own loop: then a `configure` of the files that it loads is left to
        # it.
        self.owner: str | None = None
        self._pid = os.getpid()
        self._unsent = UnsentPosts(self._describe_unsent)
        self.outbox = Outbox(
            origin=_new_origin(),
            pid=self._pid,
            max_queue_len=self.options.max_queue_len,
            max_payload_len=self.options.max_payload_len,
            max_queue_bytes=self.options.max_queue_bytes,
            on_post=self._wake,
            # Where the loop is in a thread of its own, posting never keeps it from its turn.
            on_many=None if threaded else self._push,
            is_handler=self._is_handler,
            is_awake=new_fork_flag(),
        )
        self.renew_locks()
        self.session = self._new_session()
        _buses.add(self)
        _survive_forks()

    def renew_locks(self) -> None:
        """Have locks that nobody holds; in a forked child, threads that do not exist here may hold the old ones."""
        self._lifecycle_lock = threading.RLock()

    @contextlib.contextmanager
    def lifecycle(self, limit_s: float) -> Iterator[None]:
        """Configure or close: one thread at a time. Raises EventError when another one takes too long."""
        if not self._lifecycle_lock.acquire(timeout=limit_s + _LIFECYCLE_S):
            raise EventError("another thread configures or closes this bus, and has not come to an end")
        try:
            yield
        finally:
            self._lifecycle_lock.release()

    def renew(self, *, keep_last: int | None = None, under_way: Delivery | None = None) -> None:
        """Begin as a client that no broker knows yet.

        Posts without a batch stay, and local events that no handler had. With `keep_last`, as in a forked child, only the
        last posts do. `under_way` is a delivery that handlers have.
        """
        self._pid = os.getpid()
        self.outbox.renew(_new_origin(), self._pid, keep_last=keep_last)
        self._unsent.reset()
        before = self.session.inbox
        session = self._new_session()
        if keep_last is None:
            session.inbox.put_local(before.take_local(under_way))
        self.session = session
        if keep_last is None:
            # Another thread may have found the former one just before.
            self.carry_over(before)

    def carry_over(self, before: Inbox) -> None:
        """Take over the local events of an inbox that was replaced. In any thread."""
        self.session.inbox.put_local(before.take_local())

    def _new_session(self) -> Session:
        return Session(
            self.outbox,
            self.registry,
            identity=os.urandom(16).hex(),
            clock=time.monotonic,
            host=pid_space(),
            max_queue_len=self.options.max_queue_len,
            timeout_s=self.options.timeout,
        )

    def _ask_plugins(self) -> None:
        if plugins().has_impl("eventsh_event_posted"):

            def tell(source: str, event: str, data: Any, unique: str | None) -> None:
                plugins().call("eventsh_event_posted", source=source, event=event, data=data, unique=unique)

            self.on_posted = tell

    def _wake(self) -> None:
        """Have posted events sent. In any thread, in the midst of anything: called for the first post after each send."""
        if not self.is_foreign(keep_last=1):
            if (client := self._client_at_work()) is not None:
                client.sender.wake()
            else:
                self._unsent.note(self.options.timeout)

    def _push(self) -> None:
        if (client := self._client_at_work()) is not None:
            client.sender.push()

    def _is_handler(self) -> bool:
        """Whether the caller is a handler of this bus."""
        client, loop = self.client, self.loop
        if client is None or loop is None or asyncio._get_running_loop() is not loop:
            return False
        # A bus with a thread of its own runs nothing but handlers in its loop, and all of it is refused to wait.
        return self.threaded or client.is_in_handler

    def is_foreign(self, *, keep_last: int = 0) -> bool:
        """Whether this process was forked without Python's hooks: then every bus begins anew, as after os.fork. The last
        posts of this bus are this process's own."""
        if os.getpid() == self._pid:
            return False
        _attach_anew(self, keep_last)
        return True

    def _describe_unsent(self) -> str | None:
        """Say that posts wait for a configuration, and what may be missing. None where they do not."""
        if self._client_at_work() is not None or not self.outbox.queued:
            return None
        if self.client is not None:
            return f"{self.outbox.queued} posts wait: the loop of their bus has ended; configure() it in another"
        advice = (
            "call eventsh.configure()"
            if self.threaded
            else "configure() it in its loop: does the server run the application's lifespan? That of a mounted application is not"
        )
        return (
            f"{self.outbox.queued} posts wait: their bus was not configured within {self.options.timeout:g} s; {advice}"
        )

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
        self.outbox.max_queue_bytes = options.max_queue_bytes
        self.session.inbox.timeout_s = options.timeout
        if self.client is not None:
            self.client.change(options)

    def plan(self, address: str | None, values: dict[str, Any]) -> Callable[[], None] | None:
        """Check a configuration. Gives what starts the client, to be called in its loop; None when one is at work,
        which then has the new options. Raises ConfigureError, and nothing has changed."""
        if self._has_lost_its_loop():
            # Its program ended the loop without closing the bus.
            self.forget_client("its loop ended")
        self.is_foreign()
        if self.client is not None:
            self._change(address, values)
            return None
        check_threads()
        options = complete_options(values)
        new_proof = client_proofs(options.token_file)
        transport, found = find_endpoint(address, options)

        def start() -> None:
            session = self.session
            session.become(options.role)
            session.ask_for_slot(options.worker_id)
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
                tap=self.tap,
                on_plugins=self._ask_plugins,
                on_exit=self.on_exit,
            )
            self.client.start()
            self.client.sender.wake()

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
        self.apply(options)

    def registered(self) -> None:
        """A handler was registered: it may be the first, for which events wait."""
        if self.session.inbox.has_work:
            self.wake_local()

    def working_client(self) -> Client:
        self.is_foreign()
        if self.client is None or self.loop is None or self.loop.is_closed():
            if is_before_uwsgi_forks():
                raise EventError(
                    "not attached before uWSGI forks its workers: wait in a worker, as in a post-fork hook"
                )
            raise EventError("not configured: call configure() first")
        return self.client

    def attach(self, address: str | None, values: dict[str, Any]) -> None:
        """Configure in the running loop. Raises ConfigureError."""
        start = self.plan(address, values)
        if start is not None:
            if asyncio._get_running_loop() is None:
                raise ConfigureError(_NO_TRIO if _runs_trio() else _NO_LOOP)
            start()

    def host(self, address: str | None, values: dict[str, Any]) -> None:
        """Configure in a loop of its own, in a thread of its own; before uWSGI forks, in each of its workers instead.

        Raises:
            ConfigureError: The configuration is wrong, or threads do not run here.
        """
        if self.owner is not None:
            _log.info("configure() is left to %s, which attaches this process itself", self.owner)
            return
        start = self.plan(address, values)
        if start is None:
            return
        if is_before_uwsgi_forks():
            call_in_uwsgi_workers(lambda: self.host(address, values))
            return

        prepare_exits()
        thread = LoopThread("eventsh")

        async def begin() -> None:
            self.thread = thread
            start()

        try:
            thread.run(begin)
        except BaseException:
            # An exception out of a signal handler may come once it has begun: then it goes on.
            if self.client is None:
                thread.stop(wait=False)
                self.thread = None
            raise

    async def close(self, *, leave: bool, timeout: float | None) -> None:
        """Handle what was given, confirm what was posted, and detach. In the loop of the client."""
        client = self.client
        if self._has_lost_its_loop():
            self.forget_client("its loop ended")
        elif self.loop is not None and self.loop is not asyncio.get_running_loop():
            raise EventError("this bus is at work in another loop: close() it there")
        elif client is not None:
            await client.close(leave=leave, timeout=self.options.timeout if timeout is None else timeout)
            # Another call may have closed it meanwhile, and a third one configured the bus anew.
            if self.client is client:
                # Posts of another thread that were not sent wait for the next `configure`.
                self.client = self.loop = self.address = None
                self.renew()

    def give_up(self) -> None:
        """Let go of a client whose thread a handler does not give back. Should it ever, the thread ends."""
        client, loop, thread = self.client, self.loop, self.thread
        if client is None or loop is None:
            # Closed meanwhile, by a signal handler that interrupted this.
            return
        _log.warning("%s: closed while a handler was still at work: its thread could not be stopped", self.address)
        self.forget_client("closed")
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(client.give_up)
        if thread is not None:
            thread.stop(wait=False)

    def _has_lost_its_loop(self) -> bool:
        """Whether the program's loop that this bus was configured in has ended, or was left for another one."""
        loop = self.loop
        if loop is None or self.thread is not None:
            return False
        return loop.is_closed() or (not loop.is_running() and asyncio._get_running_loop() is not None)

    def forget_client(self, why: str) -> None:
        """Let go of a client that is not closed. It may still run in another thread: it gets an outbox of its own."""
        client, session, address = self.client, self.session, self.address
        if self.outbox.unconfirmed:
            _log.warning("%s: %s with %d posts that were not confirmed", address, why, self.outbox.unconfirmed)
        self.client = self.loop = self.thread = self.address = None
        session.outbox = Outbox(origin=_new_origin(), pid=self._pid, max_queue_len=1, max_payload_len=1)
        self.renew(under_way=None if client is None else client.under_way)
        if client is not None:
            client.stop_watching()

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

        os.register_at_fork(after_in_child=_attach_anew)


def _attach_anew(poster: Bus | None = None, keep_last: int = 0) -> None:
    """In a forked child: let go of the parent's objects.

    A bus with a thread becomes a client of the child's own, with the handlers that were registered. One in a loop of the
    program's is not configured any more, as that loop is not the child's. The parent sends what it posted; the last
    `keep_last` posts of `poster` are the child's.
    """
    for bus in list(_buses):
        kept = keep_last if bus is poster else 0
        bus.renew_locks()
        client, thread = bus.client, bus.thread
        if client is None:
            # Configured later, it must not be taken for its parent, or for another child, by the broker.
            bus.renew(keep_last=kept)
            continue
        _parents_loops.append((client, thread))
        # A broker that another thread of the parent was starting is the parent's.
        forget_starts()
        address, values = bus.configuration()
        client.abandon()
        bus.client = bus.loop = bus.thread = bus.address = None
        bus.renew(keep_last=kept)
        if thread is not None:
            try:
                bus.host(address, values)
            except EventError as error:
                # Out of a post, it would say that nothing was posted.
                _log.warning("%s: a forked process can't attach: %s", address, error)


def _runs_trio() -> bool:
    """Whether the caller runs in trio's loop."""
    lowlevel = sys.modules.get("trio.lowlevel")
    if lowlevel is None:
        return False
    try:
        lowlevel.current_task()
    except RuntimeError:
        return False
    return True


def _new_origin() -> int:
    return int.from_bytes(os.urandom(4), "little") or 1


def default_bus() -> Bus:
    """This process's one default bus, which the functions of the package `eventsh` act on."""
    global _default
    if _default is None:
        _default = Bus(threaded=True)
    return _default
