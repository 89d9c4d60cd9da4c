"""Records of the broker's state, and the table of the states of a slot.

Each record owns its fields: other parts of the broker read them and call its methods, and a test keeps it so. A slot
changes its state by `Slot.transition` alone, which refuses what TRANSITIONS does not list.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from eventsh.core.broker.window import window_of
from eventsh.core.queue import Entry
from eventsh.errors import ProtocolError
from eventsh.protocol.features import BYTE_WINDOW, KEPT_UNIQUE, name_flags, readable_flags
from eventsh.protocol.frame import (
    FIRST_FLAGS,
    FLAGS_OFFSET,
    HEADER,
    HEADER_BYTES,
    PRE_HELLO_BODY_BYTES,
    Flag,
    decode_header,
    read_key,
    shorten_key,
)
from eventsh.protocol.messages import Gap, Goodbye

if TYPE_CHECKING:
    from eventsh.core.broker.budget import Budget
    from eventsh.core.broker.outgoing import Outgoing
    from eventsh.core.broker.posters import Posters
    from eventsh.core.broker.slots import SlotTable
    from eventsh.core.broker.window import Window
    from eventsh.core.heartbeat import Heartbeat
    from eventsh.core.proof import BrokerProof
    from eventsh.core.queue import Queue
    from eventsh.options import Options
    from eventsh.protocol.messages import Hello

__all__ = [
    "TRANSITIONS",
    "Absence",
    "BrokerState",
    "ClientConnection",
    "InvalidTransition",
    "Post",
    "Poster",
    "Slot",
    "SlotState",
    "UniqueFate",
]


class SlotState(StrEnum):
    """What a slot does with the events that are queued for it. The values are those of `eventsh status --json`."""

    STARTING = "starting"
    """No process has attached yet; events are queued."""
    RESYNCING = "resyncing"
    """Attached; the broker waits for its list of the unique events that it has from an earlier broker."""
    ATTACHED = "attached"
    """Attached: events are sent as they come."""
    STALLED = "stalled"
    """Attached, but it has received nothing for `timeout`: confirmations do not wait for it."""
    DROPPING = "dropping"
    """Attached, with a queue that stayed full: events are dropped and counted until it has caught up."""
    DRAINING = "draining"
    """It said goodbye and finishes what it has: events are queued for its successor."""
    ABSENT = "absent"
    """Its connection has ended: events are queued for the process that takes the slot next. `Absence` says who may."""


# On the hot path: to look a member up in its class costs 30 ns before Python 3.12.
_ATTACHED, _RESYNCING, _STALLED, _DRAINING = (
    SlotState.ATTACHED,
    SlotState.RESYNCING,
    SlotState.STALLED,
    SlotState.DRAINING,
)
# What an attach leads to. From a state with a connection it is the same process, whose former connection has ended unseen.
_ARRIVALS = frozenset({SlotState.RESYNCING, SlotState.ATTACHED, SlotState.DROPPING})

# All changes of state live here. A state that is set again (an attach over a former connection) restarts its `since`.
TRANSITIONS: dict[SlotState, frozenset[SlotState]] = {
    # Absent: nobody came within `timeout`.
    SlotState.STARTING: _ARRIVALS | {SlotState.ABSENT},
    SlotState.RESYNCING: _ARRIVALS | {SlotState.STALLED, SlotState.DRAINING, SlotState.ABSENT},
    SlotState.ATTACHED: _ARRIVALS | {SlotState.STALLED, SlotState.DRAINING, SlotState.ABSENT},
    SlotState.STALLED: _ARRIVALS | {SlotState.DRAINING, SlotState.ABSENT},
    SlotState.DROPPING: _ARRIVALS | {SlotState.DRAINING, SlotState.ABSENT},
    # Arrivals: the process that said goodbye lost its connection and attached anew before the broker noticed.
    # Again draining: it says goodbye a second time, to keep its slot or to give it up after all.
    SlotState.DRAINING: _ARRIVALS | {SlotState.DRAINING, SlotState.ABSENT},
    SlotState.ABSENT: _ARRIVALS,
}


class Absence(StrEnum):
    """Who may come for a slot without a connection."""

    AWAITED = "awaited"
    """Its process may come back, from a connection that broke or from an earlier broker: posts are not confirmed without
    it, because nobody would have them for it if this broker died before."""
    LAGGING = "lagging"
    """Its process may come back, but it was stalled: nobody waits for it."""
    VACANT = "vacant"
    """There was no process yet, or the last one has ended or said goodbye."""
    EXPIRED = "expired"
    """Nobody came within `timeout`: its queue was dropped."""


class UniqueFate(StrEnum):
    """What became of a unique event. The values are those of a Receipt."""

    GIVEN = "given"
    REPEAT = "repeat"
    NOBODY = "nobody"


class InvalidTransition(Exception):
    """A slot can't go from its state to the one that was asked for: a defect of the broker."""


