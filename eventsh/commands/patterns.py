"""Choose events by glob patterns for their source and event. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable
from fnmatch import translate

from eventsh.errors import UsageError

__all__ = ["Pattern"]


class Pattern:
    """A choice of events. `*` is any text, `?` any character, `[abc]` and `[!abc]` one of some; case counts.

    The whole name must match; a source or event of None matches all. An empty glob, which could match nothing, is a
    UsageError.
    """

    __slots__ = ("_event", "_source", "event_glob", "source_glob")

    def __init__(self, source_glob: str | None = None, event_glob: str | None = None) -> None:
        self.source_glob = source_glob
        self.event_glob = event_glob
        self._source = _compile(source_glob, "source")
        self._event = _compile(event_glob, "event")

    def matches(self, source: str, event: str) -> bool:
        """Whether an event is one of those chosen."""
        return (self._source is None or bool(self._source(source))) and (
            self._event is None or bool(self._event(event))
        )

    def __repr__(self) -> str:
        return f"Pattern({self.source_glob!r}, {self.event_glob!r})"


def _compile(glob: str | None, word: str) -> Callable[[str], object] | None:
    """None where everything matches, so that nothing is called then."""
    if glob is None or glob == "*":
        return None
    if not glob:
        raise UsageError(f"the pattern for the {word} is empty: leave it out, or give * for every {word}")
    if not any(character in glob for character in "*?["):
        return glob.__eq__
    return re.compile(translate(glob)).match
