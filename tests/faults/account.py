"""From the ledger to a verdict: what was posted, and what became of it in every place of the pool.

A *place* is a worker's slot, with all the processes that held it, or a process that is nobody's successor. Knows no
processes and no broker: files in, numbers out.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.ledger import NO_SLOT, Kind, Life, read_lives

__all__ = ["FOR_EVER", "Account", "Kill", "Stay", "account", "percentile", "recoveries_s"]

FOR_EVER = 1 << 63


@dataclass(frozen=True, slots=True)
class Kill:
    """What was killed, and when. `slot` is None for a broker."""

    time_ns: int
    pid: int
    slot: int | None


@dataclass(frozen=True, slots=True)
class Stay:
    """A slot that was added while the pool ran, until its worker was told to leave."""

    slot: int
    left_ns: int = FOR_EVER


@dataclass(slots=True)
class Account:
    """Everything that a campaign counts. `faults` is what must not be."""

    places: int = 0
    processes: int = 0
    posted: int = 0
    handled: int = 0
    """Events handled at least once, summed over the places."""
    told: int = 0
    """Events told as gaps, those of eventsh's own among them."""
    told_too_much: int = 0
    lost: int = 0
    """Neither handled in a place nor told to it."""
    twice: int = 0
    """Handled again by one and the same process."""
    again: int = 0
    """Handled again by the successor of a process that was killed: allowed."""
    again_without_death: int = 0
    """Handled again in a place although the process that had it before was not killed."""
    out_of_order: int = 0
    """Handled after a later event of the same poster, in the same process."""
    disagreed: int = 0
    """Handled in another order than in the first place."""
    stays: int = 0
    """How often a slot was added that had not been there; those are no places."""
    handled_in_stays: int = 0
    lost_in_stays: int = 0
    """Not handled between the first and the last that was, or posted after it joined and handled elsewhere before it
    was told to leave."""
    invented: int = 0
    """Handled and never posted."""
    cut_short: int = 0
    """Slow handlers that did not come to their end, in a process that was not killed."""
    keys: int = 0
    keys_lost: int = 0
    keys_twice: int = 0
    keys_again: int = 0
    """Unique events that ran again because the worker that ran them was killed: allowed."""
    notes: list[str] = field(default_factory=list)

    @property
    def faults(self) -> dict[str, int]:
        names = (
            "lost",
            "lost_in_stays",
            "twice",
            "again_without_death",
            "out_of_order",
            "disagreed",
            "invented",
            "cut_short",
            "keys_lost",
            "keys_twice",
        )
        return {name: count for name in names if (count := getattr(self, name))}

    def note(self, text: str) -> None:
        # The first few tell what it is about; a thousand of them hide it.
        if len(self.notes) < 40:
            self.notes.append(text)


class _Place:
    """What has been handled in one place. Numbers are marked in one byte each, so that millions of them fit."""

    def __init__(self, name: str, posted: dict[int, int]) -> None:
        self.name = name
        self.told = 0
        self.again = 0
        self.handled = {poster: bytearray(count + 1) for poster, count in posted.items()}

    def missing(self) -> int:
        return sum(marks.count(0) - 1 for marks in self.handled.values())

    def first_missing(self) -> str:
        for poster, marks in self.handled.items():
            if (number := marks.find(0, 1)) > 0:
                return f"{marks.count(0) - 1} of poster {poster}, first {number}"
        return "nothing"


def account(directory: Path, kills: Sequence[Kill], *, one_epoch: bool, stays: Sequence[Stay] = ()) -> Account:
    """Account for all ledgers in `directory`. `one_epoch`: the broker lived all the time, so that every place must have
    seen one and the same order. `stays` needs that, and names the slots that were not there all the time."""
    lives = read_lives(directory)
    return _Accountant(lives, _killed_lives(lives, kills), stays, one_epoch=one_epoch).account()


def _killed_lives(lives: Sequence[Life], kills: Sequence[Kill]) -> set[Life]:
    """Whose ends the kills were. Numbers of processes are used again: of several it is the last that had begun."""
    by_pid: dict[int, list[Life]] = defaultdict(list)
    for life in lives:
        by_pid[life.pid].append(life)
    begun = ([life for life in by_pid[kill.pid] if life.started_ns <= kill.time_ns] for kill in kills)
    return {candidates[-1] for candidates in begun if candidates}