class ClientConnection:
    """One connection: the frames to be sent on it, and the poster and slot that it is attached as.

    The owner empties `output`; it closes the connection after that when `is_closing` is set, or aborts it when `is_gone`.
    """

    __slots__ = (
        "close_by",
        "features",
        "greeting_bytes",
        "heartbeat",
        "hello_by",
        "host",
        "is_closing",
        "is_gone",
        "is_greeted",
        "is_trusted",
        "key",
        "output",
        "pid",
        "poster",
        "proof",
        "readable",
        "slot",
        "unchecked_bytes",
        "unsent",
        "waits_since",
        "warned_unreadable",
        "window",
    )

    def __init__(
        self,
        key: Any,
        pid: int | None,
        hello_by: float,
        unsent: Callable[[], int],
        *,
        heartbeat: Heartbeat | None = None,
        is_trusted: bool = False,
    ) -> None:
        # By which the owner finds its own object for the connection.
        self.key = key
        # As the transport vouches for it; a hello can't change that. 0: the process runs on another host.
        self.pid = pid
        # Of the process, as its hello says it.
        self.host = ""
        # The features of the wire that its hello names and the broker knows, and the flags of a frame that both can read.
        self.features: frozenset[str] = frozenset()
        self.readable = FIRST_FLAGS
        # Whether a warning was logged that this client gets gaps for frames that it cannot read.
        self.warned_unreadable = False
        # The kernel vouches that it is a process of this user or of root: only such may bring code.
        self.is_trusted = is_trusted
        self.hello_by = hello_by
        # Since when received frames wait for the owner to handle them; None: none do.
        self.waits_since: float | None = None
        self.is_greeted = False
        # Bytes received before the hello was accepted.
        self.greeting_bytes = 0
        # Under way once it has sent a challenge.
        self.proof: BrokerProof | None = None
        # How many bytes of what was sent have not left.
        self.unsent = unsent
        # Bytes sent since the unsent ones were last checked, events aside.
        self.unchecked_bytes = 0
        self.is_closing = False
        # When it is aborted if what was sent has not left by then; known at the first tick after `is_closing`.
        self.close_by: float | None = None
        # Nothing that is sent to it will arrive: the owner aborts the connection.
        self.is_gone = False
        self.heartbeat = heartbeat
        self.output: list[bytearray] = []
        self.slot: Slot | None = None
        self.poster: Poster | None = None
        # What its poster may have under way; known once it is greeted.
        self.window: Window | None = None

    @property
    def label(self) -> str:
        """Name it in a message."""
        if self.slot is not None:
            return self.slot.label
        return f"a client with pid {self.pid}" if self.pid else "a client"

    @property
    def peer(self) -> str:
        """Name it with its pid, for the log."""
        if self.slot is not None and not self.slot.is_observer:
            return f"{self.slot.label} (pid {self.slot.pid})"
        return self.label

    def count_greeting(self, frame: bytearray) -> None:
        """Count a frame that came before the hello was accepted. Raises ProtocolError over the limit."""
        self.greeting_bytes += len(frame) - HEADER_BYTES
        if self.greeting_bytes > PRE_HELLO_BODY_BYTES:
            raise ProtocolError(
                f"{self.greeting_bytes} bytes until the hello are over the limit of {PRE_HELLO_BODY_BYTES}"
            )

    def begin_proof(self, new_proof: Callable[[], BrokerProof]) -> BrokerProof:
        """Begin the handshake by token, or return the one under way."""
        self.proof = self.proof or new_proof()
        return self.proof

    def begin_wait(self, now: float) -> None:
        """Note that received frames wait for their turn. A client whose hello is among them is in time."""
        self.waits_since = now

    def end_wait(self, now: float) -> None:
        """Note that all received frames are handled: the time that they waited does not count against the client."""
        if self.waits_since is not None:
            self.hello_by += now - self.waits_since
            self.waits_since = None

    def is_overdue(self, now: float) -> bool:
        """Whether the client has not said hello in time."""
        return not self.is_greeted and self.waits_since is None and now > self.hello_by

    def identify(self, poster: Poster) -> None:
        """Note the poster whose batches it carries."""
        self.poster = poster

    def greet(self, hello: Hello, features: frozenset[str], options: Options) -> None:
        """Accept its hello. `features` are the broker's."""
        self.is_greeted = True
        self.window = window_of(options, counts_bytes=BYTE_WINDOW in hello.features)
        self.host = hello.host
        self.features = features & frozenset(hello.features)
        self.readable = readable_flags(self.features)

    def attach(self, slot: Slot) -> None:
        self.slot = slot

    def release(self) -> tuple[Poster | None, Slot | None]:
        """Let go of poster and slot, and return them: the connection has ended."""
        poster, slot = self.poster, self.slot
        self.poster = self.slot = None
        return poster, slot

    def release_slot(self) -> None:
        """Let go of the slot: a newer connection of the same process has it."""
        self.slot = None

    def send(self, frame: bytearray) -> None:
        self.output.append(frame)
        self.unchecked_bytes += len(frame)

    def begin_check(self) -> None:
        """Note that the unsent bytes are being looked at."""
        self.unchecked_bytes = 0

    def close(self) -> None:
        self.is_closing = True

    def close_until(self, deadline: float) -> None:
        """Set the time at which a closing connection is aborted."""
        self.close_by = deadline

    def abort(self) -> None:
        self.is_closing = self.is_gone = True

    def note_unreadable(self) -> bool:
        """Note that its process gets a gap for a frame that it can't read; return whether that is new."""
        is_new, self.warned_unreadable = not self.warned_unreadable, True
        return is_new


