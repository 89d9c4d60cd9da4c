"""The messages that are not events, as values: what each says, and its frame.

Every message but Ack, Confirm, Ping and Pong is a small JSON object in the body of its frame. Ack and Confirm are headers alone, for
they travel as often as batches do. Unknown members of a body are ignored, so that later versions can add some; a missing
or mistyped one is a ProtocolError, but for those that were added since: who does not say them does not know them.

Every number of a message is within a limit of its own, which `decode` checks, so that no code behind it meets a number that
it can't add, show as JSON, or pass to the operating system. A peer that sends another one is at fault alone.
"""

from __future__ import annotations

import re
from dataclasses import Field, dataclass, field, fields
from typing import Any, ClassVar, Self

import orjson

from eventsh.errors import ProtocolError
from eventsh.options import MAX_SLOTS
from eventsh.protocol.codec import check_depth
from eventsh.protocol.features import check_features
from eventsh.protocol.frame import HEADER_BYTES, PROTOCOL_VERSION, Kind, encode_frame

__all__ = [
    "AUTHENTICATION_CODES",
    "MAX_COUNT",
    "MAX_REASON_CHARS",
    "Answer",
    "Ask",
    "Challenge",
    "Error",
    "Features",
    "Gap",
    "Goodbye",
    "Handled",
    "Hello",
    "Message",
    "Output",
    "Proof",
    "Receipt",
    "Reply",
    "Report",
    "Request",
    "Taken",
    "Welcome",
]

# The annotations used below, as the types that JSON gives for them. bool is no int here.
_TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "int | None": (int, type(None)),
    "float": (int, float),
    "str": (str,),
    "str | None": (str, type(None)),
    "bool": (bool,),
    "list[int]": (list,),
    "list[str]": (list,),
    "list[list[int]]": (list,),
    "list[list[Any]]": (list,),
    "list[dict[str, Any]]": (list,),
    "dict[str, Any]": (dict,),
    "dict[str, Any] | None": (dict, type(None)),
    "Any": (object,),
}


_NUMBERS = frozenset({"int", "int | None", "float", "list[int]"})
# The types of a list's items, where each of them is checked.
_ITEMS: dict[str, type] = {"list[int]": int, "list[str]": str}

MAX_COUNT = 2**53 - 1
"""The most that a count, or the place of an event in the order, can be. Counts are added up: 2,048 of this size fit into 64
bits, which is what JSON is written with here, and each is exact where numbers are doubles. No broker lives for so many events."""

# Names more than counts: they are compared and passed on, never added.
_U32 = {"most": 2**32 - 1}
_U64 = {"most": 2**64 - 1}
_SLOT = {"most": MAX_SLOTS - 1}
# An observer that takes unique events has no slot; a receipt says -1 for it.
_SLOT_OR_OBSERVER = {"least": -1, "most": MAX_SLOTS - 1}
# A pid_t, for os.kill() raises OverflowError beyond; and a negative number there is a group of processes.
_PID = {"most": 2**31 - 1}
# Thousands of posters are remembered by these.
_SHORT_TEXT = {"most": 512}
# Of a member that came later.
_LATER = {"later": True}

MAX_REASON_CHARS = 500
"""The longest reason for a bad batch in a Report."""

