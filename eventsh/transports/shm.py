"""The transport over shared memory: large frames in rings, the others, and all that is said about them, over a unix socket.

Each listener has one ring, which all of its clients map and can only read; each client has one that its listener maps.
The descriptors are passed once, when a connection begins. From then on the socket carries, in the order in which frames
were sent, either the frame itself or the place of its bytes in the ring; and back, now and then, how many places the
reader is done with. So the socket is doorbell, order and backpressure, and there is nothing to lock and nothing to
repair: a reader touches only bytes that a message named, which stay as they are until it says that it is done.

A client that says nothing about rings, such as one that lives for one post, is served as by the unix transport.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Callable
from struct import Struct
from typing import TYPE_CHECKING, ClassVar

from eventsh.errors import ConfigureError, TransportError
from eventsh.options import Options
from eventsh.transport import Capabilities
from eventsh.transports.listening import StreamListener, until_readable
from eventsh.transports.memory import RingReader, has_memfd
from eventsh.transports.sharing import SharedRing, SharingConnection
from eventsh.transports.unix import UnixTransport, peer_of

if TYPE_CHECKING:
    from eventsh.address import Address
    from eventsh.transport import Connection, Listener, Receiver
    from eventsh.transports.stream import StreamConnection

__all__ = ["ShmTransport"]

# What each side says first, with the descriptor of its ring: magic, version, size of the ring. Where a frame has its kind
# there is one that no frame has, so that nobody takes it for a frame.
OFFER = Struct("<4sBB2xQ")
MAGIC = b"eshm\xff"
VERSION = 1
# How long a listener may take to say it; and how many clients may be at it at once: each costs a descriptor or two.
CONNECT_TIMEOUT_S = 5.0
MAX_GREETINGS = 1024


class ShmTransport(UnixTransport):
    """`shm:/path/of/a.sock`."""

    scheme: ClassVar[str] = "shm"
    capabilities: ClassVar[Capabilities] = Capabilities(peer_credentials=True)

    def __init__(self, options: Options | None = None) -> None:
        self._options = options or Options()

    def with_options(self, options: Options) -> ShmTransport:
        return ShmTransport(options)

    def check_address(self, address: Address) -> None:
        super().check_address(address)
        if not has_memfd():
            raise ConfigureError(
                f"address: shm needs memfd, which {sys.platform} does not have: use unix:{address.path}",
                option="address",
            )

    def _serve(
        self,
        sock: socket.socket,
        address: str,
        on_connection: Callable[[Connection], Receiver],
        removed: Callable[[], None],
        kept: Callable[[], bool],
    ) -> Listener:
        ring = SharedRing(self._options.ring_size, is_shared=True)
        ring.join()

        def accepted(peer: socket.socket) -> SharingConnection:
            return SharingConnection(peer_of(peer), on_connection)

        async def greet(connection: StreamConnection, peer: socket.socket) -> None:
            assert isinstance(connection, SharingConnection)
            await _answer(connection, peer, ring, self._options.hello_timeout)

        def closed() -> None:
            removed()
            ring.leave()

        return StreamListener(sock, address, accepted, closed, kept=kept, greet=greet)

    async def _join(self, sock: socket.socket, on_connection: Callable[[Connection], Receiver]) -> StreamConnection:
        connection = SharingConnection(peer_of(sock), on_connection)
        ring = SharedRing(self._options.ring_size, is_shared=False)
        try:
            _send_offer(sock, ring)
            reader = await _read_answer(sock)
        except BaseException:
            ring.close()
            raise
        connection.use(ring, reader)
        return connection


# What is said before the first frame.

_greetings = 0


async def _answer(connection: SharingConnection, sock: socket.socket, ring: SharedRing, timeout_s: float) -> None:
    """In a listener: see whether the client has a ring, and exchange it for ours. Raises TransportError."""
    global _greetings
    if _greetings >= MAX_GREETINGS:
        raise TransportError(f"{connection.peer.label} came while {MAX_GREETINGS} others had not said anything yet")
    _greetings += 1
    try:
        async with asyncio.timeout(timeout_s):
            offer, descriptors = await _receive_offer(sock)
    except TimeoutError:
        raise TransportError(f"{connection.peer.label} said nothing for {timeout_s:g} s (hello_timeout)") from None
    finally:
        _greetings -= 1
    if not offer.startswith(MAGIC):
        _close_all(descriptors)
        connection.early = offer
        return
    reader = _read_offer(offer, descriptors)
    try:
        _send_offer(sock, ring)
    except OSError:
        reader.close()
        raise
    connection.use(ring, reader)


async def _read_answer(sock: socket.socket) -> RingReader:
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            offer, descriptors = await _receive_offer(sock)
    except TimeoutError as error:
        raise TransportError(f"the listener did not answer within {CONNECT_TIMEOUT_S:g} s") from error
    except ConnectionError as error:
        raise TransportError("the listener ended the connection before its first frame") from error
    if not offer:
        raise TransportError("the listener ended the connection before its first frame")
    if not offer.startswith(MAGIC):
        _close_all(descriptors)
        raise TransportError("the listener knows nothing of shared memory: is its address one of unix:?")
    return _read_offer(offer, descriptors)


async def _receive_offer(sock: socket.socket) -> tuple[bytes, list[int]]:
    """What the other side says first: an offer and descriptors, or else the first bytes of something else."""
    said, descriptors = b"", list[int]()
    try:
        while len(said) < OFFER.size and said.startswith(MAGIC[: len(said)]):
            try:
                data, passed, flags, _ = socket.recv_fds(sock, OFFER.size - len(said), 1, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                await until_readable(sock)
                continue
            descriptors += passed
            said += data
            if flags & socket.MSG_CTRUNC:
                raise TransportError("more descriptors came than one, or than this process has room for")
            if not data:
                break
    except BaseException:
        _close_all(descriptors)
        raise
    return said, descriptors


def _read_offer(offer: bytes, descriptors: list[int]) -> RingReader:
    """Map the ring of an offer. Raises TransportError. Closes the descriptors."""
    try:
        if len(offer) < OFFER.size or len(descriptors) != 1:
            raise TransportError(f"{len(offer)} bytes and {len(descriptors)} descriptors are no offer of a ring")
        *_, version, size_bytes = OFFER.unpack(offer)
        if version != VERSION:
            raise TransportError(f"it speaks version {version} of shared memory, not {VERSION}")
        return RingReader(descriptors[0], size_bytes)
    finally:
        _close_all(descriptors)


def _send_offer(sock: socket.socket, ring: SharedRing) -> None:
    # Nothing was sent on this socket yet, so that it has room.
    offer = OFFER.pack(MAGIC[:4], MAGIC[4], VERSION, ring.writer.size_bytes)
    socket.send_fds(sock, [offer], [ring.writer.fd])


def _close_all(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
    descriptors.clear()
