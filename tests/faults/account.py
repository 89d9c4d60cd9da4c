"""From the ledger to a verdict: what was posted, and what became of it in every place of the pool.

A *place* is a worker's slot, with all the processes that held it, or a process that is nobody's successor. Knows no
processes and no broker: files in, numbers out.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.ledger import Kind, Life, read_lives

__all__ = ["Account", "Kill", "account", "percentile", "recoveries_s"]

_NO_SLOT = 0xFFFF


@dataclass(frozen=True, slots=True)
class Kill:
    """What was killed, and when. `slot` is None for a broker."""

    time_ns: int
    pid: int
    slot: int | None


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


def account(directory: Path, kills: Sequence[Kill], *, one_epoch: bool) -> Account:
    """Account for all ledgers in `directory`. `one_epoch`: the broker lived all the time, so that every place must have
    seen one and the same order."""
    result = Account()
    lives = read_lives(directory)
    posted, keys = _posted(lives)
    result.posted, result.keys = sum(posted.values()), len(keys)
    killed = {kill.pid for kill in kills}
    places: dict[str, _Place] = {}
    last_of_place: dict[str, Life] = {}
    ran: dict[int, list[Life]] = defaultdict(list)
    reference: dict[tuple[int, int], int] | None = {} if one_epoch else None
    for life in sorted(lives, key=lambda life: (_slot_of(life) or 0, life.started_ns)):
        slot = _slot_of(life)
        if slot is None:
            continue
        name = f"process {life.pid}" if slot == _NO_SLOT else f"slot {slot}"
        result.processes += 1
        place = places.setdefault(name, _Place(name, posted))
        before = last_of_place.get(name)
        may_repeat = before is not None and before.pid in killed
        if len(places) > 1 or reference is None:
            _follow(life, place, may_repeat, result, ran, killed, reference, learn=False)
        else:
            _follow(life, place, may_repeat, result, ran, killed, reference, learn=True)
        last_of_place[name] = life
    result.places = len(places)
    for place in places.values():
        missing = place.missing()
        result.handled += result.posted - missing
        result.told += place.told
        result.again += place.again
        result.lost += max(0, missing - place.told)
        result.told_too_much += max(0, place.told - missing)
        if missing > place.told:
            result.note(f"{place.name}: told {place.told}, and missing {place.first_missing()}")
    _account_keys(keys, ran, killed, result)
    return result


def _slot_of(life: Life) -> int | None:
    """The slot that a worker was started for; None for one that only posts."""
    for record in life.records():
        if record.kind == Kind.STARTED:
            return record.slot
    return None


def _posted(lives: Iterable[Life]) -> tuple[dict[int, int], set[int]]:
    """How many events each poster has posted, numbered from 1 without a hole, and all keys."""
    posted: dict[int, int] = defaultdict(int)
    keys: set[int] = set()
    for life in lives:
        for record in life.records():
            if record.kind == Kind.POSTED:
                posted[record.poster] += 1
            elif record.kind == Kind.POSTED_KEY:
                keys.add(record.number)
    return dict(posted), keys


def _follow(
    life: Life,
    place: _Place,
    may_repeat: bool,
    result: Account,
    ran: dict[int, list[Life]],
    killed: set[int],
    reference: dict[tuple[int, int], int] | None,
    *,
    learn: bool,
) -> None:
    """Go through what one process did. The reference is the order in which the first place had the events."""
    seen = {poster: bytearray(len(marks)) for poster, marks in place.handled.items()}
    last: dict[int, int] = defaultdict(int)
    last_index = -1
    slow: set[tuple[int, int]] = set()
    for kind, _, poster, number, _ in life.records():
        if kind == Kind.GAP:
            place.told += number
        elif kind == Kind.UNIQUE:
            ran[number].append(life)
        elif kind == Kind.SLOW_ENDED:
            slow.discard((poster, number))
        if kind not in (Kind.HANDLED, Kind.SLOW):
            continue
        if kind == Kind.SLOW:
            slow.add((poster, number))
        marks = place.handled.get(poster)
        if marks is None or number >= len(marks):
            result.invented += 1
            result.note(f"{place.name}, process {life.pid}: {poster}/{number} was never posted")
            continue
        if seen[poster][number]:
            result.twice += 1
            result.note(f"{place.name}, process {life.pid}: {poster}/{number} twice, after {last[poster]}")
            continue
        seen[poster][number] = 1
        if number < last[poster]:
            result.out_of_order += 1
            result.note(f"{place.name}, process {life.pid}: {poster}/{number} after {last[poster]}")
        last[poster] = number
        if marks[number] and may_repeat:
            place.again += 1
        elif marks[number]:
            result.again_without_death += 1
            result.note(f"{place.name}, process {life.pid}: {poster}/{number} again, and its predecessor was not killed")
        marks[number] = 1
        if reference is not None:
            index = reference.setdefault((poster, number), len(reference)) if learn else reference.get((poster, number))
            if index is not None:
                result.disagreed += index < last_index
                last_index = index
    if life.pid not in killed and slow:
        result.cut_short += len(slow)
        result.note(f"{place.name}, process {life.pid}: slow handlers of {sorted(slow)[:3]} did not end")


def _account_keys(keys: set[int], ran: dict[int, list[Life]], killed: set[int], result: Account) -> None:
    for key in keys:
        runs = sorted(ran.get(key, []), key=lambda life: life.started_ns)
        if not runs:
            result.keys_lost += 1
            result.note(f"key {key} ran nowhere")
        elif len(runs) > 1:
            alive = sum(life.pid not in killed for life in runs)
            if alive > 1 or len({life.pid for life in runs}) < len(runs):
                result.keys_twice += 1
                result.note(f"key {key} ran in {[life.pid for life in runs]}")
            else:
                result.keys_again += 1
    for key in ran.keys() - keys:
        result.invented += 1
        result.note(f"key {key} ran and was never posted")


def recoveries_s(directory: Path, kills: Sequence[Kill]) -> list[float]:
    """For each kill the time until the killed worker's place was attached again, or, after a broker's death, for each
    worker the time until it was. A worker that the next death came in between of counts for neither."""
    times: dict[int, list[int]] = defaultdict(list)
    by_place: dict[int, list[int]] = defaultdict(list)
    for life in read_lives(directory):
        for record in life.records():
            if record.kind == Kind.JOINED:
                times[life.pid].append(record.time_ns)
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
