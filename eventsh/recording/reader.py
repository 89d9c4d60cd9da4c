"""Read a recording: its files in order, or from a place in the middle, in constant memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import IO, Any, NamedTuple

from eventsh.errors import RecordingError
from eventsh.protocol.features import FEATURES, name_flags, readable_flags
from eventsh.protocol.frame import HEADER
from eventsh.recording.format import (
    FILE_HEADER_BYTES,
    Checkpoint,
    FileHeader,
    Record,
    RecordDecoder,
    RecordKind,
    decode_checkpoint,
    decode_facts,
    decode_file_header,
    decode_start,
)
from eventsh.recording.frames import Frame
from eventsh.recording.hole import Hole
from eventsh.recording.seek import find_checkpoint
from eventsh.recording.segments import ZSTD_SUFFIX, open_file, segment_paths

__all__ = ["Damage", "Item", "Note", "Reader", "Start"]

_READ_BYTES = 256 * 1024
# The flags of a frame that this version knows.
_READABLE = readable_flags(FEATURES)


class Note(NamedTuple):
    """What is between the frames: a start, a hole, a marker or an end. `events` came before it in the recording. A frame
    with flags that this version does not know is a hole too, whose facts say "unreadable"."""

    kind: RecordKind
    facts: dict[str, Any]
    events: int
    time_ns: int


class Damage(NamedTuple):
    """Where a file can't be read on, and why. `lost_bytes` is what is behind, None where the size can't be known.

    `is_cut`: it may be no more than what a writer that was killed, or still writes, left unfinished."""

    path: str
    offset: int
    reason: str
    is_cut: bool
    lost_bytes: int | None


Item = Frame | Note | Damage


@dataclass(frozen=True, slots=True)
class Start:
    """Where to begin: behind the last checkpoint of which `is_before` holds. What is before it is not read."""

    is_before: Callable[[Checkpoint], bool]


class Reader:
    """A recording: all its files, or with `one_file` only this one.

    Iterate over it as often as you like; each time begins anew. Damage does not raise: it is an item, after which the
    next file follows. RecordingError where there is nothing to read at all, or a file can't be opened.
    """

    def __init__(self, path: str, *, one_file: bool = False, start: Start | None = None) -> None:
        self.path = path
        self.paths = [path] if one_file else segment_paths(path)
        self._one_file = one_file
        self._start = start
        for each in self.paths:
            if not os.path.exists(each) and not os.path.exists(each + ZSTD_SUFFIX) and not self._list_again():
                raise RecordingError(f"there is no file {each!r}")

    @property
    def size_bytes(self) -> int:
        """How much the files take, compressed ones as they are."""
        return sum(_size(path) or 0 for path in self.paths)

    def header(self) -> FileHeader:
        """The first file's header. Raises RecordingError."""
        with self._opened(0) as file:
            try:
                return decode_file_header(_read(file, FILE_HEADER_BYTES, self.paths[0]))
            except RecordingError as error:
                raise RecordingError(f"{self.paths[0]}: {error}") from None

    def __iter__(self) -> Iterator[Item]:
        first, checkpoint = self._find_start()
        state = _State()
        expected: int | None = None
        number = first - 1
        while (number := number + 1) < len(self.paths):
            with self._opened(number) as file:
                path = self.paths[number]
                try:
                    header = decode_file_header(_read(file, FILE_HEADER_BYTES, path))
                except RecordingError as error:
                    yield Damage(path, 0, str(error), "cut off" in str(error) or "empty" in str(error), _size(path))
                    continue
                if header.segment != expected and number == len(self.paths) - 1 and self._list_again():
                    # What was the last file when they were listed has another name by now.
                    number -= 1
                    continue
                if expected is not None and header.segment != expected:
                    yield Damage(path, 0, f"segment {expected} is missing before this one", False, None)
                expected = header.segment + 1
                state.events = header.events
                if number == first and checkpoint is not None:
                    file.seek(checkpoint.offset)
                    state.resume(checkpoint)
                    yield from self._items(file, path, RecordDecoder(checkpoint.offset), state)
                else:
                    yield from self._items(file, path, RecordDecoder(), state)

    def _list_again(self) -> bool:
        """Whether files were begun since they were listed: they stand before the last one."""
        if self._one_file or (paths := segment_paths(self.path)) == self.paths or len(paths) < len(self.paths):
            return False
        self.paths = paths
        return True

    @contextmanager
    def _opened(self, number: int) -> Iterator[IO[bytes]]:
        """Open a file, by the name that it has now: it may be given another one, or be compressed, at any time."""
        with ExitStack() as stack:
            try:
                file = self._open(number, stack)
            except OSError as error:
                raise RecordingError(f"can't read {self.paths[number]}: {error.strerror}") from error
            yield file

    def _open(self, number: int, stack: ExitStack) -> IO[bytes]:
        try:
            return stack.enter_context(open_file(self.paths[number]))
        except FileNotFoundError:
            packed = self.paths[number] + ZSTD_SUFFIX
            if os.path.exists(packed):
                self.paths[number] = packed
            elif not self._list_again():
                raise
            return stack.enter_context(open_file(self.paths[number]))

    def _items(self, file: IO[bytes], path: str, decoder: RecordDecoder, state: _State) -> Iterator[Item]:
        while True:
            try:
                data = _read(file, _READ_BYTES, path)
            except RecordingError as error:
                yield Damage(path, decoder.offset, str(error), False, None)
                return
            if not data:
                break
            for record in decoder.receive_data(data):
                try:
                    item = state.take(record)
                except RecordingError as error:
                    yield Damage(path, record.offset, f"damaged: {error}", False, _left(path, record.offset))
                    return
                if item is not None:
                    yield item
            if decoder.error is not None:
                left = _left(path, decoder.offset)
                yield Damage(path, decoder.offset, str(decoder.error), False, left)
                return
        if decoder.buffered_bytes:
            reason = f"cut off at byte {decoder.offset}: the last record is not whole"
            yield Damage(path, decoder.offset, reason, True, decoder.buffered_bytes)

    def _find_start(self) -> tuple[int, Checkpoint | None]:
        """The file to begin with, and the checkpoint in it."""
        if self._start is None:
            return 0, None
        is_before = self._start.is_before
        for number in range(len(self.paths) - 1, -1, -1):
            found = None
            with self._opened(number) as file:
                # A compressed file can't be sought in: if another one follows, all that comes before that is in this one.
                if not self.paths[number].endswith(ZSTD_SUFFIX):
                    found = find_checkpoint(
                        lambda offset, count, file=file: os.pread(file.fileno(), count, offset),  # type: ignore[misc]
                        os.fstat(file.fileno()).st_size,
                        is_before,
                    )
            if found is not None:
                return number, found
            if number and self._begins_before(number):
                return number, None
        return 0, None

    def _begins_before(self, number: int) -> bool:
        """Whether the place that is sought is surely not before this file: judged by its first frame."""
        assert self._start is not None
        state = _State()
        with self._opened(number) as file:
            path = self.paths[number]
            try:
                header = decode_file_header(_read(file, FILE_HEADER_BYTES, path))
            except RecordingError:
                return False
            state.events = header.events
            for item in self._items(file, path, RecordDecoder(), state):
                if isinstance(item, Frame):
                    seq = HEADER.unpack_from(item.data)[7]
                    here = Checkpoint(0, 0, item.first, item.epoch, seq, item.time_ns)
                    return self._start.is_before(here)
        return False


