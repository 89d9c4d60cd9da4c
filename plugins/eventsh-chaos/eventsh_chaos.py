"""Faults on purpose for any transport of eventsh: `chaos+unix:/run/app/events.sock?delay=5ms&cut=0.01&seed=1`.

It delays, holds up and cuts, and never reorders, doubles or harms: it stays within the contract of transports, so that
whatever an application loses over it, it may lose without it too.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from random import Random
from typing import TYPE_CHECKING, ClassVar

from eventsh.errors import ConfigureError, TransportError
from eventsh.hookspecs import hookimpl
from eventsh.options import parse_option
from eventsh.transport import Buffer, Connection, Listener, Receiver, Transport, TransportWrapper

if TYPE_CHECKING:
    import socket

    from eventsh.address import Address
    from eventsh.errors import ProtocolError
    from eventsh.options import Options

__all__ = ["Chaos", "ChaosConnection", "ChaosTransport", "Faults"]

__version__ = "0.1.0"

logger = logging.getLogger("eventsh.chaos")

# Above and below this much that is held here, the sender is told to pause and to go on: as the built-in transports do.
WRITE_HIGH_BYTES = 256 * 1024
WRITE_LOW_BYTES = 64 * 1024

_connections = itertools.count()
_cuts = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Faults:
    """What goes wrong at one end of a connection, with the frames that this end sends. Times are in seconds."""

    delay: float = 0.0
    """Every frame leaves so much later."""
    jitter: float = 0.0
    """And by up to so much more, by chance. The order stays."""
    split: float = 0.0
    """The probability that a frame leaves in a turn of the loop of its own."""
    stall: float = 0.0
    """The probability, for each frame, that nothing leaves for `stall_for` before it."""
    stall_for: float = 0.5
    cut: float = 0.0
    """The probability, for each frame, that the connection is cut: the peer gets that frame whole, in part, or not."""
    life: float = 0.0
    """The mean life of a connection until it is cut, whether anything is sent or not; 0: it is not."""
    seed: int | None = None
    """The n-th connection of every process meets the same faults each time. None: never the same."""


SECONDS = frozenset({"delay", "jitter", "stall_for", "life"})
NAMES = tuple(field.name for field in fields(Faults))


def parse_faults(address: Address) -> Faults:
    """The faults that the query of `address` asks for. Raises ConfigureError."""
    found = {name: _parse(name, text) for name, text in address.query.items() if name in NAMES}
    return Faults(**found)  # type: ignore[arg-type]


def _parse(name: str, text: str) -> float | int:
    if name in SECONDS:
        # As all of eventsh's times: 5ms, 0.5, 2s, 1m.
        seconds = parse_option("timeout", text, label=name)
        assert isinstance(seconds, float)
        return seconds
    try:
        value = int(text) if name == "seed" else float(text)
    except ValueError:
        value = -1.0
    if name != "seed" and not 0 <= value <= 1:
        raise ConfigureError(f"address: {name} must be a probability from 0 to 1, not {text!r}", option="address")
    if name == "seed" and value < 0:
        raise ConfigureError(f"address: seed must be a whole number, not {text!r}", option="address")
    return value


class ChaosConnection(Connection):
    """A connection of another transport, with faults; for that one it is also the receiver."""

    def __init__(self, inner: Connection, faults: Faults, on_connection: Callable[[Connection], Receiver]) -> None:
        self.peer = inner.peer
        self.opening_s = inner.opening_s
        self._inner = inner
        self._faults = faults
        self._random = Random(None if faults.seed is None else f"{faults.seed}/{next(_connections)}")
        self._loop = asyncio.get_running_loop()
        # What has not left: when it is due, the frame (None: here it is cut), and whether nothing follows in this turn.
        self._queue: deque[tuple[float, Buffer | None, bool]] = deque()
        self._queued_bytes = 0
        self._due_s = 0.0
        self._timer: asyncio.Handle | None = None
        self._life: asyncio.TimerHandle | None = None
        self._closing = False
        self._lost = False
        self._inner_paused = False
        self._told_paused = False
        # What it raises is for the inner transport to tell, as it is its own on_connection that fails.
        self._receiver = on_connection(self)
        if faults.life and not self._closing:
            self._life = self._loop.call_later(self._random.expovariate(1 / faults.life), self._cut)

    # What the core calls.

    def send(self, frames: Sequence[Buffer]) -> None:
        if self._closing or self._lost:
            return
        for frame in frames:
            self._plan(frame)
        if self._timer is None:
            self._pump()
        else:
            self._tell_writing()

    def send_now(self, frames: Sequence[Buffer]) -> None:
        if self._queue or self._closing or self._lost or self._faults != _NONE:
            self.send(frames)
        else:
            self._inner.send_now(frames)

    def limit_body(self, max_body_bytes: int) -> None:
        self._inner.limit_body(max_body_bytes)

    @property
    def unsent_bytes(self) -> int:
        return self._queued_bytes + self._inner.unsent_bytes

    @property
    def received_bytes(self) -> int:
        return self._inner.received_bytes

    def pause_reading(self) -> None:
        self._inner.pause_reading()

    def resume_reading(self) -> None:
        self._inner.resume_reading()

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            if not self._queue:
                self._inner.close()

    def abort(self) -> None:
        self._closing = True
        self._forget()
        self._inner.abort()

    # The faults.

    def _plan(self, frame: Buffer) -> None:
        """Put a frame into the queue, behind what is there."""
        faults, chance = self._faults, self._random.random
        due_s = self._loop.time() + faults.delay + faults.jitter * chance()
        if chance() < faults.stall:
            due_s += faults.stall_for
        self._due_s = due_s = max(due_s, self._due_s)
        cut = chance() < faults.cut
        after = chance() < 0.5
        if cut and not after:
            self._queue.append((due_s, None, True))
        self._queue.append((due_s, frame, chance() < faults.split))
        self._queued_bytes += len(frame)
        if cut and after:
            # In the same turn: the kernel has some of it by then, or all.
            self._queue.append((due_s, None, True))

    def _pump(self) -> None:
        """Let go of what is due."""
        self._timer = None
        now_s = self._loop.time()
        ready: list[Buffer] = []
        alone = False
        while self._queue and not alone and self._queue[0][0] <= now_s:
            _, frame, alone = self._queue.popleft()
            if frame is None:
                self._inner.send(ready)
                self._cut()
                return
            self._queued_bytes -= len(frame)
            ready.append(frame)
        if ready:
            self._inner.send(ready)
        self._tell_writing()
        if self._queue:
            self._timer = self._loop.call_later(max(self._queue[0][0] - now_s, 0), self._pump)
        elif self._closing:
            self._inner.close()

    def _cut(self) -> None:
        logger.warning("chaos: cut %d of this process: the connection to %s", next(_cuts), self.peer.label)
        self.abort()

    def _forget(self) -> None:
        self._queue.clear()
        self._queued_bytes = 0
        for timer in (self._timer, self._life):
            if timer is not None:
                timer.cancel()

    def _tell_writing(self) -> None:
        """Tell the receiver to pause or to go on, if that is news."""
        limit = WRITE_LOW_BYTES if self._told_paused else WRITE_HIGH_BYTES
        pause = self._inner_paused or self._queued_bytes > limit
        if pause == self._told_paused or self._lost:
            return
        self._told_paused = pause
        try:
            if pause:
                self._receiver.writing_paused()
            else:
                self._receiver.writing_resumed()
        except Exception:
            logger.exception("%s: handling what it sent failed, its connection is closed", self.peer.label)
            self.abort()

    # What the inner connection calls.

    def frames_received(self, frames: list[bytearray]) -> None:
        self._receiver.frames_received(frames)

    def frames_refused(self, error: ProtocolError) -> None:
        self._receiver.frames_refused(error)

    def writing_paused(self) -> None:
        self._inner_paused = True
        self._tell_writing()

    def writing_resumed(self) -> None:
        self._inner_paused = False
        self._tell_writing()

    def connection_lost(self, error: Exception | None) -> None:
        self._lost = True
        self._forget()
        self._receiver.connection_lost(error)


_NONE = Faults()


class ChaosListener(Listener):
    """The inner listener, at an address that leads through the chaos too."""

    def __init__(self, inner: Listener, address: Address) -> None:
        self.address = str(address)
        self._inner = inner

    def keep(self) -> bool:
        return self._inner.keep()

    async def close(self) -> None:
        await self._inner.close()


class ChaosTransport(Transport):
    """Another transport, with faults. `Chaos.wrap` makes a class for each, for a class has one scheme."""

    def __init__(self, inner: Transport) -> None:
        self._inner = inner

    def with_options(self, options: Options) -> Transport:
        return type(self)(self._inner.with_options(options))

    def check_address(self, address: Address) -> None:
        parse_faults(address)
        self._inner.check_address(self._inside(address))

    def prepare(self, address: Address) -> None:
        self.check_address(address)
        self._inner.prepare(self._inside(address))

    def lock_path(self, address: Address) -> str | None:
        return self._inner.lock_path(self._inside(address))

    async def listen(self, address: Address, on_connection: Callable[[Connection], Receiver]) -> Listener:
        faults = parse_faults(address)

        def begin(inner: Connection) -> Receiver:
            return ChaosConnection(inner, faults, on_connection)

        listener = await self._inner.listen(self._inside(address), begin)
        return ChaosListener(listener, self._outside(listener.address, address))

    async def connect(self, address: Address, on_connection: Callable[[Connection], Receiver]) -> Connection:
        faults = parse_faults(address)
        opened: list[ChaosConnection] = []

        def begin(inner: Connection) -> Receiver:
            opened.append(ChaosConnection(inner, faults, on_connection))
            return opened[-1]

        try:
            await self._inner.connect(self._inside(address), begin)
        except TransportError as error:
            raise TransportError(f"{address}: {error}") from error.__cause__
        return opened[-1]

    def dial(self, address: Address, timeout_s: float) -> socket.socket | None:
        """The inner transport's, without faults: it is a socket of the kernel's."""
        self.check_address(address)
        try:
            return self._inner.dial(self._inside(address), timeout_s)
        except TransportError as error:
            raise TransportError(f"{address}: {error}") from error.__cause__

    def _inside(self, address: Address) -> Address:
        """The address for the inner transport: the options of others stay."""
        query = {name: value for name, value in address.query.items() if name not in NAMES}
        return replace(address, scheme=self._inner.scheme, query=query)

    def _outside(self, inside: str, address: Address) -> Address:
        from eventsh.address import parse_address

        found = parse_address(inside)
        return replace(found, scheme=self.scheme, query={**found.query, **address.query})


class Chaos(TransportWrapper):
    """`chaos+SCHEME`, for every scheme that there is."""

    scheme: ClassVar[str] = "chaos"

    def wrap(self, inner: Transport) -> Transport:
        class Wrapped(ChaosTransport):
            scheme: ClassVar[str] = f"{self.scheme}+{inner.scheme}"
            capabilities = inner.capabilities

        return Wrapped(inner)


@hookimpl
def eventsh_transports() -> Sequence[Transport | TransportWrapper]:
    return [Chaos()]
