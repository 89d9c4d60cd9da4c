"""The memory of rings: sealed memfds, written by one process and mapped read-only by others.

Nothing here has a name in any file system: a ring is gone with the last process that has it, however that ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import stat
import sys
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

from eventsh.errors import ProtocolError, TransportError

__all__ = ["MAX_RING_BYTES", "RingReader", "RingWriter", "has_memfd"]

# What is mapped of a peer's at most. Address space only: memory is taken as it is written.
MAX_RING_BYTES = 1024 * 1024 * 1024
# Memory is taken in such pieces. Written without asking first, it would be SIGBUS when there is none.
PIECE_BYTES = 1024 * 1024

# F_SEAL_FUTURE_WRITE, of Linux 5.1: who maps it from now on can only read. Python 3.11 has no name for it.
SEAL_FUTURE_WRITE = 0x10
# A file that can be cut short ends with SIGBUS whoever reads there.
SEALS_OF_READERS = getattr(fcntl, "F_SEAL_SHRINK", 0) | getattr(fcntl, "F_SEAL_GROW", 0)
SEALS_OF_WRITERS = SEALS_OF_READERS | getattr(fcntl, "F_SEAL_SEAL", 0) | SEAL_FUTURE_WRITE
# Else each map keeps a descriptor of its own, for resizing, which sealed memory never is.
MAP_OPTIONS: dict[str, Any] = {"trackfd": False} if sys.version_info >= (3, 13) else {}

# Called with "begin", "half" and "written" while a frame is written, and "sent" once it was named to its reader. For
# tests, which end the process there.
on_step: Callable[[str], None] | None = None


def has_memfd() -> bool:
    return hasattr(os, "memfd_create") and hasattr(fcntl, "F_ADD_SEALS")


class _Mapped:
    """Mapped memory, which a forked child lets go of: it would keep it alive for as long as it lives."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._map = memory
        self._view = memoryview(memory)
        _open.add(self)

    def close(self) -> None:
        """Let go of it. Idempotent."""
        _open.discard(self)
        self._view.release()
        # While somebody still holds a view of it, it stays mapped for that long.
        with contextlib.suppress(BufferError):
            self._map.close()


_open: WeakSet[_Mapped] = WeakSet()


def _let_go_in_child() -> None:
    for mapped in list(_open):
        mapped.close()


os.register_at_fork(after_in_child=_let_go_in_child)


class RingWriter(_Mapped):
    """A ring's memory in the process that writes it. Raises TransportError."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = -(-size_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        self.fd = -1
        self._allocated = 0
        memory = None
        try:
            self.fd = os.memfd_create("eventsh-ring", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.ftruncate(self.fd, self.size_bytes)
            memory = mmap.mmap(self.fd, self.size_bytes, **MAP_OPTIONS)
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, SEALS_OF_WRITERS)
        except OSError as error:
            self._close_descriptor()
            if memory is not None:
                memory.close()
            raise TransportError(
                f"can't make {self.size_bytes} bytes of sealed shared memory ({error.strerror}), which needs Linux 5.1"
                " or newer: use an address of the form unix:/path"
            ) from error
        super().__init__(memory)

    def close(self) -> None:
        super().close()
        self._close_descriptor()

    def _close_descriptor(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    # A connection that failed before its first turn is never told of its end.
    __del__ = _close_descriptor

    def allocate(self, end: int) -> bool:
        """Have memory up to `end`. False: the system has none; then the ring is as large as `allocated_bytes` from now on."""
        if end <= self._allocated:
            return True
        wanted = min(-(-end // PIECE_BYTES) * PIECE_BYTES, self.size_bytes)
        try:
            os.posix_fallocate(self.fd, self._allocated, wanted - self._allocated)
        except OSError:
            return False
        self._allocated = wanted
        return True

    @property
    def allocated_bytes(self) -> int:
        return self._allocated

    def write(self, offset: int, frame: bytes | bytearray | memoryview) -> None:
        """Copy a frame to its place, where there is memory."""
        if on_step is None:
            self._view[offset : offset + len(frame)] = frame
            return
        view = memoryview(frame)
        half = len(view) // 2
        on_step("begin")
        self._view[offset : offset + half] = view[:half]
        on_step("half")
        self._view[offset + half : offset + len(view)] = view[half:]
        on_step("written")


class RingReader(_Mapped):
    """A peer's ring. Raises TransportError if it is not what `size_bytes` and the seals say. Leaves `fd` to the caller."""

    def __init__(self, fd: int, size_bytes: int) -> None:
        try:
            self._check(fd, size_bytes)
            memory = mmap.mmap(fd, size_bytes, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ, **MAP_OPTIONS)
        except OSError as error:
            raise TransportError(f"its shared memory can't be mapped: {error.strerror}") from error
        self.size_bytes = size_bytes
        super().__init__(memory)

    @staticmethod
    def _check(fd: int, size_bytes: int) -> None:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode) or not 0 < size_bytes <= MAX_RING_BYTES or info.st_size != size_bytes:
            raise TransportError(
                f"its shared memory is no file of {size_bytes} bytes, at most {MAX_RING_BYTES}, but one of {info.st_size}"
            )
        # Pages of other sizes come from a pool that can run dry: SIGBUS again.
        if os.fstatvfs(fd).f_bsize != mmap.PAGESIZE:
            raise TransportError("its shared memory has pages of another size")
        try:
            seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
        except OSError as error:
            raise TransportError("its shared memory is no memfd") from error
        if seals & SEALS_OF_READERS != SEALS_OF_READERS:
            raise TransportError(f"its shared memory can be resized (its seals are {seals:#x})")

    def view(self, offset: int, length: int) -> memoryview:
        """These bytes, where they are. Raises ProtocolError if there are none."""
        if length <= 0 or offset < 0 or offset + length > self.size_bytes:
            raise ProtocolError(
                f"bytes {offset} to {offset + length} are not in the shared memory of {self.size_bytes} bytes"
            )
        return self._view[offset : offset + length]