_ROLES = ("worker", "observer", "poster")
_NO_BAD_BATCH = "a report holds what is no [origin, number, reason]"
_NO_UNIQUE_EVENT = "a taken frame holds what is no [origin, number, time_ns, key]"
_HEX = re.compile("(?:[0-9a-f]{2})+")
# A nonce, or an HMAC with SHA-256.
_HEX_32 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Message:
    """One message. `encode` gives its frame, `decode` reads one back."""

    kind: ClassVar[Kind]

    def encode(self, *, seq: int = 0) -> bytearray:
        """The frame of this message. `seq` places it among the events, where it has such a place."""
        return encode_frame(self.kind, orjson.dumps(self), seq=seq)

    @classmethod
    def decode(cls, frame: bytes | bytearray) -> Self:
        """Read a frame's body. Raises ProtocolError that names the member at fault."""
        name = cls.__name__.lower()
        try:
            body = orjson.loads(memoryview(frame)[HEADER_BYTES:])
        except orjson.JSONDecodeError as error:
            raise ProtocolError(f"the body of a {name} frame is not JSON: {error}") from None
        if not isinstance(body, dict):
            raise ProtocolError(f"the body of a {name} frame is not an object")
        check_depth(frame, body)
        values: dict[str, Any] = {}
        for member in fields(cls):
            if member.name not in body:
                if "later" in member.metadata:
                    continue
                raise ProtocolError(f"a {name} frame has no {member.name!r}")
            value = body[member.name]
            allowed = _TYPES[str(member.type)]
            if not isinstance(value, allowed) or (
                isinstance(value, bool) and bool not in allowed and object not in allowed
            ):
                raise ProtocolError(f"{member.name!r} of a {name} frame is {type(value).__name__}, not {member.type}")
            items = _ITEMS.get(str(member.type))
            if items is not None and not all(type(item) is items for item in body[member.name]):
                raise ProtocolError(f"{member.name!r} of a {name} frame is not {member.type}")
            _check_limits(member, value, name)
            values[member.name] = value
        return cls(**values)


def _check_limits(member: Field[Any], value: Any, name: str) -> None:
    """Raise ProtocolError unless a number, each number of a list, and the length of a text are within their limits."""
    kind = str(member.type)
    least, most = member.metadata.get("least", 0), member.metadata.get("most", MAX_COUNT)
    if kind == "str" and len(value) > most:
        raise ProtocolError(f"{member.name!r} of a {name} frame has {len(value)} characters, over the limit of {most}")
    if kind in _NUMBERS and value is not None:
        for number in value if kind == "list[int]" else (value,):
            if not least <= number <= most:
                raise ProtocolError(f"{member.name!r} of a {name} frame is {number}, not within {least} to {most}")


@dataclass(frozen=True, slots=True)
class Hello(Message):
    """Client: the first frame. Who it is, what it wants to be, and what it has from an earlier connection."""

    kind: ClassVar[Kind] = Kind.HELLO
    identity: str = field(metadata=_SHORT_TEXT)
    """Random, the same for all connections of one process's one bus."""
    origin: int = field(metadata=_U32)
    """What the client's batches are stamped with: random, not 0. Refused with `origin_taken` when another has it."""
    pid: int = field(metadata=_PID)
    role: str
    """"worker", "observer" or "poster" (which gets no events)."""
    worker_id: int | None = field(metadata=_SLOT)
    """The slot it wants; None: any."""
    take_unique: bool
    epoch: int = field(metadata=_U64)
    """The epoch that it was attached to before, 0: none."""
    received: int
    """In that epoch, the last seq that it has. Not meant in another epoch."""
    handled: int
    slots: list[int] = field(metadata=_SLOT)
    """The worker slots that were held in that epoch: a new broker waits for those workers."""
    tells: bool
    """A Taken follows the Welcome of an epoch that has not been told: until then no unique event is given to anybody."""
    told: int = field(default=0, metadata=_U64)
    """The last epoch that was told, or that had nothing to be told; 0: none."""
    host: str = field(default="", metadata=_SHORT_TEXT)
    """Where `pid` is the number of a process: the same for all who can look each other up by pid. Empty: not known."""
    version: int = PROTOCOL_VERSION
    places: list[list[int]] = field(default_factory=list, metadata=_LATER)
    """Each as [epoch, how many posts to everybody it has of that epoch's, how many it knows to be confirmed], for `epoch` and
    those before it, the latest first (in version 0.1.0 those before it are sorted by their numbers)."""
    vacant: list[list[int]] = field(default_factory=list, metadata=_LATER)
    """Slots that it knows to be kept for nobody, each as [slot, epoch, how many of that epoch's posts were handled there]."""
    unsure: list[int] = field(default_factory=list, metadata=_LATER | _U64)
    """Epochs for which a gap with `exact` false was received: the next broker of that host does not repeat it."""
    features: list[str] = field(default_factory=list, metadata=_LATER)
    """The features of the wire that the client knows: see protocol/features.py. The first version names none."""
    assigned: bool = field(default=False, metadata=_LATER)
    """A broker chose `worker_id`, because the process asked for no number. The first version does not name it."""
    assigned_slots: list[int] = field(default_factory=list, metadata=_LATER | _SLOT)
    """Those of `slots` that no process has asked for by number."""
    left_slots: list[int] = field(default_factory=list, metadata=_LATER | _SLOT)
    """Those of `slots` whose process has said goodbye: a new broker queues for a successor, and waits for nobody."""

    @property
    def wants_any_slot(self) -> bool:
        """Whether the process asked for no number, now or when it first attached."""
        return self.assigned or self.worker_id is None

    def check(self) -> None:
        """Raise ProtocolError unless its members agree with each other, and its lists are what they should be."""
        if self.role not in _ROLES or not self.origin:
            raise ProtocolError(f"a hello with role {self.role!r}, origin {self.origin}")
        if self.handled > self.received:
            raise ProtocolError(f"a hello from one who received {self.received} and handled {self.handled}")
        check_features(self.features, "hello")
        for rows, limits in (
            (self.places, (_U64["most"], MAX_COUNT, MAX_COUNT)),
            (self.vacant, (MAX_SLOTS - 1, _U64["most"], MAX_COUNT)),
        ):
            for row in rows:
                _check_row(row, limits, "a hello with what is no place in an epoch")


