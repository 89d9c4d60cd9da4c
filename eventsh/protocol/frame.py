"""Frames: a fixed header and a body, and the decoder that finds them in a stream of bytes.

    length u32 | kind u8 | flags u8 | count u16 | pid u32 | origin u32 | origin_seq u64 | seq u64 | time_ns u64

Little-endian, 40 bytes. `length` is the size of the body in bytes. A frame travels through eventsh as one
bytearray, header and body together, so that the broker can stamp it in place and forward it whole.
"""

from __future__ import annotations

from enum import IntEnum
from hashlib import blake2b
from struct import Struct
from typing import NamedTuple

from eventsh.errors import ProtocolError

__all__ = [
    "BATCH_BYTES",
    "BATCH_CONTAINERS",
    "BATCH_EVENTS",
    "FIRST_FLAGS",
    "FLAGS_OFFSET",
    "FRAME_KINDS",
    "HEADER",
    "HEADER_BYTES",
    "MAX_BODY_BYTES",
    "MAX_PAYLOAD_BYTES",
    "ORIGIN",
    "ORIGIN_OFFSET",
    "PRE_HELLO_BODY_BYTES",
    "PROTOCOL_VERSION",
    "STAMP",
    "STAMP_OFFSET",
    "Flag",
    "FrameDecoder",
    "Header",
    "Kind",
    "batch_limit",
    "decode_header",
    "encode_frame",
    "read_key",
    "shorten_key",
    "without_events",
]

PROTOCOL_VERSION = 1

HEADER = Struct("<IBBHIIQQQ")
HEADER_BYTES = HEADER.size
assert HEADER_BYTES == 40

# What the broker writes in place: origin at 12, then origin_seq (the poster's, left alone), then seq and time_ns.
ORIGIN = Struct("<I")
ORIGIN_OFFSET = 12
STAMP = Struct("<QQ")
STAMP_OFFSET = 24

LENGTH = Struct("<I")
KIND_OFFSET = 4
FLAGS_OFFSET = 5

# The largest event that any option allows.
MAX_PAYLOAD_BYTES = 16 * 1024 * 1024
# A batch is closed once it is this long or longer, so a frame holds at most this and one more event. With half of it the
# broker takes a fifth more CPU an event, and twice as much is beyond the nearest caches.
BATCH_BYTES = 32 * 1024
# And once its events and runs are so many lists and dicts, by what those of the batch before were: decoded, all of them are
# there at once, and above 700 (gc.get_threshold) the garbage collector walks through all that is there, to free nothing,
# which took a fifth of a worker's time.
BATCH_CONTAINERS = 600
# How many events that is where nothing is known of them.
BATCH_EVENTS = BATCH_CONTAINERS // 4
# The largest body that is accepted: the largest event on top of a batch, its unique key (a u16 of bytes) and brackets.
MAX_BODY_BYTES = MAX_PAYLOAD_BYTES + BATCH_BYTES + 65536 + 64
# Of a batch beside its events: brackets, commas, the length of a unique key.
_AROUND_BYTES = 64
# A key that a program would write, such as a UUID, is as short as its digest.
_WHOLE_KEY_BYTES = 32
# Until a peer has said hello it may make us hold no more than this.
PRE_HELLO_BODY_BYTES = 64 * 1024


class Kind(IntEnum):
    """What a frame is for. The number is its place on the wire and never changes its meaning."""

    HELLO = 1  # client: who I am and what I want to be
    WELCOME = 2  # broker: what you are now, and the limits here
    EVENTS = 3  # either way: a batch of events
    ACK = 4  # receiver: I have everything up to `seq`, and handled everything up to `origin_seq`
    # broker: every live worker has your events up to `origin_seq`, and so many posts to everybody as `seq` says
    CONFIRM = 5
    GAP = 6  # broker: here events are missing; the body says how many
    REQUEST = 7  # client: tell me something
    REPLY = 8  # broker: the answer
    ERROR = 9  # either way: why the connection ends now
    GOODBYE = 10  # client: give me no more; broker: that was all
    REPORT = 11  # receiver: handlers failed
    RECEIPT = 12  # broker: who got an event that was posted with Flag.RECEIPT
    TAKEN = 13  # worker: the unique events that an earlier broker gave it
    HANDLED = 14  # worker, and the broker to the poster: which handlers ran for an event with Flag.TRACE
    ASK = 15  # broker: a client wants to know something of you
    ANSWER = 16  # worker: this
    CHALLENGE = 17  # either way, before the hello: prove that you have the token
    PROOF = 18  # either way, before the hello: here is the proof
    PING = 19  # either way: give a sign of life
    PONG = 20  # either way: this
    OUTPUT = 21  # worker: what a script of an operator's wrote
    FEATURES = 22  # broker: the features of the wire that it and all receivers know


class Flag:
    """Bits of an EVENTS frame. Plain numbers: `&` with a member of an IntFlag took 0.6 us, seven times a batch in the broker
    and four times in each worker."""

    UNIQUE = 1  # one event; the body starts with the key: its length as u16, then its UTF-8 bytes
    RESENT = 2  # the poster can't know whether an earlier broker handed it out
    RECEIPT = 4  # the poster wants to be told who got it
    TRACE = 8  # with RECEIPT: and which handlers ran
    REPLAYED = 16  # out of a recording: handlers can ask
    DIRECTED = 32  # with UNIQUE: the poster wrote 1 + the slot that it is for into `seq`, where the broker stamps