class _Accountant:
    """Goes through all ledgers once for what was posted, and once for what became of it."""

    def __init__(self, lives: Sequence[Life], killed: set[Life], stays: Sequence[Stay], *, one_epoch: bool) -> None:
        self.result = Account()
        self.killed = killed
        self.stays = sorted(stays, key=lambda stay: stay.left_ns)
        # Posters number their events from 1 without a hole.
        self.posted: dict[int, int] = defaultdict(int)
        # When each post was begun, at the earliest: when the one before it was written down.
        self.begun_ns: dict[tuple[int, int], int] = {}
        self.keys: set[int] = set()
        # What is told before anybody posts is about eventsh's own events, in a pool that takes long to start.
        self.posting_since_ns = 0
        self.ran: dict[int, list[Life]] = defaultdict(list)
        # Where each event stands in the order of the first place.
        self.reference: dict[tuple[int, int], int] | None = {} if one_epoch else None
        self.reference_ns: list[int] = []
        self.places: dict[int, _Place] = {}
        # By the slots that they were started for. One that was started for none is a place of its own.
        self.workers: dict[int, list[Life]] = defaultdict(list)
        self._read_posts(lives)

    def _read_posts(self, lives: Sequence[Life]) -> None:
        first_ns = []
        for life in lives:
            before_ns = life.started_ns
            for kind, slot, poster, number, time_ns in life.records():
                if kind == Kind.POSTED:
                    if not self.posted[poster]:
                        first_ns.append(time_ns)
                    self.posted[poster] += 1
                    if self.stays:
                        self.begun_ns[poster, number] = before_ns
                    before_ns = time_ns
                elif kind == Kind.POSTED_KEY:
                    self.keys.add(number)
                elif kind == Kind.STARTED:
                    self.workers[slot if slot != NO_SLOT else NO_SLOT + life.pid].append(life)
        self.posting_since_ns = min(first_ns, default=0)

    def account(self) -> Account:
        result = self.result
        result.posted, result.keys = sum(self.posted.values()), len(self.keys)
        passing = {stay.slot for stay in self.stays}
        for slot, lives in sorted(self.workers.items()):
            place = _Place(f"slot {slot}" if slot < NO_SLOT else f"process {slot - NO_SLOT}", self.posted)
            for before, life in zip([None, *lives], lives, strict=False):
                self._follow(life, place, may_repeat=before is not None and before in self.killed)
            if slot in passing:
                continue
            self._close(place)
            result.places += 1
            result.processes += len(lives)
        for stay in self.stays:
            self._account_stay(stay)
        self._account_keys()
        return result

    def _account_stay(self, stay: Stay) -> None:
        """Whether the worker of a slot that came and went had all that was posted while it was there."""
        assert self.reference is not None
        lives = self.workers[stay.slot]
        here = [life for life in lives if life.started_ns < stay.left_ns]
        self.workers[stay.slot] = lives[len(here) :]
        records = [record for life in here for record in life.records()]
        joined_ns = min((one.time_ns for one in records if one.kind == Kind.JOINED), default=FOR_EVER)
        told = sum(one.number for one in records if one.kind == Kind.GAP)
        handled = {
            self.reference[one.poster, one.number]
            for one in records
            if one.kind in (Kind.HANDLED, Kind.SLOW) and (one.poster, one.number) in self.reference
        }
        first, last = min(handled, default=0), max(handled, default=0)
        missing = [
            index
            for event, index in self.reference.items()
            if index not in handled
            and (first < index < last or (self.begun_ns[event] > joined_ns and self.reference_ns[index] < stay.left_ns))
        ]
        self.result.stays += 1
        self.result.handled_in_stays += len(handled)
        self.result.lost_in_stays += max(0, len(missing) - told)
        if len(missing) > told:
            self.result.note(f"slot {stay.slot}, {len(here)} processes: told {told}, and missing {len(missing)}")

    def _close(self, place: _Place) -> None:
        result, missing = self.result, place.missing()
        result.handled += result.posted - missing
        result.told += place.told
        result.again += place.again
        result.lost += max(0, missing - place.told)
        result.told_too_much += max(0, place.told - missing)
        if missing > place.told:
            result.note(f"{place.name}: told {place.told}, and missing {place.first_missing()}")

    def _follow(self, life: Life, place: _Place, *, may_repeat: bool) -> None:
        """Go through what one process did."""
        result = self.result
        view = _View(life, place, may_repeat, self.posted)
        slow: set[tuple[int, int]] = set()
        for kind, _, poster, number, time_ns in life.records():
            if kind == Kind.GAP and time_ns > self.posting_since_ns:
                place.told += number
            elif kind == Kind.UNIQUE:
                self.ran[number].append(life)
            elif kind == Kind.SLOW_ENDED:
                slow.discard((poster, number))
            elif kind in (Kind.HANDLED, Kind.SLOW):
                if kind == Kind.SLOW:
                    slow.add((poster, number))
                if self._is_new(view, poster, number) and self.reference is not None:
                    self._compare(view, (poster, number), time_ns, self.reference)
        if life not in self.killed and slow:
            result.cut_short += len(slow)
            result.note(f"{place.name}, process {life.pid}: slow handlers of {sorted(slow)[:3]} did not end")

    def _is_new(self, view: _View, poster: int, number: int) -> bool:
        """Mark an event as handled; whether this process handles it for the first time."""
        result, place, last = self.result, view.place, view.last[poster]
        where = f"{place.name}, process {view.life.pid}: {poster}/{number}"
        marks = place.handled.get(poster)
        if marks is None or number >= len(marks):
            result.invented += 1
            result.note(f"{where} was never posted")
            return False
        if view.seen[poster][number]:
            result.twice += 1
            result.note(f"{where} twice, the second time after {last}")
            return False
        view.seen[poster][number] = 1
        view.last[poster] = number
        if number < last:
            result.out_of_order += 1
            result.note(f"{where} after {last}")
        if marks[number] and view.may_repeat:
            place.again += 1
        elif marks[number]:
            result.again_without_death += 1
            result.note(f"{where} again, and its predecessor was not killed")
        marks[number] = 1
        return True

    def _compare(
        self, view: _View, event: tuple[int, int], time_ns: int, reference: dict[tuple[int, int], int]
    ) -> None:
        # The first place's own order is the reference, and of what it missed there is none.
        index = reference.get(event)
        if index is None and not self.result.places:
            index = reference[event] = len(reference)
            self.reference_ns.append(time_ns)
        if index is not None:
            self.result.disagreed += index < view.last_index
            view.last_index = index

    def _account_keys(self) -> None:
        result = self.result
        for key in self.keys:
            runs = sorted(self.ran.get(key, []), key=lambda life: life.started_ns)
            if not runs:
                result.keys_lost += 1
                result.note(f"key {key} ran nowhere")
            elif len(runs) > 1:
                alive = sum(life not in self.killed for life in runs)
                if alive > 1 or len(set(runs)) < len(runs):
                    result.keys_twice += 1
                    result.note(f"key {key} ran in {[life.pid for life in runs]}")
                else:
                    result.keys_again += 1
        result.invented += len(self.ran.keys() - self.keys)


