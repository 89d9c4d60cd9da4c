"""The events API: `Events` for any program, `AsyncEvents` for a program with a loop, and the process's default bus.

Both are faces of a bus, which holds what the program has registered and posted; the work is done in runtime/.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import os
import sys
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Self, TypeVar

from eventsh.errors import EventError, NotConnected
from eventsh.event import EventList
from eventsh.options import Options
from eventsh.runtime.bus import Bus, default_bus, open_buses, unconfigured_buses
from eventsh.runtime.hosted import run_in_loop
from eventsh.runtime.replayed import replayed

if TYPE_CHECKING:
    from eventsh.receipt import Receipt
    from eventsh.runtime.client import Client

__all__ = ["AsyncEvents", "Events", "default_events", "event_list", "replayed"]

T = TypeVar("T")
_log = logging.getLogger("eventsh")

Handler = TypeVar("Handler", bound=Callable[..., Any])

# A loop that has not come to the end of its `timeout` by so much later stands still: a handler does not return.
_HUNG_S = 1.0
# How much longer than its timeout a wait gives the loop to end it by itself, with a better message.
_BUSY_S = 0.2


class _Face:
    """What `Events` and `AsyncEvents` have in common: all that does not wait."""

    def __init__(self, bus: Bus, address: str | None, options: dict[str, Any]) -> None:
        self._bus = bus
        self._address = address
        self._values = options
        if options:
            # Its limits hold for posts before `configure` too.
            bus.apply(Options.from_values(**options))

    @classmethod
    def _over(cls, bus: Bus) -> Self:
        """Another face of `bus`."""
        face = cls.__new__(cls)
        _Face.__init__(face, bus, None, {})
        return face

    def configured(self) -> bool:
        """Whether `configure` was called, and `close` not since."""
        return self._bus.client is not None

    @property
    def worker_id(self) -> int | None:
        """The slot of this process; None for an observer, or while it has none."""
        return self._bus.session.worker_id if self._bus.client is not None else None

    @property
    def address(self) -> str | None:
        """Where this bus is configured to attach."""
        return None if self._bus.address is None else str(self._bus.address)

    async def _post_and_wait(
        self, client: Client, source: str, event: str, data: Any, unique: str | None, timeout: float | None
    ) -> Receipt:
        bus = self._bus
        limit = bus.options.timeout if timeout is None else timeout
        receipt = await client.waiters.post_and_wait(source, event, data, unique, limit)
        if bus.on_posted is not None:
            bus.on_posted(source, event, data, unique)
        if receipt.unique == "nobody":
            raise EventError("no worker is attached that takes unique events: nothing was posted")
        return receipt

    def post_local(self, source: str, event: str, data: Any = None) -> bool:
        """Hand an event to this process's own handlers only, behind what has arrived. `pid` is None for them.

        `data` is not encoded and not copied. True, or QueueOverflow or UsageError is raised.
        """
        bus = self._bus
        # A child that a server forked in C: what it posts must not go into its parent's queue.
        bus.is_foreign()
        inbox = bus.session.inbox
        inbox.post_local(source, event, data)
        if bus.session.inbox is not inbox:
            # Another thread closed the bus meanwhile.
            bus.carry_over(inbox)
        bus.wake_local()
        return True

    def register(
        self, callback: Callable[..., Any], source: str | None = None, *events: str, replace: bool = False
    ) -> bool:
        """Call `callback(data, event, source, pid)` for all events, for a source, or for events of a source.

        Sync or `async def`. Registered twice at one place it is called once. Events that arrive before the first
        registration wait for it, for at most `timeout` seconds. Registers for all events named, or for none. It can be
        called anywhere: in a thread, a handler, a signal handler or a `__del__`.

        Args:
            replace: Take the place of handlers of the same module and qualified name, as of a module that is reloaded.
                Each event meets the former one or the new one. Without it such a handler is added, and a RuntimeWarning
                names both.

        Returns:
            True.

        Raises:
            TypeError: It can't be called with four arguments, or is a generator function.
            UsageError: A name is wrong.
        """
        return self._register([callback], source, events, weak=False, replace=replace)

    def register_weak(
        self, callback: Callable[..., Any], source: str | None = None, *events: str, replace: bool = False
    ) -> bool:
        """As `register`, but hold only a weak reference; a bound method lives as long as its object.

        Warns when nothing else holds the callback (a partial, or a method of an object, made in the call), or nothing
        else may (a lambda, a function inside a function).
        """
        held = [callback]
        # The registry looks whether anything else holds it, and this call must not.
        del callback
        return self._register(held, source, events, weak=True, replace=replace)

    def _register(
        self, held: list[Callable[..., Any]], source: str | None, events: tuple[str, ...], *, weak: bool, replace: bool
    ) -> bool:
        self._bus.registry.register_held(held, source, events, weak=weak, replace=replace, stacklevel=4)
        self._bus.registered()
        return True

    def unregister(self, callback: Callable[..., Any], source: str | None = None, *events: str) -> bool:
        """Remove `callback` from just the level, or the events, named.

        Returns:
            False if it was not there.

        Raises:
            TypeError: It can't be called.
            UsageError: A name is wrong.
        """
        return self._bus.registry.unregister(callback, source, *events)

    def on(self, source: str | None = None, *events: str, replace: bool = False) -> Callable[[Handler], Handler]:
        """`register` as a decorator: `@events.on("cache", "purge")`, or `@events.on()` for all events."""
        if callable(source):
            raise TypeError("on() is called with a source and events, or with nothing: @eventsh.on(), with parentheses")

        def decorate(callback: Handler) -> Handler:
            self._register([callback], source, events, weak=False, replace=replace)
            return callback

        return decorate

    def event_list(self, source: str, *names: str) -> EventList:
        """The names of a source's events, so that a typing error raises where it is made. See `EventList`."""
        return event_list(source, *names)


