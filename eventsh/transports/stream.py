"""Frames over an asyncio transport that carries bytes: what the transports over sockets share.

Knows sockets and the loop; knows neither how a socket is made nor who may connect.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from eventsh.errors import TransportError
from eventsh.protocol.frame import FrameDecoder
from eventsh.protocol.messages import Error
from eventsh.transport import Buffer, Connection, Listener, Peer, Receiver

__all__ = [
    "BACKLOG",
    "StreamConnection",
    "StreamListener",
    "forget_descriptor",
    "note_descriptor",
    "until_readable",
]

# The open descriptors of connections and listeners, each with the process that opened it.
_opened: dict[int, int] = {}


def note_descriptor(descriptor: int) -> None:
    """A forked child is to let go of this one."""
    _opened[descriptor] = os.getpid()


def forget_descriptor(descriptor: int) -> None:
    """It is about to be closed."""
    _opened.pop(descriptor, None)


def _let_go_in_child() -> None:
    """In a forked child: let go of the parent's connections, or their peers would not see the parent's end before the
    child's, and of its listeners, or their ports would stay taken. Each number stays taken, by a file that does nothing:
    the parent's loop has left objects here that will close it, and by then it must not be somebody else's."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for descriptor, pid in list(_opened.items()):
        if pid != os.getpid():
            os.dup2(null, descriptor, inheritable=False)
            del _opened[descriptor]
    os.close(null)


os.register_at_fork(after_in_child=_let_go_in_child)

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
# Of a listener's queue. A pool that starts anew or whose broker died comes all at once. The kernel cuts it to
# net.core.somaxconn.
BACKLOG = 1024
# Connections that are accepted in one turn of the loop, so that a crowd at the door does not stop those inside.
ACCEPTS_A_TURN = 64
# TLS handshakes under way at once: the loops hold up to half a megabyte for each.
HANDSHAKE_LIMIT = 64
# Connections that TLS is not agreed with yet, at once. One that has said nothing costs its descriptor; with the first limit
# for all, 64 that say nothing would keep everybody else away.
OPENING_LIMIT = 512
# What the peer may take to end TLS in good order. What was sent has left by then, and its own end is the connection's.
TLS_END_TIMEOUT_S = 2.0
# How long accepting rests when descriptors or memory have run out, and the shortest time between two warnings.
ACCEPT_PAUSE_S = 1.0
WARNING_INTERVAL_S = 1.0
OUT_OF_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

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
        # Until it has begun, what comes is held as for a receiver that has paused.
        self._begins_later = self._paused = begins_later
        self._refused = False
        self._closing = False
        self._saw_eof = False
        self._lost = False

    # What the core calls.

    def send(self, frames: Sequence[Buffer]) -> None:
        if self._closing or not frames:
            return
        if len(frames) == 1:
            self._transport.write(frames[0])
        elif self._writes_lists and sum(map(len, frames)) > max(JOIN_BYTES, len(frames) * JOIN_FRAME_BYTES):
            self._transport.writelines(frames)
        else:
            self._transport.write(b"".join(frames))

    def send_now(self, frames: Sequence[Buffer]) -> None:
        if self._closing or not frames:
            return
        data = frames[0] if len(frames) == 1 else b"".join(frames)
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
        self._closing = True
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
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._received_bytes += nbytes
        self._take(self._buffer[:nbytes])

    def eof_received(self) -> None:
        self._saw_eof = True

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


async def until_readable(sock: socket.socket) -> None:
    """Wait until there is something to read, or the end, on a socket that no transport has yet."""
    loop = asyncio.get_running_loop()
    readable: asyncio.Future[None] = loop.create_future()

    def tell() -> None:
        if not readable.done():
            readable.set_result(None)

    loop.add_reader(sock.fileno(), tell)
    try:
        await readable
    finally:
        loop.remove_reader(sock.fileno())