@dataclass(frozen=True, slots=True)
class Welcome(Message):
    """Broker: the first frame. What the client is now, and the limits here."""

    kind: ClassVar[Kind] = Kind.WELCOME
    epoch: int = field(metadata=_U64)
    pid: int = field(metadata=_PID)
    worker_id: int | None = field(metadata=_SLOT)
    resumed: bool
    """The slot was this client's, and everything since `Hello.received` follows."""
    seq: int
    """The last event that crossed the broker."""
    timeout: float
    max_queue_len: int
    """How many unconfirmed events this client may have under way."""
    max_payload_len: int
    slots: list[int] = field(metadata=_SLOT)
    """The worker slots that are held."""
    version: int = PROTOCOL_VERSION
    posts: int = field(default=0, metadata=_LATER)
    """How many posts to everybody came before the client's stream. Not meant when it goes on in the same epoch."""
    features: list[str] = field(default_factory=list, metadata=_LATER)
    """The features of the wire that the broker knows. A Features message with those that all know follows."""
    window_bytes: int = field(default=0, metadata=_LATER)
    """With how many bytes of unconfirmed frames under way this client must send no more; 0: there is no such limit."""
    assigned_slots: list[int] = field(default_factory=list, metadata=_LATER | _SLOT)
    """Those of `slots` that no process has asked for by number."""

    def check(self) -> None:
        """Raise ProtocolError unless its features are within the limits."""
        check_features(self.features, "welcome")


@dataclass(frozen=True, slots=True)
class Features(Message):
    """Broker: the features that it and every receiver know, in order with the events; again whenever they change.

    Receivers are the attached workers and observers, and the last holder of each slot that is kept for a new one. Sent
    to the clients whose hello named the feature "all-know", and to no other.
    """

    kind: ClassVar[Kind] = Kind.FEATURES
    all_know: list[str]

    def check(self) -> None:
        """Raise ProtocolError unless its features are within the limits."""
        check_features(self.all_know, "features frame")


@dataclass(frozen=True, slots=True)
class Gap(Message):
    """Broker: at this place of the stream a receiver missed events. `seq` of its frame is `last_seq`."""

    kind: ClassVar[Kind] = Kind.GAP
    missed: int
    first_seq: int
    last_seq: int
    reason: str
    epoch: int = field(default=0, metadata=_LATER | _U64)
    """Of the events that were missed; 0: this one. Of another one their numbers are not known."""
    posts: int = field(default=0, metadata=_LATER)
    """How many of that epoch's posts to everybody the receiver now has, or was told of."""
    exact: bool = field(default=True, metadata=_LATER)
    """False: nobody knows how many they are, and `missed` is the least that they can be."""