class Post:
    """One frame of a poster, from its arrival until it is confirmed."""

    __slots__ = (
        "count",
        "first",
        "flags",
        "frame",
        "is_done",
        "is_kept",
        "is_suspect",
        "key",
        "last_seq",
        "position",
        "poster",
        "preferred",
        "size_bytes",
        "targets",
        "unique",
    )

    def __init__(
        self, poster: Poster, first: int, count: int, flags: int, frame: bytearray, *, is_kept: bool = False
    ) -> None:
        # A unique event that an earlier broker confirmed: its key is its own, and nobody waits for its confirmation.
        self.is_kept = is_kept
        self.poster = poster
        self.first = first
        self.count = count
        self.flags = flags
        self.size_bytes = len(frame)
        # Held until it is enqueued, and a unique one until its handlers returned: another worker may have to get it.
        self.frame: bytearray | None = frame
        self.key = _key_of(flags, frame) if flags & Flag.UNIQUE else b""
        # What all live workers must have received; None until it is enqueued, or while a unique one seeks a new worker.
        self.last_seq: int | None = None
        # How many broadcast posts there were with it; 0: it is not one.
        self.position = 0
        self.is_done = False
        # A process ended that had received it and not handled it: it is sent alone from then on.
        self.is_suspect = False
        # For a receipt: the slots that were to get it, and what became of its key.
        self.targets: list[Slot] = []
        self.unique: UniqueFate | None = None
        # The slot that a unique event is for, if it can take it.
        self.preferred = HEADER.unpack_from(frame)[7] - 1 if flags & Flag.UNIQUE and flags & Flag.DIRECTED else None

    def send_again(self, flags: int, frame: bytearray) -> None:
        """Take the frame that its poster sent again in the place of one that was released. Raises ProtocolError."""
        # Read first: a frame that is refused changes nothing.
        key = _key_of(flags, frame) if flags & Flag.UNIQUE else b""
        self.flags, self.frame, self.key, self.size_bytes = flags, frame, key, len(frame)

    def sequence(self, last_seq: int, position: int = 0) -> None:
        """Note its number among all events, and among the broadcast ones."""
        self.last_seq = last_seq
        self.position = position or self.position

    def target(self, slots: Iterable[Slot]) -> None:
        """Note who is to get it."""
        self.targets = list(slots)

    def release_frame(self) -> None:
        """Let go of the frame: the queues have it, or nobody is to get it."""
        self.frame = None

    def defer(self) -> None:
        """Put its confirmation off until another process has it."""
        self.last_seq = None

    def settle_unique(self, fate: UniqueFate) -> None:
        self.unique = fate

    def renew_frame(self) -> None:
        """Copy the frame before it is given to another worker, and mark it as sent again.

        The former frame may still be under way, with its former number. A process that had the event before, was given up and
        came back must know it again."""
        assert self.frame is not None
        self.frame = bytearray(self.frame)
        self.frame[FLAGS_OFFSET] |= Flag.RESENT

    def suspect(self) -> None:
        """Note that it may have killed a process."""
        self.is_suspect = True

    def finish(self) -> None:
        """Note that nothing is to be done with it any more."""
        self.is_done = True


def _key_of(flags: int, frame: bytearray) -> bytes:
    # A newer form may keep its key elsewhere, and must be refused no more than another frame that only receivers can't read:
    # its poster would send it again for ever.
    return shorten_key(read_key(frame)) if flags <= FIRST_FLAGS else b""


# Numbers are u64 on the wire.
_MAX_NUMBER = 1 << 64