class Events(_Face):
    """A bus for any program. Its loop runs in a background thread, from `configure` to `close`; handlers run there.

    Every method may be called in any thread. Those that wait can't be called from a handler.
    """

    def __init__(self, address: str | None = None, **options: Any) -> None:
        super().__init__(Bus(threaded=True), address, options)
        _warn_at_exit()

    def configure(self, address: str | None = None, **options: Any) -> Self:
        """Begin to attach to `address`, and return at once; posts wait meanwhile, and `wait_ready` waits for it.

        Options are those of `eventsh.options.Options`. Called again it changes options; neither the address nor what
        this process is (worker_id, role, take_unique, broker) can change. Raises ConfigureError.
        """
        _close_at_exit()
        bus, where, values = self._bus, address if address is not None else self._address, {**self._values, **options}
        if bus.loop is not None and asyncio._get_running_loop() is bus.loop:
            # A handler changes options: it must not wait for a thread that closes the bus, and so waits for it.
            bus.host(where, values)
            return self
        with bus.lifecycle(bus.options.timeout):
            bus.host(where, values)
        return self

    def post(self, source: str, event: str, data: Any = None, unique: str | None = None) -> bool:
        """Hand an event over for delivery to every worker, this one included, or to one alone if `unique` is a key.

        Can be called anywhere: in any thread, in a signal handler, in a `__del__`, in a handler of logging. Never blocks
        on the network; before `configure` posts wait for it. Events of one process arrive in the order of its posts.
        `data` is encoded before this returns, so changing it afterwards changes nothing.

        A process that ends by `os._exit`, or is killed, loses posts that have not left it: call `flush` before.

        Returns:
            True: the event is posted, whole.

        Raises:
            QueueOverflow: Call `drain` and post again. Handlers may fill the queue to twice its limit, and can't wait there.
            PayloadTooLarge, NotSerializable, UsageError: Posting this again changes nothing.
            Other exceptions come out of the program's own signal handlers. They leave open whether the event was posted;
            it never is twice, or in part.
        """
        bus = self._bus
        if unique is None:
            bus.outbox.post(source, event, data)
        else:
            bus.outbox.post_unique(source, event, data, unique)
        if bus.on_posted is not None:
            bus.on_posted(source, event, data, unique)
        return True

    def wait_ready(self, timeout: float | None = None) -> None:
        """Wait until attached. Raises NotConnected after `timeout` seconds."""
        client = self._bus.working_client()
        self._wait(lambda: client.waiters.wait_ready(timeout), timeout)

    def post_and_wait(
        self, source: str, event: str, data: Any = None, unique: str | None = None, timeout: float | None = None
    ) -> Receipt:
        """Post an event, and wait until the handlers of every worker that got it have returned: which ran, how long they
        took, and what failed.

        After `timeout` seconds, by default the option of that name, those that have not answered say so in the receipt;
        NotConnected is raised when it is not even known who has the event. Raises what `post` raises, and EventError
        when it is unique and no worker can take it.
        """
        client = self._bus.working_client()
        limit = self._bus.options.timeout if timeout is None else timeout
        return self._wait(lambda: self._post_and_wait(client, source, event, data, unique, limit), limit)

    def flush(self, timeout: float | None = None) -> None:
        """Wait until every live worker has what was posted. Raises NotConnected after `timeout` seconds."""
        client = self._bus.working_client()
        self._wait(lambda: client.waiters.wait_confirmed(timeout), timeout)

    def drain(self, timeout: float | None = None) -> None:
        """Wait until the queue of posts is at most half full, as after a QueueOverflow. Those who wait are served in the
        order of their calls. Raises NotConnected after `timeout` seconds."""
        client = self._bus.working_client()
        self._wait(lambda: client.waiters.wait_room(timeout), timeout)

    def close(self, *, leave: bool = True, timeout: float | None = None) -> None:
        """Handle what was given, confirm what was posted, and detach; within `timeout` seconds, by default the option
        of that name. `leave` False keeps this worker's slot for its successor. Handlers stay registered."""
        bus = self._bus
        self._check_waiting()
        limit = bus.options.timeout if timeout is None else timeout
        with bus.lifecycle(limit):
            if bus.client is None:
                return
            thread = bus.thread
            try:
                self._run(lambda: bus.close(leave=leave, timeout=limit), limit + _HUNG_S)
            except (TimeoutError, NotConnected):
                bus.give_up()
                return
            bus.thread = None
            if thread is not None:
                thread.stop()

    def _check_waiting(self) -> None:
        loop = self._bus.loop
        if loop is not None and asyncio._get_running_loop() is loop:
            raise EventError("a handler can't wait for its own bus: the wait would hold up what it waits for")

    def _wait(self, make: Callable[[], Coroutine[Any, Any, T]], timeout: float | None) -> T:
        """Wait for what ends by itself after `timeout`. Raises NotConnected where the loop is too busy even for that."""
        try:
            return self._run(make, None if timeout is None else timeout + _BUSY_S)
        except TimeoutError:
            address = self._bus.address
            raise NotConnected(
                f"{address}: nothing within {timeout:g} s, for a handler holds up the thread of the bus"
            ) from None

    def _run(self, make: Callable[[], Coroutine[Any, Any, T]], limit_s: float | None) -> T:
        loop, thread = self._bus.loop, self._bus.thread
        self._check_waiting()
        if loop is None or loop.is_closed():
            raise EventError("closed by another thread")
        return thread.run(make, limit_s) if thread is not None else run_in_loop(loop, make, limit_s)

    def __enter__(self) -> Self:
        return self.configure()

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncEvents(_Face):
    """A bus in the program's own loop, where its handlers run too. Other threads may post, and nothing else.

    `async with AsyncEvents(address) as events:` configures it and closes it in the end.
    """

    def __init__(self, address: str | None = None, **options: Any) -> None:
        super().__init__(Bus(threaded=False), address, options)
        _warn_at_exit()

    def configure(self, address: str | None = None, **options: Any) -> Self:
        """As `Events.configure`, in the running loop."""
        self._bus.attach(address if address is not None else self._address, {**self._values, **options})
        return self

    def post(self, source: str, event: str, data: Any = None, unique: str | None = None) -> bool:
        """As `Events.post`."""
        bus = self._bus
        if unique is None:
            bus.outbox.post(source, event, data)
        else:
            bus.outbox.post_unique(source, event, data, unique)
        if bus.on_posted is not None:
            bus.on_posted(source, event, data, unique)
        return True

    async def wait_ready(self, timeout: float | None = None) -> None:
        """Wait until attached. Raises NotConnected after `timeout` seconds."""
        await self._bus.working_client().waiters.wait_ready(timeout)

    async def post_and_wait(
        self, source: str, event: str, data: Any = None, unique: str | None = None, timeout: float | None = None
    ) -> Receipt:
        """As `Events.post_and_wait`. A handler that awaits it can't be one of those that it waits for."""
        return await self._post_and_wait(self._bus.working_client(), source, event, data, unique, timeout)

    async def flush(self, timeout: float | None = None) -> None:
        """Wait until every live worker has what was posted. Raises NotConnected after `timeout` seconds."""
        await self._bus.working_client().waiters.wait_confirmed(timeout)

    async def drain(self, timeout: float | None = None) -> None:
        """Wait until the queue of posts is at most half full, as after a QueueOverflow. Those who wait are served in the
        order of their calls. Raises NotConnected after `timeout` seconds."""
        await self._bus.working_client().waiters.wait_room(timeout)

    async def close(self, *, leave: bool = True, timeout: float | None = None) -> None:
        """As `Events.close`."""
        await self._bus.close(leave=leave, timeout=timeout)

    async def __aenter__(self) -> Self:
        return self.configure()

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def event_list(source: str, *names: str) -> EventList:
    """The names of a source's events, so that a typing error raises where it is made. See `EventList`."""
    return EventList(source, *names)


