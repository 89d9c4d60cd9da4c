"""Whether the event that a handler is called for comes out of a recording: the handler can ask."""

from __future__ import annotations

from contextvars import ContextVar

__all__ = ["REPLAYED", "replayed"]

REPLAYED: ContextVar[bool] = ContextVar("eventsh_replayed", default=False)


def replayed() -> bool:
    """Whether the event that the calling handler was called for comes out of a recording (`eventsh replay`), so that it can
    leave out what must not happen twice, such as a mail. False outside of handlers, and in threads that one started."""
    return REPLAYED.get()