class Poster:
    """One origin of events, over all its connections to this broker."""

    __slots__ = (
        "base",
        "confirmed",
        "connection",
        "identity",
        "kept",
        "kept_bytes",
        "kept_events",
        "number",
        "origin",
        "pending",
        "pending_bytes",
        "pending_events",
        "returned",
        "settled",
        "unreadable",
        "unsettled",
    )

    def __init__(self, origin: int, identity: str, confirmed: int = 0) -> None:
        self.origin = origin
        self.identity = identity
        self.connection: ClientConnection | None = None
        # The last number that was accepted, and the last up to which everything is confirmed.
        self.number = confirmed
        self.confirmed = confirmed
        # The last of its batches that a receiver could not read; 0: there was none.
        self.unreadable = 0
        # What earlier brokers confirmed. Unique events up to there are kept ones: the last that was accepted, and how many are
        # not settled.
        self.base = confirmed
        self.kept = 0
        self.kept_events = 0
        self.kept_bytes = 0
        # Unique events by number whose handlers have not returned, and the numbers of settled ones still to be reported.
        self.unsettled: dict[int, Post] = {}
        self.settled: list[int] = []
        self.pending: deque[Post] = deque()
        # Not confirmed and not returned.
        self.pending_events = 0
        self.pending_bytes = 0
        # Posts by their first number that were accepted, could be given to nobody, and are the poster's to send again.
        # They stay in `pending`: nothing after them may be confirmed before they come back.
        self.returned: dict[int, Post] = {}

    def attach(self, connection: ClientConnection) -> None:
        self.connection = connection

    def detach(self, connection: ClientConnection) -> bool:
        """Note the end of a connection; return whether it was the poster's present one."""
        if self.connection is not connection:
            return False
        self.connection = None
        # It sends again what it keeps, and then gets the report.
        self.settled.clear()
        return True

    def note_unreadable(self, number: int) -> None:
        """Note that a receiver could not read a batch of its."""
        self.unreadable = number

    @property
    def is_busy(self) -> bool:
        """Whether posts of it are under way, which a new poster of this origin must not be taken for having."""
        return bool(self.pending_events or self.unsettled)

    def accept(self, frame: bytearray, window: Window) -> Post | None:
        """Accept a frame of this poster; None when it is known already. Raises ProtocolError."""
        _, _, flags, count, _, _, first, _, _ = HEADER.unpack_from(frame)
        if not count or not 0 < first <= _MAX_NUMBER - count:
            raise ProtocolError(f"a batch of {count} events from number {first}")
        if first <= self.number:
            return self._accept_again(first, count, flags, frame, window)
        if self.number and first != self.number + 1:
            raise ProtocolError(f"post {first} came after post {self.number}")
        if flags & (Flag.UNIQUE | Flag.RECEIPT) and count != 1:
            raise ProtocolError(f"a unique event or one with a receipt travels alone, not in a batch of {count}")
        if flags & Flag.TRACE and not flags & Flag.RECEIPT:
            raise ProtocolError("an event with a trace and no receipt")
        window.check(self.pending_events, count, self.pending_bytes)
        post = Post(self, first, count, flags, frame)
        self.number = first + count - 1
        self.pending.append(post)
        self._hold(post)
        return post

    def _accept_again(self, first: int, count: int, flags: int, frame: bytearray, window: Window) -> Post | None:
        post = self.returned.get(first)
        if post is not None:
            post.send_again(flags, frame)
            del self.returned[first]
            self._hold(post)
        elif not flags & Flag.UNIQUE:
            pass
        elif self.kept < first <= self.base:
            # Kept events come in the order of their numbers.
            post = self._accept_kept(first, count, flags, frame, window)
        elif first not in self.unsettled:
            self.settled.append(first)
        return post

    def _accept_kept(self, first: int, count: int, flags: int, frame: bytearray, window: Window) -> Post:
        if count != 1:
            raise ProtocolError(f"a unique event travels alone, not in a batch of {count}")
        window.check(self.kept_events, 1, self.kept_bytes)
        post = Post(self, first, count, flags, frame, is_kept=True)
        self.kept = first
        self._hold(post)
        return post

    def _hold(self, post: Post) -> None:
        """Count a post that was accepted."""
        if post.is_kept:
            self.kept_events += 1
            self.kept_bytes += post.size_bytes
        else:
            self.pending_events += post.count
            self.pending_bytes += post.size_bytes
        if post.flags & Flag.UNIQUE:
            self.unsettled[post.first] = post

    def settle(self, post: Post) -> bool:
        """Note that the handlers of a unique event have returned, or that it is a repeat; return whether to report that."""
        if self.unsettled.pop(post.first, None) is None:
            return False
        if post.is_kept:
            self._release_kept(post)
        if self.connection is None or KEPT_UNIQUE not in self.connection.features:
            return False
        self.settled.append(post.first)
        return True

    def _release_kept(self, post: Post) -> None:
        self.kept_events -= 1
        self.kept_bytes -= post.size_bytes

    def take_settled(self) -> list[tuple[int, int]]:
        """Return the settled events to report, as ranges of numbers."""
        ranges: list[tuple[int, int]] = []
        for number in sorted(self.settled):
            if ranges and number == ranges[-1][1] + 1:
                ranges[-1] = (ranges[-1][0], number)
            else:
                ranges.append((number, number))
        self.settled.clear()
        return ranges

    def confirm(self, post: Post) -> bool:
        """Finish a post; return whether that confirms something to the poster."""
        post.finish()
        if post.is_kept:
            return False
        self.pending_events -= post.count
        self.pending_bytes -= post.size_bytes
        pending = self.pending
        before = self.confirmed
        while pending and pending[0].is_done:
            first = pending.popleft()
            self.confirmed = max(self.confirmed, first.first + first.count - 1)
        return self.confirmed > before

    def take_back(self, post: Post) -> None:
        """Let go of a post that nobody could take; the poster still has it and sends it again if it comes back."""
        post.release_frame()
        if post.is_kept:
            self._release_kept(post)
        else:
            self.pending_events -= post.count
            self.pending_bytes -= post.size_bytes
        self.unsettled.pop(post.first, None)
        self.returned[post.first] = post


# A worker that is a little too slow begins to drop events many times a second, and must not fill the log.
_QUIET_S = 10.0