@dataclass(frozen=True, slots=True)
class Request(Message):
    """Client: a question. Answered by one Reply with the same `id`."""

    kind: ClassVar[Kind] = Kind.REQUEST
    id: int
    what: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Reply(Message):
    """Broker: the answer to a Request, or `error` where there is none."""

    kind: ClassVar[Kind] = Kind.REPLY
    id: int
    data: Any
    error: str | None


# Of an Error: one of the two sides could not prove who it is, or did not try.
AUTHENTICATION_CODES = frozenset({"token_needed", "token_unknown", "token_wrong", "tls_needed"})


@dataclass(frozen=True, slots=True)
class Error(Message):
    """Either way: why the connection ends now. `code` is for programs, `message` for people."""

    kind: ClassVar[Kind] = Kind.ERROR
    code: str
    """"protocol", "version", "origin_taken", "slot_taken", "too_many", "slow_hello", "unread" and so on, or one of
    AUTHENTICATION_CODES."""
    message: str


@dataclass(frozen=True, slots=True)
class Goodbye(Message):
    """Client: give me no more events. Broker, as the answer: everything before this is all you get.

    `leave` False keeps the slot and queues for the next process that takes it.
    """

    kind: ClassVar[Kind] = Kind.GOODBYE
    leave: bool


@dataclass(frozen=True, slots=True)
class Report(Message):
    """Receiver: handlers failed, or events could not be read. One for a turn of its loop, with the last failure in full
    and the number of all."""

    kind: ClassVar[Kind] = Kind.REPORT
    failed: int
    last: dict[str, Any]
    unread: int = field(default=0, metadata=_LATER)
    """How many events of this epoch the receiver could not read, and reported to its handlers as a gap. All of them, for the
    report before may have been lost with its connection. A Report with no failure at all goes only to a broker that knows the
    feature "unreadable-gap"."""
    bad: list[list[Any]] = field(default_factory=list, metadata=_LATER)
    """Posters that wrote a batch which can't be read, each as [origin, number of the batch, reason]. The broker ends their
    connections."""

    def check(self) -> None:
        """Raise ProtocolError unless it counts something, and each bad batch is what it should be."""
        if not self.failed + self.unread:
            raise ProtocolError("a report of no failure and no unread event")
        for row in self.bad:
            match row:
                case [origin, number, str(reason)] if len(reason) <= MAX_REASON_CHARS:
                    _check_row([origin, number], (_U32["most"], _U64["most"]), _NO_BAD_BATCH)
                    continue
            raise ProtocolError(_NO_BAD_BATCH)


@dataclass(frozen=True, slots=True)
class Taken(Message):
    """Worker, to a new broker: the unique events that it has from the one before, handled or not."""

    kind: ClassVar[Kind] = Kind.TAKEN
    events: list[list[Any]]
    """Each as [origin, number, when the broker stamped it in ns since 1970, its key in hexadecimal]."""
    ages_ms: list[int] = field(default_factory=list, metadata=_LATER)
    """How long ago the worker received each event, by its monotonic clock. Empty from version 0.1.0: only the stamps, which are
    wall-clock times, show the age then."""

    def check(self) -> None:
        """Raise ProtocolError unless each event is what it should be, and has an age if any has one."""
        if self.ages_ms and (len(self.ages_ms) != len(self.events) or min(self.ages_ms) < 0):
            raise ProtocolError(f"a taken frame with {len(self.events)} events and {len(self.ages_ms)} ages")
        for event in self.events:
            match event:
                case [origin, number, time_ns, str(key)] if _HEX.fullmatch(key):
                    limits = (_U32["most"], _U64["most"], _U64["most"])
                    _check_row([origin, number, time_ns], limits, _NO_UNIQUE_EVENT)
                    continue
            raise ProtocolError(_NO_UNIQUE_EVENT)


