"""`eventsh replay`: post what a recording holds, each event at its time.

Decides where it may be posted and when; the caller shows how it goes, and may pause it and change its speed.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson

from eventsh.errors import NotConnected, PayloadTooLarge, UsageError
from eventsh.protocol.frame import Flag
from eventsh.recording.format import RecordKind
from eventsh.recording.frames import encode_runs
from eventsh.recording.pace import Lateness, Pace
from eventsh.recording.player import Choice, Piece, Unique, pieces
from eventsh.recording.positions import Span
from eventsh.recording.reader import Damage, Note
from eventsh.runtime.blocking import BlockingClient
from eventsh.runtime.endpoint import find_endpoint

if TYPE_CHECKING:
    from eventsh.commands.patterns import Pattern

__all__ = [
    "Controls",
    "Plan",
    "Played",
    "Progress",
    "ReplayArguments",
    "Target",
    "find_target",
    "plan_replay",
    "replay",
]

# At full speed so much is put together before it is sent.
_FLUSH_BYTES = 64 * 1024
# How often progress is told, and workers that are waited for are looked for.
_TELL_S = 0.1
_LOOK_S = 0.1
# With a rate, a piece is no more than what is due in so long.
_PIECE_S = 0.005
# After a deadline that is so far away a pause can be felt: it is waited for in steps, so that keys work.
_STEP_S = 0.1


@dataclass(frozen=True, slots=True)
class ReplayArguments:
    """What of a recording to replay, and how. `speed` None is as fast as can be; `loop` 0 is for ever."""

    path: str
    pattern: Pattern
    speed: float | None = 1.0
    rate: float | None = None
    max_gap_s: float | None = None
    begin: str | None = None
    end: str | None = None
    count: int | None = None
    loop: int = 1
    sources: Mapping[str, str] = field(default_factory=dict)
    unique: Unique = "again"
    wait_workers: int = 0

    def __post_init__(self) -> None:
        if self.speed is not None and self.speed <= 0:
            raise UsageError("the speed must be above 0")
        if "eventsh" in self.sources.values():
            raise UsageError("'eventsh' is the source of eventsh's own events: map to another one")


@dataclass(frozen=True, slots=True)
class Plan:
    """What a replay would do. `seconds` is None where it can't be said: as fast as can be, or for ever."""

    events: int
    unique: int
    seconds: float | None
    sources: dict[str, int]
    damages: list[str]


@dataclass(frozen=True, slots=True)
class Target:
    """A pool that can be replayed into. `recorded_to` is where its broker records at present; `is_origin`: it is the very
    broker whose life is in the recording."""

    address: str
    workers: int
    recorded_to: str | None
    is_origin: bool
    is_same_file: bool


@dataclass(slots=True)
class Progress:
    """How far a replay is. `total` is None while unknown, `speed` None at full speed."""

    events: int = 0
    total: int | None = None
    position_s: float = 0.0
    speed: float | None = None
    rate: float | None = None
    late_s: float = 0.0
    is_paused: bool = False


@dataclass(frozen=True, slots=True)
class Played:
    """What was replayed. Lateness is None where nothing was due at a time; `achieved` is the speed, as a multiple of the
    recorded one."""

    events: int
    seconds: float
    events_per_s: float
    achieved: float | None
    late_p50_s: float | None
    late_p99_s: float | None
    late_max_s: float | None
    workers: int
    damages: list[str]
    is_stopped: bool


class Controls:
    """Whoever watches a replay: is told how it goes, and can steer it. This one does neither."""

    descriptors: tuple[int, ...] = ()
    """What can be read when there is a command."""

    def tell(self, progress: Progress) -> None:
        """How far it is."""

    def commands(self) -> str:
        """What has been asked for since the last call, a letter each: p pauses and goes on, s steps by one piece, + and -
        change the speed, q ends it."""
        return ""


def _chosen(arguments: ReplayArguments, on_damage: Callable[[Damage | Note], None], suffix: str) -> Iterator[Piece]:
    """One round."""
    pattern = arguments.pattern
    is_whole = pattern.source_glob in (None, "*") and pattern.event_glob in (None, "*")
    choice = Choice(
        wanted=None if is_whole else lambda event: pattern.matches(event.source, event.event),
        sources=arguments.sources or None,
        unique=arguments.unique,
        largest=None if arguments.rate is None else max(1, int(arguments.rate * _PIECE_S)),
        key_suffix=suffix,
    )
    return pieces(Span(arguments.path, arguments.begin, arguments.end), choice, on_damage=on_damage)


