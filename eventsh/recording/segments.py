"""The files of one recording: `incident.evlog` is the last, `incident.0000.evlog` and so on are those that are finished.

A finished one may be compressed, `incident.0000.evlog.zst`.
"""

from __future__ import annotations

import errno
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

from eventsh.errors import RecordingError

__all__ = [
    "ZSTD_SUFFIX",
    "Compressor",
    "finished_paths",
    "open_file",
    "segment_number",
    "segment_path",
    "segment_paths",
    "zstandard",
]

ZSTD_SUFFIX = ".zst"
_UNFINISHED_SUFFIX = ".part"
_PIECE_BYTES = 1024 * 1024
_WINDOW_BYTES = 8 * 1024 * 1024


def segment_path(path: str, number: int) -> str:
    """Where segment `number` of the recording `path` goes once it is finished."""
    stem, extension = os.path.splitext(path)
    return f"{stem}.{number:04}{extension}"


def segment_paths(path: str) -> list[str]:
    """The files of a recording that are there, in order; `path` itself is the last one, if it is there."""
    stem, extension = os.path.splitext(os.path.basename(path))
    pattern = re.compile(rf"{re.escape(stem)}\.(\d{{4,9}}){re.escape(extension)}(?:{re.escape(ZSTD_SUFFIX)})?")
    directory = os.path.dirname(path)
    found: dict[int, str] = {}
    with suppress(FileNotFoundError, NotADirectoryError):
        for name in sorted(os.listdir(directory or ".")):
            # Sorted, the compressed one comes later and counts; both are there while it is being made, or was not finished.
            if (match := pattern.fullmatch(name)) is not None and int(match[1]) not in found:
                found[int(match[1])] = os.path.join(directory, name)
    paths = [found[number] for number in sorted(found)]
    return [*paths, path] if os.path.exists(path) or not paths else paths


def finished_paths(path: str) -> list[str]:
    """The files of a recording that were finished, in order."""
    return [each for each in segment_paths(path) if each != path]


def segment_number(path: str) -> int:
    """The number in the name of a finished file."""
    stem, _ = os.path.splitext(path.removesuffix(ZSTD_SUFFIX))
    return int(stem.rpartition(".")[2])


def zstandard() -> Any:
    """The library for compressed segments. Raises RecordingError where it is not installed."""
    try:
        import zstandard as library
    except ImportError:
        raise RecordingError("zstd needs the package zstandard: pip install 'eventsh[zstd]'") from None
    return library


@contextmanager
def open_file(path: str) -> Iterator[IO[bytes]]:
    """Open one file of a recording for reading; a compressed one reads as what it holds, and can't be sought in. Raises
    OSError and RecordingError."""
    # Bounded, for a file may ask for any amount of memory; what is written here needs 2 MiB.
    decompressor = zstandard().ZstdDecompressor(max_window_size=_WINDOW_BYTES) if path.endswith(ZSTD_SUFFIX) else None
    with open(path, "rb", buffering=0) as file:
        if decompressor is None:
            yield file
        else:
            yield decompressor.stream_reader(file, closefd=False, read_across_frames=True)


class Compressor:
    """Compresses finished segments, one after the other, in a thread of its own. One that is not done when it is closed
    is left as it is: readers take both."""

    def __init__(self) -> None:
        self.error: str | None = None
        self._library = zstandard()
        self._paths: list[str] = []
        self._wake = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="eventsh-compress", daemon=True)
        self._thread.start()

    def add(self, path: str) -> None:
        """Have this file compressed, and removed once that is done."""
        with self._wake:
            self._paths.append(path)
            self._wake.notify()

    def take_up(self, path: str) -> None:
        """Go on where an earlier process was stopped. The recording `path` must be locked."""
        for each in finished_paths(path):
            plain = each.removesuffix(ZSTD_SUFFIX)
            with suppress(OSError):
                os.unlink(plain + ZSTD_SUFFIX + _UNFINISHED_SUFFIX)
            if each == plain and not os.path.lexists(plain + ZSTD_SUFFIX):
                self.add(plain)

    def close(self) -> None:
        """Stop. What has been begun is given up."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._paths and not self._closing:
                    self._wake.wait()
                if self._closing:
                    return
                path = self._paths.pop(0)
            try:
                self._compress(path)
                self.error = None
            except Exception as error:  # noqa: BLE001  the library's own too: the thread must outlive one file
                self.error = f"{path} is not compressed: {getattr(error, 'strerror', None) or error}"

    def _compress(self, path: str) -> None:
        target = path + ZSTD_SUFFIX
        unfinished = target + _UNFINISHED_SUFFIX
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, f"{target} is there already", target)
        try:
            descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with open(descriptor, "wb") as file, open(path, "rb") as source:
                with self._library.ZstdCompressor(write_checksum=True).stream_writer(file, closefd=False) as stream:
                    while piece := source.read(_PIECE_BYTES):
                        if self._closing:
                            return
                        stream.write(piece)
                file.flush()
                os.fsync(file.fileno())
            os.replace(unfinished, target)
            os.unlink(path)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(unfinished)