def default_events() -> Events:
    """This process's default bus, as an object."""
    _warn_at_exit()
    return Events._over(default_bus())


_warns_at_exit = False
_closes_at_exit = False


def _warn_at_exit() -> None:
    """Have the end of the process tell of posts that waited for a `configure`, or for their confirmation, in vain."""
    global _warns_at_exit
    if not _warns_at_exit:
        _warns_at_exit = True
        atexit.register(_warn_of_unsent)


def _warn_of_unsent() -> None:
    for bus in unconfigured_buses():
        if bus.outbox.queued:
            _log.warning(
                "%d posts were never sent: no configuration that could attach came for them", bus.outbox.queued
            )
    for bus in open_buses():
        # Those with a thread are closed, which tells it.
        if bus.thread is None and bus.outbox.queued:
            _log.warning("%s: ended with %d posts that were not confirmed: close() it", bus.address, bus.outbox.queued)


def _close_at_exit() -> None:
    """Have the end of the process wait for what was posted: nothing is dropped silently."""
    global _closes_at_exit
    if not _closes_at_exit:
        _closes_at_exit = True
        atexit.register(_close_all)
        if util := sys.modules.get("multiprocessing.util"):
            # A child of multiprocessing ends without atexit.
            util.Finalize(None, _close_all, exitpriority=0)
        os.register_at_fork(after_in_child=_close_with_multiprocessing)


def _close_with_multiprocessing() -> None:
    """A child of multiprocessing ends without atexit, and with finalizers of its own. It forgets those that were there
    before it, so that ours is made once it has."""
    util = sys.modules.get("multiprocessing.util")
    if util is not None:
        util.register_after_fork(_close_all, lambda close: util.Finalize(None, close, exitpriority=0))


def _close_all() -> None:
    for bus in open_buses():
        if bus.thread is not None:
            with contextlib.suppress(EventError):
                Events._over(bus).close()
