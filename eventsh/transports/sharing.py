"""What a connection over shared memory is made of: the ring that is written, the stream that names its bytes, and both
together as a connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from eventsh.errors import ProtocolError
from eventsh.protocol.frame import (
    FRAME_KINDS,
    HEADER,
    HEADER_BYTES,
    KIND_OFFSET,
    PRE_HELLO_BODY_BYTES,
    FrameDecoder,
    decode_header,
)
from eventsh.transports import memory
from eventsh.transports.descriptors import forget_descriptor, note_descriptor
from eventsh.transports.memory import RingReader, RingWriter
from eventsh.transports.ring import Lane, Ring
from eventsh.transports.stream import StreamConnection

if TYPE_CHECKING:
    from eventsh.transport import Buffer, Connection, Frame, Peer, Receiver

__all__ = ["RingDecoder", "SharedRing", "SharingConnection"]

# Smaller frames take the socket.
INLINE_BYTES = 8 * 1024
# A reader that has so much to give back, or this part of the ring, says so even if it has nothing else to say.
RELEASE_BYTES = 256 * 1024
RELEASE_PART = 8

# What travels beside frames, as headers without a body: their kinds are none of the protocol's.
SPAN = 0xF0  # seq: where in the ring the next frame is; time_ns: how long it is
RELEASE = 0xF1  # seq: the reader is done with so many spans, counted from the first
KINDS = FRAME_KINDS | {SPAN, RELEASE}


class SharedRing:
    """A ring that this process writes, and those who use it. Its memory goes with the last of them."""

    def __init__(self, size_bytes: int, *, is_shared: bool) -> None:
        self.writer = RingWriter(size_bytes)
        self.is_shared = is_shared
        self._ring = Ring(self.writer.size_bytes, is_shared=is_shared)
        self._users = 0
        self._departing: dict[socket.socket, Lane] = {}

    def join(self) -> None:
        """Have one user more. To be undone by `leave`."""
        self._users += 1

    def leave(self) -> None:
        self._users -= 1
        if self._users == 0:
            self.close()

    def close(self) -> None:
        for sock in list(self._departing):
            self._depart(sock)
        self.writer.close()

    def open_lane(self) -> Lane:
        return Lane(self._ring)

    def place(self, lane: Lane, frame: Buffer) -> Buffer:
        """Put a frame into the ring for one reader, and give the message that names it. Without room: the frame itself."""
        span = lane.give(frame)
        if span is None:
            return frame
        if not span.is_written:
            if not self.writer.allocate(span.offset + span.size):
                lane.take_back()
                self._ring.cut(self.writer.allocated_bytes)
                return frame
            self.writer.write(span.offset, frame)
            span.is_written = True
        return HEADER.pack(0, SPAN, 0, 0, 0, 0, 0, span.offset, span.length)

    def await_departure(self, sock: socket.socket, lane: Lane) -> None:
        """Keep what a reader was given until it has closed its end of `sock`, a duplicate of ours: what was sent to it
        stays readable after we have closed, and it must not find other bytes where we said that its own are."""
        self._departing[sock] = lane
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_WR)
        asyncio.get_running_loop().add_reader(sock.fileno(), self._look, sock)

    def _look(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            # What it still says is said to nobody.
            if sock.recv(65536, socket.MSG_DONTWAIT):
                return
        self._depart(sock)

    def _depart(self, sock: socket.socket) -> None:
        self._departing.pop(sock).clear()
        asyncio.get_running_loop().remove_reader(sock.fileno())
        forget_descriptor(sock.fileno())
        sock.close()


class RingDecoder(FrameDecoder):
    """A decoder that takes the frames which messages name out of the peer's ring, and hears which of ours are free."""

    __slots__ = (
        *("_lane", "_places", "_read", "_reader", "_release_bytes", "_allowed_bytes"),
        *("shows", "unreleased_bytes"),
    )

    def __init__(self, lane: Lane, reader: RingReader) -> None:
        super().__init__(kinds=KINDS)
        # Whether it gives views of the ring, and no copies.
        self.shows = False
        self.unreleased_bytes = 0
        self._release_bytes = min(RELEASE_BYTES, reader.size_bytes // RELEASE_PART)
        # What the peer may name until we have given some of it back. One that keeps to the rules needs no more than its ring
        # has; others name the same bytes again and again, each time to be copied.
        self._allowed_bytes = HEADER_BYTES + PRE_HELLO_BODY_BYTES
        self._lane = lane
        self._reader = reader
        # How many frames of the ring nobody looks at any more, counted from the first; and those after it, in their order.
        self._read = 0
        self._places: deque[_Place] = deque()

    def receive_data(self, data: Buffer) -> list[Any]:
        frames = super().receive_data(data)
        for frame in frames:
            if frame[KIND_OFFSET] >= SPAN:
                return self._resolve(frames)
        return frames

    @property
    def owes_release(self) -> bool:
        """Whether there is so much to give back that it should not wait for company."""
        return self.unreleased_bytes >= self._release_bytes

    def trust(self) -> None:
        """The peer has said hello: it may name as much as its ring has."""
        self._allowed_bytes += self._reader.size_bytes - (HEADER_BYTES + PRE_HELLO_BODY_BYTES)

    def take_release(self) -> bytes:
        """The message that gives back all that was read."""
        self._allowed_bytes += self.unreleased_bytes
        self.unreleased_bytes = 0
        return HEADER.pack(0, RELEASE, 0, 0, 0, 0, 0, self._read, 0)

    def _resolve(self, frames: list[bytearray]) -> list[Frame]:
        found: list[Frame] = []
        for frame in frames:
            try:
                kind = frame[KIND_OFFSET]
                if kind < SPAN:
                    found.append(frame)
                elif len(frame) != HEADER_BYTES:
                    raise ProtocolError("a message about shared memory with a body")
                elif kind == SPAN:
                    found.append(self._fetch(frame))
                else:
                    self._lane.release(decode_header(frame).seq)
            except ProtocolError as error:
                self._rest.clear()
                self._broken = error
                break
        return found

    def _fetch(self, message: bytearray) -> Frame:
        header = decode_header(message)
        offset, length = header.seq, header.time_ns
        if length > HEADER_BYTES + self.max_body_bytes:
            raise self._refusal(length - HEADER_BYTES, SPAN)
        self._allowed_bytes -= length
        if self._allowed_bytes < 0:
            raise ProtocolError("more shared memory was named than there is, or than may be before a hello")
        frame: Frame = self._reader.view(offset, length)
        if not self.shows:
            # Looked at only once it is our own: the peer can change the ring at any time.
            frame = bytearray(frame)
        if length < HEADER_BYTES or decode_header(frame).length + HEADER_BYTES != length:
            raise ProtocolError(f"{length} bytes of shared memory are no frame")
        if frame[KIND_OFFSET] not in FRAME_KINDS:
            raise ProtocolError(f"unknown kind of frame: {frame[KIND_OFFSET]}")
        self._note(frame)
        return frame

    def _note(self, frame: Frame) -> None:
        """Have the place of a frame given back once it is free: at once, or when the view of it is let go."""
        place = _Place(len(frame))
        self._places.append(place)
        if isinstance(frame, memoryview):
            place.view = weakref.ref(frame, lambda _: self._give_back())
        self._give_back()

    def _give_back(self) -> None:
        places = self._places
        while places and (places[0].view is None or places[0].view() is None):
            self.unreleased_bytes += places.popleft().length
            self._read += 1


class _Place:
    """Of a frame in the peer's ring: how long it is, and whether somebody has a view of it."""

    __slots__ = ("length", "view")

    def __init__(self, length: int) -> None:
        self.length = length
        self.view: weakref.ref[memoryview] | None = None


class SharingConnection(StreamConnection):
    """A stream whose large frames are in shared memory, once `use` has told it which; before that, one as any other.

    `early` is what was read of the stream before this connection got it.
    """

    def __init__(self, peer: Peer, on_connection: Callable[[Connection], Receiver]) -> None:
        super().__init__(peer, on_connection)
        self.early = b""
        self._ring: SharedRing | None = None
        self._reader: RingReader
        self._lane: Lane
        self._rings: RingDecoder
        self._trusts_peer = False
        # Whether it is this side that ended the connection, with frames in the ring that the peer may still read; and then,
        # unless there was no descriptor to be had, a duplicate of the socket.
        self._ended_first = False
        self._departing: socket.socket | None = None

    def use(self, ring: SharedRing, reader: RingReader) -> None:
        """Write large frames into `ring`, and read them from `reader`. To be called before the connection is made."""
        self._ring = ring
        self._reader = reader
        self._lane = ring.open_lane()
        self._decoder = self._rings = RingDecoder(self._lane, reader)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if self._ring is not None:
            self._ring.join()
        super().connection_made(transport)
        if self.early:
            self._take(memoryview(self.early))

    def limit_body(self, max_body_bytes: int) -> None:
        super().limit_body(max_body_bytes)
        if self._ring is not None and not self._trusts_peer:
            self._trusts_peer = True
            self._rings.trust()

    def _choose_method(self) -> Callable[[list[Any]], None]:
        method: Callable[[list[Any]], None] | None = getattr(self._receiver, "views_received", None)
        # Only a client looks straight into its broker's ring, to whose word it does everything anyway. A broker trusts no
        # client, and has to write into frames.
        if self._ring is None or self._ring.is_shared or method is None:
            return super()._choose_method()
        self._rings.shows = True
        return method

    def send(self, frames: Sequence[Buffer]) -> None:
        ring = self._ring
        if ring is None or self._closing:
            super().send(frames)
            return
        super().send(self._placed(ring, frames))
        if memory.on_step is not None:
            memory.on_step("sent")

    def send_now(self, frames: Sequence[Buffer]) -> None:
        if self._ring is not None and not self._closing:
            frames = self._placed(self._ring, frames)
        super().send_now(frames)

    def _placed(self, ring: SharedRing, frames: Sequence[Buffer]) -> list[Buffer]:
        """What goes over the socket for them: large ones go into the ring."""
        lane = self._lane
        placed = [frame if len(frame) < INLINE_BYTES else ring.place(lane, frame) for frame in frames]
        if self._rings.unreleased_bytes and placed:
            placed.insert(0, self._rings.take_release())
        return placed

    def close(self) -> None:
        self._keep_socket()
        super().close()

    def abort(self) -> None:
        self._keep_socket()
        super().abort()

    def connection_lost(self, exc: Exception | None) -> None:
        was_lost = self._lost
        if exc is not None and not isinstance(exc, ConnectionError):
            # Nothing that the peer did: it goes on reading.
            self._keep_socket()
        super().connection_lost(exc)
        if self._ring is None or was_lost:
            return
        self._reader.close()
        if self._departing is not None:
            self._ring.await_departure(self._departing, self._lane)
        elif not self._ended_first or isinstance(exc, ConnectionError):
            # The peer has ended it, and reads no more.
            self._lane.clear()
        self._ring.leave()

    def _take(self, data: memoryview) -> None:
        super()._take(data)
        if self._ring is not None and self._rings.owes_release and not self._closing:
            self._transport.write(self._rings.take_release())

    def _keep_socket(self) -> None:
        if self._ring is not None and self._ring.is_shared and self._lane and not (self._closing or self._ended_first):
            self._ended_first = True
            # Without a descriptor to be had, what the peer was given is not used again.
            with contextlib.suppress(OSError):
                self._departing = socket.socket(fileno=os.dup(self._descriptor))
                note_descriptor(self._departing.fileno())
