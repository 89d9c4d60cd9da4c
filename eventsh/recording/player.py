"""What is posted of a recording, piece by piece, in order and in constant memory. Knows no broker and no clock."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

from eventsh.errors import RecordingError
from eventsh.event import LIFECYCLE_SOURCE
from eventsh.protocol.frame import HEADER, Flag
from eventsh.recording.frames import Frame, RecordedEvent, Repeats, choose, encode_runs, runs_of
from eventsh.recording.reader import Damage, Item, Note

__all__ = ["Choice", "Piece", "Unique", "pieces"]

# What becomes of unique events: again one worker runs each; if possible the one that did; all do.
Unique: TypeAlias = Literal["again", "worker", "all"]


class Piece(NamedTuple):
    """A batch to be posted: a JSON array of runs as it stands in a frame."""

    body: bytes
    events: int
    pid: int
    time_ns: int
    number: int
    """Of its first event in the recording."""
    key: bytes | None
    """Of a unique event."""
    worker: int | None
    """Which one is to have it, if it can."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What of a recording is played, and as what. `largest` is how many events a piece may have."""

    wanted: Callable[[RecordedEvent], object] | None = None
    sources: Mapping[str, str] | None = None
    unique: Unique = "again"
    largest: int | None = None
    key_suffix: str = ""
    """So that a replay's keys are taken by nothing that was posted before, in another replay, say."""


def pieces(items: Iterable[Item], choice: Choice, *, on_damage: Callable[[Damage | Note], None]) -> Iterator[Piece]:
    """What is to be posted. eventsh's own events are not, for another pool has its own, and neither is what is in the
    recording twice, because a poster or a broker had to send it again. `on_damage` is called for damage, and for frames
    that a later version wrote. Raises RecordingError for what can't be read."""
    repeats = Repeats()
    for item in items:
        if isinstance(item, Damage) or (isinstance(item, Note) and item.facts.get("unreadable")):
            on_damage(item)
        elif isinstance(item, Frame):
            origin = HEADER.unpack_from(item.data)[5]
            if not origin or repeats.has(item.data):
                continue
            if choice.wanted is None:
                yield from _pieces_of(item, choice)
            else:
                for frame in choose(item, choice.wanted):
                    yield from _pieces_of(frame, choice)


def _pieces_of(frame: Frame, choice: Choice) -> Iterator[Piece]:
    _, _, flags, count, pid, _, _, seq, time_ns = HEADER.unpack_from(frame.data)
    # Decoded in any case: what workers can't read must not be posted.
    runs = runs_of(frame)
    key, worker = None, None
    if flags & Flag.UNIQUE and choice.unique != "all":
        end = len(frame.data)
        start = HEADER.size
        length = int.from_bytes(frame.data[start : start + 2], "little")
        # Each runs once, as it did, also when the same key comes again sooner than it did.
        suffix = f" {choice.key_suffix}{frame.epoch:x}-{seq}".encode()
        key = frame.data[start + 2 : start + 2 + length][: 65535 - len(suffix)] + suffix
        worker = frame.worker if choice.unique == "worker" and frame.worker >= 0 else None
        body = frame.data[start + 2 + length : end]
    elif flags & Flag.UNIQUE:
        length = int.from_bytes(frame.data[HEADER.size : HEADER.size + 2], "little")
        body = frame.data[HEADER.size + 2 + length :]
    else:
        body = frame.data[HEADER.size :]
    if any(run[0] == LIFECYCLE_SOURCE or not run[0] or not run[1] for run in runs):
        raise RecordingError(f"event {seq} has no name, or says that it is eventsh's own though a process posted it")
    if choice.sources is not None and any(run[0] in choice.sources for run in runs):
        runs = [[choice.sources.get(source, source), event, datas] for source, event, datas in runs]
        body = encode_runs(runs)
    if choice.largest is None or count <= choice.largest:
        yield Piece(body, count, pid, time_ns, frame.first, key, worker)
        return
    done = 0
    for part in _split(runs, choice.largest):
        size = sum(len(datas) for _, _, datas in part)
        yield Piece(encode_runs(part), size, pid, time_ns, frame.first + done, key, worker)
        done += size


def _split(runs: list[Any], largest: int) -> Iterator[list[Any]]:
    part: list[Any] = []
    room = largest
    for source, event, datas in runs:
        place = 0
        while place < len(datas):
            some = datas[place : place + room]
            part.append((source, event, some))
            place += len(some)
            room -= len(some)
            if not room:
                yield part
                part, room = [], largest
    if part:
        yield part