class _View:
    """What one process has handled so far."""

    def __init__(self, life: Life, place: _Place, may_repeat: bool, posted: dict[int, int]) -> None:
        self.life = life
        self.place = place
        # Its predecessor was killed, and may not have acknowledged all that it had handled.
        self.may_repeat = may_repeat
        self.seen = {poster: bytearray(count + 1) for poster, count in posted.items()}
        self.last: dict[int, int] = defaultdict(int)
        self.last_index = -1


def recoveries_s(directory: Path, kills: Sequence[Kill]) -> list[float]:
    """For each kill the time until the killed worker's place was attached again, or, after a broker's death, for each
    worker the time until it was. A worker that the next death came in between of counts for neither."""
    times: dict[Life, list[int]] = defaultdict(list)
    by_place: dict[int, list[int]] = defaultdict(list)
    for life in read_lives(directory):
        for record in life.records():
            if record.kind == Kind.JOINED:
                times[life].append(record.time_ns)
                by_place[record.poster].append(record.time_ns)
    found = []
    brokers = [kill.time_ns for kill in kills if kill.slot is None]
    for kill in kills:
        if kill.slot is not None:
            at = _first_after(sorted(by_place[kill.slot]), kill.time_ns)
            if at is not None:
                found.append((at - kill.time_ns) / 1e9)
            continue
        following = _first_after(brokers, kill.time_ns)
        for joined in times.values():
            at = _first_after(joined, kill.time_ns)
            if at is not None and (following is None or at < following):
                found.append((at - kill.time_ns) / 1e9)
    return found


def _first_after(times: Sequence[int], time_ns: int) -> int | None:
    index = bisect_right(times, time_ns)
    return times[index] if index < len(times) else None


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of `values` that at least this share of them does not exceed; NaN of none."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    return ordered[max(0, min(len(ordered) - 1, -(-int(share * 1000) * len(ordered) // 1000) - 1))]
