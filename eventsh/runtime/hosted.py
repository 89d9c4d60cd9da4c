"""Loops in threads of this process: one for a bus of a program without a loop, and one for an in-process broker."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from types import BuiltinFunctionType
from typing import TYPE_CHECKING, Any, TypeVar

from eventsh.errors import ConfigureError, NotConnected, TransportError
from eventsh.runtime.broker import Broker
from eventsh.runtime.loop import new_event_loop

if TYPE_CHECKING:
    from eventsh.address import Address
    from eventsh.options import Options
    from eventsh.transport import Transport

__all__ = ["LoopThread", "check_threads", "run_in_loop", "start_hosted_broker"]

T = TypeVar("T")

_log = logging.getLogger("eventsh")

# How often a wait looks whether the thread that it waits for is still there.
_LOOK_S = 0.5
# A loop that raises this often in a row, each time this soon after its start, can't run: a daemonizer closed its
# descriptors, for example. Each attempt to run it logs a traceback, so more attempts flood the log and keep a core busy.
_FAILURES = 3
_AT_ONCE_S = 0.1
# Such loops. The numbers of their descriptors may be those of other files by now, which closing a loop would close: it must
# not happen, not even by the garbage collector.
_broken_loops: list[asyncio.AbstractEventLoop] = []
_ENDED = "the thread of the bus has ended: close() and configure() again"


class LoopThread:
    """An event loop that runs in a daemon thread of its own until `stop`.

    A handler that stops the loop, or raises KeyboardInterrupt or SystemExit in it, does not end it. A loop
    that can't run ends the thread.

    Raises:
        ConfigureError: Threads are patched to run in greenlets, or the process is ending.
    """

    def __init__(self, name: str) -> None:
        check_threads()
        self.loop = new_event_loop()
        self._is_stopping = False
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:
            self.loop.close()
            raise ConfigureError(f"the thread of a bus can't be started: {error}") from None

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        failures = 0
        while not self._is_stopping:
            began = time.monotonic()
            has_failed = self._run_loop()
            # A handler forked, and its child came back from it: the loop is the parent's.
            if os.getpid() != self._pid:
                return
            failures = failures + 1 if has_failed and time.monotonic() - began < _AT_ONCE_S else 0
            if failures == _FAILURES:
                _broken_loops.append(self.loop)
                _log.error("the loop of a bus can't run, and its thread ends: close() and configure() again")
                return
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()

    def _run_loop(self) -> bool:
        """Return whether the loop itself failed. A handler's errors do not get here, but for KeyboardInterrupt and
        SystemExit."""
        try:
            self.loop.run_forever()
        except BaseException as error:  # noqa: BLE001 - KeyboardInterrupt out of an async handler must not end it either
            # A filter of the program's logging that raises must not end it either.
            with contextlib.suppress(BaseException):
                _log.exception("the loop of a bus was interrupted and goes on")
            return isinstance(error, Exception)
        if not self._is_stopping and os.getpid() == self._pid:
            _log.warning("the loop of a bus was stopped and goes on: a handler must not stop it")
        return False

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs. It does not in a child that was forked by other means than os.fork."""
        return self._thread.is_alive() and os.getpid() == self._pid

    @property
    def is_current(self) -> bool:
        """Whether the caller runs in this very thread, and so can't wait for it."""
        return threading.current_thread() is self._thread

    def run(self, make: Callable[[], Coroutine[Any, Any, T]], limit_s: float | None = None) -> T:
        """As `run_in_loop`, in this thread's loop. Raises NotConnected when the thread has ended."""
        return run_in_loop(self.loop, make, limit_s, is_alive=lambda: self.is_alive)

    def stop(self, *, wait: bool = True) -> None:
        """End the loop and its thread."""
        self._is_stopping = True
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self.loop.stop)
        if wait and not self.is_current:
            self._thread.join()


def run_in_loop(
    loop: asyncio.AbstractEventLoop,
    make: Callable[[], Coroutine[Any, Any, T]],
    limit_s: float | None = None,
    *,
    is_alive: Callable[[], bool] = lambda: True,
) -> T:
    """Run the coroutine that `make` gives in a loop of another thread, and wait for its end.

    An exception in the waiting thread, as by Ctrl-C, cancels the coroutine, and so does the end of `limit_s`.

    Raises:
        TimeoutError: `limit_s` is over.
        NotConnected: The loop is closed, or `is_alive` says that nothing runs it.
    """
    # A lock and no future: the condition of a future, interrupted by an exception, releases what it does not hold.
    is_over = threading.Lock()
    is_over.acquire()
    task: asyncio.Task[T] | None = None

    def begin() -> None:
        nonlocal task
        task = loop.create_task(make())
        task.add_done_callback(lambda _: is_over.release())

    def cancel() -> None:
        if task is not None:
            task.cancel()

    deadline = math.inf if limit_s is None else time.monotonic() + limit_s
    try:
        loop.call_soon_threadsafe(begin)
        while not is_over.acquire(timeout=max(0.0, min(deadline - time.monotonic(), _LOOK_S))):
            if not is_alive():
                raise NotConnected(_ENDED)
            if time.monotonic() >= deadline:
                raise TimeoutError
        assert task is not None
        return task.result()
    except asyncio.CancelledError:
        raise NotConnected(_ENDED) from None
    except RuntimeError:
        if loop.is_closed():
            raise NotConnected(_ENDED) from None
        raise
    except BaseException:
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(cancel)
        raise


def check_threads() -> None:
    """Refuse threads that are greenlets: the loop of a bus would hold up the whole process. Refuse threads that stand still.

    Raises:
        ConfigureError: It says what to do.
    """
    # uWSGI before 2.0.27 keeps the interpreter's lock while it waits for requests, unless it is told of threads.
    if not getattr(sys.modules.get("uwsgi"), "has_threads", True):
        raise ConfigureError("uWSGI runs no threads, and a bus needs one: start uWSGI with --enable-threads")
    start = getattr(threading, "_start_joinable_thread", None) or getattr(threading, "_start_new_thread", None)
    if start is None or isinstance(start, BuiltinFunctionType):
        return
    patchers = [name for name in ("gevent", "eventlet") if name in sys.modules]
    by = f" by {' and '.join(patchers)}" if patchers else ""
    raise ConfigureError(
        f"threads are monkey-patched{by}, and a bus needs real ones:"
        " patch with thread=False, or use workers with threads (gunicorn -k gthread)"
    )


def start_hosted_broker(transport: Transport, address: Address, options: Options) -> bool:
    """Start a broker in a thread of this process, for a transport that does not leave it. Blocks until it listens.

    False: there is one at `address` already.
    """
    thread = LoopThread(f"eventsh broker {address}")

    async def start() -> Broker | None:
        broker = Broker(transport, address, options)
        try:
            await broker.start()
        except TransportError:
            return None
        return broker

    try:
        broker = thread.run(start)
    except BaseException:
        thread.stop()
        raise
    if broker is None:
        thread.stop()
        return False

    async def serve(broker: Broker) -> None:
        await broker.load_plugins()
        await broker.stopping.wait()
        await broker.close()
        thread.stop()

    asyncio.run_coroutine_threadsafe(serve(broker), thread.loop)
    return True