# The flags of the first version, which every reader knows. Who can read a frame with another one: protocol/features.py.
FIRST_FLAGS = 63


class Header(NamedTuple):
    """The fields of a frame's header, in their order on the wire."""

    length: int
    kind: int
    flags: int
    count: int  # type: ignore[assignment]  # a field of the wire, more use than tuple.count
    pid: int
    origin: int
    origin_seq: int
    seq: int
    time_ns: int


def decode_header(frame: bytes | bytearray | memoryview) -> Header:
    """Read the header at the start of `frame`, which must hold at least 40 bytes."""
    return Header._make(HEADER.unpack_from(frame))


def encode_frame(
    kind: int,
    body: bytes | bytearray | memoryview = b"",
    *,
    flags: int = 0,
    count: int = 0,
    pid: int = 0,
    origin: int = 0,
    origin_seq: int = 0,
    seq: int = 0,
    time_ns: int = 0,
) -> bytearray:
    """Build one frame."""
    frame = bytearray(HEADER.pack(len(body), kind, flags, count, pid, origin, origin_seq, seq, time_ns))
    frame += body
    return frame


def batch_limit(payload_bytes: int, count: int) -> int:
    """Return how long the body of a batch of `count` events can be, where an encoded event has at most `payload_bytes`."""
    return payload_bytes * count + _AROUND_BYTES


def without_events(frame: bytes | bytearray | memoryview) -> bytearray:
    """Return a batch in the place of one that can't be passed on: with its numbers and its receipt, and no event in it, so
    that every receiver reports a gap of its count."""
    _, _, flags, count, pid, origin, first, _, _ = HEADER.unpack_from(frame)
    kept = flags & (Flag.RESENT | Flag.RECEIPT | Flag.TRACE)
    return encode_frame(Kind.EVENTS, b"[]", flags=kept, count=count, pid=pid, origin=origin, origin_seq=first)


def read_key(frame: bytes | bytearray | memoryview) -> bytes:
    """The key of a unique event's frame: behind the header its length as u16, then its bytes. Raises ProtocolError."""
    length = int.from_bytes(frame[HEADER_BYTES : HEADER_BYTES + 2], "little")
    key = bytes(frame[HEADER_BYTES + 2 : HEADER_BYTES + 2 + length])
    if not length or len(key) != length:
        raise ProtocolError("a unique event without its key")
    return key


def shorten_key(key: bytes) -> bytes:
    """Return what is kept of a unique key: itself, or a digest of a long one. Keys of 60 kB took 862 MB for 15,000 events.

    A digest is as long as the longest key that is kept whole, so it stays what it is when it is shortened again."""
    return key if len(key) <= _WHOLE_KEY_BYTES else blake2b(key, digest_size=_WHOLE_KEY_BYTES).digest()


FRAME_KINDS = frozenset(int(kind) for kind in Kind)


class FrameDecoder:
    """Cut a stream of bytes into frames.

    `kinds` are those that are let through: a transport may have some of its own, which never leave it. A length over
    `max_body_bytes` and an unknown kind are found in the first five bytes of a frame, before its body is
    waited for. After a ProtocolError the decoder takes no more data: the stream can't be trusted to be in step.
    """

    __slots__ = ("_broken", "_kinds", "_rest", "max_body_bytes")

    def __init__(self, max_body_bytes: int = PRE_HELLO_BODY_BYTES, kinds: frozenset[int] = FRAME_KINDS) -> None:
        self.max_body_bytes = max_body_bytes
        self._kinds = kinds
        self._rest = bytearray()
        self._broken: ProtocolError | None = None

    @property
    def buffered_bytes(self) -> int:
        """How many bytes of an unfinished frame are held."""
        return len(self._rest)

    @property
    def error(self) -> ProtocolError | None:
        """Why the stream ended, or None while it is good."""
        return self._broken

    def receive_data(self, data: bytes | bytearray | memoryview) -> list[bytearray]:
        """Feed bytes and take every frame that they complete.

        A broken rule of the wire does not raise: the frames before it are whole and are returned, and `error` then
        says what was wrong. The caller must look at `error` after each call and close when it is set.
        """
        if self._broken is not None:
            return []
        rest = self._rest
        if rest:
            rest += data
            view = memoryview(rest)
        else:
            view = memoryview(data)
        frames: list[bytearray] = []
        start, size = 0, len(view)
        try:
            while size - start > KIND_OFFSET:
                length = LENGTH.unpack_from(view, start)[0]
                if length > self.max_body_bytes or view[start + KIND_OFFSET] not in self._kinds:
                    self._broken = self._refusal(length, view[start + KIND_OFFSET])
                    start = size
                    break
                end = start + HEADER_BYTES + length
                if end > size:
                    break
                frames.append(bytearray(view[start:end]))
                start = end
            if view.obj is rest:
                view.release()
                del rest[:start]
            else:
                self._rest = bytearray(view[start:])
        finally:
            view.release()
        return frames

    def _refusal(self, length: int, kind: int) -> ProtocolError:
        if kind not in self._kinds:
            return ProtocolError(f"unknown kind of frame: {kind}")
        return ProtocolError(f"a frame with a body of {length} bytes is over the limit of {self.max_body_bytes}")
