"""The rules of one client: what it posts, what it gets, what it has handled, and what it tells the broker of that.

Knows no connection, no thread and no handler being called. The owner feeds it frames and takes deliveries to dispatch,
acks and frames to send. All state of an attachment is here; all transitions are in `connected`, `receive`, `leave` and
`disconnected`:

DETACHED --connected--> GREETING --Welcome--> ATTACHED --leave--> LEAVING --Goodbye--> DRAINED
    ^                       |                     |                  |                    |
    +------------------- disconnected <-----------+------------------+--------------------+

With a token, PROVING comes before GREETING: the hello is sent when the broker has proven that it has the token too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any

from eventsh.core.delivery import Delivery, decode_runs
from eventsh.core.questions import SCRIPT_REQUESTS, answer_question
from eventsh.core.standing import SLOT_HOLDER, Standing
from eventsh.core.trace import Trace, Wait
from eventsh.errors import ProtocolError, QueueOverflow
from eventsh.escape import expressible
from eventsh.event import LIFECYCLE_SOURCE, check_name
from eventsh.protocol.frame import (
    HEADER,
    HEADER_BYTES,
    KIND_OFFSET,
    PROTOCOL_VERSION,
    Flag,
    Kind,
    encode_frame,
    read_key,
)
from eventsh.protocol.messages import (
    Answer,
    Ask,
    Challenge,
    Error,
    Gap,
    Goodbye,
    Handled,
    Hello,
    Message,
    Output,
    Proof,
    Receipt,
    Reply,
    Report,
    Request,
    Taken,
    Welcome,
)

if TYPE_CHECKING:
    from eventsh.core.outbox import Outbox
    from eventsh.core.proof import ClientProof
    from eventsh.core.registry import Registry

__all__ = ["Session", "SessionState"]

# Of how many posters a worker remembers what it has, to drop what is sent again after a broker's death. Only posters
# whose batches are unconfirmed at that moment matter, so this is generous; some 10 MiB full.
_REMEMBERED = 65536

# Of how many unique events, and how long all their keys may be: what a new broker is told of them fits into a frame.
_REMEMBERED_UNIQUES = 16384
_REMEMBERED_KEY_BYTES = 2 * 1024 * 1024
# Of one script in one turn. An operator's queue of 10,240 of them stays small.
_MAX_OUTPUT_CHARS = 4000
# A hello has to fit into what a broker accepts before it.
_MAX_HELLO_SLOTS = 8192

# An event's number is a u64, and so is that of an ack.
_MAX_SEQ = 2**64 - 1

_EVENTS, _CONFIRM = int(Kind.EVENTS), int(Kind.CONFIRM)
_FIRST_KINDS = (Kind.WELCOME, Kind.ERROR, Kind.CHALLENGE, Kind.PROOF)
_DECODERS: dict[int, Callable[[bytearray], Message]] = {
    Kind.WELCOME: Welcome.decode,
    Kind.GAP: Gap.decode,
    Kind.REPLY: Reply.decode,
    Kind.ERROR: Error.decode,
    Kind.GOODBYE: Goodbye.decode,
    Kind.RECEIPT: Receipt.decode,
    Kind.TAKEN: Taken.decode,
    Kind.HANDLED: Handled.decode,
    Kind.ASK: Ask.decode,
    Kind.CHALLENGE: Challenge.decode,
    Kind.PROOF: Proof.decode,
}


class SessionState(Enum):
    """Where a client stands with its broker."""

    DETACHED = "detached"
    PROVING = "proving"
    GREETING = "greeting"
    ATTACHED = "attached"
    LEAVING = "leaving"
    DRAINED = "drained"


_UNWELCOMED = (SessionState.DETACHED, SessionState.PROVING, SessionState.GREETING)


class Session:
    """One client's side of an attachment, over any number of connections and brokers."""

    def __init__(
        self,
        outbox: Outbox,
        registry: Registry,
        *,
        identity: str,
        role: str = "worker",
        worker_id: int | None = None,
        take_unique: bool = True,
        max_queue_len: int = 10240,
        timeout_s: float = 5.0,
        reads_whole: bool = False,
        host: str = "",
    ) -> None:
        self.outbox = outbox
        self.state = SessionState.DETACHED
        self._host = host
        self.identity = identity
        self.role = role
        self.worker_id = worker_id
        self.take_unique = take_unique
        self.max_queue_len = max_queue_len
        self.timeout_s = timeout_s
        self.epoch = 0
        # The last seq that arrived, and the last up to which every handler has returned.
        self.received = 0
        self.handled = 0
        self._standing = Standing()
        self.gaps = 0
        self.missed = 0
        self.last_gap: dict[str, Any] = {}
        # Posts whose handlers the owner waits for, by number. It puts them in and takes them out.
        self.waits: dict[int, Wait] = {}
        self._registry = registry
        # Give frames as they came, for a recorder.
        self._reads_whole = reads_whole
        # The worker slots that are held: what a new broker has to know when this one dies.
        self._slots: set[int] = set()
        # What the broker knows of `received` and `handled`.
        self._acked = (0, 0)
        self._inbox: deque[tuple[int, bytearray | memoryview] | Delivery] = deque()
        # Deliveries that were given out and whose handlers have not all returned, in their order.
        self._open: deque[Delivery] = deque()
        # Deliveries of an earlier epoch whose handlers have not returned: nobody can be told when they do.
        self._stale = 0
        self._seen: dict[int, int] = {}
        # The key of each unique event, and when the broker stamped it: a new broker has to know.
        self._uniques_seen: dict[tuple[int, int], tuple[bytes, int]] = {}
        self._key_bytes = 0
        # The last epoch whose broker knows of them, which is the one that gave them out or one that was told.
        self._told = 0
        # Events wait for the first handler: a program that calls configure() and then register() must not lose what
        # arrives between the two. Not for ever, for a program may want to post only.
        self._holding = True
        self.hold_until: float | None = None
        self._held_events = 0
        # Counted in and out apart, for local events are posted in other threads than the one that handles them.
        self._local_in = 0
        self._local_out = 0
        self._control: list[bytearray] = []
        # Makes the proof of each connection, where there is a token; what is to be sent before the welcome.
        self.new_proof: Callable[[], ClientProof] | None = None
        self._proof: ClientProof | None = None
        self._greeting: list[bytearray] = []
        self._next_request = 1
        # What each script has written and nobody was told yet, and how much more it was.
        self._outputs: dict[str, tuple[str, int]] = {}
        self._failed = 0
        self._last_failure: dict[str, str] = {}

    # --- attaching ---

    def connected(self) -> bytearray:
        """A connection is open: what to send on it first, a Hello, or a Challenge where there is a token."""
        if self.new_proof is None:
            return self._greet()
        self.state = SessionState.PROVING
        self._proof = self.new_proof()
        return self._proof.begin().encode()

    def _greet(self) -> bytearray:
        self.state = SessionState.GREETING
        self._acked = (self.received, self.handled)
        hello = Hello(
            identity=self.identity,
            origin=self.outbox.origin,
            pid=self.outbox.pid,
            role=self.role,
            worker_id=self.worker_id,
            take_unique=self.take_unique,
            epoch=self.epoch,
            received=self.received,
            handled=self.handled,
            slots=sorted(self._slots)[:_MAX_HELLO_SLOTS],
            tells=bool(self._uniques_seen),
            told=self._told,
            host=self._host,
            places=self._standing.places(self.epoch),
            vacant=self._standing.vacant,
        )
        return hello.encode()

    def disconnected(self) -> None:
        """The connection is gone. What was posted and not confirmed will be sent again on the next one."""
        self.state = SessionState.DETACHED
        self.outbox.rewind()
        self._control.clear()
        self._proof = None
        self._greeting.clear()
        self._outputs.clear()

    def leave(self, *, leave: bool = True) -> None:
        """Ask for no more events. When the state is DRAINED and `is_idle`, everything that was given is handled."""
        if self.state is SessionState.ATTACHED:
            self._control.append(Goodbye(leave).encode())
            self.state = SessionState.LEAVING

    def request(self, what: str, arguments: dict[str, Any]) -> int:
        """Ask the broker something; the Reply carries the number that this returns."""
        number = self._next_request
        self._next_request += 1
        self._control.append(Request(number, what, arguments).encode())
        return number

    def answer(self, number: int, data: Any) -> None:
        """Answer an Ask."""
        self._control.append(Answer(number, data).encode())

    def write_output(self, script: str, text: str) -> bool:
        """A script wrote something: of what it writes in a turn of the loop, the first part is told. True if nothing was
        waiting to be told."""
        is_first = not self._outputs
        written, lost = self._outputs.get(script, ("", 0))
        room = max(_MAX_OUTPUT_CHARS - len(written), 0)
        self._outputs[script] = (written + text[:room], lost + max(len(text) - room, 0))
        return is_first

    # --- frames in ---

    def receive(self, frames: Sequence[bytearray | memoryview]) -> list[Message]:
        """Take frames from the broker; give the messages that the owner must act on. Raises ProtocolError, and
        AuthenticationError if it can't prove that it has the token.

        Frames of events are kept until they are handled. Views are good only while the connection is there: the owner
        calls `keep_frames` at its end."""
        messages: list[Message] = []
        for frame in frames:
            kind = frame[KIND_OFFSET]
            if kind not in _FIRST_KINDS and self.state in _UNWELCOMED:
                raise ProtocolError(f"a frame of kind {kind} came before the welcome")
            if kind == _EVENTS:
                self._take_events(frame)
            elif kind == _CONFIRM:
                self._take_confirm(frame)
            elif kind in _DECODERS:
                message = _DECODERS[kind](bytearray(frame))
                self._take_message(message)
                messages.append(message)
            elif kind == Kind.PING:
                self._control.append(encode_frame(Kind.PONG))
            elif kind != Kind.PONG:
                raise ProtocolError(f"a broker does not send frames of kind {kind}")
        return messages

    def keep_frames(self) -> None:
        """Copy what waits and is only a view of memory that is about to go. In the thread that takes deliveries."""
        inbox = self._inbox
        # In place, for other threads may append at the end meanwhile.
        for place, item in enumerate(list(inbox)):
            if type(item) is tuple and isinstance(item[1], memoryview):
                inbox[place] = (item[0], bytearray(item[1]))

    def _take_events(self, frame: bytearray | memoryview) -> None:
        _, _, flags, count, pid, origin, number, seq, time_ns = HEADER.unpack_from(frame)
        if seq <= self.received or not count or seq + count > _MAX_SEQ:
            raise ProtocolError(f"event {seq} (of {count}) came after event {self.received}")
        self.received = last = seq + count - 1
        if not origin:
            self._note_workers(frame)
        elif not flags & Flag.UNIQUE:
            self._standing.posts += count
        if flags and self._is_repeat(flags, origin, number, time_ns, frame):
            # Passed on empty, so that it is acknowledged in its turn.
            self._inbox.append(Delivery(last, 0, pid, [], epoch=self.epoch))
            return
        if not flags & Flag.UNIQUE:
            # A later batch can't carry a lower number but after a broker's death, and then it is marked as resent.
            # Taken out first, so that the posters heard last are at the end and the oldest is forgotten.
            seen = self._seen
            seen.pop(origin, None)
            seen[origin] = number + count - 1
            if len(seen) > _REMEMBERED:
                del seen[next(iter(seen))]
        self._held_events += count
        self._inbox.append((self.epoch, frame))

    def _note_workers(self, frame: bytearray | memoryview) -> None:
        """Follow in the broker's own events who holds which slot."""
        for _, event, data in decode_runs(memoryview(frame)[HEADER_BYTES:], 1):
            for facts in data:
                match event, facts:
                    case "worker_joined", {"worker_id": int(number)}:
                        self._slots.add(number)
                    case "worker_left", {"worker_id": int(number), "kept": False}:
                        self._slots.discard(number)

    def _is_repeat(self, flags: int, origin: int, number: int, time_ns: int, frame: bytearray | memoryview) -> bool:
        """Whether this process already has this batch, from an earlier broker or before another worker gave it back.

        Only what is marked as resent can be known: origins are random, and a new poster may by chance have the origin
        of one that has left.
        """
        if flags & Flag.UNIQUE:
            known = self._uniques_seen
            if (origin, number) in known and flags & Flag.RESENT:
                return True
            key = read_key(frame)
            forgotten, _ = known.pop((origin, number), (b"", 0))
            known[origin, number] = (key, time_ns)
            self._key_bytes += len(key) - len(forgotten)
            while len(known) > _REMEMBERED_UNIQUES or self._key_bytes > _REMEMBERED_KEY_BYTES:
                self._key_bytes -= len(known.pop(next(iter(known)))[0])
            return False
        return bool(flags & Flag.RESENT) and number <= self._seen.get(origin, 0)

    def _take_confirm(self, frame: bytearray | memoryview) -> None:
        _, _, _, _, _, _, number, posts, _ = HEADER.unpack_from(frame)
        if number > self.outbox.number:
            raise ProtocolError(f"post {number} was confirmed, but the last one was {self.outbox.number}")
        self.outbox.confirm(number)
        self._standing.confirmed = max(self._standing.confirmed, posts)

    def _take_message(self, message: Message) -> None:
        if isinstance(message, Welcome):
            self._take_welcome(message)
        elif isinstance(message, Gap):
            self.received = max(self.received, message.last_seq)
            self._deliver_gap(message)
        elif isinstance(message, Taken):
            self._told = self.epoch
        elif isinstance(message, Goodbye):
            self.state = SessionState.DRAINED
        elif isinstance(message, Ask):
            # Code is the owner's affair: rules run none.
            if message.what == SLOT_HOLDER:
                self._standing.note_holder(message.arguments, self.epoch)
            elif message.what not in SCRIPT_REQUESTS:
                self.answer(message.id, answer_question(message.what, self._registry))
        elif isinstance(message, Receipt | Handled):
            if isinstance(message, Handled):
                message.check()
            if (wait := self.waits.get(message.number)) is not None:
                wait.take(message)
        elif isinstance(message, Challenge | Proof):
            self._prove(message)

    def _prove(self, message: Challenge | Proof) -> None:
        if self._proof is None or self.state is not SessionState.PROVING:
            raise ProtocolError("a handshake that nobody asked for")
        if isinstance(message, Challenge):
            self._greeting.append(self._proof.answer(message).encode())
        else:
            self._proof.check(message)
            self._greeting.append(self._greet())

    def _take_welcome(self, welcome: Welcome) -> None:
        if self.state is not SessionState.GREETING:
            raise ProtocolError("a welcome came that nobody waited for")
        if welcome.version != PROTOCOL_VERSION:
            raise ProtocolError(f"the broker speaks version {welcome.version}, not {PROTOCOL_VERSION}")
        if not 0 <= welcome.seq <= _MAX_SEQ:
            raise ProtocolError(f"a welcome after event {welcome.seq}")
        self.state = SessionState.ATTACHED
        self.worker_id = welcome.worker_id
        self.outbox.window = welcome.max_queue_len
        self.outbox.max_payload_len = min(self.outbox.max_payload_len, welcome.max_payload_len)
        self._slots = set(welcome.slots)
        self._tell(welcome.epoch)
        if welcome.epoch == self.epoch:
            first, missed = self.received + 1, welcome.seq - self.received
            if missed > 0 and not welcome.resumed and self.role != "poster":
                self.received = welcome.seq
                reason = "the slot was given up while this process was away"
                self._deliver_gap(Gap(missed, first, welcome.seq, reason, posts=welcome.posts))
            return
        self._standing.begin(welcome.posts, self.epoch)
        self.epoch = welcome.epoch
        # A new worker's stream starts here, but an old slot's starts with what its last process did not handle.
        start = 0 if welcome.resumed else welcome.seq
        self.received = self.handled = start
        self._acked = (start, start)
        self._stale += sum(not delivery.done for delivery in self._open)
        self._open.clear()

    def _tell(self, epoch: int) -> None:
        """Tell a broker which unique events others before it gave out; again, if the last time it may not have heard."""
        if not self._uniques_seen:
            self._told = epoch
        elif self._told != epoch:
            taken = [[*name, time_ns, key.hex()] for name, (key, time_ns) in self._uniques_seen.items()]
            self._control.append(Taken(taken).encode())

    def _deliver_gap(self, gap: Gap) -> None:
        self._standing.take_gap(gap)
        self.gaps += 1
        self.missed += gap.missed
        first, last = (0, 0) if gap.epoch else (gap.first_seq, gap.last_seq)
        self.last_gap = {
            "missed": gap.missed,
            "first_seq": first,
            "last_seq": last,
            "reason": gap.reason,
            "epoch": gap.epoch or self.epoch,
            "exact": gap.exact,
        }
        runs = [[LIFECYCLE_SOURCE, "gap", [self.last_gap]]]
        self._inbox.append(Delivery(gap.last_seq, 0, None, runs, epoch=self.epoch))

    # --- deliveries out ---

    def post_local(self, source: str, event: str, data: Any) -> None:
        """Put an event into this process's own queue, behind what has arrived. Raises QueueOverflow, UsageError."""
        check_name(source, "source")
        check_name(event, "event")
        if self.local_queued >= self.max_queue_len:
            raise QueueOverflow(self.local_queued, self.max_queue_len, queue="local")
        self._local_in += 1
        self._inbox.append(Delivery(0, 1, None, [[source, event, [data]]]))

    @property
    def local_queued(self) -> int:
        """How many local events have not been handled."""
        return self._local_in - self._local_out

    def post_first(self, source: str, event: str, data: Any) -> None:
        """Put an event of eventsh's own before everything that waits."""
        self._local_in += 1
        self._inbox.appendleft(Delivery(0, 1, None, [[source, event, [data]]]))

    def release(self) -> None:
        """Stop waiting for a first handler."""
        self._holding = False

    def next_delivery(self, now: float) -> Delivery | None:
        """The next delivery to dispatch, or None. Each must be given back to `complete` once its handlers returned.

        Raises ProtocolError for a batch that can't be decoded; the batch then counts as handled.
        """
        if not self._inbox or (self._holding and self._holds(now)):
            return None
        item = self._inbox.popleft()
        if type(item) is tuple:
            return self._open_batch(*item)
        assert isinstance(item, Delivery)
        if item.last_seq:
            self._give_out(item)
        return item

    def _give_out(self, delivery: Delivery) -> None:
        if delivery.epoch == self.epoch:
            self._open.append(delivery)
        else:
            self._stale += 1

    def _holds(self, now: float) -> bool:
        if self.hold_until is None:
            self.hold_until = now + self.timeout_s
        self._holding = (
            not self._registry.ever_registered
            and now < self.hold_until
            # A sleeping giant of a queue would make the broker wait for this worker.
            and self._held_events < self.max_queue_len // 2
        )
        return self._holding

    def _open_batch(self, epoch: int, frame: bytearray | memoryview) -> Delivery:
        _, _, flags, count, pid, origin, number, seq, time_ns = HEADER.unpack_from(frame)
        self._held_events -= count
        delivery = Delivery(seq + count - 1, count, pid, [], epoch=epoch, first_seq=seq, time_ns=time_ns)
        self._give_out(delivery)
        if self._reads_whole:
            delivery.frame = bytearray(frame) if isinstance(frame, memoryview) else frame
            return delivery
        delivery.is_replayed = bool(flags & Flag.REPLAYED)
        start = HEADER_BYTES
        if flags & Flag.UNIQUE:
            delivery.is_unique = True
            start += 2 + len(read_key(frame))
        if flags & Flag.TRACE and (delivery.is_unique or self.role == "worker"):
            delivery.trace = Trace(origin, number)
        try:
            delivery.runs = decode_runs(memoryview(frame)[start:], count)
        except ProtocolError:
            self.complete(delivery)
            raise
        return delivery

    def complete(self, delivery: Delivery) -> None:
        """Every handler of this delivery has returned."""
        if not delivery.last_seq:
            self._local_out += 1
            return
        if delivery.trace is not None:
            self._control.append(delivery.trace.answer().encode())
        delivery.done = True
        if delivery.epoch != self.epoch:
            self._stale -= 1
            return
        waiting = self._open
        while waiting and waiting[0].done:
            self.handled = waiting.popleft().last_seq

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits for its handlers, or for them to return."""
        return not self._inbox and not self._open and not self._stale

    @property
    def has_work(self) -> bool:
        """Whether `next_delivery` may have something."""
        return bool(self._inbox)

    # --- frames out ---

    def report_failure(self, failure: dict[str, str]) -> None:
        """A handler failed; the broker counts it and tells observers."""
        self._failed += 1
        # Whatever the text of an exception quotes, it must not keep this process from sending.
        self._last_failure = {name: expressible(text) for name, text in failure.items()}

    def take_ack(self) -> bytearray | None:
        """The Ack to send now, or None when the broker already knows everything."""
        state = (self.received, self.handled)
        if state == self._acked or self.state in _UNWELCOMED:
            return None
        self._acked = state
        return encode_frame(Kind.ACK, seq=self.received, origin_seq=self.handled)

    @property
    def unacked_handled(self) -> int:
        """How far the last ack lags behind what has been handled."""
        return self.handled - self._acked[1]

    @property
    def unacked_received(self) -> int:
        """How far the last ack lags behind what has arrived."""
        return self.received - self._acked[0]

    def take_output(self, *, patient: bool = False) -> list[bytearray]:
        """Every frame that may leave now, but the ack. `patient` is for `Outbox.take`."""
        if self.state in _UNWELCOMED:
            greeting, self._greeting = self._greeting, []
            return greeting
        # What is told behind them has to stay behind them.
        frames = self.outbox.take(patient=patient and not self._control and not self._failed and not self._outputs)
        if self._outputs:
            # Before the answer that the event is handled: who waits for that has seen what it made handlers write.
            frames += [Output(script, text, lost).encode() for script, (text, lost) in self._outputs.items()]
            self._outputs.clear()
        if self._failed:
            frames.append(Report(self._failed, self._last_failure).encode())
            self._failed = 0
        if self._control:
            # A goodbye follows the posts that were made before it.
            frames += self._control
            self._control.clear()
        return frames
