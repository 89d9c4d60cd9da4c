"""What a terminal can show. What is shown there of events goes through `escape` and `render_data`."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO

from eventsh.escape import escape, render_data

__all__ = ["escape", "leave_interrupts", "render_data", "wants_color"]


def wants_color(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Whether colour is wanted: a terminal that can show it, and nobody who asked for none (no-color.org)."""
    if environ.get("NO_COLOR") or environ.get("TERM") == "dumb":
        return False
    try:
        return stream.isatty()
    except ValueError:  # the stream is closed
        return False


@contextmanager
def leave_interrupts(is_running: Callable[[], bool] = lambda: True) -> Iterator[list[int]]:
    """Leave Ctrl-C to the child that has the terminal, as long as `is_running`; gives the list where each is noted.

    By a handler of its own: what is ignored is ignored by the child too, and after a KeyboardInterrupt subprocess gives
    the child a quarter of a second before it kills it.
    """
    noted: list[int] = []

    def note(number: int, _frame: Any) -> None:
        if not is_running():
            raise KeyboardInterrupt
        noted.append(number)

    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN or threading.current_thread() is not threading.main_thread():
        yield noted
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before)
