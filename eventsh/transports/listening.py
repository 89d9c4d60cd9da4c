"""Accept connections on a listening socket: what the listeners of the transports over sockets share.

Knows the loop, TLS and what to do when a host runs out of descriptors; knows neither how the socket is made nor who may
connect.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Any

from eventsh.errors import TransportError
from eventsh.protocol.messages import Error
from eventsh.transport import Listener
from eventsh.transports.descriptors import check_reserve, forget_descriptor, note_descriptor
from eventsh.transports.stream import READ_BYTES, TLS_END_TIMEOUT_S, StreamConnection

__all__ = ["BACKLOG", "StreamListener", "until_readable"]

logger = logging.getLogger("eventsh")

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
# How long accepting rests when descriptors or memory have run out, and the shortest time between two warnings.
ACCEPT_PAUSE_S = 1.0
WARNING_INTERVAL_S = 1.0
OUT_OF_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


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
    to remove what it left behind; `kept` implements `keep`. With an `ssl` context it speaks TLS, which may take `ssl_timeout_s` from the first turn to
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
        kept: Callable[[], bool] | None = None,
        greet: Callable[[StreamConnection, socket.socket], Awaitable[None]] | None = None,
        ssl: Any = None,
        ssl_timeout_s: float = 2.0,
    ) -> None:
        self.address = address
        self._sock = sock
        self._accepted = accepted
        self._removed = removed
        self._kept = kept
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

    def keep(self) -> bool:
        return self._kept is None or self._kept()

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
                check_reserve(self._sock.fileno())
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
        # The wait for the handshakes of others is not its own time: those that never finish would leave it none. It lasts
        # twice theirs: with as long, all that wait would be turned away at the very moment when there is room again.
        waits_from_s = self._loop.time()
        async with asyncio.timeout(2 * self._ssl_timeout_s):
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
