"""How a client comes and goes: the handshake, the hello, the place that it gets with what was kept for it, what it has
from an earlier broker, and the goodbye."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from eventsh.core.door import Door, Refusal
from eventsh.core.roster import RosterFull, SlotTaken
from eventsh.errors import ProtocolError
from eventsh.protocol.features import readable_flags
from eventsh.protocol.frame import PROTOCOL_VERSION
from eventsh.protocol.messages import Goodbye, Hello, Taken, Welcome

if TYPE_CHECKING:
    from eventsh.core.agreement import Agreement
    from eventsh.core.confirmations import Confirmations
    from eventsh.core.dealer import Dealer
    from eventsh.core.debts import Debts
    from eventsh.core.desk import Desk
    from eventsh.core.fanout import Fanout
    from eventsh.core.link import Link
    from eventsh.core.outlet import Outlet
    from eventsh.core.poster import Posters
    from eventsh.core.roster import Roster
    from eventsh.core.slot import Slot
    from eventsh.options import Options

__all__ = ["Greeting"]

_ROLES = ("worker", "observer", "poster")
# The shortest time between two notices of clients that were turned away.
_TELL_REFUSAL_S = 1.0


class Greeting:
    """`epoch` is the broker's life that began at `started_at`, in process `pid`. The other parts of the router stay its
    owner's."""

    def __init__(
        self,
        options: Options,
        *,
        epoch: int,
        pid: int,
        started_at: float,
        door: Door,
        roster: Roster,
        posters: Posters,
        fanout: Fanout,
        dealer: Dealer,
        desk: Desk,
        confirmations: Confirmations,
        debts: Debts,
        agreement: Agreement,
        outlet: Outlet,
    ) -> None:
        self._options = options
        self._epoch = epoch
        self._pid = pid
        self._started_at = started_at
        self._door = door
        self._roster = roster
        self._posters = posters
        self._fanout = fanout
        self._dealer = dealer
        self._desk = desk
        self._confirmations = confirmations
        self._debts = debts
        self._agreement = agreement
        self._outlet = outlet
        self._told_refusal_at = -math.inf

    def take_handshake(self, link: Link, frame: bytearray, now: float) -> None:
        try:
            self._outlet.send(link, self._door.answer(link, frame))
        except Refusal as refusal:
            self._turn_away(link, refusal, now)

    def _turn_away(self, link: Link, refusal: Refusal, now: float) -> None:
        self._outlet.refuse(link, refusal.code, str(refusal))
        # Anybody can knock as often as they like, and must not fill the log.
        if now - self._told_refusal_at >= _TELL_REFUSAL_S:
            self._told_refusal_at = now
            self._outlet.notices.append(f"a client was turned away: {refusal}")

    def take_hello(self, link: Link, frame: bytearray, now: float) -> None:
        if link.is_greeted:
            raise ProtocolError("a second hello")
        try:
            self._door.check_hello(link, frame)
        except Refusal as refusal:
            self._turn_away(link, refusal, now)
            return
        hello = Hello.decode(frame)
        refuse = self._outlet.refuse
        if hello.version != PROTOCOL_VERSION:
            refuse(link, "version", f"the broker speaks version {PROTOCOL_VERSION}, not {hello.version}")
            return
        _check(hello)
        poster = self._posters.attach(hello.origin, hello.identity, link)
        if poster is None:
            refuse(link, "origin_taken", f"another process posts as origin {hello.origin}: draw another")
            return
        link.poster = poster
        slot, resumed = None, False
        self._expect_others(hello, now)
        if hello.role != "poster":
            try:
                slot, resumed = self._roster.place(hello, now)
            except SlotTaken:
                refuse(link, "slot_taken", f"another process is worker {hello.worker_id}")
                return
            except RosterFull:
                limit = self._options.max_slots
                refuse(link, "too_many", f"{limit} workers and observers are known, the limit of max_slots")
                return
        self._admit(link, slot, hello, resumed, now)
        self._confirmations.greet(poster)

    def _admit(self, link: Link, slot: Slot | None, hello: Hello, resumed: bool, now: float) -> None:
        link.is_greeted = True
        link.host = hello.host
        link.features = frozenset(hello.features)
        link.readable = readable_flags(self._agreement.features & link.features)
        has_news = self._debts.learn(hello)
        if slot is not None:
            self._debts.expect(slot, hello, resumed=resumed)
        self._outlet.send(link, self._welcome(slot, resumed).encode())
        if slot is not None:
            self._attach(link, slot, hello, resumed, now)
        self._debts.greet(link, slot, hello)
        if has_news:
            self._debts.pay_all(now)
        elif slot is not None:
            self._debts.pay(slot, now)
        self._agreement.greet(link)

    def _expect_others(self, hello: Hello, now: float) -> None:
        """Keep the places of those who were workers of the same broker as this client, which is no more."""
        if hello.epoch in (0, self._epoch) or now - self._started_at > self._options.timeout:
            return
        mine = [hello.worker_id] if hello.role == "worker" and hello.worker_id is not None else []
        numbers = {number for number in hello.slots + mine if 0 <= number <= 65535}
        self._roster.expect(numbers, self._fanout.founder, self._fanout.posts, now)

    def _welcome(self, slot: Slot | None, resumed: bool) -> Welcome:
        options = self._options
        held = [number for number, slot in self._roster.workers.items() if not (slot.is_gone or slot.is_expired)]
        return Welcome(
            epoch=self._epoch,
            pid=self._pid,
            worker_id=slot.worker_id if slot is not None else None,
            resumed=resumed,
            seq=self._fanout.seq,
            timeout=options.timeout,
            max_queue_len=options.max_queue_len,
            max_payload_len=options.max_payload_len,
            slots=held,
            # What it missed may be more than that, for some of it was eventsh's own.
            posts=max(0, self._fanout.posts - slot.posts_behind) if slot is not None else 0,
            features=sorted(self._agreement.features),
        )

    def _attach(self, link: Link, slot: Slot, hello: Hello, resumed: bool, now: float) -> None:
        fanout, dealer = self._fanout, self._dealer
        previous = slot.link
        if previous is not None:
            # The client has noticed the end of its old connection before we have.
            previous.slot = None
            self._outlet.close(previous)
        elif slot.identity != hello.identity:
            dealer.reassign(slot, now)
        if not resumed:
            slot.received = slot.last_seq = fanout.seq
        slot.takes_unique = hello.take_unique
        slot.is_telling = hello.tells and hello.epoch != 0 and hello.told != self._epoch
        had = (hello.received, hello.handled) if hello.epoch == self._epoch else None
        # Asked for first: those that the process says it has handled leave the slot as it attaches.
        put_off = [(seq, post) for seq, post in slot.uniques.items() if post.last_seq is None]
        # Before the events that wait for it: it handles them as the one before it did.
        self._desk.welcome(link, slot)
        slot.attach(link, hello.identity, link.pid or hello.pid, had, now)
        fanout.relieve(slot)
        again = slot.take_unreceived_uniques()
        given_again = set(again)
        if slot.replace_unreadable(fanout.posts):
            fanout.warn_unreadable(slot)
        slot.send_backlog()
        for seq, post in put_off:
            if post not in given_again:
                post.last_seq = seq
                if fanout.tap is None or seq <= self._confirmations.floor:
                    self._confirmations.confirm(post)
        dealer.give_again(again, slot, now)
        if slot.lossy:
            fanout.recover(slot, now)
        if not slot.is_observer:
            fanout.announce("worker_joined", slot, now)
        dealer.unpark(now)

    def take_taken(self, link: Link, frame: bytearray, now: float) -> None:
        """A worker of an earlier broker tells which unique events it has."""
        slot = link.slot
        if slot is None:
            raise ProtocolError("unique events of one who gets none")
        taken = Taken.decode(frame)
        taken.check()
        slot.is_telling = False
        self._dealer.inherit(taken, slot, now, self._fanout.wall_clock_ns())
        # So that the worker knows that it need not tell again.
        self._outlet.send(link, Taken([]).encode())
        self._dealer.unpark(now)

    def take_goodbye(self, link: Link, frame: bytearray, now: float) -> None:
        if not link.is_greeted:
            raise ProtocolError("a goodbye before the hello")
        goodbye = Goodbye.decode(frame)
        slot = link.slot
        if slot is None:
            self._outlet.send(link, goodbye.encode())
            return
        slot.leaving = goodbye.leave
        slot.draining = True
        if slot.leaving:
            # Nothing more is kept for it, so nobody has to wait until it has room.
            self._fanout.full.discard(slot)
        elif not slot.is_observer:
            self._debts.leave(slot)
        self._outlet.send(link, Goodbye(slot.leaving).encode())
        self._agreement.settle()


def _check(hello: Hello) -> None:
    if hello.role not in _ROLES or not 0 < hello.origin < 1 << 32 or not 0 <= (hello.worker_id or 0) <= 65535:
        raise ProtocolError(f"a hello with role {hello.role!r}, origin {hello.origin}, slot {hello.worker_id}")
    if not 0 <= hello.handled <= hello.received:
        raise ProtocolError(f"a hello from one who received {hello.received} and handled {hello.handled}")
    hello.check()
