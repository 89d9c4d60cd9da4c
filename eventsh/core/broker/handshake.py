"""Connection lifecycle on the broker's side: authenticate, assign a slot, resume, drain, detach."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from eventsh.core.broker.slots import SlotTableFull, SlotTaken
from eventsh.errors import AuthenticationError, ProtocolError
from eventsh.protocol.features import KEPT_UNIQUE
from eventsh.protocol.frame import KIND_OFFSET, PROTOCOL_VERSION, Kind
from eventsh.protocol.messages import Challenge, Goodbye, Hello, Proof, Taken, Welcome

if TYPE_CHECKING:
    from eventsh.core.broker.agreement import Agreement
    from eventsh.core.broker.arrivals import Arrivals
    from eventsh.core.broker.confirms import Confirms
    from eventsh.core.broker.control import Control
    from eventsh.core.broker.deaths import Deaths
    from eventsh.core.broker.recovery import Recovery
    from eventsh.core.broker.sequencer import Sequencer
    from eventsh.core.broker.state import BrokerState, ClientConnection, Poster, Slot
    from eventsh.core.broker.unique import UniqueAssigner
    from eventsh.core.proof import BrokerProof

__all__ = ["Authentication", "Handshake", "Rejected"]

# The shortest time between two warnings about rejected clients: anybody can connect as often as they like, and must not fill
# the log.
_WARN_REJECTED_S = 1.0


class Rejected(Exception):
    """A client may not attach: `code` and text are for its Error frame."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Authentication:
    """What the broker asks of a connection before its hello: little in size, and the token where there is one.

    `new_proof` makes the broker's side of a handshake; None: there is no token, and no client has to prove it.
    """

    def __init__(self, new_proof: Callable[[], BrokerProof] | None) -> None:
        self._new_proof = new_proof

    def answer(self, connection: ClientConnection, frame: bytearray) -> bytearray:
        """Answer a Challenge or a Proof. Raises Rejected and ProtocolError."""
        if connection.is_greeted:
            raise ProtocolError("a handshake after the hello")
        connection.count_greeting(frame)
        if self._new_proof is None:
            raise Rejected("token_unknown", "this broker has no token to prove: it was started without token_file")
        if frame[KIND_OFFSET] == Kind.CHALLENGE:
            return connection.begin_proof(self._new_proof).answer(Challenge.decode(frame)).encode()
        if connection.proof is None:
            raise ProtocolError("a proof before the challenge")
        try:
            return connection.proof.prove(Proof.decode(frame)).encode()
        except AuthenticationError as error:
            raise Rejected("token_wrong", str(error)) from None

    def check_hello(self, connection: ClientConnection, frame: bytearray) -> None:
        """Raise Rejected unless the client has proved the token, if there is one, and ProtocolError."""
        connection.count_greeting(frame)
        if self._new_proof is not None and (connection.proof is None or not connection.proof.is_proven):
            raise Rejected("token_needed", "this broker asks for a token: give token_file (--token-file)")