class StreamListener(Listener):
    """Accept connections on a listening socket, until `close`.

    `accepted` makes the connection for each socket, and raises TransportError to refuse who is there; `greet` is awaited
    before the first frame, with the socket, and refuses likewise; `removed` is called once when the listener has closed,
    to remove what it left behind. With an `ssl` context it speaks TLS, which may take `ssl_timeout_s` from the first turn to
    the end of the handshake; few handshakes are under way at once, for each holds memory before anybody has said who they
    are.

    Not the loop's own server: out of descriptors, uvloop takes connections only to drop them, and gives up listening
    without a word if its spare descriptor goes as well; asyncio logs a traceback for each place in the backlog, each second.
    """

    def __init__(
        self,
        sock: socket.socket,
        address: str,
        accepted: Callable[[socket.socket], StreamConnection],
        removed: Callable[[], None] | None = None,
        *,
        greet: Callable[[StreamConnection, socket.socket], Awaitable[None]] | None = None,
        ssl: Any = None,
        ssl_timeout_s: float = 2.0,
    ) -> None:
        self.address = address
        self._sock = sock
        self._accepted = accepted
        self._removed = removed
        self._greet = greet
        self._ssl = ssl
        self._ssl_timeout_s = ssl_timeout_s
        self._full = False
        self._loop = asyncio.get_running_loop()
        self._pause: asyncio.TimerHandle | None = None
        self._opening: dict[asyncio.Task[None], StreamConnection] = {}
        self._handshakes = asyncio.Semaphore(HANDSHAKE_LIMIT)
        self._next_warning_s = 0.0
        self._closed = False
        sock.setblocking(False)
        note_descriptor(sock.fileno())
        self._loop.add_reader(sock.fileno(), self._accept)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._sock.fileno())
        if self._ssl is not None or self._greet is not None:
            for task, connection in self._opening.items():
                if not connection.is_made:
                    task.cancel()
        # What is to be removed goes first: a client that comes now finds nobody rather than a socket that refuses.
        if self._removed is not None:
            self._removed()
        forget_descriptor(self._sock.fileno())
        self._sock.close()

    def _accept(self) -> None:
        for _ in range(ACCEPTS_A_TURN):
            try:
                sock, _ = self._sock.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in OUT_OF_RESOURCES:
                    self._rest(error)
                    return
                # Whoever it was is gone already (ECONNABORTED).
                continue
            try:
                connection = self._accepted(sock)
            except (TransportError, OSError) as error:
                sock.close()
                self._warn(f"{self.address}: refused a connection: {error}")
                continue
            sock.setblocking(False)
            note_descriptor(sock.fileno())
            connection.accepted_at = self._loop.time()
            task = self._loop.create_task(self._open(connection, sock))
            self._opening[task] = connection
            task.add_done_callback(self._opened_one)
            if self._ssl is not None and len(self._opening) >= OPENING_LIMIT:
                # Others wait in the backlog.
                self._full = True
                self._loop.remove_reader(self._sock.fileno())
                return

    def _opened_one(self, task: asyncio.Task[None]) -> None:
        del self._opening[task]
        if self._full and not self._closed:
            self._full = False
            if self._pause is None:
                self._loop.add_reader(self._sock.fileno(), self._accept)

    async def _open(self, connection: StreamConnection, sock: socket.socket) -> None:
        # Known still when a loop has closed the socket.
        descriptor = sock.fileno()
        try:
            if self._greet is not None:
                await self._greet(connection, sock)
            if self._ssl is None:
                await self._loop.connect_accepted_socket(lambda: connection, sock)
            else:
                await self._open_tls(connection, sock)
        except (TransportError, OSError, RuntimeError) as error:
            self._drop(sock, descriptor)
            self._warn(
                f"{self.address}: {connection.peer.label} could not be connected: {str(error) or type(error).__name__}"
            )
        except asyncio.CancelledError:
            self._drop(sock, descriptor)
            raise
        if connection.failure is not None:
            logger.error("%s: opening its connection failed", connection.peer.label, exc_info=connection.failure)

    @staticmethod
    def _drop(sock: socket.socket, descriptor: int) -> None:
        forget_descriptor(descriptor)
        sock.close()

    async def _open_tls(self, connection: StreamConnection, sock: socket.socket) -> None:
        from eventsh.transports.tls import is_plain

        end_s = self._loop.time() + self._ssl_timeout_s
        try:
            async with asyncio.timeout_at(end_s):
                await until_readable(sock)
        except TimeoutError:
            raise TimeoutError(f"it said nothing for {self._ssl_timeout_s:g} s") from None
        if is_plain(sock.recv(2, socket.MSG_PEEK)):
            # In words that a client without TLS can read. What it sent is read first, or the kernel would say nothing.
            sock.recv(READ_BYTES)
            sock.send(Error("tls_needed", "it speaks TLS: give tls_ca (--tls-ca)").encode())
            self._drop(sock, sock.fileno())
            return
        # The wait for the handshakes of others is not its own time: those that never finish would leave it none.
        waits_from_s = self._loop.time()
        async with asyncio.timeout(self._ssl_timeout_s):
            await self._handshakes.acquire()
        end_s += self._loop.time() - waits_from_s
        connection.accepted_at = end_s - self._ssl_timeout_s
        try:
            await self._loop.connect_accepted_socket(
                lambda: connection,
                sock,
                ssl=self._ssl,
                ssl_handshake_timeout=max(0.01, end_s - self._loop.time()),
                ssl_shutdown_timeout=TLS_END_TIMEOUT_S,
            )
        finally:
            self._handshakes.release()

    def _rest(self, error: OSError) -> None:
        self._warn(f"{self.address}: can't accept connections for now: {error.strerror}")
        self._loop.remove_reader(self._sock.fileno())
        self._pause = self._loop.call_later(ACCEPT_PAUSE_S, self._resume)

    def _resume(self) -> None:
        self._pause = None
        if not self._full:
            self._loop.add_reader(self._sock.fileno(), self._accept)

    def _warn(self, text: str) -> None:
        # Anybody can knock as often as they like, and must not fill the log.
        if self._loop.time() >= self._next_warning_s:
            self._next_warning_s = self._loop.time() + WARNING_INTERVAL_S
            logger.warning("%s", text)