@dataclass(frozen=True, slots=True)
class Receipt(Message):
    """Broker: who has an event that was posted with Flag.RECEIPT. It comes when the event is confirmed."""

    kind: ClassVar[Kind] = Kind.RECEIPT
    number: int = field(metadata=_U64)
    workers: list[int] = field(metadata=_SLOT_OR_OBSERVER)
    """Those that have it."""
    missing: list[int] = field(metadata=_SLOT_OR_OBSERVER)
    """Those that were to get it, and are stalled or gone; it is queued for them where their slot is kept."""
    unique: str | None
    """None: not unique. "given": one worker has it. "repeat": its key is taken, nobody gets it. "nobody": no worker
    could take it; it was dropped and the key is free."""


@dataclass(frozen=True, slots=True)
class Handled(Message):
    """Worker, and then the broker to the poster: the handlers of an event with Flag.TRACE have returned."""

    kind: ClassVar[Kind] = Kind.HANDLED
    origin: int = field(metadata=_U32)
    number: int = field(metadata=_U64)
    """The poster's, of the event."""
    handlers: list[dict[str, Any]]
    """Those that ran: name, location, the source and the event that each is registered for, seconds, and error."""
    worker_id: int | None = field(metadata=_SLOT)
    """The broker's word, as is `pid`: a worker says null."""
    pid: int | None = field(metadata=_PID)

    def check(self) -> None:
        """Raise ProtocolError unless each handler is what it should be."""
        for run in self.handlers:
            match run:
                case {
                    "name": str(),
                    "location": str(),
                    "source": str() | None,
                    "event": str() | None,
                    "seconds": float() | int() as seconds,
                    "error": str() | None,
                } if 0 <= seconds <= MAX_COUNT:
                    continue
            raise ProtocolError("a handled frame holds what is no call of a handler")


@dataclass(frozen=True, slots=True)
class Ask(Message):
    """Broker, to a worker: a question. Answered by one Answer with the same `id`."""

    kind: ClassVar[Kind] = Kind.ASK
    id: int
    """0: no answer is waited for."""
    what: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Answer(Message):
    """Worker: the answer to an Ask; null where it does not know the question."""

    kind: ClassVar[Kind] = Kind.ANSWER
    id: int
    data: Any


@dataclass(frozen=True, slots=True)
class Challenge(Message):
    """Client, instead of a hello where there is a token: prove that you have it. Broker, as the answer: you too.

    See protocol/handshake.py.
    """

    kind: ClassVar[Kind] = Kind.CHALLENGE
    nonce: str
    """32 random bytes in hexadecimal."""

    @classmethod
    def of(cls, nonce: bytes) -> Self:
        return cls(nonce.hex())

    def nonce_bytes(self) -> bytes:
        """Raises ProtocolError unless it is what it should be."""
        return _bytes_32(self.nonce, "a challenge without a nonce")


@dataclass(frozen=True, slots=True)
class Proof(Message):
    """Client, and then the broker: the proof that it has the token. The client's hello follows."""

    kind: ClassVar[Kind] = Kind.PROOF
    mac: str
    """The HMAC in hexadecimal."""

    @classmethod
    def of(cls, mac: bytes) -> Self:
        return cls(mac.hex())

    def mac_bytes(self) -> bytes:
        """Raises ProtocolError unless it is what it should be."""
        return _bytes_32(self.mac, "a proof without an HMAC")


def _check_row(row: Any, limits: tuple[int, ...], otherwise: str) -> None:
    if (
        type(row) is not list
        or len(row) != len(limits)
        or not all(type(number) is int and 0 <= number <= most for number, most in zip(row, limits, strict=True))
    ):
        raise ProtocolError(otherwise)


def _bytes_32(text: str, otherwise: str) -> bytes:
    if not _HEX_32.fullmatch(text):
        raise ProtocolError(otherwise)
    return bytes.fromhex(text)


@dataclass(frozen=True, slots=True)
class Output(Message):
    """Worker: what a script of an operator's wrote. One for a turn of its loop; `lost` is how many characters are left
    out."""

    kind: ClassVar[Kind] = Kind.OUTPUT
    script: str
    text: str
    lost: int
