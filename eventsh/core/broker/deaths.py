"""Dead letters: events that killed the processes which handled them, and are not delivered again.

Theory of operation. A worker acknowledges a frame as received before it calls a handler. So the event in hand of a process
that died is among those that it had received and not handled; if that is one event, the death counts for it. If it is a batch
or several frames, no one knows which event it was: their frames are cut into frames of one event, and the next process of the
slot gets them one by one (`Slot.careful`), so that its death is sure to count. Unique events go to other workers, likewise
alone (`Post.is_suspect`). An event in which `max_deliveries` processes have died is taken out of every queue, but for those of
processes that have it already: a frame under way can't be recalled.

The broker's own events are innocent as long as an event of a poster is among the suspects: each death makes such events, and
they would hide the one that it was.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from eventsh.core.broker.state import Absence
from eventsh.core.delivery import decode_runs
from eventsh.core.queue import Entry
from eventsh.errors import NotSerializable, ProtocolError, UsageError
from eventsh.escape import escape
from eventsh.protocol.codec import encode_data
from eventsh.protocol.frame import (
    FLAGS_OFFSET,
    HEADER,
    HEADER_BYTES,
    Flag,
    Header,
    decode_header,
    encode_frame,
    read_key,
)

if TYPE_CHECKING:
    from eventsh.core.broker.sequencer import Sequencer
    from eventsh.core.broker.state import BrokerState, Post, Slot
    from eventsh.core.broker.unique import UniqueAssigner

__all__ = ["DEAD_REQUESTS", "GONE", "Deaths"]

GONE = "gone"
"""How a process ended when nobody has reported it."""

DEAD_REQUESTS = frozenset({"dead_list", "dead_show", "dead_retry", "dead_drop"})

# Events with deaths are remembered by origin and number, some 200 bytes each: no pool has as many suspects at once.
_REMEMBERED = 4096

_Key = tuple[int, int]


@dataclass(frozen=True, slots=True)
class _Death:
    """One process that died in an event."""

    worker_id: int | None
    pid: int | None
    ended: str
    time: float

    @property
    def facts(self) -> dict[str, Any]:
        return {"worker_id": self.worker_id, "pid": self.pid, "ended": self.ended, "time": self.time}


@dataclass(slots=True, eq=False)
class _Letter:
    """One dead letter. `time` is in seconds since 1970, as that of a death."""

    id: int
    key: _Key
    seq: int
    source: str
    event: str
    unique: str | None
    data: Any
    frame: bytearray
    deaths: list[_Death]
    time: float
    # Of a unique event, which can be assigned again.
    post: Post | None
    # The workers that got a gap in its place.
    lacking: set[int] = field(default_factory=set)

    @property
    def facts(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "source": self.source,
            "event": self.event,
            "unique": self.unique,
            "deaths": [death.facts for death in self.deaths],
            "time": self.time,
        }

    def lack(self, slot: Slot) -> None:
        """Note that a slot got a gap in its place."""
        if slot.worker_id is not None:
            self.lacking.add(slot.worker_id)


class Deaths:
    """The deaths of processes by event, and the dead letters."""

    def __init__(self, state: BrokerState, sequencer: Sequencer, unique: UniqueAssigner) -> None:
        self.total = 0
        self.discarded = 0
        self._max_deliveries = state.options.max_deliveries
        self._max_letters = state.options.max_dead_letters
        self._slots = state.slots
        self._outgoing = state.outgoing
        self._sequencer = sequencer
        self._unique = unique
        self._deaths: dict[_Key, list[_Death]] = {}
        # Every event that is delivered to nobody again, also when its letter is not kept any more.
        self._dead: dict[_Key, _Letter] = {}
        self._letters: dict[int, _Letter] = {}

    # --- deaths ---

    def note(self, slot: Slot, now: float, *, ended: str = GONE, counts: bool = True) -> bool:
        """Note that the process which last held this slot is dead; again has no effect.

        Args:
            ended: How it ended: the name of a signal, "exit 3", or GONE.
            counts: False: the event in hand is not to blame, for somebody meant the process to end.

        Returns:
            Whether it had events of posters in hand.
        """
        lost = slot.take_lost()
        suspects = [entry for entry in lost if _header(entry).origin]
        had_any = bool(suspects)
        suspects = suspects or lost
        # A goodbye was said before an intended end.
        if len(suspects) == 1 and counts and slot.goodbye is None:
            (entry,) = suspects
            is_one = entry.events == 1 or entry.last in slot.careful
            if is_one and (entry.last in slot.uniques or not slot.is_observer):
                self._count(slot, entry, ended, now)
        self._prepare_redelivery(slot, lost, now)
        return had_any

    def _count(self, slot: Slot, entry: Entry, ended: str, now: float) -> None:
        key = _key(entry)
        deaths = self._deaths.setdefault(key, [])
        deaths.append(_Death(slot.worker_id, slot.pid, ended, self._time()))
        while len(self._deaths) > _REMEMBERED:
            del self._deaths[next(iter(self._deaths))]
        if len(deaths) >= self._max_deliveries and key not in self._dead:
            self._bury(slot, entry, deaths, now)

    def _time(self) -> float:
        return round(self._sequencer.wall_clock_ns() / 1e9, 3)

    def _prepare_redelivery(self, slot: Slot, lost: list[Entry], now: float) -> None:
        """Cut the events that a dead process had in hand into frames of one, for the next process of its slot."""
        # A unique event goes to another worker.
        suspects = {entry.last for entry in lost} - slot.uniques.keys()
        dead = {letter.seq for letter in self._dead.values()}
        if suspects or (dead and slot.queue):
            slot.suspect(self._cut(slot, suspects, dead, now))

    def _cut(self, slot: Slot, suspects: set[int], dead: set[int], now: float) -> list[Entry]:
        """Cut queued batches that are suspects, or hold a dead letter, into frames of one event, with a gap in the place of each
        dead letter. All three are known by the seq of their last event. Return the suspects that are left."""
        left: list[Entry] = []

        def cut(entry: Entry, posts: int) -> list[Entry]:
            is_suspect = entry.last in suspects
            if not is_suspect and dead.isdisjoint(range(entry.last - entry.events + 1, entry.last + 1)):
                return [entry]
            parts = self._without_dead(slot, split(entry, Flag.RESENT if is_suspect else 0), posts)
            if is_suspect:
                left.extend(part for part in parts if part.events)
            return parts

        slot.rewrite(cut, self._sequencer.posts)
        self._sequencer.note_room(slot, now)
        return left

    def _without_dead(self, slot: Slot, parts: list[Entry], posts: int) -> list[Entry]:
        """Return the parts of a queued entry, with a gap in the place of each that is a dead letter."""
        kept = []
        for left, part in zip(range(len(parts) - 1, -1, -1), parts, strict=True):
            letter = self._dead.get(_key(part))
            if letter is not None:
                letter.lack(slot)
                # Of the posts up to the end of the entry, those after this part are not made yet.
                after = left if _header(part).origin else 0
                part = slot.gap_in_place(part, posts - after, "dead letter")
            kept.append(part)
        return kept

    # --- dead letters ---

    def _bury(self, slot: Slot, entry: Entry, deaths: list[_Death], now: float) -> None:
        """Make a dead letter of the event that was in hand at this slot."""
        post = slot.take_unique(entry.last) if entry.last in slot.uniques else None
        source, event, data = _read(entry)
        unique = None if post is None else read_key(entry.frame).decode("utf-8", "replace")
        self.total += 1
        place = _key(entry), _header(entry).seq
        letter = _Letter(self.total, *place, source, event, unique, data, entry.frame, deaths, self._time(), post)
        self._dead[letter.key] = self._letters[letter.id] = letter
        while len(self._letters) > self._max_letters:
            del self._letters[next(iter(self._letters))]
            self.discarded += 1
        while len(self._dead) > max(_REMEMBERED, self._max_letters):
            del self._dead[next(iter(self._dead))]
        if post is None:
            for other in self._slots:
                self._take_out(other, letter, now)
            if self._sequencer.startup_backlog is not None:
                self._take_out(self._sequencer.startup_backlog, letter, now)
        self._report(letter, now)

    def _take_out(self, slot: Slot, letter: _Letter, now: float) -> None:
        """Put a gap into the place of a dead letter in a queue, unless a process has it that may live."""
        sent = slot.last_seq if slot.receiver is not None else slot.sent
        may_live = slot.connection is not None or slot.absence in (Absence.AWAITED, Absence.LAGGING)
        if not (may_live and letter.seq <= sent):
            self._cut(slot, set(), {letter.seq}, now)

    def _report(self, letter: _Letter, now: float) -> None:
        ends = ", ".join(
            f"{'an observer' if death.worker_id is None else f'worker {death.worker_id}'} (pid {death.pid}): {death.ended}"
            for death in letter.deaths
        )
        key = "" if letter.unique is None else f", unique key {escape(letter.unique)}"
        self._outgoing.warn(
            f"dead letter {letter.id}: event {escape(letter.event)} of source {escape(letter.source)}{key} killed"
            f" {len(letter.deaths)} processes and is not delivered again ({ends}); 'eventsh dead' shows, retries or drops it"
        )
        self._sequencer.enqueue_own("dead_letter", letter.facts, self._slots.observers, now)

    # --- requests ---

    def answer(self, what: str, arguments: dict[str, Any], now: float) -> Any:
        """Answer a request of DEAD_REQUESTS. Raises UsageError."""
        if what == "dead_list":
            return {"dead": [letter.facts for letter in self._letters.values()], "discarded": self.discarded}
        number = arguments.get("id")
        if what == "dead_show":
            letter = self._find(number)
            return {**letter.facts, "data": letter.data, "missing": sorted(letter.lacking)}
        letters = list(self._letters.values()) if number is None else [self._find(number)]
        if what == "dead_retry":
            letters = [letter for letter in letters if self._retry(letter, now)]
            if number is not None and not letters:
                raise UsageError(f"no worker lacks dead letter {number}: 'eventsh dead drop {number}' removes it")
        for letter in letters:
            del self._letters[letter.id]
        return {"ids": [letter.id for letter in letters]}

    def _find(self, number: object) -> _Letter:
        letter = self._letters.get(number) if type(number) is int else None
        if letter is None:
            raise UsageError(f"there is no dead letter {number}: 'eventsh dead list' shows those there are")
        return letter

    def _retry(self, letter: _Letter, now: float) -> bool:
        """Post a dead letter anew, at the end of the order, to those that lacked it. Return whether there are any."""
        if letter.post is not None:
            self._dead.pop(letter.key, None)
            self._deaths.pop(letter.key, None)
            self._unique.retry(letter.post, now)
            return True
        slots = [slot for number in sorted(letter.lacking) if (slot := self._slots.workers.get(number)) is not None]
        if slots:
            self._sequencer.enqueue_again(letter.frame, slots, now)
        return bool(slots)


def split(entry: Entry, mark: int) -> list[Entry]:
    """Cut a queued batch into frames of one event, with these flags besides its own. One that can't be read stays whole."""
    header = _header(entry)
    flags = header.flags | mark
    runs: list[Any] = []
    if header.count > 1:
        try:
            runs = decode_runs(memoryview(entry.frame)[HEADER_BYTES:], header.count, is_own=not header.origin)
            bodies = [encode_data([[source, event, [data]]]) for source, event, several in runs for data in several]
        except (ProtocolError, NotSerializable):
            # Its receiver reports it as a gap.
            runs = []
    if not runs:
        frame = bytearray(entry.frame)
        frame[FLAGS_OFFSET] = flags
        return [Entry(entry.last, entry.events, frame)]
    first, number, time_ns = header.seq, header.origin_seq, header.time_ns
    return [
        Entry(
            first + place,
            1,
            encode_frame(
                header.kind,
                body,
                flags=flags,
                count=1,
                pid=header.pid,
                origin=header.origin,
                origin_seq=number + place,
                seq=first + place,
                time_ns=time_ns,
            ),
        )
        for place, body in enumerate(bodies)
    ]


def _read(entry: Entry) -> tuple[str, str, Any]:
    """Return source, event and data of a frame of one event."""
    header = _header(entry)
    start = HEADER_BYTES
    try:
        if header.flags & Flag.UNIQUE:
            start += 2 + len(read_key(entry.frame))
        ((source, event, (data,)),) = decode_runs(
            memoryview(entry.frame)[start:], header.count, is_own=not header.origin
        )
    except (ProtocolError, ValueError):
        return "", "", None
    return source, event, data


def _header(entry: Entry) -> Header:
    return decode_header(entry.frame)


def _key(entry: Entry) -> _Key:
    """Origin and number of the first event of a frame."""
    _, _, _, _, _, origin, number, _, _ = HEADER.unpack_from(entry.frame)
    return origin, number
