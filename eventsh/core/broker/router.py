"""The broker's rules: which client gets an event, in which order, and when its poster may forget it.

Knows no sockets and no clock. The owner reports connections, frames and the time, and then takes from each connection in
`take_changed()` the frames to send. Bodies are never looked at: a frame is stamped in place and forwarded whole.

An event is *accepted* (in its poster's order), *enqueued* (it gets its `seq` and enters the queues), *received* (a worker
acknowledged that it has it) and *handled* (its handlers returned; it leaves that worker's queue). It is confirmed to its
poster when every live worker has received it. While a worker's queue is full nothing is enqueued, until its budget for that
is spent: then the events that follow are dropped for that worker alone, and reported to it as a gap.

The router dispatches frames by kind and acts on the time; the rules are in the parts beside it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from eventsh.core.broker.agreement import Agreement
from eventsh.core.broker.arrivals import Arrivals
from eventsh.core.broker.confirms import Confirms
from eventsh.core.broker.control import Control
from eventsh.core.broker.deaths import GONE, Deaths
from eventsh.core.broker.handshake import Authentication, Handshake
from eventsh.core.broker.outgoing import Outgoing
from eventsh.core.broker.posters import Posters
from eventsh.core.broker.recovery import Recovery
from eventsh.core.broker.sequencer import Sequencer
from eventsh.core.broker.slots import SlotTable
from eventsh.core.broker.state import BrokerState, ClientConnection
from eventsh.core.broker.unique import UniqueAssigner
from eventsh.core.heartbeat import Beat
from eventsh.errors import ProtocolError
from eventsh.protocol.features import FEATURES
from eventsh.protocol.frame import HEADER, KIND_OFFSET, Flag, Kind, encode_frame, without_events
from eventsh.protocol.messages import MAX_COUNT

if TYPE_CHECKING:
    from eventsh.core.broker.sink import EventSink
    from eventsh.core.broker.state import Post, Slot
    from eventsh.core.heartbeat import Heartbeat
    from eventsh.core.proof import BrokerProof
    from eventsh.options import Options

__all__ = ["Router"]

_EVENTS, _ACK = int(Kind.EVENTS), int(Kind.ACK)
# A batch above this costs less than its bytes are worth: a connection's share of a turn is not measured after it.
_LARGE_BYTES = 4096


class Router:
    """The state of one broker's life. `now` is always seconds on one monotonic clock."""

    def __init__(
        self,
        options: Options,
        *,
        epoch: int,
        pid: int,
        wall_clock_ns: Callable[[], int],
        now: float,
        supervisor: int | None = None,
        host: str = "",
        new_proof: Callable[[], BrokerProof] | None = None,
        features: frozenset[str] = FEATURES,
        on_rival: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    ) -> None:
        self.options = options
        # The process that restarts this broker and its workers, for people who want them reloaded.
        self.supervisor = supervisor
        # As in a hello: where its pid, and those that its transport vouches for, mean something.
        self.host = host
        self._outgoing = Outgoing()
        self._state = BrokerState(
            options=options,
            epoch=epoch,
            pid=pid,
            started_at=now,
            connections=set(),
            slots=SlotTable(options, now),
            posters=Posters(),
            outgoing=self._outgoing,
        )
        self._sequencer = Sequencer(self._state, wall_clock_ns=wall_clock_ns)
        self._confirms = Confirms(self._state, self._sequencer)
        self._unique = UniqueAssigner(self._state, self._sequencer, self._confirms)
        self._deaths = Deaths(self._state, self._sequencer, self._unique, self._confirms)
        self._control = Control(self._state, self._sequencer, self._deaths, status=self.status, on_rival=on_rival)
        self._recovery = Recovery(self._state, self._sequencer)
        self._agreement = Agreement(self._state, features)
        self._arrivals = Arrivals(self._sequencer)
        self._handshake = Handshake(
            self._state,
            Authentication(new_proof),
            self._sequencer,
            self._arrivals,
            self._unique,
            self._deaths,
            self._confirms,
            self._control,
            self._recovery,
            self._agreement,
        )
        # Accepted and not enqueued, because a queue is full; bounded by the posters' windows.
        self._held: deque[Post] = deque()
        self._is_accepting = True
        # All but events and acks.
        self._on_message: dict[int, Callable[[ClientConnection, bytearray, float], None]] = {
            Kind.HELLO: self._handshake.take_hello,
            Kind.CHALLENGE: self._handshake.take_proof,
            Kind.PROOF: self._handshake.take_proof,
            Kind.TAKEN: self._handshake.take_taken,
            Kind.GOODBYE: self._handshake.take_goodbye,
            Kind.REQUEST: self._control.take_request,
            Kind.ANSWER: self._control.take_answer,
            Kind.OUTPUT: self._control.take_output,
            Kind.REPORT: self._control.take_report,
            Kind.HANDLED: self._confirms.take_handled,
            Kind.PING: self._take_ping,
            Kind.PONG: self._take_pong,
            Kind.ERROR: self._take_error,
        }

    @property
    def epoch(self) -> int:
        """This broker's life."""
        return self._state.epoch

    @property
    def pid(self) -> int:
        return self._state.pid

    @property
    def connections(self) -> set[ClientConnection]:
        return self._state.connections

    @property
    def slots(self) -> SlotTable:
        return self._state.slots

    @property
    def seq(self) -> int:
        """The last event that crossed the broker."""
        return self._sequencer.seq

    @property
    def sink(self) -> EventSink | None:
        """What gets all that crosses the broker. Whenever its `synced` goes up, or becomes None, call `settle`."""
        return self._sequencer.sink

    @sink.setter
    def sink(self, sink: EventSink | None) -> None:
        self._sequencer.set_sink(sink)

    # --- effects, for the owner ---

    def take_changed(self) -> list[ClientConnection]:
        """Return the connections that have output or are to be closed, since the last call."""
        changed = list(self._outgoing.changed)
        self._outgoing.changed.clear()
        return changed

    def announce_joined(self, now: float) -> None:
        """Enqueue the lifecycle events about workers that joined since the last call. Call it before `take_changed`."""
        self._arrivals.announce(now)

    def take_warnings(self) -> list[str]:
        """Return warnings for the log since the last call."""
        warnings = list(self._outgoing.warnings)
        self._outgoing.warnings.clear()
        return warnings

    @property
    def next_drop_at(self) -> float | None:
        """When `settle` has to be called at the latest, for a worker with a full queue may hold posters up no longer."""
        full = self._sequencer.full
        return min(slot.budget.empty_at for slot in full) if full else None

    # --- reports of the owner ---

    def connect(
        self,
        key: Any,
        pid: int | None,
        now: float,
        heartbeat: Heartbeat | None = None,
        *,
        unsent: Callable[[], int] = int,
        is_trusted: bool = False,
    ) -> ClientConnection:
        """Accept a connection. It has to say hello within `hello_timeout`, and has to show that it is alive from then on.

        Args:
            key: By which the owner finds its own object for the connection.
            pid: As the transport vouches for it; None: it does not.
            heartbeat: None: the connection's end is all that is noticed.
            unsent: Returns how many bytes of what was sent wait to leave.
            is_trusted: It may bring code.
        """
        hello_by = now + self.options.hello_timeout
        connection = ClientConnection(key, pid, hello_by, unsent, heartbeat=heartbeat, is_trusted=is_trusted)
        self.connections.add(connection)
        limit = self.options.max_connections
        if len(self.connections) > limit:
            self._outgoing.refuse(connection, "too_many", f"{limit} connections are open, the limit of max_connections")
        return connection

    def receive(
        self,
        connection: ClientConnection,
        frames: list[bytearray],
        now: float,
        is_spent: Callable[[], bool] = lambda: False,
    ) -> int:
        """Handle frames that arrived. A peer that breaks the rules gets an Error and its connection closes, no other.

        Args:
            is_spent: Returns whether the connection's share of this turn is spent. It is called after each frame but large
                batches.

        Returns:
            How many frames were handled. Call again with the others in a later turn.
        """
        handled = 0
        try:
            for frame in frames:
                if connection.is_closing:
                    # Nothing that follows counts.
                    handled = len(frames)
                    break
                handled += 1
                kind = frame[KIND_OFFSET]
                if kind == _EVENTS:
                    self._take_events(connection, frame, now)
                    if len(frame) > _LARGE_BYTES:
                        continue
                elif kind == _ACK:
                    self._take_ack(connection, frame, now)
                elif kind in self._on_message:
                    self._on_message[kind](connection, frame, now)
                else:
                    raise ProtocolError(f"a client does not send frames of kind {kind}")
                if is_spent():
                    break
        except ProtocolError as error:
            self.refuse(connection, error)
            handled = len(frames)
        self.settle(now)
        return handled

    def refuse(self, connection: ClientConnection, error: ProtocolError) -> None:
        """Send an error to a peer that broke the rules of the wire, and close its connection."""
        self._outgoing.refuse(connection, "protocol", str(error))

    def disconnect(self, connection: ClientConnection, now: float) -> Slot | None:
        """Forget a connection that has ended. Return the slot whose process the owner should watch and report to
        `end_process`."""
        self.connections.discard(connection)
        self._outgoing.changed.pop(connection, None)
        self._control.lose(connection)
        slot = self._handshake.disconnect(connection, now)
        self.settle(now)
        return slot

    def end_process(self, slot: Slot, now: float, *, ended: str = GONE, counts: bool = True) -> bool:
        """Note that the process that held this slot, and lost its connection, has ended.

        Args:
            ended: How: the name of a signal, "exit 3", or GONE.
            counts: False: its supervisor ended it, so that no event is to blame.

        Returns:
            Whether it had begun to handle events and not finished.
        """
        had_any = self._handshake.end_process(slot, now, ended=ended, counts=counts)
        self.settle(now)
        return had_any

    def meet_rival(self, epoch: int, age_s: float, confirmed: int, now: float) -> bool:
        """Learn of another broker, which began `age_s` ago and has `confirmed` broadcast posts: it has served the same address
        beside this one, and ends. Its clients attach here. Return False when that is known already."""
        return self._recovery.meet(epoch, now - age_s, confirmed, now)

    def stop_accepting(self) -> None:
        """Ignore all further posts: their posters send them to another broker. `is_settled` when the others are confirmed."""
        self._is_accepting = False
        self._held.clear()

    @property
    def is_settled(self) -> bool:
        """Whether every enqueued post is confirmed."""
        return not self._sequencer.unconfirmed

    @property
    def confirmed_posts(self) -> int:
        """How many broadcast posts are confirmed."""
        return self._confirms.posts

    def tick(self, now: float) -> None:
        """Act on the time. To be called several times in each of the timeouts."""
        for connection in self.connections:
            self._check_connection(connection, now)
        if now - self._state.started_at > self.options.timeout:
            self._sequencer.end_startup()
        self._handshake.expire(now)
        self._give_up_on_the_stuck(now)
        self._control.tick(now)
        self._recovery.mark(now)
        self._unique.keys.expire(now)
        if self._unique.has_parked:
            self._unique.unpark(now)
        self.settle(now)
        self._confirms.announce()

    def _give_up_on_the_stuck(self, now: float) -> None:
        """Stop waiting for confirmations from workers that made no progress for `timeout`."""
        timeout = self.options.timeout
        for slot in self.slots:
            if slot.connection is None or now - slot.progress_at <= timeout:
                continue
            slot.end_resync(now)
            if slot.is_live and slot.is_behind:
                # Posters had their windows used up meanwhile: they must not wait as long again for room in its queue.
                slot.budget.use_up(now)
                slot.stall(now)
                self._outgoing.warn(
                    f"{slot.label} received nothing for {timeout:g} s: confirmations do not wait for it"
                )

    # --- liveness, and the end of a connection ---

    def _check_connection(self, connection: ClientConnection, now: float) -> None:
        if connection.is_closing:
            if connection.close_by is None:
                connection.close_until(now + self.options.timeout)
            elif now > connection.close_by and not connection.is_gone:
                # It does not even read why.
                self._outgoing.abort(connection)
        elif connection.is_overdue(now):
            message = f"no hello within {self.options.hello_timeout:g} s (hello_timeout)"
            self._outgoing.refuse(connection, "slow_hello", message)
        else:
            self._outgoing.check_unread(connection)
        if connection.heartbeat is not None:
            self._beat(connection, connection.heartbeat.check(now))

    def _beat(self, connection: ClientConnection, beat: Beat) -> None:
        if beat is Beat.ASK and connection.is_greeted and not connection.is_closing:
            self._outgoing.send(connection, encode_frame(Kind.PING))
        elif beat is Beat.GIVE_UP and not connection.is_gone:
            self._outgoing.abort(connection)
            self._outgoing.warn(
                f"{connection.label} was silent for three heartbeats of {self.options.heartbeat:g} s: connection closed"
            )

    def _take_ping(self, connection: ClientConnection, frame: bytearray, now: float) -> None:
        if not connection.is_greeted:
            raise ProtocolError("a ping before the hello")
        self._outgoing.send(connection, encode_frame(Kind.PONG))

    def _take_pong(self, connection: ClientConnection, frame: bytearray, now: float) -> None:
        # That it came is all that it says.
        if not connection.is_greeted:
            raise ProtocolError("a pong before the hello")

    def _take_error(self, connection: ClientConnection, frame: bytearray, now: float) -> None:
        self._outgoing.close(connection)

    # --- events ---

    def _take_events(self, connection: ClientConnection, frame: bytearray, now: float) -> None:
        poster, window = connection.poster, connection.window
        if poster is None or window is None:
            raise ProtocolError("events before the hello")
        if not self._is_accepting:
            return
        excess = window.excess(frame)
        if excess is not None:
            # Its place stays, as a gap: the poster would send it again for ever.
            frame = without_events(frame)
        post = poster.accept(frame, window)
        if post is None:
            self._confirms.repeat(poster)
        elif self._held or self._sequencer.full or not self._route(post, now):
            self._held.append(post)
        if excess is not None and post is not None:
            raise ProtocolError(excess)

    def _route(self, post: Post, now: float) -> bool:
        """Number a post and put it into the queues. False: not now."""
        if post.flags & Flag.UNIQUE:
            return self._unique.route(post, now)
        if post.flags & Flag.RECEIPT:
            post.target(slot for slot in self.slots.workers.values() if not (slot.is_expired or slot.is_leaving))
        self._sequencer.enqueue(post, None, now)
        post.release_frame()
        return True

    # --- acks ---

    def _take_ack(self, connection: ClientConnection, frame: bytearray, now: float) -> None:
        slot = connection.slot
        if slot is None:
            raise ProtocolError("ACK received from a client that is not subscribed")
        _, _, _, _, _, _, handled, received, _ = HEADER.unpack_from(frame)
        # Not the slot's own last event: a process that held another slot before may be beyond that.
        if handled > received or received > self.seq:
            raise ProtocolError(f"acked {received} and {handled}, but only {self.seq} was sent")
        for post in slot.take_ack(received, handled, now):
            self._confirms.settle_unique(post)
        self._sequencer.note_room(slot, now)
        if slot.receiver is None:
            self._sequencer.send_on(slot)
        if slot.drop_reason is not None:
            self._sequencer.resume(slot, now)
            self._recovery.report(slot, now)
        if self._unique.has_parked and slot.can_take_unique:
            # It could take none a moment ago, when it was stalled or dropping.
            self._unique.unpark(now)

    def settle(self, now: float) -> None:
        """Enqueue what was held, and confirm what every live worker has."""
        if self._sequencer.full:
            self._sequencer.drop_exhausted(now)
        held = self._held
        while held and not self._sequencer.full and self._route(held[0], now):
            held.popleft()
        if self._confirms.has_news:
            self._confirms.settle()

    # --- for people ---

    def status(self, now: float) -> dict[str, Any]:
        """What `eventsh status` shows of the broker's rules; the owner adds what it knows of the process."""
        return {
            "broker": {
                "pid": self.pid,
                "host": self.host,
                "supervisor": self.supervisor,
                "epoch": self.epoch,
                "uptime_s": round(now - self._state.started_at, 3),
                "connections": len(self.connections),
                "observers": len(self.slots.observers),
                "events": self.seq,
                "unconfirmed": sum(post.count for _, post in self._sequencer.unconfirmed),
                "held": sum(post.count for post in self._held),
                "unique_keys": len(self._unique.keys),
                "ignored_repeats": self._unique.ignored_repeats,
                "dead_letters": self._deaths.total,
                "all_know": sorted(self._agreement.all_know),
            },
            "recording": None if self.sink is None else self.sink.status(),
            "workers": [
                {
                    "worker_id": slot.worker_id,
                    "pid": slot.pid,
                    "host": None
                    if slot.connection is None
                    else self.host
                    if slot.connection.pid
                    else slot.connection.host,
                    "state": slot.state,
                    "since_s": round(now - slot.since, 3),
                    "queued": slot.queue.events,
                    "handled": slot.handled,
                    # Sums of what peers claim; JSON is written with 64 bits.
                    "dropped": min(slot.dropped, MAX_COUNT),
                    "failed": min(slot.failed, MAX_COUNT),
                    "unread": min(slot.unread, MAX_COUNT),
                    "uniques": slot.uniques_given,
                }
                for slot in self.slots.ordered_workers
            ],
        }
