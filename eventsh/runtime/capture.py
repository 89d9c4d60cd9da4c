"""Standard output by context: what one command or one handler prints goes elsewhere, while other threads print as ever.

contextlib.redirect_stdout would take the whole process along: also what other threads and handlers print meanwhile.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol, TextIO, cast

__all__ = ["Sink", "redirect_output"]


class Sink(Protocol):
    """What takes the text."""

    def write(self, text: str, /) -> Any: ...

    def flush(self) -> None: ...


_sink: ContextVar[Sink | None] = ContextVar("eventsh_output", default=None)


class _Switch:
    """Stands at sys.stdout: writes to the sink of the context, or else to what stood there before."""

    def __init__(self, original: TextIO) -> None:
        self._original = original

    def write(self, text: str) -> int:
        (_sink.get() or self._original).write(text)
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        (_sink.get() or self._original).flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(_sink.get() or self._original, name)


@contextmanager
def redirect_output(sink: Sink | None) -> Iterator[None]:
    """Have what is printed in this context go to `sink`; None: where it went before all. Contexts of other threads and tasks are not touched."""
    if not isinstance(sys.stdout, _Switch):
        # It stays: another context may be in the midst of it, and it costs a write next to nothing.
        sys.stdout = cast("TextIO", _Switch(sys.stdout))
    token = _sink.set(sink)
    try:
        yield
    finally:
        _sink.reset(token)
