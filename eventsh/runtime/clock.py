"""The clock that epochs are measured with: it starts with the host, counts suspended time, and nobody can set it."""

from __future__ import annotations

import os
import sys
import time

from eventsh.core.epochs import encode_epoch

__all__ = ["new_epoch"]

_BOOT_ID = "/proc/sys/kernel/random/boot_id"
# The boot id is the kernel's, but a time namespace shifts its clocks: two brokers can compare times only with equal offsets.
_OFFSETS = "/proc/self/timens_offsets"


def new_epoch() -> int:
    """Return the number of an epoch that begins now."""
    # macOS has no CLOCK_BOOTTIME; its CLOCK_MONOTONIC counts suspended time.
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return encode_epoch(_read_identity(), time.clock_gettime_ns(clock))


def _read_identity() -> bytes:
    """Return bytes that are the same in all processes for which the clock shows the same time."""
    if sys.platform == "darwin":
        boot_id = _read_sysctl(b"kern.bootsessionuuid")
    else:
        boot_id = _read_file(_BOOT_ID)
    # Without an identity each broker counts as one of its own boot. That costs gaps that are not exact, and hides none.
    return boot_id + _read_file(_OFFSETS) if boot_id else os.urandom(16)


def _read_file(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def _read_sysctl(name: bytes) -> bytes:
    import ctypes  # Large, and needed on macOS only.

    value = ctypes.create_string_buffer(64)
    size = ctypes.c_size_t(len(value))
    failed = ctypes.CDLL(None).sysctlbyname(name, value, ctypes.byref(size), None, ctypes.c_size_t(0))
    return b"" if failed else value.value
