"""The context that handlers run in, and whether their event comes out of a recording: the handler can ask."""

from __future__ import annotations

from contextvars import Context, ContextVar

__all__ = ["CLEAN_LEN", "REPLAYED", "is_clean", "new_context", "replayed"]

REPLAYED: ContextVar[bool] = ContextVar("eventsh_replayed", default=False)

# Every event's handlers begin with a copy of this one: they see neither the ContextVars of the caller of `configure` nor
# those that an event before set. Copying a context takes the same time whatever it holds.
_BASE = Context()
_BASE.run(REPLAYED.set, False)
CLEAN_LEN = len(_BASE)


def new_context(is_replayed: bool = False) -> Context:
    """Return a context for the handlers of events."""
    context = _BASE.copy()
    if is_replayed:
        context.run(REPLAYED.set, True)
    return context


def is_clean(context: Context) -> bool:
    """Whether no handler has set a ContextVar in a context of `new_context`, so that the next event can use it too.

    As it begins with eventsh's own variables, every other one that is set makes it longer.
    """
    return len(context) == CLEAN_LEN


def replayed() -> bool:
    """Whether the event that the calling handler was called for comes out of a recording (`eventsh replay`), so that it can
    leave out what must not happen twice, such as a mail. False outside of handlers, and in threads that one started."""
    return REPLAYED.get()
