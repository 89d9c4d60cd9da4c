"""The broker's rules: who gets an event, in which order, and when its poster may forget it.

Knows no sockets and no clock. The owner reports connections, frames and the time, and then takes from each link in
`take_changed()` what is to be sent. Bodies are never looked at: a frame is stamped in place and forwarded whole.

An event is *accepted* (in its poster's order), *routed* (it gets its `seq` and enters the queues), *received* (a worker
said that it has it) and *handled* (its handlers returned; that worker's queue lets go of it). The poster is told that
it is confirmed when every live worker has received it. While a worker's queue is full nothing is routed; after
`timeout` without progress that worker alone loses what follows, and is told how much that was.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from eventsh.core.dealer import Dealer
from eventsh.core.door import Door, Refusal
from eventsh.core.fanout import Fanout
from eventsh.core.heartbeat import Beat
from eventsh.core.link import Link
from eventsh.core.poster import Post, Poster, Posters
from eventsh.core.questions import ADD_SCRIPT, REMOVE_SCRIPT, SCRIPT_REQUESTS, WORKERS_ANSWER, Questions
from eventsh.core.roster import Roster, RosterFull, SlotTaken
from eventsh.core.scripts import SCRIPT_OUTPUT, Script, Scripts
from eventsh.errors import EventError, NotSerializable, ProtocolError, UsageError
from eventsh.protocol.frame import (
    HEADER,
    KIND_OFFSET,
    PROTOCOL_VERSION,
    Flag,
    Kind,
    encode_frame,
)
from eventsh.protocol.messages import (
    Answer,
    Ask,
    Error,
    Goodbye,
    Handled,
    Hello,
    Output,
    Receipt,
    Reply,
    Report,
    Request,
    Taken,
    Welcome,
)

if TYPE_CHECKING:
    from eventsh.core.heartbeat import Heartbeat
    from eventsh.core.proof import BrokerProof
    from eventsh.core.slot import Slot
    from eventsh.core.tap import Tap
    from eventsh.options import Options

__all__ = ["Router"]

_ROLES = ("worker", "observer", "poster")
# The shortest time between two notices of clients that were turned away.
_TELL_REFUSAL_S = 1.0
_EVENTS, _ACK = int(Kind.EVENTS), int(Kind.ACK)
_received = attrgetter("received")


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
        new_proof: Callable[[], BrokerProof] | None = None,
    ) -> None:
        self.options = options
        self.epoch = epoch
        self.pid = pid
        # Whoever restarts this broker and its workers, for people who want them reloaded.
        self.supervisor = supervisor
        self.started_at = now
        self.links: set[Link] = set()
        self.roster = Roster(
            slots=options.slots, max_slots=options.max_slots, max_queue_len=options.max_queue_len, now=now
        )
        # The last event that all live workers have received.
        self.floor = 0
        self._wall_clock_ns = wall_clock_ns
        self._door = Door(new_proof)
        self._told_refusal_at = -math.inf
        self._posters = Posters()
        self._questions = Questions()
        self._scripts = Scripts()
        self._fanout = Fanout(self.roster, pid=pid, wall_clock_ns=wall_clock_ns, now=now)
        self._dealer = Dealer(
            self.roster,
            self._fanout,
            timeout_s=options.unique_timeout or options.timeout,
            max_keys=options.max_unique_keys,
        )
        # Accepted and not routed, because a queue is full; bounded by the posters' windows.
        self._held: deque[Post] = deque()
        self._confirmed: set[Poster] = set()
        # The worker that had the least of all when `settle` looked at them.
        self._last: Slot | None = None
        self._notices: list[str] = []
        self._on_message: dict[int, Callable[[Link, bytearray, float], None]] = {
            Kind.HELLO: self._take_hello,
            Kind.CHALLENGE: self._take_handshake,
            Kind.PROOF: self._take_handshake,
            Kind.PING: self._take_ping,
            Kind.PONG: self._take_pong,
            Kind.REPORT: self._take_report,
            Kind.GOODBYE: self._take_goodbye,
            Kind.REQUEST: self._take_request,
            Kind.ERROR: self._take_error,
            Kind.TAKEN: self._take_taken,
            Kind.HANDLED: self._take_handled,
            Kind.ANSWER: self._take_answer,
            Kind.OUTPUT: self._take_output,
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
        changed = list(self._fanout.changed)
        self._fanout.changed.clear()
        return changed

    def take_notices(self) -> list[str]:
        """Warnings for the log since the last call: one for each trouble that began, not one for each event."""
        notices, self._notices = self._notices, []
        return notices

    # --- what the owner reports ---

    def connect(
        self,
        key: Any,
        pid: int | None,
        now: float,
        heartbeat: Heartbeat | None = None,
        *,
        is_trusted: bool = False,
    ) -> Link:
        """A connection was accepted. It has to say hello within `hello_timeout`, and gives signs of life from then on if it
        has a heartbeat. `is_trusted`: it may bring code."""
        link = Link(key, pid, now + self.options.hello_timeout, is_trusted=is_trusted)
        link.heartbeat = heartbeat
        self.links.add(link)
        limit = self.options.max_connections
        if len(self.links) > limit:
            self._refuse(link, "too_many", f"{limit} connections are open, the limit of max_connections")
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
        self._refuse(link, "protocol", str(error))

    def disconnect(self, link: Link, now: float) -> Slot | None:
        """A connection is gone. Gives the slot whose process the owner should watch and report to `end_process`."""
        self.links.discard(link)
        self._fanout.changed.pop(link, None)
        self._reply(self._questions.lose(link))
        for script in self._scripts.lose(link):
            self._withdraw(script)
        poster, slot = link.poster, link.slot
        link.poster = link.slot = None
        if poster is not None and poster.link is link:
            poster.link = None
            self._dealer.return_to(poster)
        if slot is None:
            return None
        slot.detach(now)
        if not slot.is_observer:
            self._announce("worker_left", slot, now, kept=not slot.leaving)
        if slot.leaving:
            self._fanout.full.discard(slot)
            self.roster.remove(slot)
            self._dealer.reassign(slot, now)
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
            self.settle(now)

    def tick(self, now: float) -> None:
        """Time has passed. To be called several times in each of the timeouts."""
        for link in self.links:
            if not link.is_greeted and not link.is_closing and now > link.hello_by:
                self._refuse(link, "slow_hello", f"no hello within {self.options.hello_timeout:g} s (hello_timeout)")
            if link.heartbeat is not None:
                self._beat(link, link.heartbeat.check(now))
        timeout = self.options.timeout
        if now - self.started_at > timeout:
            self._fanout.founder = None
        for slot in self.roster.expire(now, timeout):
            self._fanout.full.discard(slot)
            self._dealer.reassign(slot, now)
            if not slot.is_observer and (slot.missed or slot.doubts):
                self._notices.append(f"slot {slot.worker_id} was not taken for {timeout:g} s: its events are dropped")
        for slot in self.roster:
            if slot.link is None or now - slot.progress_at <= timeout:
                continue
            slot.is_telling = False
            if slot in self._fanout.full:
                self._fanout.full.discard(slot)
                slot.start_losing(f"{slot.label} made no progress for {timeout:g} s with a full queue")
                self._notices.append(f"{slot.gap_reason} ({slot.queue.events} events): what follows is dropped for it")
            elif slot.is_live and slot.is_behind:
                slot.stalled = True
                self._notices.append(f"{slot.label} took nothing for {timeout:g} s: nobody waits for it now")
        self._reply(self._questions.tick(now))
        self._dealer.keys.expire(now)
        if self._dealer.has_parked:
            self._dealer.unpark(now)
        self.settle(now)

    # --- hello, goodbye and the rest ---

    def _beat(self, link: Link, beat: Beat) -> None:
        if beat is Beat.ASK and link.is_greeted and not link.is_closing:
            self._send(link, encode_frame(Kind.PING))
        elif beat is Beat.GIVE_UP and not link.is_gone:
            link.is_closing = link.is_gone = True
            self._fanout.changed[link] = None
            who = link.slot.label if link.slot is not None else "a client"
            self._notices.append(
                f"{who} gave no sign of life in three heartbeats of {self.options.heartbeat:g} s: its connection is ended"
            )

    def _take_ping(self, link: Link, frame: bytearray, now: float) -> None:
        if not link.is_greeted:
            raise ProtocolError("a ping before the hello")
        self._send(link, encode_frame(Kind.PONG))

    def _take_pong(self, link: Link, frame: bytearray, now: float) -> None:
        # That it came is all that it says.
        if not link.is_greeted:
            raise ProtocolError("a pong before the hello")

    def _take_handshake(self, link: Link, frame: bytearray, now: float) -> None:
        try:
            self._send(link, self._door.answer(link, frame))
        except Refusal as refusal:
            self._turn_away(link, refusal, now)

    def _turn_away(self, link: Link, refusal: Refusal, now: float) -> None:
        self._refuse(link, refusal.code, str(refusal))
        # Anybody can knock as often as they like, and must not fill the log.
        if now - self._told_refusal_at >= _TELL_REFUSAL_S:
            self._told_refusal_at = now
            self._notices.append(f"a client was turned away: {refusal}")

    def _take_hello(self, link: Link, frame: bytearray, now: float) -> None:
        if link.is_greeted:
            raise ProtocolError("a second hello")
        try:
            self._door.check_hello(link, frame)
        except Refusal as refusal:
            self._turn_away(link, refusal, now)
            return
        hello = Hello.decode(frame)
        if hello.version != PROTOCOL_VERSION:
            self._refuse(link, "version", f"the broker speaks version {PROTOCOL_VERSION}, not {hello.version}")
            return
        if hello.role not in _ROLES or not 0 < hello.origin < 1 << 32 or not 0 <= (hello.worker_id or 0) <= 65535:
            raise ProtocolError(f"a hello with role {hello.role!r}, origin {hello.origin}, slot {hello.worker_id}")
        if not 0 <= hello.handled <= hello.received:
            raise ProtocolError(f"a hello from one who received {hello.received} and handled {hello.handled}")
        poster = self._posters.attach(hello.origin, hello.identity, link)
        if poster is None:
            self._refuse(link, "origin_taken", f"another process posts as origin {hello.origin}: draw another")
            return
        link.poster = poster
        slot, resumed = None, False
        self._expect_others(hello, now)
        if hello.role != "poster":
            try:
                slot, resumed = self.roster.place(hello, now)
            except SlotTaken:
                self._refuse(link, "slot_taken", f"another process is worker {hello.worker_id}")
                return
            except RosterFull:
                limit = self.options.max_slots
                self._refuse(link, "too_many", f"{limit} workers and observers are known, the limit of max_slots")
                return
        link.is_greeted = True
        link.host = hello.host
        self._send(link, self._welcome(slot, resumed).encode())
        if slot is not None:
            self._attach(link, slot, hello, resumed, now)

    def _expect_others(self, hello: Hello, now: float) -> None:
        """Keep the places of those who were workers of the same broker as this client, which is no more."""
        if hello.epoch in (0, self.epoch) or now - self.started_at > self.options.timeout:
            return
        mine = [hello.worker_id] if hello.role == "worker" and hello.worker_id is not None else []
        self.roster.expect({number for number in hello.slots + mine if 0 <= number <= 65535}, self._fanout.founder, now)

    def _welcome(self, slot: Slot | None, resumed: bool) -> Welcome:
        options = self.options
        return Welcome(
            epoch=self.epoch,
            pid=self.pid,
            worker_id=slot.worker_id if slot is not None else None,
            resumed=resumed,
            seq=self.seq,
            timeout=options.timeout,
            max_queue_len=options.max_queue_len,
            max_payload_len=options.max_payload_len,
            slots=[number for number, slot in self.roster.workers.items() if not (slot.is_gone or slot.is_expired)],
        )

    def _attach(self, link: Link, slot: Slot, hello: Hello, resumed: bool, now: float) -> None:
        previous = slot.link
        if previous is not None:
            # The client has noticed the end of its old connection before we have.
            previous.slot = None
            previous.is_closing = True
            self._fanout.changed[previous] = None
        elif slot.identity != hello.identity:
            self._dealer.reassign(slot, now)
        if not resumed:
            slot.received = slot.last_seq = self.seq
        slot.takes_unique = hello.take_unique
        slot.is_telling = hello.tells and hello.epoch != 0 and hello.told != self.epoch
        had = (hello.received, hello.handled) if hello.epoch == self.epoch else None
        # Asked for first: those that the process says it has handled leave the slot as it attaches.
        put_off = [(seq, post) for seq, post in slot.uniques.items() if post.last_seq is None]
        if not slot.is_observer and self.options.allow_scripts:
            # Before the events that wait for it: it handles them as the one before it did.
            for script in self._scripts.for_worker(slot.worker_id):
                self._send(link, Ask(0, ADD_SCRIPT, script.arguments).encode())
        slot.attach(link, hello.identity, link.pid or hello.pid, had, now)
        self._fanout.relieve(slot)
        again = slot.take_unreceived_uniques()
        given_again = set(again)
        slot.send_backlog()
        for seq, post in put_off:
            if post not in given_again:
                post.last_seq = seq
                if self.tap is None or seq <= self.floor:
                    self._confirm(post)
        self._dealer.give_again(again, slot, now)
        if slot.lossy:
            self._recover(slot, now)
        if not slot.is_observer:
            self._announce("worker_joined", slot, now)
        self._dealer.unpark(now)

    def _take_goodbye(self, link: Link, frame: bytearray, now: float) -> None:
        if not link.is_greeted:
            raise ProtocolError("a goodbye before the hello")
        goodbye = Goodbye.decode(frame)
        slot = link.slot
        if slot is None:
            self._send(link, goodbye.encode())
            return
        slot.leaving = goodbye.leave
        slot.draining = True
        if slot.leaving:
            # Nothing more is kept for it, so nobody has to wait until it has room.
            self._fanout.full.discard(slot)
        self._send(link, Goodbye(slot.leaving).encode())

    def _take_report(self, link: Link, frame: bytearray, now: float) -> None:
        if link.slot is None:
            raise ProtocolError("a report from one who gets no events")
        report = Report.decode(frame)
        if not 0 < report.failed < 1 << 32:
            raise ProtocolError(f"a report of {report.failed} failures")
        link.slot.failed += report.failed
        data = {**report.last, "worker_id": link.slot.worker_id, "failed": report.failed}
        try:
            self._fanout.place_own("handler_error", data, self.roster.observers, now)
        except NotSerializable as error:
            raise ProtocolError(f"a report that can't be passed on: {error}") from None

    def _take_taken(self, link: Link, frame: bytearray, now: float) -> None:
        slot = link.slot
        if slot is None:
            raise ProtocolError("unique events of one who gets none")
        taken = Taken.decode(frame)
        taken.check()
        slot.is_telling = False
        self._dealer.inherit(taken.events, slot, now, self._wall_clock_ns())
        # So that the worker knows that it need not tell again.
        self._send(link, Taken([]).encode())
        self._dealer.unpark(now)

    def _take_handled(self, link: Link, frame: bytearray, now: float) -> None:
        slot = link.slot
        if slot is None:
            raise ProtocolError("the handlers of one who gets no events")
        handled = Handled.decode(frame)
        handled.check()
        poster = self._posters.link_of(handled.origin)
        if poster is not None:
            self._send(poster, replace(handled, worker_id=slot.worker_id, pid=slot.pid).encode())

    def _take_request(self, link: Link, frame: bytearray, now: float) -> None:
        if not link.is_greeted:
            raise ProtocolError("a request before the hello")
        request = Request.decode(frame)
        reply: Reply | None
        if request.what == "status":
            reply = Reply(request.id, self.status(now), None)
        elif self.tap is not None and (told := self._ask_tap(self.tap, request)) is not None:
            reply = told
        elif request.what in SCRIPT_REQUESTS:
            reply = self._take_script(link, request, now)
        elif request.what in WORKERS_ANSWER:
            reply = self._ask_workers(link, request, self._workers(), now)
        else:
            reply = Reply(request.id, None, f"this broker can't answer {request.what!r}")
        if reply is not None:
            self._send(link, reply.encode())

    def _ask_tap(self, tap: Tap, request: Request) -> Reply | None:
        try:
            data = tap.answer(request.what, request.arguments)
        except EventError as error:
            return Reply(request.id, None, str(error))
        return None if data is None else Reply(request.id, data, None)

    def _workers(self) -> list[Slot]:
        return [slot for _, slot in sorted(self.roster.workers.items())]

    def _ask_workers(self, link: Link, request: Request, slots: list[Slot], now: float) -> Reply | None:
        reply, asked = self._questions.ask(link, request, slots, now)
        for other, ask in asked:
            self._send(other, ask.encode())
        return reply

    def _take_script(self, link: Link, request: Request, now: float) -> Reply | None:
        """An operator brings code for the workers, or takes it back."""
        try:
            self._scripts.check_trust(link, allowed=self.options.allow_scripts)
            # Before anything changes: workers that can't be told must not run something else than is kept here.
            self._questions.check_room()
            is_new = request.what == ADD_SCRIPT
            script = self._scripts.add(link, request.arguments) if is_new else self._scripts.remove(request.arguments)
        except UsageError as error:
            return Reply(request.id, None, str(error))
        slots = [slot for slot in self._workers() if script.is_for(slot.worker_id)]
        return self._ask_workers(link, request, slots, now)

    def _withdraw(self, script: Script) -> None:
        for slot in self._workers():
            if slot.link is not None and script.is_for(slot.worker_id):
                self._send(slot.link, Ask(0, REMOVE_SCRIPT, {"name": script.name}).encode())

    def _take_output(self, link: Link, frame: bytearray, now: float) -> None:
        slot = link.slot
        if slot is None:
            raise ProtocolError("output of one who runs nothing")
        output = Output.decode(frame)
        owner = self._scripts.owner_of(output.script)
        if owner is None or owner.slot is None:
            return
        data = {"script": output.script, "text": output.text, "lost": output.lost}
        try:
            self._fanout.place_own(
                SCRIPT_OUTPUT, {**data, "worker_id": slot.worker_id, "pid": slot.pid}, [owner.slot], now
            )
        except NotSerializable as error:
            raise ProtocolError(f"output that can't be passed on: {error}") from None

    def _take_answer(self, link: Link, frame: bytearray, now: float) -> None:
        if link.slot is None:
            raise ProtocolError("an answer from one who is asked nothing")
        ended = self._questions.take(link, Answer.decode(frame), len(frame))
        if ended is not None:
            self._reply([ended])

    def _reply(self, ended: list[tuple[Link, Reply]]) -> None:
        for link, reply in ended:
            self._send(link, reply.encode())

    def _take_error(self, link: Link, frame: bytearray, now: float) -> None:
        link.is_closing = True
        self._fanout.changed[link] = None

    def _refuse(self, link: Link, code: str, message: str) -> None:
        if not link.is_closing:
            self._send(link, Error(code, message).encode())
            link.is_closing = True

    def _send(self, link: Link, frame: bytearray) -> None:
        link.output.append(frame)
        self._fanout.changed[link] = None

    # --- events ---

    def _take_events(self, link: Link, frame: bytearray, now: float) -> None:
        poster = link.poster
        if poster is None or not link.is_greeted:
            raise ProtocolError("events before the hello")
        post = poster.accept(frame, self.options.max_queue_len)
        if post is None:
            # Sent again after a reconnect; the confirmation may have been lost with the connection.
            self._confirmed.add(poster)
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

    def _announce(self, event: str, slot: Slot, now: float, **more: Any) -> None:
        self._fanout.place_own(event, {"worker_id": slot.worker_id, "pid": slot.pid, **more}, None, now)

    # --- acks, confirmations and pressure ---

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
            self._recover(slot, now)
        if self._dealer.has_parked and slot.can_take_unique:
            # It could take none a moment ago, when it was stalled or losing.
            self._dealer.unpark(now)

    def _recover(self, slot: Slot, now: float) -> None:
        """Let a slot that was losing have events again, once it has worked off half of its queue."""
        if slot.queue.events <= slot.queue.limit // 2:
            if slot.missed:
                self._notices.append(f"{slot.label} missed {slot.missed} events: {slot.gap_reason}")
            if slot.end_losing(now) and slot.link is not None:
                self._fanout.changed[slot.link] = None

    def settle(self, now: float) -> None:
        """Route what was held, and confirm what every live worker has."""
        held = self._held
        while held and not self._fanout.full and self._route(held[0], now):
            held.popleft()
        if self._fanout.placed and not self._waits_for_last():
            behind = [slot for slot in self.roster.workers.values() if slot.is_live and slot.is_behind]
            # Of several the one that is sent to last: most often it is the last to answer too.
            self._last = min(reversed(behind), key=_received, default=None)
            floor = self.seq if self._last is None else self._last.received
            if self.tap is not None and (synced := self.tap.synced) is not None:
                floor = min(floor, synced)
            self.floor = max(self.floor, floor)
            while self._fanout.placed and self._fanout.placed[0][0] <= self.floor:
                seq, post = self._fanout.placed.popleft()
                if post.last_seq == seq:
                    self._confirm(post)
        if self._confirmed:
            confirmed, self._confirmed = self._confirmed, set()
            for poster in confirmed:
                if poster.link is not None:
                    self._send(poster.link, encode_frame(Kind.CONFIRM, origin_seq=poster.confirmed))

    def _waits_for_last(self) -> bool:
        """Whether the slot that was furthest behind when all were looked at still lacks what is to be confirmed next. Acks come
        one by one, and to look at all slots for each took half of the router's time."""
        slot = self._last
        return (
            slot is not None
            and slot.received < self._fanout.placed[0][0]
            and slot.is_live
            and slot.is_behind
            and slot.worker_id is not None
            and self.roster.workers.get(slot.worker_id) is slot
        )

    def _confirm(self, post: Post) -> None:
        if post.is_done:
            return
        poster = post.poster
        if post.flags & Flag.RECEIPT and poster.link is not None:
            self._send(poster.link, self._receipt(post).encode())
        if poster.confirm(post):
            self._confirmed.add(poster)

    def _receipt(self, post: Post) -> Receipt:
        last_seq = post.last_seq or 0
        has: list[int] = []
        missing: list[int] = []
        for slot in post.targets:
            got_it = slot.link is not None and not slot.lossy and slot.received >= last_seq
            # An observer that takes unique events has no number of its own.
            (has if got_it else missing).append(-1 if slot.worker_id is None else slot.worker_id)
        return Receipt(post.first, sorted(has), sorted(missing), post.unique)

    # --- for people ---

    def status(self, now: float) -> dict[str, Any]:
        """What `eventsh status` shows of the broker's rules; the owner adds what it knows of the process."""
        return {
            "broker": {
                "pid": self.pid,
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
            },
            "recording": None if self.tap is None else self.tap.status(),
            "workers": [
                {
                    "worker_id": slot.worker_id,
                    "pid": slot.pid,
                    "state": slot.state,
                    "queued": slot.queue.events,
                    "handled": slot.handled,
                    "dropped": slot.dropped,
                    "failed": slot.failed,
                    "uniques": slot.uniques_given,
                }
                for _, slot in sorted(self.roster.workers.items())
            ],
        }
