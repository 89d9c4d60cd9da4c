"""The rules of one client: what it posts, what it gets, what it has handled, and what it tells the broker of that.

Knows no connection, no thread and no handler being called. The owner feeds it frames, takes deliveries to dispatch from
its inbox, and acks and frames to send. All state of an attachment is here; all transitions are in `connected`,
`receive`, `leave` and `disconnected`:

DETACHED --connected--> GREETING --Welcome--> ATTACHED --leave--> LEAVING --Goodbye--> DRAINED
    ^                       |                     |                  |                    |
    +------------------- disconnected <-----------+------------------+--------------------+

With a token, PROVING comes before GREETING: the hello is sent when the broker has proven that it has the token too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple

from eventsh.core.delivery import Delivery, UnknownForm, decode_runs
from eventsh.core.inbox import Inbox
from eventsh.core.memory import REMEMBERED, Memory
from eventsh.core.questions import SCRIPT_REQUESTS, answer_question
from eventsh.core.standing import SLOT_HOLDER, Standing
from eventsh.errors import ProtocolError
from eventsh.escape import expressible
from eventsh.event import LIFECYCLE_SOURCE
from eventsh.protocol.features import FEATURES, UNREADABLE_GAP, readable_flags
from eventsh.protocol.frame import (
    HEADER,
    HEADER_BYTES,
    KIND_OFFSET,
    PROTOCOL_VERSION,
    Flag,
    Kind,
    encode_frame,
)
from eventsh.protocol.messages import (
    MAX_COUNT,
    MAX_REASON_CHARS,
    Answer,
    Ask,
    Challenge,
    Error,
    Features,
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

__all__ = ["NewGap", "Session", "SessionState"]

# Of one script in one turn. An operator's queue of 10,240 of them stays small.
_MAX_OUTPUT_CHARS = 4000
# A hello has to fit into what a broker accepts before it: with all numbers twice, and 128 of them a third time.
_MAX_HELLO_SLOTS = 4096

# Posters of unreadable batches that one report names. More of them are named by the next one.
_MAX_BAD_POSTERS = 64
# Posters whose unreadable batches are in the log already. Origins are random, so a peer can invent any number of them.
_REMEMBERED_BAD_POSTERS = 1024

_EVENTS, _CONFIRM = int(Kind.EVENTS), int(Kind.CONFIRM)
_FIRST_KINDS = (Kind.WELCOME, Kind.ERROR, Kind.CHALLENGE, Kind.PROOF)
_DECODERS: dict[int, Callable[[bytearray], Message]] = {
    Kind.WELCOME: Welcome.decode,
    Kind.FEATURES: Features.decode,
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


class NewGap(NamedTuple):
    """A gap that the owner has still to report: the data of its event, and its line for the log, "" if the log has one."""

    data: dict[str, Any]
    notice: str


class Session:
    """One client's side of an attachment, over any number of connections and brokers. `clock` gives monotonic seconds."""

    def __init__(
        self,
        outbox: Outbox,
        registry: Registry,
        *,
        identity: str,
        clock: Callable[[], float],
        role: str = "worker",
        worker_id: int | None = None,
        take_unique: bool = True,
        max_queue_len: int = 10240,
        timeout_s: float = 5.0,
        reads_whole: bool = False,
        host: str = "",
        features: frozenset[str] = FEATURES,
    ) -> None:
        self.outbox = outbox
        self.state = SessionState.DETACHED
        self._host = host
        self.identity = identity
        self.role = role
        self.ask_for_slot(worker_id)
        self.take_unique = take_unique
        # The last seq that arrived.
        self.received = 0
        self._standing = Standing()
        # The features of the wire that this process knows, those of the broker, and those that the broker and all receivers
        # know: a newer form of a batch may leave only while `all_know` has its feature. Both are empty while detached.
        self._features = features
        self._broker_features: frozenset[str] = frozenset()
        self.all_know: frozenset[str] = frozenset()
        self.gaps = 0
        self.missed = 0
        # Gaps that the owner has not reported yet. It takes them out.
        self.new_gaps: list[NewGap] = []
        # Posts that were emptied because the broker of a later connection can't read their form.
        self.withdrawn = 0
        # What the broker knows of what was received and handled.
        self._acked = (0, 0)
        self._registry = registry
        # What is told behind all that was posted before it.
        self._control: list[bytearray] = []
        self._memory = Memory(clock)
        # What handlers are given, and what they have handled.
        self.inbox = Inbox(
            registry,
            self._control,
            is_worker=role == "worker",
            max_queue_len=max_queue_len,
            timeout_s=timeout_s,
            reads_whole=reads_whole,
            readable=readable_flags(features),
            on_unread=self._take_unread,
            is_handler=outbox.is_handler,
        )
        # Makes the proof of each connection, where there is a token; what is to be sent before the welcome.
        self.new_proof: Callable[[], ClientProof] | None = None
        self._proof: ClientProof | None = None
        self._greeting: list[bytearray] = []
        self._next_request = 1
        # What each script has written and nobody was told yet, and how much more it was.
        self._outputs: dict[str, tuple[str, int]] = {}
        self._failed = 0
        self._last_failure: dict[str, str] = {}
        # Events of this epoch that could not be read, and how many of them were reported on this connection.
        self._unread = self._unread_reported = 0
        # Posters that wrote an unreadable batch, for the next report: by origin the number of the last one and the reason.
        self._bad: dict[int, tuple[int, str]] = {}
        self._bad_logged: dict[int, None] = {}

    def ask_for_slot(self, worker_id: int | None) -> None:
        """Ask for the slot with this number at the next attach; None: any."""
        # Of a broker's choice once there is one, and asked for again to resume.
        self.worker_id = worker_id
        self.wants_any_slot = worker_id is None

    def become(self, role: str) -> None:
        """Be a worker, an observer or a poster, from the next connection on."""
        self.role = role
        self.inbox.set_role(is_worker=role == "worker")

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
        # Here and not where the connection ended: that may have been interrupted.
        self.outbox.rewind()
        self._acked = (self.received, self.inbox.handled)
        # The last report may have been lost with the connection before.
        self._unread_reported = 0
        hello = Hello(
            identity=self.identity,
            origin=self.outbox.origin,
            pid=self.outbox.pid,
            role=self.role,
            worker_id=self.worker_id,
            take_unique=self.take_unique,
            epoch=self.inbox.epoch,
            received=self.received,
            handled=self.inbox.handled,
            slots=self._standing.slots[:_MAX_HELLO_SLOTS],
            tells=self._memory.has_uniques,
            told=self._memory.told,
            host=self._host,
            places=self._standing.places(self.inbox.epoch),
            vacant=self._standing.vacant,
            unsure=self._standing.unsure,
            features=sorted(self._features),
            assigned=self.wants_any_slot and self.worker_id is not None,
            assigned_slots=self._standing.assigned_slots[:_MAX_HELLO_SLOTS],
            left_slots=self._standing.left_slots,
        )
        return hello.encode()

    def disconnected(self) -> None:
        """The connection is gone. What was posted and not confirmed will be sent again on the next one."""
        self.state = SessionState.DETACHED
        self._broker_features = self.all_know = frozenset()
        self._control.clear()
        self._proof = None
        self._greeting.clear()
        self._outputs.clear()

    def leave(self, *, leave: bool = True) -> None:
        """Ask for no more events. When the state is DRAINED and its inbox `is_idle`, everything that was given is handled."""
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
        calls `keep_frames` of the inbox at its end."""
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

    def _take_events(self, frame: bytearray | memoryview) -> None:
        _, _, flags, count, pid, origin, number, seq, _ = HEADER.unpack_from(frame)
        if seq <= self.received or not count or seq + count > MAX_COUNT:
            raise ProtocolError(f"event {seq} (of {count}) came after event {self.received}")
        last = seq + count - 1
        inbox = self.inbox
        is_repeat = flags and self._memory.is_repeat(flags, origin, number)
        # Passed on empty, so that it is acknowledged in its turn.
        item = Delivery(last, 0, pid, [], epoch=inbox.epoch) if is_repeat else (inbox.epoch, frame)
        posts = self._standing.posts + (count if origin and not flags & Flag.UNIQUE else 0)
        try:
            # This is what receives the batch. An exception before it loses the connection, and the broker sends the batch
            # again; after it, the notes below must be made.
            inbox.waiting.append(item)
            self._note_events(frame, last, posts, is_repeat)
        except BaseException:
            if any(kept is item for kept in list(inbox.waiting)):
                self._note_events(frame, last, posts, is_repeat)
                self._memory.recount()
            raise

    def _note_events(self, frame: bytearray | memoryview, last: int, posts: int, is_repeat: int | bool) -> None:
        """Note that a batch was received. Repeating the call changes nothing."""
        _, _, flags, count, _, origin, number, _, time_ns = HEADER.unpack_from(frame)
        self.received = last
        self._standing.reach(posts)
        if not origin:
            self._note_workers(frame)
        elif is_repeat:
            return
        elif flags & Flag.UNIQUE:
            # A key that can't be read: the inbox reports it in its place. To end the connection would bring it again.
            with contextlib.suppress(ProtocolError):
                self._memory.note_unique(origin, number, time_ns, frame)
        else:
            # A later batch can't carry a lower number but after a broker's death, and then it is marked as resent.
            # Taken out first, so that the posters heard last are at the end and the oldest is forgotten.
            seen = self._memory.seen
            seen.pop(origin, None)
            seen[origin] = number + count - 1
            if len(seen) > REMEMBERED:
                del seen[next(iter(seen))]

    def _note_workers(self, frame: bytearray | memoryview) -> None:
        """Follow in the broker's own events who holds which slot."""
        try:
            runs = decode_runs(memoryview(frame)[HEADER_BYTES:], 1, is_own=True)
        except ProtocolError:
            # A newer form. The inbox reports it in its place.
            return
        for _, event, data in runs:
            for facts in data:
                self._standing.note_worker(event, facts)

    def _take_confirm(self, frame: bytearray | memoryview) -> None:
        _, _, _, _, _, _, number, posts, _ = HEADER.unpack_from(frame)
        if number > self.outbox.numbered:
            raise ProtocolError(f"post {number} was confirmed, but the last one was {self.outbox.numbered}")
        if posts > MAX_COUNT:
            # The next hello repeats it, and a broker would refuse that.
            raise ProtocolError(f"{posts} posts were confirmed, over the limit of {MAX_COUNT}")
        self.outbox.confirm(number)
        self._standing.confirm(posts)

    def _take_message(self, message: Message) -> None:
        if isinstance(message, Welcome):
            self._take_welcome(message)
        elif isinstance(message, Gap):
            self._deliver_gap(message)
        elif isinstance(message, Features):
            message.check()
            self.all_know = frozenset(message.all_know)
        elif isinstance(message, Taken):
            self._memory.note_told(self.inbox.epoch)
        elif isinstance(message, Goodbye):
            self.state = SessionState.DRAINED
        elif isinstance(message, Ask):
            # Code is the owner's affair: rules run none.
            if message.what == SLOT_HOLDER:
                self._standing.note_holder(message.arguments, self.inbox.epoch)
            elif message.what not in SCRIPT_REQUESTS:
                self.answer(message.id, answer_question(message.what, self._registry))
        elif isinstance(message, Receipt | Handled):
            if isinstance(message, Handled):
                message.check()
            if (wait := self.outbox.waits.get(message.number)) is not None:
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
        welcome.check()
        self.state = SessionState.ATTACHED
        self._broker_features = frozenset(welcome.features)
        self.worker_id = welcome.worker_id
        self.outbox.keep_to(welcome)
        # Posted while another broker was there, or none.
        self.withdrawn += self.outbox.withdraw(readable_flags(self._broker_features))
        self._standing.begin_slots(welcome.slots, welcome.assigned_slots)
        if (taken := self._memory.tell(welcome.epoch)) is not None:
            self._control.append(taken.encode())
        if welcome.epoch == self.inbox.epoch:
            first, missed = self.received + 1, welcome.seq - self.received
            if missed > 0 and not welcome.resumed and self.role != "poster":
                reason = "the slot was given up while this process was away"
                self._deliver_gap(Gap(missed, first, welcome.seq, reason, posts=welcome.posts))
            return
        before, place = self.inbox.epoch, self._standing.place
        try:
            self._begin_epoch(welcome, before, place)
        except BaseException:
            # Half of it would make the next hello wrong.
            self._begin_epoch(welcome, before, place)
            raise

    def _begin_epoch(self, welcome: Welcome, before: int, place: tuple[int, int]) -> None:
        """Begin the epoch of a new broker. Repeating the call changes nothing."""
        self._standing.begin(welcome.posts, before, place)
        # A new worker's stream starts here, but an old slot's starts with what its last process did not handle.
        start = 0 if welcome.resumed else welcome.seq
        self.received = start
        self.inbox.begin(welcome.epoch, start)
        self._unread = 0
        self._acked = (start, start)

    def _deliver_gap(self, gap: Gap) -> None:
        first, last = (0, 0) if gap.epoch else (gap.first_seq, gap.last_seq)
        data = self._gap_data(gap.missed, first, last, gap.reason, gap.epoch or self.inbox.epoch, exact=gap.exact)
        runs = [[LIFECYCLE_SOURCE, "gap", [data]]]
        delivery = Delivery(gap.last_seq, 0, None, runs, epoch=self.inbox.epoch)
        counts = (self.gaps + 1, self.missed + gap.missed)
        try:
            # As for events: this is what receives the gap.
            self.inbox.waiting.append(delivery)
            self._note_gap(gap, data, counts)
        except BaseException:
            if any(kept is delivery for kept in list(self.inbox.waiting)):
                self._note_gap(gap, data, counts)
            raise

    def _note_gap(self, gap: Gap, data: dict[str, Any], counts: tuple[int, int]) -> None:
        """Note that a gap was received. Repeating the call changes nothing."""
        self.received = max(self.received, gap.last_seq)
        self._standing.take_gap(gap)
        missed = gap.missed if gap.exact else "an unknown number of"
        self._count_gap(NewGap(data, f"missed {missed} events: {gap.reason}"), counts)

    def _count_gap(self, gap: NewGap, counts: tuple[int, int]) -> None:
        self.gaps, self.missed = counts
        if not any(known.data is gap.data for known in self.new_gaps):
            self.new_gaps.append(gap)

    def _take_unread(self, epoch: int, frame: bytearray | memoryview, error: ProtocolError) -> dict[str, Any]:
        """Count a batch that can't be read, and return the data of the gap that handlers get in its place."""
        _, _, _, count, pid, origin, number, seq, _ = HEADER.unpack_from(frame)
        data = self._gap_data(count, seq, seq + count - 1, str(error), epoch, exact=True)
        notice = ""
        if origin not in self._bad_logged:
            # One line for each poster: one that never writes a readable batch must not fill the log of every worker.
            if len(self._bad_logged) >= _REMEMBERED_BAD_POSTERS:
                del self._bad_logged[next(iter(self._bad_logged))]
            self._bad_logged[origin] = None
            who = f"the process with pid {pid} (origin {origin})" if origin else "the broker itself"
            notice = f"missed {count} events: {error}; {who} posted them, and its next such batches are not logged"
        if origin and not isinstance(error, UnknownForm) and len(self._bad) < _MAX_BAD_POSTERS:
            self._bad[origin] = (number, str(error)[:MAX_REASON_CHARS])
        self._unread += count
        self._count_gap(NewGap(data, notice), (self.gaps + 1, self.missed + count))
        return data

    def _gap_data(
        self, missed: int, first_seq: int, last_seq: int, reason: str, epoch: int, *, exact: bool
    ) -> dict[str, Any]:
        return {
            "missed": missed,
            "first_seq": first_seq,
            "last_seq": last_seq,
            "reason": reason,
            "epoch": epoch,
            "exact": exact,
        }

    # --- frames out ---

    def report_failure(self, failure: dict[str, str]) -> None:
        """A handler failed; the broker counts it and tells observers."""
        self._failed += 1
        # Whatever the text of an exception quotes, it must not keep this process from sending.
        self._last_failure = {name: expressible(text) for name, text in failure.items()}

    def take_ack(self) -> bytearray | None:
        """The Ack to send now, or None when the broker already knows everything."""
        state = (self.received, self.inbox.handled)
        if state == self._acked or self.state in _UNWELCOMED:
            return None
        self._acked = state
        return encode_frame(Kind.ACK, seq=self.received, origin_seq=self.inbox.handled)

    def forget_ack(self) -> None:
        """Have the next `take_ack` return an ack in any case: it is not known whether the last one was sent."""
        self._acked = (0, 0)

    @property
    def unacked_handled(self) -> int:
        """How far the last ack lags behind what has been handled."""
        return self.inbox.handled - self._acked[1]

    @property
    def unacked_received(self) -> int:
        """How far the last ack lags behind what has arrived."""
        return self.received - self._acked[0]

    def take_output(self, *, linger: bool = False) -> list[bytearray]:
        """Every frame that may leave now, but the ack. `linger` is for `Outbox.take`."""
        if self.state in _UNWELCOMED:
            greeting, self._greeting = self._greeting, []
            return greeting
        # What is told behind them has to stay behind them.
        reports = self._failed or (self._unread != self._unread_reported and UNREADABLE_GAP in self._broker_features)
        frames = self.outbox.take(linger=linger and not self._control and not reports and not self._outputs)
        if self._outputs:
            # Before the answer that the event is handled: who waits for that has seen what it made handlers write.
            frames += [Output(script, text, lost).encode() for script, (text, lost) in self._outputs.items()]
            self._outputs.clear()
        if reports:
            # With no failure in it, a broker of the first version would end the connection.
            bad = [[origin, number, reason] for origin, (number, reason) in self._bad.items()]
            frames.append(Report(self._failed, self._last_failure if self._failed else {}, self._unread, bad).encode())
            self._failed, self._unread_reported = 0, self._unread
            self._bad.clear()
        if self._control:
            # A goodbye follows the posts that were made before it.
            frames += self._control
            self._control.clear()
        return frames