class Handshake:
    """Attaches clients and detaches them. The other parts of the router stay its owner's."""

    def __init__(
        self,
        state: BrokerState,
        authentication: Authentication,
        sequencer: Sequencer,
        arrivals: Arrivals,
        unique: UniqueAssigner,
        deaths: Deaths,
        confirms: Confirms,
        control: Control,
        recovery: Recovery,
        agreement: Agreement,
    ) -> None:
        self._state = state
        self._slots = state.slots
        self._outgoing = state.outgoing
        self._authentication = authentication
        self._sequencer = sequencer
        self._arrivals = arrivals
        self._unique = unique
        self._deaths = deaths
        self._confirms = confirms
        self._control = control
        self._recovery = recovery
        self._agreement = agreement
        self._warned_at = -math.inf

    # --- attach ---

    def take_proof(self, connection: ClientConnection, frame: bytearray, now: float) -> None:
        """Handle a Challenge or a Proof."""
        try:
            self._outgoing.send(connection, self._authentication.answer(connection, frame))
        except Rejected as error:
            self._reject(connection, error, now)

    def take_hello(self, connection: ClientConnection, frame: bytearray, now: float) -> None:
        if connection.is_greeted:
            raise ProtocolError("a second hello")
        try:
            self._authentication.check_hello(connection, frame)
            hello = Hello.decode(frame)
            if hello.version != PROTOCOL_VERSION:
                message = f"the broker speaks version {PROTOCOL_VERSION}, not {hello.version}"
                self._outgoing.refuse(connection, "version", message)
                return
            hello.check()
            poster = self._identify(connection, hello)
            slot, resumed = self._assign(hello, now)
        except Rejected as error:
            self._reject(connection, error, now)
            return
        self._admit(connection, slot, hello, resumed, now)
        self._confirms.greet(poster)

    def _identify(self, connection: ClientConnection, hello: Hello) -> Poster:
        knows = KEPT_UNIQUE in self._agreement.features and KEPT_UNIQUE in hello.features
        confirmed = hello.confirmed if knows else 0
        poster = self._state.posters.attach(hello.origin, hello.identity, connection, confirmed)
        if poster is None:
            raise Rejected("origin_taken", f"another process posts as origin {hello.origin}: draw another")
        connection.identify(poster)
        return poster

    def _assign(self, hello: Hello, now: float) -> tuple[Slot | None, bool]:
        self._expect_others(hello, now)
        if hello.role == "poster":
            return None, False
        try:
            slot, resumed = self._find_slot(hello, now)
        except SlotTaken:
            raise Rejected("slot_taken", f"another process is worker {hello.worker_id}") from None
        except SlotTableFull:
            limit = self._slots.max_slots
            message = f"{limit} workers and observers are known, the limit of max_slots"
            raise Rejected("too_many", message) from None
        if not resumed and not slot.is_observer and hello.worker_id is None and not hello.epoch:
            resumed = self._succeed(slot, now)
        return slot, resumed

    def _find_slot(self, hello: Hello, now: float) -> tuple[Slot, bool]:
        try:
            return self._slots.assign(hello, now)
        except SlotTableFull:
            empty = self._slots.dispensable()
            if empty is None:
                raise
        # Posters may wait for room in its queue.
        self._sequencer.forget(empty, now)
        self._slots.remove(empty)
        self._recovery.forget(empty)
        return self._slots.assign(hello, now)

    def _succeed(self, slot: Slot, now: float) -> bool:
        """Begin a new slot with what is queued for the successor of a process that still drains; return whether there is one.

        The successor gets a slot of its own, because acks of both come meanwhile. To let it wait until the other has ended would
        keep a reload waiting for the longest handler."""
        ceding = self._slots.ceding()
        if ceding is None:
            return False
        slot.start_from(ceding, self._sequencer.posts, now, after=ceding.sent)
        ceding.cede()
        self._sequencer.forget(ceding, now)
        self._recovery.forget(ceding)
        return True

    def _expect_others(self, hello: Hello, now: float) -> None:
        """Keep the slots of the workers of the broker that this client had before this one."""
        state = self._state
        if hello.epoch in (0, state.epoch) or now - state.started_at > state.options.timeout:
            return
        for slot in self._slots.expect(hello, self._sequencer.startup_backlog, self._sequencer.posts, now):
            # Posters may wait for room in its queue, and wait for none from a goodbye on.
            self._sequencer.forget(slot, now)

    def _reject(self, connection: ClientConnection, error: Rejected, now: float) -> None:
        self._outgoing.refuse(connection, error.code, str(error))
        if error.code.startswith("token") and now - self._warned_at >= _WARN_REJECTED_S:
            self._warned_at = now
            self._outgoing.warn(f"a client was rejected: {error}")

    def _admit(self, connection: ClientConnection, slot: Slot | None, hello: Hello, resumed: bool, now: float) -> None:
        connection.greet(hello, self._agreement.features, self._state.options)
        has_news = self._recovery.learn(hello)
        if slot is not None:
            self._recovery.expect(slot, hello, resumed=resumed)
        self._outgoing.send(connection, self._welcome(connection, slot, resumed).encode())
        if slot is not None:
            self._attach(connection, slot, hello, resumed, now)
        self._recovery.greet(connection, slot, hello)
        if has_news:
            self._recovery.report_all(now)
        elif slot is not None:
            self._recovery.report(slot, now)
        self._agreement.greet(connection)

    def _welcome(self, connection: ClientConnection, slot: Slot | None, resumed: bool) -> Welcome:
        options, window = self._state.options, connection.window
        assert window is not None
        held = {number: slot for number, slot in self._slots.workers.items() if not slot.is_free}
        return Welcome(
            epoch=self._state.epoch,
            pid=self._state.pid,
            worker_id=slot.worker_id if slot is not None else None,
            resumed=resumed,
            seq=self._sequencer.seq,
            timeout=options.timeout,
            max_queue_len=window.events,
            max_payload_len=options.max_payload_len,
            slots=list(held),
            assigned_slots=[number for number, slot in held.items() if slot.is_assigned],
            # What it missed may be more than that, for some of it was eventsh's own.
            posts=max(0, self._sequencer.posts - slot.posts_behind) if slot is not None else 0,
            features=sorted(self._agreement.features),
            window_bytes=window.bytes,
        )

    def _attach(self, connection: ClientConnection, slot: Slot, hello: Hello, resumed: bool, now: float) -> None:
        sequencer, unique, epoch = self._sequencer, self._unique, self._state.epoch
        previous = slot.connection
        if previous is not None:
            # The client has noticed the end of its old connection before the broker did.
            previous.release_slot()
            self._outgoing.close(previous)
        elif slot.identity != hello.identity:
            self._deaths.note(slot, now)
            unique.reassign(slot, now)
        if not resumed:
            slot.start_at(sequencer.seq)
        had = (hello.received, hello.handled) if hello.epoch == epoch else None
        # Read before the attach, by which those that the process says it has handled leave the slot.
        put_off = [(seq, post) for seq, post in slot.uniques.items() if post.last_seq is None]
        # Before the events that wait for it: it handles them as the one before it did.
        self._control.welcome(connection, slot)
        is_resyncing = hello.tells and hello.epoch != 0 and hello.told != epoch
        for post in slot.attach(connection, hello, had, now, is_resyncing=is_resyncing):
            self._confirms.settle_unique(post)
        sequencer.note_room(slot, now)
        again = slot.take_unreceived_uniques()
        given_again = set(again)
        if slot.replace_unreadable(sequencer.posts):
            sequencer.warn_unreadable(slot)
        slot.send_backlog()
        for seq, post in put_off:
            if post not in given_again:
                post.sequence(seq)
                if sequencer.sink is None or seq <= self._confirms.floor:
                    self._confirms.confirm(post)
        unique.assign_again(again, slot, now)
        if slot.is_dropping:
            sequencer.resume(slot, now)
        if not slot.is_observer:
            self._arrivals.add(slot)
        unique.unpark(now)

    def take_taken(self, connection: ClientConnection, frame: bytearray, now: float) -> None:
        """Handle a worker's list of the unique events that it has from an earlier broker."""
        slot = connection.slot
        if slot is None:
            raise ProtocolError("unique events of a client that is not subscribed")
        taken = Taken.decode(frame)
        taken.check()
        slot.end_resync(now)
        self._unique.inherit(taken, slot, now, self._sequencer.wall_clock_ns())
        # So that the worker knows that it need not send it again.
        self._outgoing.send(connection, Taken([]).encode())
        self._unique.unpark(now)

    # --- detach ---

    def take_goodbye(self, connection: ClientConnection, frame: bytearray, now: float) -> None:
        if not connection.is_greeted:
            raise ProtocolError("a goodbye before the hello")
        goodbye = Goodbye.decode(frame)
        slot = connection.slot
        if slot is None:
            self._outgoing.send(connection, goodbye.encode())
            return
        slot.drain(goodbye, now)
        # They wait for a handler, perhaps for long, and a successor that gets this queue must not run them too.
        for post in slot.take_unsent_uniques():
            self._unique.retry(post, now)
        # No poster waits until it has room: nothing more is kept for it, or its successor gets a gap for what has no room.
        self._sequencer.forget(slot, now)
        if not slot.is_observer and not slot.is_leaving:
            self._recovery.leave(slot)
        self._control.excuse(connection)
        self._outgoing.send(connection, Goodbye(slot.is_leaving).encode())
        self._agreement.settle()

    def disconnect(self, connection: ClientConnection, now: float) -> Slot | None:
        """Detach a connection that has ended. Return the slot if it is kept, for its process may come back."""
        poster, slot = connection.release()
        if poster is not None and poster.detach(connection):
            self._unique.return_to(poster)
        if slot is None:
            return None
        slot.detach(now)
        if not slot.is_observer:
            if not slot.is_leaving:
                self._recovery.leave(slot)
            self._arrivals.announce(now)
            self._sequencer.announce("worker_left", slot, now, kept=not slot.is_leaving)
        if slot.is_leaving:
            self._sequencer.forget(slot, now)
            self._slots.remove(slot)
            self._unique.reassign(slot, now)
        self._agreement.settle()
        return None if slot.is_leaving else slot

    def end_process(self, slot: Slot, now: float, *, ended: str, counts: bool) -> bool:
        """Give what a process had to others: it lost its connection, and has ended. Return whether it had events in hand."""
        if slot.connection is not None:
            return False
        had_any = self._deaths.note(slot, now, ended=ended, counts=counts)
        slot.end_process(now)
        self._unique.reassign(slot, now)
        if slot.is_observer and slot in self._slots.observers:
            self._slots.remove(slot)
            self._agreement.settle()
        return had_any

    def expire(self, now: float) -> None:
        """Give up slots that no process took in time."""
        timeout = self._state.options.timeout
        for slot in self._slots.expire(now, timeout):
            self._sequencer.forget(slot, now)
            self._deaths.note(slot, now)
            self._unique.reassign(slot, now)
            if slot.is_observer:
                continue
            if slot.worker_id not in self._slots.workers:
                self._recovery.forget(slot)
            elif slot.missed or slot.doubts:
                self._outgoing.warn(f"slot {slot.worker_id} was not taken for {timeout:g} s: its events are dropped")
        self._agreement.settle()
