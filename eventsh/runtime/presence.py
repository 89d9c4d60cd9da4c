"""Presence of one broker at its address: keep its files, and settle with a second broker that came up.

Theory of operation. The lock and the socket are names that others may remove: cleaners of temporary directories, a logout,
a person. Every two seconds the holder compares the inode at each name with its own, and makes anew what is gone. Between
the removal and that look, another process may lock a new file and start a second broker. At most one of the two has its
socket at the path then, so the other one finds it there, connects to it as a client does, and both compare their ages by
one clock. The younger one hands over: it frees the path, waits until the older one listens there, and ends. Its clients
attach to the older one with all that was not confirmed; `core` reports what the workers of either side missed.

The younger one waits with its lock in hand, so that none of its clients starts a third broker meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from typing import TYPE_CHECKING, Any

from eventsh.core.broker.control import HAND_OVER
from eventsh.errors import AuthenticationError, EventError, NotConnected, TransportError, UsageError
from eventsh.runtime.election import keep_lock

if TYPE_CHECKING:
    from collections.abc import Callable

    from eventsh.address import Address
    from eventsh.runtime.broker import Broker
    from eventsh.runtime.election import Log
    from eventsh.transport import Transport

__all__ = ["Presence", "keep_lock_file"]

_log = logging.getLogger("eventsh.broker")

# Two looks and a hand-over are within the 10 s that one broker may take to remain.
_LOOK_S = 2.0
# How soon to look when the other broker is about to free or to take the path, and for how long.
_LOOK_SOON_S = 0.05
_HAND_OVER_S = 3.0
_ANSWER_TIMEOUT_S = 2.0
# How long workers may take to receive what was routed before a hand-over. A worker that takes longer is told of a gap.
_SETTLE_S = 1.0
# A condition that lasts is logged again after twice the time, and not less often than this.
_LOG_EACH_S = 3600.0


class _Trouble:
    """Log a condition at the second look that finds it, and then ever more rarely while it lasts. One look alone may meet
    a process that holds the lock for a moment."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._looks = 0
        self._next = 2

    def note(self, reason: str | None) -> None:
        """Take the outcome of one look. None: all is well."""
        if reason is None:
            self._looks, self._next = 0, 2
            return
        self._looks += 1
        if self._looks >= self._next:
            self._next = self._looks + min(self._looks, int(_LOG_EACH_S / _LOOK_S))
            _log.warning("%s: can't be kept: %s; trying again", self._address, reason)


async def keep_lock_file(transport: Transport, address: Address, lock: int, log: Log | None = None) -> None:
    """Keep the file of the held `lock` at its name, and the `log` beside it, until cancelled."""
    trouble = _Trouble(address)
    while True:
        await asyncio.sleep(_LOOK_S)
        reason = None
        try:
            if keep_lock(transport, address, lock):
                _log.warning("%s: the file of its lock was removed or replaced: made anew", address)
        except (EventError, OSError) as error:
            reason = str(error)
        try:
            if log is not None:
                log.keep()
        except (EventError, OSError) as error:
            # Whatever keeps the lock from its place keeps the log from it, most often.
            reason = reason or str(error)
        trouble.note(reason)


