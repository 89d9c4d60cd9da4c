"""The transport inside one process: no sockets, and each end may live in the loop of another thread."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar

from eventsh.errors import ConfigureError, ProtocolError, TransportError
from eventsh.protocol.frame import FRAME_KINDS, HEADER_BYTES, PRE_HELLO_BODY_BYTES, FrameDecoder, decode_header
from eventsh.transport import Buffer, Capabilities, Connection, Listener, Peer, Receiver, Transport
from eventsh.transports.stream import WRITE_HIGH_BYTES, WRITE_LOW_BYTES

if TYPE_CHECKING:
    from eventsh.address import Address

__all__ = ["InprocTransport"]

logger = logging.getLogger("eventsh")

# What is handed over in one turn, as one read of a socket would: a long queue must not hold up the peer's loop.
TURN_BYTES = 256 * 1024


class InprocTransport(Transport):
    """`inproc:NAME`. The process has one table of names; a forked child begins with an empty one."""

    scheme: ClassVar[str] = "inproc"
    capabilities: ClassVar[Capabilities] = Capabilities(crosses_processes=False)

    def check_address(self, address: Address) -> None:
        if address.host is not None or not address.path or address.query:
            raise ConfigureError(f"address: {address} is not of the form inproc:NAME", option="address")

    async def listen(self, address: Address, on_connection: Callable[[Connection], Receiver]) -> Listener:
        self.check_address(address)
        listener = InprocListener(address, on_connection, asyncio.get_running_loop())
        with _guard:
            standing = _listeners.get(address.path)
            # There is no lock file here: the table itself knows whether who stands there is alive.
            if standing is not None and not standing.loop.is_closed():
                raise TransportError(f"can't listen at {address}: this process listens there already") from OSError(
                    errno.EADDRINUSE, os.strerror(errno.EADDRINUSE)
                )
            _listeners[address.path] = listener
        return listener

    async def connect(self, address: Address, on_connection: Callable[[Connection], Receiver]) -> Connection:
        self.check_address(address)
        with _guard:
            listener = _listeners.get(address.path)
        peer = Peer(f"inproc {address.path}", os.getpid(), os.geteuid())
        if listener is not None:
            client = InprocConnection(peer, asyncio.get_running_loop())
            server = InprocConnection(peer, listener.loop)
            client.join(server)
            if server.open_later(listener.on_connection):
                client.open(on_connection)
                return client
        error = ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
        raise TransportError(f"nobody in this process listens at {address}") from error


class InprocListener(Listener):
    """A name in the table, and the loop in which its connections are opened."""

    def __init__(
        self, address: Address, on_connection: Callable[[Connection], Receiver], loop: asyncio.AbstractEventLoop
    ) -> None:
        self.address = str(address)
        self.on_connection = on_connection
        self.loop = loop
        self._name = address.path

    async def close(self) -> None:
        with _guard:
            if _listeners.get(self._name) is self:
                del _listeners[self._name]


_guard = threading.Lock()
_listeners: dict[str, InprocListener] = {}


def _forget_after_fork() -> None:
    # The loops of the parent don't run here, and another thread may have held the lock.
    global _guard
    _guard = threading.Lock()
    _listeners.clear()


os.register_at_fork(after_in_child=_forget_after_fork)


class InprocConnection(Connection):
    """One end. What the other end does to it happens under the lock that both share; all that its receiver is told comes
    from `_turn`, in its own loop, of which at most one is under way: one wake-up, however much is sent meanwhile."""

    def __init__(self, peer: Peer, loop: asyncio.AbstractEventLoop) -> None:
        self.peer = peer
        self._loop = loop
        self._receiver: Receiver | None = None
        self._other = self
        # May be taken twice by a thread: a signal handler that posts can interrupt whoever holds it.
        self._lock = threading.RLock()
        # Under the lock.
        self._inbox: deque[bytearray] = deque()
        self._inbox_bytes = 0
        self._waking = False
        self._closing = False
        self._aborted = False
        self._lost = False
        self._writing_paused = False
        # This end's own.
        self._max_body_bytes = PRE_HELLO_BODY_BYTES
        self._reading_paused = False
        self._told_paused = False
        self._refused = False

    def join(self, other: InprocConnection) -> None:
        """Make the two ends of one connection."""
        self._other, other._other = other, self
        other._lock = self._lock

    def open(self, on_connection: Callable[[Connection], Receiver]) -> None:
        """Get the receiver, in the loop of this end. What that raises ends the connection."""
        try:
            self._receiver = on_connection(self)
        except BaseException:
            self.abort()
            raise

    def open_later(self, on_connection: Callable[[Connection], Receiver]) -> bool:
        """Have `open` called by the loop of this end. False: that loop is closed."""

        def open_now() -> None:
            try:
                self.open(on_connection)
            except Exception:
                logger.exception("%s: opening its connection failed", self.peer.label)

        try:
            self._loop.call_soon_threadsafe(open_now)
        except RuntimeError:
            return False
        return True

    def send(self, frames: Sequence[Buffer]) -> None:
        # Copied, because the receiver may write into them, and they may be in the queues of other connections too.
        copies = [bytearray(frame) for frame in frames]
        size = sum(map(len, copies))
        other = self._other
        with self._lock:
            if self._closing or self._lost or other._lost or not copies:
                return
            other._inbox += copies
            other._inbox_bytes += size
            if other._inbox_bytes > WRITE_HIGH_BYTES:
                self._writing_paused = True
            pause = self._writing_paused
            other._wake()
        # The peer may have undone an earlier pause, and the receiver not know it yet: then it stays as it is.
        if pause and not self._told_paused and self._receiver is not None:
            self._told_paused = True
            self._tell(self._receiver.writing_paused)

    def limit_body(self, max_body_bytes: int) -> None:
        self._max_body_bytes = max_body_bytes

    @property
    def unsent_bytes(self) -> int:
        return self._other._inbox_bytes

    def pause_reading(self) -> None:
        self._reading_paused = True

    def resume_reading(self) -> None:
        if self._reading_paused:
            self._reading_paused = False
            with self._lock:
                self._wake()

    def close(self) -> None:
        with self._lock:
            if not self._closing:
                self._closing = True
                self._wake()
                self._other._wake()

    def abort(self) -> None:
        with self._lock:
            if not self._aborted and not self._lost:
                self._closing = self._aborted = True
                self._wake()
                self._other._wake()

    def _wake(self) -> None:
        """Under the lock: have `_turn` called, unless it is about to be."""
        if self._waking or self._lost:
            return
        self._waking = True
        try:
            if asyncio._get_running_loop() is self._loop:
                self._loop.call_soon(self._turn)
            else:
                self._loop.call_soon_threadsafe(self._turn)
        except RuntimeError:
            # The loop of this end was closed without it.
            self._lost = True
            self._inbox.clear()
            self._inbox_bytes = 0
            self._other._wake()

    def rescue(self) -> None:
        with self._lock:
            # The turn that was to come may have been kept from beginning.
            self._waking = False
            self._wake()

    def _turn(self) -> None:
        try:
            self._take_turn()
        except BaseException:
            # Frames that were taken may not have been handed over.
            self.abort()
            raise

    def _take_turn(self) -> None:
        with self._lock:
            self._waking = False
            if self._lost:
                return
            frames = self._take_frames()
            resumed = self._told_paused and not self._writing_paused
        self._deliver(frames)
        if resumed and self._receiver is not None:
            self._told_paused = False
            self._tell(self._receiver.writing_resumed)
        with self._lock:
            self._lost = self._is_done()
            if not self._lost:
                return
            orderly = self._closing or (self._other._closing and not self._other._aborted)
            self._inbox.clear()
            self._inbox_bytes = 0
            self._other._wake()
        if self._receiver is not None:
            error = None if orderly else ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
            try:
                self._receiver.connection_lost(error)
            except Exception:
                logger.exception("%s: what is called at the end of the connection failed", self.peer.label)

    def _take_frames(self) -> list[bytearray]:
        """Under the lock: what the receiver gets in this turn."""
        if self._closing:
            self._inbox.clear()
            self._inbox_bytes = 0
        if self._reading_paused or self._other._aborted or not self._inbox:
            return []
        frames: list[bytearray] = []
        size = 0
        while self._inbox and size < TURN_BYTES:
            frames.append(self._inbox.popleft())
            size += len(frames[-1])
        self._inbox_bytes -= size
        other = self._other
        if other._writing_paused and self._inbox_bytes <= WRITE_LOW_BYTES:
            other._writing_paused = False
            other._wake()
        if self._inbox:
            self._wake()
        elif other._closing:
            # Now that all of it has left, the other end is done too.
            other._wake()
        return frames

    def _deliver(self, frames: list[bytearray]) -> None:
        if not frames or self._refused or self._receiver is None:
            return
        good = 0
        while good < len(frames) and self._is_good(frames[good]):
            good += 1
        if good:
            self._tell(self._receiver.frames_received, frames[:good])
        if good < len(frames) and self._reading_paused:
            # By the good ones: the receiver hears of the others when it resumes.
            with self._lock:
                self._inbox.extendleft(reversed(frames[good:]))
                self._inbox_bytes += sum(map(len, frames[good:]))
        elif good < len(frames) and not self._closing:
            self._refused = True
            self._tell(self._receiver.frames_refused, self._refusal(frames[good]))

    def _is_good(self, frame: bytearray) -> bool:
        if len(frame) < HEADER_BYTES:
            return False
        header = decode_header(frame)
        length = header.length
        return length + HEADER_BYTES == len(frame) and length <= self._max_body_bytes and header.kind in FRAME_KINDS

    def _refusal(self, frame: bytearray) -> ProtocolError:
        decoder = FrameDecoder(self._max_body_bytes)
        decoder.receive_data(frame)
        return decoder.error or ProtocolError(f"{len(frame)} bytes that are not one whole frame")

    def _is_done(self) -> bool:
        """Under the lock: whether one of the ends has ended and what it sent was taken."""
        other = self._other
        if self._aborted or other._aborted or other._lost:
            return True
        return (self._closing and not other._inbox) or (other._closing and not self._inbox)

    def _tell(self, method: Callable[..., None], *args: object) -> None:
        try:
            method(*args)
        except Exception:
            logger.exception("%s: handling what it sent failed, its connection is closed", self.peer.label)
            self.abort()
        except BaseException:
            self.abort()
            raise