def plan_replay(arguments: ReplayArguments) -> Plan:
    """Read what would be replayed, and post nothing. Raises UsageError and RecordingError."""
    damages: list[str] = []
    pace = Pace(arguments.speed, arguments.rate, arguments.max_gap_s)
    sources: Counter[str] = Counter()
    events = unique = 0
    due: float | None = 0.0
    for piece in _limited(_chosen(arguments, lambda damage: damages.append(_describe(damage)), ""), arguments.count):
        events += piece.events
        unique += piece.key is not None
        due = pace.due(piece.time_ns, piece.events, 0.0)
        for source, _, datas in _runs(piece):
            sources[source] += len(datas)
    seconds = due if arguments.loop == 1 else None if due is None or not arguments.loop else due * arguments.loop
    return Plan(events, unique, seconds, dict(sources.most_common()), damages)


def _runs(piece: Piece) -> Any:
    return orjson.loads(piece.body)


def _describe(damage: Damage | Note) -> str:
    if isinstance(damage, Note):
        return f"{damage.facts['missed']} events are not replayed: {damage.facts['reason']}"
    return f"{damage.path}: {damage.reason}"


def _limited(found: Iterator[Piece], count: int | None) -> Iterator[Piece]:
    """No more than so many events, the last piece cut."""
    left = count
    for piece in found:
        if left is None or piece.events <= left:
            yield piece
            left = None if left is None else left - piece.events
        else:
            runs: list[Any] = []
            for source, event, datas in _runs(piece):
                some = datas[:left]
                runs.append([source, event, some])
                left -= len(some)
                if not left:
                    break
            yield piece._replace(body=encode_runs(runs), events=sum(len(datas) for _, _, datas in runs))
        if left == 0:
            return


def find_target(address: str | None, path: str, *, timeout_s: float) -> Target:
    """The pool at an address. Raises as `status` does, and RecordingError where the recording can't be read."""
    epochs = _epochs(path)
    transport, found = find_endpoint(address)
    with BlockingClient(transport, found, timeout_s=timeout_s) as client:
        status = client.ask("status")
    recording = status["recording"] or {"state": "off"}
    recorded_to = None if recording["state"] == "off" else recording["path"]
    return Target(
        address=str(found),
        workers=sum(worker["state"] == "attached" for worker in status["workers"]),
        recorded_to=recorded_to,
        is_origin=status["broker"]["epoch"] in epochs,
        is_same_file=recorded_to is not None and os.path.exists(recorded_to) and _is_same(recorded_to, path),
    )


def _is_same(recorded_to: str, path: str) -> bool:
    return os.path.exists(path) and os.path.samefile(recorded_to, path)


def _epochs(path: str) -> set[int]:
    """The brokers' lives of the beginning of a recording: enough to know the one that still records it."""
    found = set()
    for item in Span(path):
        if isinstance(item, Note) and item.kind is RecordKind.START:
            found.add(item.facts["epoch"])
        elif not isinstance(item, Note):
            break
    return found