class Presence:
    """The endpoint of one broker, from `begin` to `end`."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._on_end: Callable[[str], None] = lambda reason: None
        self._started_ns = _boot_time_ns()
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_handing_over = False

    def begin(self, lock: int | None, log: Log | None, on_end: Callable[[str], None]) -> None:
        """Watch the endpoint, and the `lock` and `log` of a broker that holds them alone.

        `on_end` is called, with a text that says why, when the broker has handed over and has to end.
        """
        self._on_end = on_end
        self._run(self._keep_endpoint())
        if lock is not None:
            self._run(keep_lock_file(self._broker.transport, self._broker.address, lock, log))

    def _run(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def end(self) -> None:
        """Stop watching; after a hand-over, have all that was routed here confirmed, and tell the other broker of it."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        if self._is_handing_over:
            await self._settle_posts()

    async def _settle_posts(self) -> None:
        # What a poster sends again to the other broker, no worker must have from here: a unique event could run twice.
        router = self._broker.router
        router.stop_accepting()
        until = self._broker.clock() + _SETTLE_S
        while not router.is_settled and self._broker.clock() < until:
            self._broker.flush()
            await asyncio.sleep(_LOOK_SOON_S)
        try:
            # Its workers missed what was confirmed here. Perhaps no client is left that knows how much that is.
            await asyncio.to_thread(self._ask)
        except (EventError, OSError, RuntimeError) as error:
            _log.warning(
                "%s: the other broker can't be told of the %d posts that were confirmed here: %s",
                *(self._broker.address, router.confirmed_posts, error),
            )

    # --- the endpoint ---

    async def _keep_endpoint(self) -> None:
        trouble = _Trouble(self._broker.address)
        pause_s = _LOOK_S
        while True:
            await asyncio.sleep(pause_s)
            was_soon, pause_s = pause_s == _LOOK_SOON_S, _LOOK_S
            if self._is_handing_over:
                # The path is the other broker's.
                continue
            try:
                # A younger broker frees the path in its next turn. One that does not is asked again at the usual pace.
                if not self._broker.is_reachable() and not await self._regain() and not was_soon:
                    pause_s = _LOOK_SOON_S
                trouble.note(None)
            except (EventError, OSError, RuntimeError) as error:
                # RuntimeError: there is no room for another thread.
                trouble.note(str(error))

    async def _regain(self) -> bool:
        """Listen anew, or settle with the broker that listens at the address. True when this one listens."""
        try:
            await self._broker.listen_anew()
        except TransportError:
            try:
                other = await asyncio.to_thread(self._ask)
            except (TransportError, NotConnected):
                other = None
            if other is None:
                raise
            self._settle(other)
            return False
        _log.warning("%s: the file of its socket was removed or replaced: listening anew", self._broker.address)
        return True

    def _ask(self) -> dict[str, Any]:
        """Tell the broker that listens at the address of this one. Blocks."""
        # Imported here: hardly any broker needs it.
        from eventsh.runtime.blocking import BlockingClient

        broker = self._broker
        with BlockingClient(
            broker.transport,
            broker.address,
            timeout_s=_ANSWER_TIMEOUT_S,
            token_file=broker.options.token_file,
        ) as client:
            try:
                answer: dict[str, Any] = client.ask(HAND_OVER, self._facts)
            except (TransportError, NotConnected, AuthenticationError):
                raise
            except EventError:
                # Of a release that never hands over, and so stays, whatever its age.
                return {"pid": 0, "started_ns": 0, "epoch": 0, "posts": 0}
            return answer

    # --- two brokers ---

    @property
    def _facts(self) -> dict[str, Any]:
        router = self._broker.router
        return {
            "pid": os.getpid(),
            "started_ns": self._started_ns,
            "epoch": router.epoch,
            "posts": router.confirmed_posts,
        }

    def answer(self, other: dict[str, Any]) -> dict[str, Any]:
        """Answer another broker of this address that found this one there. Raises UsageError."""
        self._settle(other)
        return self._facts

    def _settle(self, other: dict[str, Any]) -> None:
        """Decide which of the two stays; both come to the same result."""
        match other:
            case {"pid": int(pid), "started_ns": int(started_ns), "epoch": int(epoch), "posts": int(posts)}:
                pass
            case _:
                raise UsageError(f"{HAND_OVER!r} needs the numbers pid, started_ns, epoch and posts")
        broker, own = self._broker, self._facts
        if (own["started_ns"], own["pid"]) < (started_ns, pid):
            age_s = (_boot_time_ns() - started_ns) / 1e9
            if broker.router.meet_rival(epoch, age_s, posts, broker.clock()):
                _log.warning(
                    "%s: a second broker (pid %s) came up here after the files of this one were removed: it is younger,"
                    " hands over to this one (pid %d) and ends",
                    *(broker.address, pid, own["pid"]),
                )
        elif not self._is_handing_over:
            self._is_handing_over = True
            reason = f"an older broker{f' (pid {pid})' if pid else ''} has the address, whose files had been removed"
            _log.warning("%s: %s: this one (pid %d) hands over to it and ends", broker.address, reason, own["pid"])
            self._run(self._hand_over(f"{broker.address}: {reason}"))

    async def _hand_over(self, reason: str) -> None:
        await self._broker.stop_listening()
        until = self._broker.clock() + _HAND_OVER_S
        while self._broker.clock() < until:
            if await asyncio.to_thread(self._is_taken):
                self._on_end(reason)
                return
            await asyncio.sleep(_LOOK_SOON_S)
        _log.warning("%s: the older broker does not listen there: this one goes on", self._broker.address)
        self._is_handing_over = False

    def _is_taken(self) -> bool:
        """Return whether a process listens at the address. Blocks."""
        try:
            sock = self._broker.transport.dial(self._broker.address, _ANSWER_TIMEOUT_S)
        except TransportError:
            return False
        if sock is not None:
            sock.close()
        return True


def _boot_time_ns() -> int:
    """Return the time since the boot of the host, which is the same clock in all of its processes."""
    return time.clock_gettime_ns(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