def _unreadable(frame: Frame, flags: int) -> dict[str, Any]:
    """The facts of the hole that stands for a frame with flags that this version does not know. The file keeps the frame,
    and a later version reads it."""
    hole = Hole(frame.epoch, f"{name_flags(flags)} not known here: read it with a newer eventsh", frame.time_ns)
    hole.miss(frame.data)
    return {**hole.facts(), "ended_ns": frame.time_ns, "unreadable": True}


class _State:
    """What is known of the place that has been read to."""

    def __init__(self) -> None:
        self.events = 0
        self.epoch = 0
        self.time_ns = 0

    def resume(self, checkpoint: Checkpoint) -> None:
        self.events, self.epoch, self.time_ns = checkpoint.events, checkpoint.epoch, checkpoint.time_ns

    def take(self, record: Record) -> Frame | Note | None:
        if record.kind == RecordKind.EVENTS:
            _, _, flags, count, _, _, _, _, time_ns = HEADER.unpack_from(record.payload)
            frame = Frame(record.payload, self.epoch, record.worker, self.events + 1)
            self.events += count
            self.time_ns = max(self.time_ns, time_ns)
            if unknown := flags & ~_READABLE:
                return Note(RecordKind.HOLE, _unreadable(frame, unknown), self.events, self.time_ns)
            return frame
        if record.kind == RecordKind.CHECKPOINT:
            self.resume(decode_checkpoint(record))
            return None
        if record.kind not in (RecordKind.START, RecordKind.HOLE, RecordKind.MARKER, RecordKind.END):
            return None
        if record.kind == RecordKind.START:
            facts = decode_start(record)
            self.epoch = facts["epoch"]
        else:
            facts = decode_facts(record)
        return Note(RecordKind(record.kind), facts, self.events, self.time_ns)


def _read(file: IO[bytes], count: int, path: str) -> bytes:
    """As much as there is, up to `count`: an unbuffered file, or one that is compressed, may give less at a time."""
    pieces: list[bytes] = []
    while count:
        try:
            piece = file.read(count)
        except OSError as error:
            raise RecordingError(f"can't read {path}: {error.strerror}") from error
        except Exception as error:
            if type(error).__name__ != "ZstdError":
                raise
            raise RecordingError(f"{path}: what is compressed is damaged: {error}") from None
        if not piece:
            break
        pieces.append(piece)
        count -= len(piece)
    return b"".join(pieces)


def _size(path: str) -> int | None:
    try:
        return os.path.getsize(path)
    except FileNotFoundError:
        # It has been compressed meanwhile, or has another name.
        return None


def _left(path: str, offset: int) -> int | None:
    size = None if path.endswith(ZSTD_SUFFIX) else _size(path)
    return None if size is None else size - offset