class _Player:
    """One replay at work."""

    def __init__(
        self, client: BlockingClient, arguments: ReplayArguments, controls: Controls, progress: Progress
    ) -> None:
        self.client = client
        self.pace = Pace(arguments.speed, arguments.rate, arguments.max_gap_s)
        self.lateness = Lateness()
        self.damages: list[str] = []
        self.is_stopped = False
        self._arguments = arguments
        self._controls = controls
        self._progress = progress
        self._told_at = 0.0
        self._unsent_bytes = 0
        self._steps = 0
        self._suffix = os.urandom(4).hex() + "-"

    def play(self) -> None:
        number = 0
        while not self.is_stopped and (not self._arguments.loop or number < self._arguments.loop):
            number += 1
            before = self._progress.events
            found = _chosen(
                self._arguments, lambda damage: self.damages.append(_describe(damage)), f"{self._suffix}{number}-"
            )
            for piece in _limited(found, self._arguments.count):
                if not self._await_turn(piece):
                    break
                self._post(piece)
            if self._progress.events == before:
                break
            self.pace.restart(time.monotonic())
        self.client.flush()

    def _await_turn(self, piece: Piece) -> bool:
        """Wait until the piece is due. False: the replay is over."""
        due = self.pace.due(piece.time_ns, piece.events, time.monotonic())
        if due is None or due - time.monotonic() > 0:
            self._send()
        while True:
            now = time.monotonic()
            self._tell(now)
            for command in self._controls.commands():
                due = self._obey(command, due, now)
            if self.is_stopped:
                return False
            if self._progress.is_paused:
                if self._steps:
                    self._steps -= 1
                    return True
                self.client.idle(_STEP_S, self._controls.descriptors)
                paused_s = time.monotonic() - now
                self.pace.shift(paused_s)
                due = None if due is None else due + paused_s
                continue
            if due is None:
                return True
            left_s = due - time.monotonic()
            if left_s <= 0:
                self._progress.late_s = -left_s
                self.lateness.note(-left_s, piece.events)
                return True
            self.client.idle(min(left_s, _STEP_S), self._controls.descriptors)

    def _obey(self, command: str, due: float | None, now: float) -> float | None:
        progress = self._progress
        if command == "q":
            self.is_stopped = True
        elif command == "p":
            progress.is_paused = not progress.is_paused
        elif command == "s":
            progress.is_paused = True
            self._steps += 1
        elif command in "+-" and due is not None:
            return self.pace.change(2.0 if command == "+" else 0.5, due, now)
        return due

    def _post(self, piece: Piece) -> None:
        outbox = self.client.outbox
        if len(piece.body) > outbox.max_payload_len:
            _check_sizes(piece, outbox.max_payload_len)
        flags = Flag.REPLAYED if piece.key is None else Flag.REPLAYED | Flag.UNIQUE
        self.client.post_body(
            piece.body, piece.events, pid=piece.pid, flags=flags, key=piece.key or b"", worker=piece.worker
        )
        self._progress.events += piece.events
        self._progress.position_s = self.pace.position_s
        self._unsent_bytes += len(piece.body)
        if self.pace.speed is not None or self.pace.rate is not None or self._unsent_bytes >= _FLUSH_BYTES:
            self._send()

    def _send(self) -> None:
        if self._unsent_bytes:
            self._unsent_bytes = 0
            self.client.flush()

    def _tell(self, now: float) -> None:
        if now - self._told_at >= _TELL_S:
            self._told_at = now
            self._progress.speed, self._progress.rate = self.pace.speed, self.pace.rate
            self._controls.tell(self._progress)


def _check_sizes(piece: Piece, limit: int) -> None:
    for source, event, datas in _runs(piece):
        for data in datas:
            size = len(encode_runs((source, event, data)))
            if size > limit:
                raise PayloadTooLarge(source, event, size, limit)


def replay(
    arguments: ReplayArguments, address: str | None, controls: Controls, *, total: int | None, timeout_s: float
) -> Played:
    """Post a recording's events into the pool at `address`, marked as replayed, and wait until every live worker has them.

    Raises UsageError, RecordingError, TransportError when no broker listens, NotConnected when `wait_workers` do not come
    in time or the broker takes nothing any more, PayloadTooLarge for an event that is over the broker's limit; what came
    before it is posted.
    """
    progress = Progress(total=total)
    with BlockingClient(*find_endpoint(address), timeout_s=timeout_s) as client:
        workers = _wait_for_workers(client, arguments.wait_workers, timeout_s)
        player = _Player(client, arguments, controls, progress)
        began = time.monotonic()
        player.play()
        client.confirm()
        seconds = time.monotonic() - began
    controls.tell(progress)
    lateness = player.lateness
    has_times = arguments.rate is None and progress.position_s > 0 and arguments.loop == 1
    return Played(
        events=progress.events,
        seconds=seconds,
        events_per_s=progress.events / seconds if seconds else 0.0,
        achieved=progress.position_s / seconds if has_times and seconds else None,
        late_p50_s=lateness.percentile_s(0.5),
        late_p99_s=lateness.percentile_s(0.99),
        late_max_s=lateness.most_s if lateness.events else None,
        workers=workers,
        damages=player.damages,
        is_stopped=player.is_stopped,
    )


def _wait_for_workers(client: BlockingClient, wanted: int, timeout_s: float) -> int:
    until = time.monotonic() + timeout_s
    while True:
        attached: int = sum(worker["state"] == "attached" for worker in client.ask("status")["workers"])
        if attached >= wanted:
            return attached
        if time.monotonic() >= until:
            raise NotConnected(f"{attached} of {wanted} workers are attached after {timeout_s:g} s (--wait-workers)")
        client.idle(_LOOK_S)
