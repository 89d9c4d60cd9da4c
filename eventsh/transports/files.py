"""Files of a broker at its address, known by their inodes.

A name in the file system can be removed or replaced at any time: by a cleaner of temporary directories, at a logout, or
by hand. So a broker compares the inode at each name with the one that it opened or bound, and never removes a file by its
name alone.
"""

from __future__ import annotations

import contextlib
import os
import time

__all__ = ["Identity", "identity_at", "identity_of", "keep_file", "unlink_if_same"]

# Cleaners of temporary directories remove files that were not used for hours or days. A check runs every few seconds, and
# would write to the disk each time if it always set the times.
_FRESH_S = 60.0

# Device and inode.
Identity = tuple[int, int]


def identity_of(descriptor: int) -> Identity:
    """Return the identity of an open file."""
    info = os.fstat(descriptor)
    return info.st_dev, info.st_ino


def identity_at(path: str) -> Identity | None:
    """Return the identity of the file at `path`, a symbolic link as such; None when there is none."""
    try:
        info = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return info.st_dev, info.st_ino


def keep_file(path: str, identity: Identity) -> bool:
    """Refresh the times of a file that must outlive cleaners, if they are old.

    Returns:
        False when another file stands at `path`, or none.
    """
    if identity_at(path) != identity:
        return False
    with contextlib.suppress(OSError):
        # The difference has no sign: a clock that was set back would else keep the file old for as long.
        if abs(time.time() - min(os.lstat(path)[7:9])) > _FRESH_S:
            os.utime(path, follow_symlinks=False)
    return True


def unlink_if_same(path: str, identity: Identity) -> None:
    """Remove a file, unless another one stands at `path` by now."""
    if identity_at(path) == identity:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
