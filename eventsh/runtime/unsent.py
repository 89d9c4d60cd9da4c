"""Warnings about posts on a bus that was not configured.

`post` gives True before `configure`, so posts of a program that never comes to it (a lifespan that no server runs, for
one) would wait in silence until the process ends. There is no thread before `configure`: the look is made by a timer of
the loop that the post was made in, where there is one, and by every later post.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

__all__ = ["UnsentPosts"]

_log = logging.getLogger("eventsh")

# Repeated after twice the time, and so on up to this.
_LONGEST_PAUSE_S = 300.0


class UnsentPosts:
    """Warns of the posts of one bus.

    Args:
        describe: The text of the warning, or None once the bus is configured or has no posts.
    """

    def __init__(self, describe: Callable[[], str | None]) -> None:
        self._describe = describe
        self._due: float | None = None
        self._pause_s = 0.0
        self._has_timer = False

    def reset(self) -> None:
        """Begin anew: the bus was closed."""
        self._due = None

    def note(self, timeout_s: float) -> None:
        """Note a post on a bus that is not configured. In any thread."""
        if self._due is None:
            self._due, self._pause_s = time.monotonic() + timeout_s, timeout_s
        elif time.monotonic() >= self._due:
            self._warn()
        loop = asyncio._get_running_loop()
        if loop is not None and not self._has_timer:
            self._has_timer = True
            loop.call_later(self._due - time.monotonic(), self._look)

    def _look(self) -> None:
        self._has_timer = False
        if self._describe() is not None and self._due is not None:
            if time.monotonic() >= self._due:
                self._warn()
            self.note(self._pause_s)
        else:
            self._due = None

    def _warn(self) -> None:
        # First, for a post in a handler of the logging.
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
        self._due = time.monotonic() + self._pause_s
        if (text := self._describe()) is not None:
            _log.warning("%s", text)
