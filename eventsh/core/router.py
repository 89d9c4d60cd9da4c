"""The broker's rules: who gets an event, in which order, and when its poster may forget it.

Knows no sockets and no clock. The owner reports connections, frames and the time, and then takes from each link in
`take_changed()` what is to be sent. Bodies are never looked at: a frame is stamped in place and forwarded whole.

An event is *accepted* (in its poster's order), *routed* (it gets its `seq` and enters the queues), *received* (a worker
said that it has it) and *handled* (its handlers returned; that worker's queue lets go of it). The poster is told that
it is confirmed when every live worker has received it. While a worker's queue is full nothing is routed; after
`timeout` without progress that worker alone loses what follows, and is told how much that was.

What happens to each batch and each ack is here, and in `fanout`, `slot` and `confirmations`; who comes and goes is
`greeting`'s, what people ask `desk`'s, and unique events are `dealer`'s.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from eventsh.core.agreement import Agreement
from eventsh.core.confirmations import Confirmations
from eventsh.core.dealer import Dealer
from eventsh.core.debts import Debts
from eventsh.core.desk import Desk
from eventsh.core.door import Door
from eventsh.core.fanout import Fanout
from eventsh.core.greeting import Greeting
from eventsh.core.heartbeat import Beat
from eventsh.core.link import Link
from eventsh.core.outlet import Outlet
from eventsh.core.poster import Post, Posters
from eventsh.core.roster import Roster
from eventsh.errors import ProtocolError
from eventsh.protocol.features import FEATURES
from eventsh.protocol.frame import HEADER, KIND_OFFSET, Flag, Kind, encode_frame

if TYPE_CHECKING:
    from eventsh.core.heartbeat import Heartbeat
    from eventsh.core.proof import BrokerProof
    from eventsh.core.slot import Slot
    from eventsh.core.tap import Tap
    from eventsh.options import Options

__all__ = ["Router"]

_EVENTS, _ACK = int(Kind.EVENTS), int(Kind.ACK)


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
        self.epoch = epoch
        self.pid = pid
        # Whoever restarts this broker and its workers, for people who want them reloaded.
        self.supervisor = supervisor
        # As in a hello: where its pid, and those that its transport vouches for, mean something.
        self.host = host
        self.started_at = now
        self.links: set[Link] = set()
        self.roster = Roster(
            slots=options.slots, max_slots=options.max_slots, max_queue_len=options.max_queue_len, now=now
        )
        self._outlet = Outlet()
        self._posters = Posters()
        self._fanout = Fanout(self.roster, self._outlet, pid=pid, wall_clock_ns=wall_clock_ns, now=now)
        self._dealer = Dealer(
            self.roster,
            self._fanout,
            timeout_s=options.unique_timeout or options.timeout,
            max_keys=options.max_unique_keys,
        )
        self._confirmations = Confirmations(self.roster, self._fanout, self._posters, self._outlet, self.links)
        self._desk = Desk(
            self.roster,
            self._fanout,
            self._outlet,
            status=self.status,
            allow_scripts=options.allow_scripts,
            on_rival=on_rival,
        )
        self._debts = Debts(epoch, self.roster, self._fanout, self._outlet, self.links)
        self._agreement = Agreement(features, self.roster, self._outlet, self.links)
        greeting = Greeting(
            options,
            epoch=epoch,
            pid=pid,
            started_at=now,
            door=Door(new_proof),
            roster=self.roster,
            posters=self._posters,
            fanout=self._fanout,
            dealer=self._dealer,
            desk=self._desk,
            confirmations=self._confirmations,
            debts=self._debts,
            agreement=self._agreement,
            outlet=self._outlet,
        )
        # Accepted and not routed, because a queue is full; bounded by the posters' windows.
        self._held: deque[Post] = deque()
        self._is_accepting = True
        # All but events and acks.
        self._on_message: dict[int, Callable[[Link, bytearray, float], None]] = {
            Kind.HELLO: greeting.take_hello,
            Kind.CHALLENGE: greeting.take_handshake,
            Kind.PROOF: greeting.take_handshake,
            Kind.TAKEN: greeting.take_taken,
            Kind.GOODBYE: greeting.take_goodbye,
            Kind.REQUEST: self._desk.take_request,
            Kind.ANSWER: self._desk.take_answer,
            Kind.OUTPUT: self._desk.take_output,
            Kind.REPORT: self._desk.take_report,
            Kind.HANDLED: self._confirmations.take_handled,
            Kind.PING: self._take_ping,
            Kind.PONG: self._take_pong,
            Kind.ERROR: self._take_error,
        }

    @property
    def seq(self) -> int:
        """The last event that crossed the broker."""
        return self._fanout.seq

    @property
    def tap(self) -> Tap | None:
        """Who sees all that crosses the broker. Whenever its `synced` goes up, or becomes None, call `settle`."""
        return self._fanout.tap

    @tap.setter
    def tap(self, tap: Tap | None) -> None:
        self._fanout.tap = tap

    # --- what the owner does with the result ---

    def take_changed(self) -> list[Link]:
        """The links that have output or are to be closed, since the last call."""
        changed = list(self._outlet.changed)
        self._outlet.changed.clear()
        return changed

    def take_notices(self) -> list[str]:
        """Warnings for the log since the last call."""
        notices = list(self._outlet.notices)
        self._outlet.notices.clear()
        return notices

    # --- what the owner reports ---

    def connect(
        self,
        key: Any,
        pid: int | None,
        now: float,
        heartbeat: Heartbeat | None = None,
        *,
        unsent: Callable[[], int] = int,
        is_trusted: bool = False,
    ) -> Link:
        """A connection was accepted. It has to say hello within `hello_timeout`, and gives signs of life from then on if it
        has a heartbeat. `unsent` tells how many bytes of what was sent wait to leave. `is_trusted`: it may bring code."""
        link = Link(key, pid, now + self.options.hello_timeout, unsent, is_trusted=is_trusted)
        link.heartbeat = heartbeat
        self.links.add(link)
        limit = self.options.max_connections
        if len(self.links) > limit:
            self._outlet.refuse(link, "too_many", f"{limit} connections are open, the limit of max_connections")
        return link

    def receive(self, link: Link, frames: list[bytearray], now: float) -> None:
        """Frames arrived. A peer that breaks the rules gets an Error and its link is closing; nobody else is touched."""
        try:
            for frame in frames:
                if link.is_closing:
                    break
                kind = frame[KIND_OFFSET]
                if kind == _EVENTS:
                    self._take_events(link, frame, now)
                elif kind == _ACK:
                    self._take_ack(link, frame, now)
                elif kind in self._on_message:
                    self._on_message[kind](link, frame, now)
                else:
                    raise ProtocolError(f"a client does not send frames of kind {kind}")
        except ProtocolError as error:
            self.refuse(link, error)
        self.settle(now)

    def refuse(self, link: Link, error: ProtocolError) -> None:
        """The peer broke the rules of the wire: tell it so and close."""
        self._outlet.refuse(link, "protocol", str(error))

    def disconnect(self, link: Link, now: float) -> Slot | None:
        """A connection is gone. Gives the slot whose process the owner should watch and report to `end_process`."""
        self.links.discard(link)
        self._outlet.changed.pop(link, None)
        self._desk.lose(link)
        poster, slot = link.poster, link.slot
        link.poster = link.slot = None
        if poster is not None and poster.link is link:
            poster.link = None
            self._dealer.return_to(poster)
        if slot is None:
            return None
        slot.detach(now)
        if not slot.is_observer:
            if not slot.leaving:
                self._debts.leave(slot)
            self._fanout.announce("worker_left", slot, now, kept=not slot.leaving)
        if slot.leaving:
            self._fanout.full.discard(slot)
            self.roster.remove(slot)
            self._dealer.reassign(slot, now)
        self._agreement.settle()
        self.settle(now)
        return None if slot.leaving else slot

    def end_process(self, slot: Slot, now: float) -> None:
        """The process that held this slot, and lost its connection, has ended: what it alone had goes to others."""
        if slot.link is None:
            slot.is_gone = True
            slot.is_telling = False
            self._dealer.reassign(slot, now)
            if slot.is_observer and slot in self.roster.observers:
                self.roster.remove(slot)
                self._agreement.settle()
            self.settle(now)

    def meet_rival(self, epoch: int, age_s: float, confirmed: int, now: float) -> bool:
        """Another broker, which began `age_s` ago and has `confirmed` so many posts to everybody, has served the same address
        beside this one, and ends. Its clients attach here. Return False when that is known already."""
        return self._debts.meet(epoch, now - age_s, confirmed, now)

    def stop_accepting(self) -> None:
        """Ignore all further posts: their posters send them to another broker. `is_settled` when the others are confirmed."""
        self._is_accepting = False
        self._held.clear()

    @property
    def is_settled(self) -> bool:
        """Whether every routed post is confirmed."""
        return not self._fanout.placed

    @property
    def confirmed_posts(self) -> int:
        """How many posts to everybody are confirmed."""
        return self._confirmations.posts

    def tick(self, now: float) -> None:
        """Time has passed. To be called several times in each of the timeouts."""
        for link in self.links:
            self._look_at(link, now)
        timeout = self.options.timeout
        if now - self.started_at > timeout:
            self._fanout.founder = None
        for slot in self.roster.expire(now, timeout):
            self._fanout.full.discard(slot)
            self._dealer.reassign(slot, now)
            if not slot.is_observer and (slot.missed or slot.doubts):
                self._outlet.notices.append(
                    f"slot {slot.worker_id} was not taken for {timeout:g} s: its events are dropped"
                )
        self._agreement.settle()
        self._give_up_on_the_stuck(now)
        self._desk.tick(now)
        self._debts.mark(now)
        self._dealer.keys.expire(now)
        if self._dealer.has_parked:
            self._dealer.unpark(now)
        self.settle(now)
        self._confirmations.tell_all()

    def _give_up_on_the_stuck(self, now: float) -> None:
        """From now on nobody waits for workers that made no progress for `timeout`."""
        timeout = self.options.timeout
        for slot in self.roster:
            if slot.link is None or now - slot.progress_at <= timeout:
                continue
            slot.is_telling = False
            if slot in self._fanout.full:
                self._fanout.full.discard(slot)
                slot.start_losing(f"{slot.label} made no progress for {timeout:g} s with a full queue")
                self._outlet.notices.append(
                    f"{slot.gap_reason} ({slot.queue.events} events): what follows is dropped for it"
                )
            elif slot.is_live and slot.is_behind:
                slot.stalled = True
                self._outlet.notices.append(f"{slot.label} took nothing for {timeout:g} s: nobody waits for it now")

    # --- signs of life, and the end of a connection ---

    def _look_at(self, link: Link, now: float) -> None:
        if link.is_closing:
            if link.close_by is None:
                link.close_by = now + self.options.timeout
            elif now > link.close_by and not link.is_gone:
                # It does not even read why.
                self._outlet.abort(link)
        elif not link.is_greeted and now > link.hello_by:
            self._outlet.refuse(link, "slow_hello", f"no hello within {self.options.hello_timeout:g} s (hello_timeout)")
        else:
            self._outlet.check_unread(link)
        if link.heartbeat is not None:
            self._beat(link, link.heartbeat.check(now))

    def _beat(self, link: Link, beat: Beat) -> None:
        if beat is Beat.ASK and link.is_greeted and not link.is_closing:
            self._outlet.send(link, encode_frame(Kind.PING))
        elif beat is Beat.GIVE_UP and not link.is_gone:
            self._outlet.abort(link)
            self._outlet.notices.append(
                f"{link.label} gave no sign of life in three heartbeats of {self.options.heartbeat:g} s: its connection is ended"
            )

    def _take_ping(self, link: Link, frame: bytearray, now: float) -> None:
        if not link.is_greeted:
            raise ProtocolError("a ping before the hello")
        self._outlet.send(link, encode_frame(Kind.PONG))

    def _take_pong(self, link: Link, frame: bytearray, now: float) -> None:
        # That it came is all that it says.
        if not link.is_greeted:
            raise ProtocolError("a pong before the hello")

    def _take_error(self, link: Link, frame: bytearray, now: float) -> None:
        self._outlet.close(link)

    # --- events ---

    def _take_events(self, link: Link, frame: bytearray, now: float) -> None:
        poster = link.poster
        if poster is None or not link.is_greeted:
            raise ProtocolError("events before the hello")
        if not self._is_accepting:
            return
        post = poster.accept(frame, self.options.max_queue_len)
        if post is None:
            # Sent again after a reconnect; the confirmation may have been lost with the connection.
            self._confirmations.due.add(poster)
        elif self._held or self._fanout.full or not self._route(post, now):
            self._held.append(post)

    def _route(self, post: Post, now: float) -> bool:
        """Give a post its place among all events and put it into the queues. False: not now."""
        if post.flags & Flag.UNIQUE:
            return self._dealer.route(post, now)
        if post.flags & Flag.RECEIPT:
            post.targets = [slot for slot in self.roster.workers.values() if not (slot.is_expired or slot.leaving)]
        self._fanout.place(post, None, now)
        post.frame = None
        return True

    # --- acks ---

    def _take_ack(self, link: Link, frame: bytearray, now: float) -> None:
        slot = link.slot
        if slot is None:
            raise ProtocolError("an ack from one who gets no events")
        _, _, _, _, _, _, handled, received, _ = HEADER.unpack_from(frame)
        # Not the slot's own last event: a process that held another place before may be beyond that.
        if handled > received or received > self.seq:
            raise ProtocolError(f"acked {received} and {handled}, but only {self.seq} was sent")
        slot.take_ack(received, handled, now)
        self._fanout.relieve(slot)
        if slot.lossy:
            self._fanout.recover(slot, now)
            self._debts.pay(slot, now)
        if self._dealer.has_parked and slot.can_take_unique:
            # It could take none a moment ago, when it was stalled or losing.
            self._dealer.unpark(now)

    def settle(self, now: float) -> None:
        """Route what was held, and confirm what every live worker has."""
        held = self._held
        while held and not self._fanout.full and self._route(held[0], now):
            held.popleft()
        if self._fanout.placed or self._confirmations.due:
            self._confirmations.settle()

    # --- for people ---

    def status(self, now: float) -> dict[str, Any]:
        """What `eventsh status` shows of the broker's rules; the owner adds what it knows of the process."""
        return {
            "broker": {
                "pid": self.pid,
                "host": self.host,
                "supervisor": self.supervisor,
                "epoch": self.epoch,
                "uptime_s": round(now - self.started_at, 3),
                "connections": len(self.links),
                "observers": len(self.roster.observers),
                "events": self.seq,
                "unconfirmed": sum(post.count for _, post in self._fanout.placed),
                "held": sum(post.count for post in self._held),
                "unique_keys": len(self._dealer.keys),
                "ignored_repeats": self._dealer.ignored_repeats,
                "all_know": sorted(self._agreement.all_know),
            },
            "recording": None if self.tap is None else self.tap.status(),
            "workers": [
                {
                    "worker_id": slot.worker_id,
                    "pid": slot.pid,
                    "host": None if slot.link is None else self.host if slot.link.pid else slot.link.host,
                    "state": slot.state,
                    "queued": slot.queue.events,
                    "handled": slot.handled,
                    "dropped": slot.dropped,
                    "failed": slot.failed,
                    "unread": slot.unread,
                    "uniques": slot.uniques_given,
                }
                for slot in self.roster.ordered_workers
            ],
        }
