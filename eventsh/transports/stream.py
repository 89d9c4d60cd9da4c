"""Frames over an asyncio transport that carries bytes: what the transports over sockets share.

Knows one connected socket and the loop; knows neither how the socket is made nor how connections are accepted.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from eventsh.protocol.frame import FrameDecoder
from eventsh.transport import Buffer, Connection, Peer, Receiver
from eventsh.transports.descriptors import forget_descriptor, note_descriptor

__all__ = ["StreamConnection"]

logger = logging.getLogger("eventsh")

# What one read takes at most. The kernel holds about 208 KiB for a unix socket, so that one read empties it.
READ_BYTES = 256 * 1024
# Above and below this much unsent, the receiver is told to pause and to go on. Set for every loop, because uvloop's own
# lower mark is 16 bytes: a writer would wait for an empty buffer, and the peer for the writer.
WRITE_HIGH_BYTES = 256 * 1024
WRITE_LOW_BYTES = 64 * 1024
# Up to this much, joining the frames is cheaper than handing them to writev one by one: on uvloop 2.0 against 3.5 us for
# 8 frames of 100 bytes, 7.8 against 8.4 for 64 KiB in 8 frames; from there on it is slower (57 against 45 us for 512 KiB).
JOIN_BYTES = 64 * 1024
# But frames that are smaller than this on average are always joined: 81 against 895 us for 240 KB in 6,000 frames, 25
# against 38 for 256 KiB in frames of 2 KiB. And each that has to wait in the list costs 500 bytes beside its own.
JOIN_FRAME_BYTES = 8 * 1024
# What is read at most after writing has failed: more than the kernel holds for one socket.
LAST_READ_BYTES = 1024 * 1024
# What the peer may take to end TLS in good order. What was sent has left by then, and its own end is the connection's.
TLS_END_TIMEOUT_S = 2.0

# One buffer to read into for each loop. A loop fills it and hands it over before it reads anything else, so that all of
# its connections can share it, and an idle connection costs no memory.
_read_buffers: WeakKeyDictionary[asyncio.AbstractEventLoop, memoryview] = WeakKeyDictionary()


class StreamConnection(asyncio.BufferedProtocol, Connection):
    """One connection over a stream of bytes, and the asyncio protocol of its transport.

    `on_connection` is called once the connection stands, or with `begins_later` by `begin`. What it raises ends the
    connection and is kept in `failure`.

    A BufferedProtocol, because uvloop allocates 256 KiB for each data_received: for frames of 16 KiB, reading and decoding
    took 17 to 20 us a frame with Protocol, 4.4 to 5.9 us so; 1.6 to 1.9 and 1.0 us for 1 KB, 410 and 330 us for 1 MiB.
    Plain asyncio is as fast either way.
    """

    def __init__(
        self, peer: Peer, on_connection: Callable[[Connection], Receiver], *, begins_later: bool = False
    ) -> None:
        self.peer = peer
        self.failure: Exception | None = None
        # Of the loop's clock, where it was accepted by a listener.
        self.accepted_at: float | None = None
        self._on_connection = on_connection
        self._receiver: Receiver
        # What takes the frames.
        self._hand_over: Callable[[list[Any]], None]
        self._transport: Any = None
        self._decoder = FrameDecoder()
        self._buffer = memoryview(b"")
        self._received_bytes = 0
        self._held: list[bytearray] = []
        # The descriptor for writing past the transport; -1 where the bytes on it are not ours to make (TLS).
        self._fd = -1
        self._descriptor = -1
        self._writes_lists = False
        # A read is under way. Only asyncio's own sockets are watched for one that is lost: uvloop ends the connection
        # then, and TLS asks for the buffer more often than it reads.
        self._is_reading = self._marks_reads = False
        # Until it has begun, what comes is held as for a receiver that has paused.
        self._begins_later = self._paused = begins_later
        self._refused = False
        self._closing = False
        self._aborted = False
        self._rescues = 0
        self._saw_eof = False
        self._lost = False

    # What the core calls.

    def send(self, frames: Sequence[Buffer]) -> None:
        if self._closing or not frames:
            return
        try:
            if len(frames) == 1:
                self._transport.write(frames[0])
            elif self._writes_lists and sum(map(len, frames)) > max(JOIN_BYTES, len(frames) * JOIN_FRAME_BYTES):
                self._transport.writelines(frames)
            else:
                self._transport.write(b"".join(frames))
        except BaseException:
            # Part of a frame may have left: the stream is out of step.
            self.abort()
            raise

    def send_now(self, frames: Sequence[Buffer]) -> None:
        if self._closing or not frames:
            return
        data = frames[0] if len(frames) == 1 else b"".join(frames)
        try:
            # uvloop keeps what is written until the end of the turn.
            if self._fd >= 0 and self._transport.get_write_buffer_size() == 0:
                try:
                    sent = os.write(self._fd, data)
                except OSError:
                    # Full, or broken: then the transport meets the same error, and ends as it always does.
                    sent = 0
                if sent == len(data):
                    return
                data = memoryview(data)[sent:]
            self._transport.write(data)
        except BaseException:
            self.abort()
            raise

    def limit_body(self, max_body_bytes: int) -> None:
        self._decoder.max_body_bytes = max_body_bytes

    @property
    def unsent_bytes(self) -> int:
        return 0 if self._lost or self._transport is None else int(self._transport.get_write_buffer_size())

    @property
    def received_bytes(self) -> int:
        return self._received_bytes

    def pause_reading(self) -> None:
        if not self._paused and not self._closing:
            self._paused = True
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if not self._paused or self._closing:
            return
        self._paused = False
        self._transport.resume_reading()
        if self._held or self._decoder.error is not None:
            asyncio.get_running_loop().call_soon(self._deliver_held)

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            if self._transport is not None:
                self._transport.close()

    def abort(self) -> None:
        self._closing = self._aborted = True
        if self._transport is not None and not self._lost:
            self._transport.abort()

    @property
    def is_made(self) -> bool:
        """Whether the loop has called `connection_made`."""
        return self._transport is not None

    # What the loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        loop = asyncio.get_running_loop()
        if loop not in _read_buffers:
            _read_buffers[loop] = memoryview(bytearray(READ_BYTES))
        self._buffer = _read_buffers[loop]
        # Only uvloop is trusted with lists: before 3.12.9 and 3.13.2 asyncio forgets to pause the writer after writelines.
        self._writes_lists = type(transport).__module__.startswith("uvloop")
        self._transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES, low=WRITE_LOW_BYTES)
        self._descriptor = transport.get_extra_info("socket").fileno()
        note_descriptor(self._descriptor)
        if transport.get_extra_info("sslcontext") is None:
            self._fd = self._descriptor
            self._marks_reads = type(transport).__module__.startswith("asyncio.")
        if self.accepted_at is not None:
            self.opening_s = loop.time() - self.accepted_at
        if not self._begins_later:
            self._open()

    def begin(self) -> None:
        """Call `on_connection` now. TLS clients do, for the loops call `connection_made` before the last bytes of the handshake
        have left: should it pause reading then, or abort, they would never leave."""
        self._begins_later = self._paused = False
        if self._lost:
            self.failure = self.failure or ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
            return
        self._transport.resume_reading()
        self._open()
        if self._held or self._decoder.error is not None:
            asyncio.get_running_loop().call_soon(self._deliver_held)

    def _open(self) -> None:
        try:
            self._receiver = self._on_connection(self)
            self._hand_over = self._choose_method()
        except Exception as error:  # noqa: BLE001  # it goes to whoever asked for the connection
            self.failure = error
            self.abort()

    def _choose_method(self) -> Callable[[list[Any]], None]:
        return self._receiver.frames_received

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._is_reading:
            # The last read was not handed over, or not to its end: a KeyboardInterrupt got between.
            self.abort()
        self._is_reading = self._marks_reads
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        try:
            self._received_bytes += nbytes
            self._take(self._buffer[:nbytes])
            self._is_reading = False
        except BaseException:
            # What was read is lost, in whole or in part: the peer has to send it again on another connection.
            self.abort()
            raise

    def eof_received(self) -> None:
        self._saw_eof = True

    def rescue(self) -> None:
        if self._transport is None or self._lost:
            return
        error = ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
        if self._transport.get_extra_info("socket").fileno() < 0:
            # Closed by the loop, which calls this only once.
            self.connection_lost(error)
        elif self._aborted:
            # The loop calls what ends the transport in its next turn. An exception in the loop itself loses that call.
            self._rescues += 1
            if self._rescues > 1:
                getattr(self._transport, "_call_connection_lost", self.connection_lost)(error)
        elif self._held:
            self._deliver_held()

    def pause_writing(self) -> None:
        if self.failure is None and not (self._lost or self._begins_later):
            self._guard(self._receiver.writing_paused)

    def resume_writing(self) -> None:
        if self.failure is None and not (self._lost or self._begins_later):
            self._guard(self._receiver.writing_resumed)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._lost:
            return
        if exc is not None and not self._closing:
            self._read_last()
        self._closing = self._lost = True
        self._fd = -1
        forget_descriptor(self._descriptor)
        self._held.clear()
        if self.failure is not None or self._begins_later:
            return
        # After the peer has said that it ends, the reset that its kernel sends is no news.
        error = None if self._saw_eof and isinstance(exc, ConnectionError) else exc
        try:
            self._receiver.connection_lost(error)
        except Exception:
            logger.exception("%s: what is called at the end of the connection failed", self.peer.label)

    # Receiving.

    def _take(self, data: memoryview) -> None:
        if self._closing:
            return
        frames = self._decoder.receive_data(data)
        if self._paused:
            # uvloop starts to read after connection_made even where that has paused it.
            self._transport.pause_reading()
            self._held += frames
        elif self._held:
            self._held += frames
            self._deliver_held()
        else:
            self._deliver(frames)

    def _deliver_held(self) -> None:
        if not self._paused and not self._closing:
            frames, self._held = self._held, []
            self._deliver(frames)

    def _deliver(self, frames: list[bytearray]) -> None:
        if frames:
            self._guard(self._hand_over, frames)
        error = self._decoder.error
        if error is not None and not (self._refused or self._paused or self._closing):
            self._refused = True
            self._guard(self._receiver.frames_refused, error)

    def _read_last(self) -> None:
        """Read what is left. A write that fails ends the transport at once, while what the peer said before it closed
        (why it did) still lies unread in the socket."""
        taken = 0
        while self._fd >= 0 and not self._paused and not self._closing and taken < LAST_READ_BYTES:
            try:
                size = os.readv(self._fd, [self._buffer])
            except OSError:
                return
            if size == 0:
                self._saw_eof = True
                return
            taken += size
            self._take(self._buffer[:size])

    def _guard(self, method: Callable[..., None], *args: object) -> None:
        try:
            method(*args)
        except Exception:
            logger.exception("%s: handling what it sent failed, its connection is closed", self.peer.label)
            self.abort()
        except BaseException:
            self.abort()
            raise