class Slot:
    """A worker's or an observer's place: its queue, what it has received, and what it missed.

    A worker's slot outlives its process, so that the next one misses nothing. Each slot has its own queue, so a slow receiver
    delays no other for longer than its budget; one shared queue would let one stopped process stop the pool. The frames in the
    queues are shared: a stalled worker costs references until the others are done with them.
    """

    __slots__ = (
        "absence",
        "budget",
        "careful",
        "connection",
        "doubts",
        "drop_reason",
        "dropped",
        "earlier",
        "failed",
        "features",
        "goodbye",
        "handled",
        "identity",
        "is_assigned",
        "is_muted",
        "is_observer",
        "last_seq",
        "logged_at",
        "lost",
        "missed",
        "missed_first",
        "missed_last",
        "passed",
        "pid",
        "progress_at",
        "queue",
        "received",
        "receiver",
        "resyncing_since",
        "sent",
        "since",
        "state",
        "takes_unique",
        "uniques",
        "uniques_given",
        "unread",
        "unread_before",
        "worker_id",
    )

    def __init__(self, worker_id: int | None, queue: Queue, budget: Budget, now: float) -> None:
        self.worker_id = worker_id
        self.is_observer = worker_id is None
        self.identity: str | None = None
        self.pid: int | None = None
        self.connection: ClientConnection | None = None
        # Where an offered event is sent at once: the connection, but while its process drains or an event is sent alone.
        self.receiver: ClientConnection | None = None
        self.state = SlotState.STARTING
        # When it entered its state.
        self.since = now
        # Who may come for it; None while it has a connection.
        self.absence: Absence | None = Absence.VACANT
        # What its process said when it began to drain. Kept while the slot is absent.
        self.goodbye: Goodbye | None = None
        # Whether it is a broker's choice for processes that asked for no number. Once one asked for it, it never is again.
        self.is_assigned = False
        # Since when the broker waits for its process's list of the unique events of an earlier broker; None: it does not. Kept
        # while the process is away, for it still has them.
        self.resyncing_since: float | None = None
        # Everything that is not acknowledged as handled, sent or not.
        self.queue = queue
        self.budget = budget
        # It has everything up to here. Exact also where it got nothing for a while: see `offer`.
        self.received = 0
        self.last_seq = 0
        # The last event that was sent. Read it only without a receiver: with one, that is the last event of all.
        self.sent = 0
        # Queued events that a process had received and not handled when it ended, by seq, in order. Each is sent alone, once
        # all before it are handled, and nothing after it until it is handled: if it kills, the broker knows that it was it.
        self.careful: dict[int, None] = {}
        # Events that its process had received and not handled when its connection ended, until it is back or known to be dead.
        self.lost: list[Entry] = []
        self.takes_unique = False
        # The unique events that it was given and has not handled, by seq.
        self.uniques: dict[int, Post] = {}
        self.uniques_given = 0
        self.progress_at = now
        # Why its events are dropped, and counted in `missed`, for the gap that ends it; None: they are not. Kept while its
        # process is away: the next one is told.
        self.drop_reason: str | None = None
        # Whether the log is not to have that, for it had the like a moment ago.
        self.is_muted = False
        self.logged_at = -math.inf
        self.missed = 0
        self.missed_first = 0
        self.missed_last = 0
        # What was in the queue when it was dropped. The last process may have received more of it than it could say, and
        # has not missed that if it comes back. First and last seq, events missed, events counted in `dropped`.
        self.doubts: list[tuple[int, int, int, int]] = []
        # How many broadcast posts of each earlier epoch it has, or is told of. None: not known, and no matter.
        self.earlier: dict[int, int] | None = None
        # Broadcast posts of this epoch that it is still to be told of, for they came before the broker knew of it.
        self.passed = 0
        self.handled = 0
        self.dropped = 0
        self.failed = 0
        # Events that its processes could not read and reported as a gap; the same of all processes before the attached one.
        self.unread = 0
        self.unread_before = 0
        # The features of the wire that its last process knows. A slot that had no process yet counts as knowing none.
        self.features: frozenset[str] = frozenset()

    def transition(self, state: SlotState, now: float) -> None:
        """Enter a state. Raises InvalidTransition for a change that TRANSITIONS does not list."""
        if state not in TRANSITIONS[self.state]:
            raise InvalidTransition(f"{self.label} can't go from {self.state} to {state}")
        self.state = state
        self.since = now

    # --- facts ---

    @property
    def is_live(self) -> bool:
        """Whether an event counts as delivered only once this receiver has it."""
        if self.is_observer:
            return False
        state = self.state
        if state is _ATTACHED or state is _RESYNCING:
            return True
        return self.absence is Absence.AWAITED and self.drop_reason is None

    @property
    def label(self) -> str:
        """Name it in a message."""
        return f"the observer with pid {self.pid}" if self.is_observer else f"worker {self.worker_id}"

    @property
    def is_behind(self) -> bool:
        return self.received < self.last_seq

    @property
    def is_leaving(self) -> bool:
        """Whether its process said goodbye for good: the slot ends with the connection."""
        return self.goodbye is not None and self.goodbye.leave

    @property
    def holds_posters(self) -> bool:
        """Whether posters wait, within its budget, while its queue is full. None does for an observer, or from a goodbye on."""
        return not self.is_observer and self.goodbye is None

    @property
    def is_spare(self) -> bool:
        """Whether the slot ends unless another process takes it: its process said goodbye, and no process asks for its number."""
        return self.is_assigned and self.goodbye is not None

    @property
    def is_unused(self) -> bool:
        """Whether no process has held it at this broker, and none is awaited."""
        return self.identity is None and self.goodbye is None and self.is_free

    @property
    def can_be_succeeded(self) -> bool:
        """Whether a process that asks for no number may take it, with its queue: its process has ended. One that expired goes on
        only for the processes that ask for its number, who are to be told what it dropped, if there are such."""
        return self.is_free and not self.is_unused and (self.is_assigned or not self.is_expired)

    @property
    def is_expired(self) -> bool:
        return self.absence is Absence.EXPIRED

    @property
    def is_free(self) -> bool:
        """Whether a process that asks for no number may have it: nobody holds it, and nobody comes back for it."""
        return self.absence is Absence.VACANT or self.absence is Absence.EXPIRED

    @property
    def is_expected(self) -> bool:
        """Whether a client has named it as a worker's of an earlier broker, and no process has taken it."""
        return self.state is SlotState.STARTING and self.absence is Absence.AWAITED

    @property
    def is_dropping(self) -> bool:
        """Whether events are dropped for it, with or without a connection."""
        return self.drop_reason is not None

    @property
    def takes_events(self) -> bool:
        """Whether an event that is offered to it is queued."""
        return not (self.is_dropping or self.is_leaving)

    @property
    def may_hold_uniques(self) -> bool:
        """Whether its process may have unique events of an earlier broker that the broker does not know of yet."""
        if self.is_expired:
            return False
        return self.resyncing_since is not None or self.is_expected

    @property
    def can_take_unique(self) -> bool:
        if not self.takes_unique or not (self.state is _ATTACHED or self.state is _RESYNCING):
            return False
        # A full observer would lose it; a full worker's queue takes one frame more.
        return not (self.is_observer and self.queue.is_full)

    def oldest_s(self, now: float) -> float:
        """Return the age of the oldest event that it has not handled, in seconds; 0.0 without one."""
        return now - self.queue.peek().since if self.queue else 0.0

    @property
    def unique_bytes(self) -> int:
        """Bytes of the unique events in its queue."""
        return sum(len(post.frame) for post in self.uniques.values() if post.frame is not None)

    @property
    def posts_behind(self) -> int:
        """How many broadcast posts are not handled here, sent or not. At most: of what it missed, some was eventsh's own."""
        queued = sum(map(_posts_in, self.queue))
        return queued + self.passed + self.missed + sum(missed for _, _, missed, _ in self.doubts)

    # --- events ---

    def offer(self, entry: Entry, first: int, now: float) -> bool:
        """Queue an entry and send it if the receiver is attached; return whether its connection has something to send."""
        if self.drop_reason is not None:
            self.miss(entry.events, first, entry.last)
            return False
        if self.received >= self.last_seq:
            # It has all there was for it until now, whatever numbers passed by that were not for it.
            self.received = first - 1
            self.progress_at = now
        self.last_seq = entry.last
        self.queue.append(entry)
        if self.receiver is None:
            return False
        self.receiver.output.append(entry.frame)
        return True

    def miss(self, count: int, first: int, last: int) -> None:
        """Count events that this receiver does not get."""
        self._add_missed(count, first, last)
        self.dropped += count

    def _add_missed(self, count: int, first: int, last: int) -> None:
        self.missed_first = min(self.missed_first, first) if self.missed else first
        self.missed_last = max(self.missed_last, last) if self.missed else last
        self.missed += count

    def count_dropped(self, events: int) -> None:
        """Count events that it was told of as a gap without being offered them."""
        self.dropped += events

    def count_report(self, failed: int, unread: int) -> None:
        """Count what its process reported: handlers that failed since the last report, and all events that it could not read."""
        self.failed += failed
        self.unread = max(self.unread, self.unread_before + unread)

    def start_dropping(self, reason: str, now: float) -> None:
        """Drop its events from now on, and count them, until `end_dropping`."""
        self.drop_reason = reason
        self.is_muted = now < self.logged_at + _QUIET_S
        if not self.is_muted:
            self.logged_at = now
        if self.absence is None and self.state is not SlotState.DRAINING:
            self.end_resync(now)
            self.transition(SlotState.DROPPING, now)

    def end_dropping(self, posts: int, now: float) -> bool:
        """Queue its events again, after a gap for those that were dropped; `posts` broadcast ones have been made by now.
        Return whether its connection has something to send."""
        reason, self.drop_reason = self.drop_reason or "", None
        if self.state is SlotState.DROPPING:
            self.transition(self._arrival, now)
        if not self.missed:
            return False
        gap = Gap(self.missed, self.missed_first, self.missed_last, reason, posts=posts)
        last, first = self.missed_last, self.missed_first
        self.missed = 0
        return self.offer(Entry(last, 0, gap.encode(seq=last), now), first, now)

    def stall(self, now: float) -> None:
        """Stop waiting for it: it has received nothing for `timeout`."""
        self.end_resync(now)
        self.transition(SlotState.STALLED, now)

    def take_ack(self, received: int, handled: int, now: float) -> list[Post]:
        """Note that the receiver has everything up to `received` and has handled everything up to `handled`; return the unique
        events that it has handled by that."""
        if received > self.received:
            self.received = received
            self.progress_at = now
            if self.state is _STALLED:
                self.transition(_ATTACHED, now)
        released = self.queue.release(handled)
        if released:
            self.handled += released
            self.progress_at = now
        # In the order of seq, as they were given.
        while self.careful and (seq := next(iter(self.careful))) <= handled:
            del self.careful[seq]
        posts: list[Post] = []
        while self.uniques and (seq := next(iter(self.uniques))) <= handled:
            posts.append(self.uniques.pop(seq))
        return posts

    # --- unique events ---

    def give(self, post: Post) -> None:
        """Note a unique event that was enqueued for it."""
        assert post.last_seq is not None
        self.uniques[post.last_seq] = post
        self.uniques_given += 1

    def take_uniques(self) -> list[Post]:
        """Return the unique events that it did not handle, taken out of its queue for another worker."""
        posts = list(self.uniques.values())
        if posts:
            self.queue.discard(set(self.uniques))
            for seq, post in self.uniques.items():
                self.careful.pop(seq, None)
                if seq <= self.received:
                    post.suspect()
            self.uniques.clear()
        return posts

    def take_unique(self, seq: int) -> Post:
        """Return one of the unique events that it did not handle, taken out of its queue."""
        self.queue.discard({seq})
        self.careful.pop(seq, None)
        return self.uniques.pop(seq)

    def take_unreceived_uniques(self) -> list[Post]:
        """Return the unique events whose confirmation was put off by `detach` and that the process did not get, taken out of
        the queue; they have to be given again. Those that it did get are left, with their seq."""
        return self._take_out([s for s, post in self.uniques.items() if post.last_seq is None and s > self.received])

    def take_unsent_uniques(self) -> list[Post]:
        """Return the unique events that wait to be sent alone, taken out of the queue of a process that gets nothing more."""
        return self._take_out([seq for seq in self.uniques if seq > self.sent])

    def _take_out(self, seqs: list[int]) -> list[Post]:
        for seq in seqs:
            self.careful.pop(seq, None)
        if seqs:
            self.queue.discard(set(seqs))
        return [self.uniques.pop(seq) for seq in seqs]

    # --- its process ---

    def expect(self, *, is_assigned: bool, has_left: bool) -> None:
        """Wait for a worker of an earlier broker, unless a process has held the slot since or it has expired.

        Args:
            is_assigned: No process has asked for its number, as far as the client knows that names it.
            has_left: Its process said goodbye to that broker: the slot is kept for a successor, and awaits none. Of two
                clients that differ in this, one has not heard the last of it; a process that comes back must find its slot.
        """
        if self.state is not SlotState.STARTING:
            return
        self.is_assigned = self.is_assigned or is_assigned
        if not has_left:
            self.absence, self.goodbye = Absence.AWAITED, None
        elif self.absence is not Absence.AWAITED:
            self.goodbye = Goodbye(leave=False)

    def start_at(self, seq: int) -> None:
        """Begin after all events up to `seq`."""
        self.received = self.last_seq = seq

    def start_from(self, other: Slot, posts: int, now: float, *, after: int = 0) -> None:
        """Begin, as a new slot, with everything after `after` that `other` was offered and got or missed."""
        self.received, self.last_seq = after, other.last_seq
        for entry in other.queue:
            if entry.last > after:
                self.queue.append(entry)
        if other.missed:
            self.drop_reason = other.drop_reason
            self.miss(other.missed, other.missed_first, other.missed_last)
            self.end_dropping(posts, now)

    def attach(
        self,
        connection: ClientConnection,
        hello: Hello,
        had: tuple[int, int] | None,
        now: float,
        *,
        is_resyncing: bool = False,
    ) -> list[Post]:
        """Give the slot to the process that said `hello`; return the unique events that it has handled, as it now says.

        Args:
            had: What it has received and handled of this epoch before; None for a process to which this epoch is new: that
                one gets everything that its predecessor had not handled.
            is_resyncing: Its list of the unique events of an earlier broker follows.
        """
        connection.attach(self)
        self.connection = connection
        self.receiver = None
        self.lost = []
        self.features = connection.features
        if self.identity != hello.identity:
            self.unread_before = self.unread
        self.identity, self.pid = hello.identity, connection.pid or hello.pid
        self.takes_unique = hello.take_unique
        if not hello.wants_any_slot:
            self.is_assigned = False
        elif self.state is SlotState.STARTING and self.goodbye is None and self.absence is not Absence.AWAITED:
            self.is_assigned = True
        self.absence = self.goodbye = None
        self.resyncing_since = now if is_resyncing else None
        self.transition(self._arrival, now)
        self.progress_at = now
        self._settle_doubts(had[0] if had is not None else 0)
        posts: list[Post] = []
        if had is not None:
            # Its own word counts, though another process may have held the slot meanwhile and have got further.
            self.received = min(had[0], self.last_seq)
            posts = self.take_ack(self.received, min(had[1], self.received), now)
        elif self.queue:
            first = self.queue.peek()
            self.received = first.last - max(first.events, 1)
        self.sent = self.received
        return posts

    def send_backlog(self) -> None:
        """Send what is queued and the attached process does not have, before anything new."""
        if not any(entry.last > self.received for entry in self.queue):
            self.received = self.last_seq
        self.send_queued()

    def hold(self) -> None:
        """Only queue the events that are offered from now on, until `send_queued` has sent all of them."""
        if self.receiver is not None:
            self.sent = self.last_seq
            self.receiver = None

    def send_carefully(self, seq: int) -> bool:
        """Send an event of the queue alone, as soon as everything before it is handled. Call `hold` before it is queued. Return
        whether its connection has something to send."""
        self.careful[seq] = None
        return self.send_queued()

    def send_queued(self) -> bool:
        """Send queued events up to the next that has to wait. Return whether its connection has something to send.

        Call it at each ack while there is no receiver."""
        if self.connection is None or self.state is SlotState.DRAINING:
            return False
        before = self.sent
        is_busy = bool(self.queue) and self.queue.peek().last <= before
        if is_busy and self.queue.peek().last in self.careful:
            return False
        for entry in self.queue:
            if entry.last <= before:
                continue
            is_careful = entry.last in self.careful
            if is_careful and is_busy:
                break
            self.connection.output.append(entry.frame)
            self.sent = entry.last
            if is_careful:
                break
            is_busy = True
        else:
            self.receiver = self.connection
        return self.sent > before

    @property
    def _arrival(self) -> SlotState:
        """The state of a slot whose process receives events."""
        if self.drop_reason is not None:
            return SlotState.DROPPING
        return SlotState.ATTACHED if self.resyncing_since is None else SlotState.RESYNCING

    def end_resync(self, now: float) -> None:
        """Stop waiting for the list of the unique events that its process has from an earlier broker: it came, or won't."""
        self.resyncing_since = None
        if self.state is SlotState.RESYNCING:
            self.transition(SlotState.ATTACHED, now)

    def drain(self, goodbye: Goodbye, now: float) -> None:
        """Send it nothing more: its process said goodbye and finishes what it has."""
        self.goodbye = goodbye
        self.hold()
        self.transition(SlotState.DRAINING, now)

    def cede(self) -> None:
        """End with the connection: the slot of a successor began with what was queued since the goodbye."""
        self.goodbye = Goodbye(leave=True)
        self.missed = 0
        self.queue.discard({entry.last for entry in self.queue if entry.last > self.sent})

    def detach(self, now: float) -> None:
        """Note that its connection has ended. What it had not handled stays queued."""
        self.hold()
        self.connection = None
        self.lost = [entry for entry in self.queue if entry.events and entry.last <= self.received]
        if self.state is SlotState.DRAINING:
            self.absence = Absence.VACANT
        elif self.state is SlotState.STALLED:
            self.absence = Absence.LAGGING
        else:
            self.absence = Absence.AWAITED
        self.transition(SlotState.ABSENT, now)
        for post in self.uniques.values():
            if post.last_seq is not None and post.last_seq > self.received:
                post.defer()

    def take_lost(self) -> list[Entry]:
        """Return the events that its process had received and not handled, once it is known to be dead; after that none."""
        lost, self.lost = self.lost, []
        return lost

    def end_process(self, now: float) -> None:
        """Note that the process that lost its connection has ended: it won't come back."""
        if not self.is_expired:
            self.absence = Absence.VACANT
        self.end_resync(now)

    def expire(self, reason: str, now: float) -> None:
        """Give the queue up, because nobody took the slot in time. A worker's slot goes on counting what it misses."""
        if self.state is SlotState.STARTING:
            self.transition(SlotState.ABSENT, now)
        self.absence = Absence.EXPIRED
        if not self.is_observer:
            self._drop_queue()
            self.start_dropping(reason, now)

    def _drop_queue(self) -> None:
        # Unique events are not missed: another worker gets them.
        self.queue.discard(set(self.uniques))
        for entry in self.queue:
            if entry.events:
                self.doubts.append((entry.last - entry.events + 1, entry.last, entry.events, entry.events))
                self.dropped += entry.events
            else:
                # The notice of an earlier gap: its events are counted as dropped already.
                gap = Gap.decode(entry.frame)
                if gap.epoch and self.earlier is not None:
                    # Not told after all.
                    self.earlier[gap.epoch] = gap.posts - gap.missed
                    self.dropped -= gap.missed
                elif not gap.epoch:
                    self.doubts.append((gap.first_seq, gap.last_seq, gap.missed, 0))
        self.queue.clear()
        self.careful.clear()
        self.received = self.last_seq

    def _settle_doubts(self, received: int) -> None:
        for first, last, missed, counted in self.doubts:
            if last > received:
                self._add_missed(missed, first, last)
            else:
                self.dropped -= counted
        self.doubts.clear()

    # --- an earlier broker ---

    def inherit(self, earlier: dict[int, int] | None) -> None:
        """Note how many broadcast posts of earlier epochs it has or was told of; None: not known."""
        self.earlier = earlier

    def note_passed(self, posts: int) -> None:
        """Note broadcast posts of this epoch that came before the broker knew of it."""
        self.passed = posts

    def take_passed(self) -> int:
        """Return the broadcast posts that it is still to be told of; it is told now."""
        passed, self.passed = self.passed, 0
        return passed

    def admit_missed(self, epoch: int, posts: int) -> None:
        """Note that it is told of all it missed of the `posts` broadcast ones of an earlier epoch."""
        assert self.earlier is not None
        self.earlier[epoch] = posts

    # --- frames that it can't read ---

    def can_read(self, flags: int) -> bool:
        """Whether the attached process, and the broker, know these flags of a frame."""
        return self.connection is None or not flags & ~self.connection.readable

    def gap_for(self, entry: Entry, posts: int) -> Entry:
        """Make the gap that the attached process gets in the place of a frame that it can't read. `posts` broadcast ones have
        been made with it."""
        flags = name_flags(entry.frame[FLAGS_OFFSET])
        reason = f"{flags} not known to the broker or to {self.label}: a newer version of eventsh posted it"
        return self.gap_in_place(entry, posts, reason)

    def gap_in_place(self, entry: Entry, posts: int, reason: str) -> Entry:
        """Make a gap for the place of an entry, and count its events as dropped. `posts` broadcast ones have been made with it."""
        # At least: some of what the slot missed after this, and `rewrite` took from its count, was eventsh's own.
        gap = Gap(entry.events, decode_header(entry.frame).seq, entry.last, reason, posts=max(0, posts))
        self.dropped += entry.events
        return Entry(entry.last, 0, gap.encode(seq=entry.last), entry.since)

    def replace_unreadable(self, posts: int) -> bool:
        """Put gaps in the places of queued frames that the attached process did not receive and can't read; return whether
        there are any. `posts` broadcast ones have been made with the last one of the queue.

        Queued frames stay as they are until a process takes the slot: the next one may know what the last one did not."""
        backlog = [entry for entry in self.queue if entry.last > self.received]
        if all(self.can_read(entry.frame[FLAGS_OFFSET]) for entry in backlog):
            return False

        def read(entry: Entry, posts: int) -> list[Entry]:
            is_unread = entry.last > self.received and not self.can_read(entry.frame[FLAGS_OFFSET])
            return [self.gap_for(entry, posts) if is_unread else entry]

        self.rewrite(read, posts)
        return True

    def rewrite(self, change: Callable[[Entry, int], list[Entry]], posts: int) -> None:
        """Put the entries that `change` returns into the place of each queued one. It gets the entry, and how many broadcast posts
        have been made with it; `posts` have been made with the last one of the queue."""
        posts -= self.missed
        rewritten: list[list[Entry]] = []
        for entry in reversed(list(self.queue)):
            rewritten.append(change(entry, posts))
            posts -= _posts_in(entry)
        self.queue.clear()
        self.queue.put_back([entry for entries in reversed(rewritten) for entry in entries])

    def suspect(self, entries: Iterable[Entry]) -> None:
        """Have these queued events sent alone to the next process."""
        suspects = {entry.last for entry in entries} | self.careful.keys()
        # In the order of the queue: `take_ack` looks at the first alone.
        self.careful = {entry.last: None for entry in self.queue if entry.last in suspects}


@dataclass(frozen=True, slots=True)
class BrokerState:
    """What the parts of one broker share. `started_at` is in seconds on the clock that all calls pass as `now`."""

    options: Options
    epoch: int
    pid: int
    started_at: float
    connections: set[ClientConnection]
    slots: SlotTable
    posters: Posters
    outgoing: Outgoing


def _posts_in(entry: Entry) -> int:
    """How many broadcast posts an entry of a queue stands for."""
    if not entry.events:
        gap = Gap.decode(entry.frame)
        return 0 if gap.epoch else gap.missed
    header = decode_header(entry.frame)
    return entry.events if header.origin and not header.flags & Flag.UNIQUE else 0
