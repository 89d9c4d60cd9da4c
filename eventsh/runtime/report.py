"""How handlers that fail or are slow are told: to the log, and failures also to whoever dispatches.

Never the payload: it may be secret, and it may be large. What an exception says of it is the handler's own doing.
"""

from __future__ import annotations

import _thread
import contextlib
import logging
import sys
import threading
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import CodeType

    from eventsh.core.registry import Handler

__all__ = ["HandlerFailure", "Reporter", "is_from", "pass_on"]

_log = logging.getLogger("eventsh")

# Enough to find the culprit by; a program with a hundred handlers shall still get one readable line.
_NAMED_HANDLERS = 5


@dataclass(frozen=True, slots=True)
class HandlerFailure:
    """One call of a handler that raised."""

    handler: str
    location: str
    source: str
    event: str
    error_type: str
    error_text: str
    traceback: str


class Reporter:
    """Counts and tells. `slow` and `slow_delivery` may be called from any thread."""

    def __init__(self, on_failure: Callable[[HandlerFailure], None]) -> None:
        self.failed = 0
        self._on_failure = on_failure

    def failure(self, handler: Handler, source: str, event: str, error: BaseException) -> None:
        """Log it with the full traceback, then hand it on. Raises no Exception."""
        self.failed += 1
        handler.errors += 1
        try:
            _log.error(
                "handler %s (%s) failed on event %r of %r",
                handler.name,
                handler.location,
                event,
                source,
                exc_info=error,
            )
        except Exception:  # noqa: BLE001 - a filter or a handler of the program's own logging
            _say_unlogged(handler)
        try:
            self._on_failure(_describe(handler, source, event, error))
        except Exception:  # noqa: BLE001 - the events behind this one must be handled all the same
            with contextlib.suppress(Exception):
                _log.exception("the failure of handler %s (%s) could not be passed on", handler.name, handler.location)

    def forked(self, handler: Handler) -> None:
        """In a child that a handler forked and did not end."""
        _log.error(
            "handler %s (%s) forked, and returned in the child too, which ends here: have the child call os._exit",
            handler.name,
            handler.location,
        )

    def slow(self, handler: Handler, source: str, event: str, seconds: float, timeout_s: float) -> None:
        """Warn of one call, over or still going on."""
        _log.warning(
            "handler %s (%s) has taken %.3g s on event %r of %r, over the timeout of %g s",
            handler.name,
            handler.location,
            seconds,
            event,
            source,
            timeout_s,
        )

    def slow_delivery(self, count: int, handlers: Iterable[Handler], seconds: float, timeout_s: float) -> None:
        """Warn of many calls, none of which was seen to be slow."""
        names = [f"{handler.name} ({handler.location})" for handler in handlers]
        more = len(names) - _NAMED_HANDLERS
        named = ", ".join(names[:_NAMED_HANDLERS]) + (f" and {more} more" if more > 0 else "")
        _log.warning(
            "the handlers of a batch of %d events have taken %.3g s, over the timeout of %g s: %s",
            count,
            seconds,
            timeout_s,
            named,
        )


def _describe(handler: Handler, source: str, event: str, error: BaseException) -> HandlerFailure:
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - an error that can't even be written is still one to tell of
        text = "<its text could not be made>"
    return HandlerFailure(
        handler=handler.name,
        location=handler.location,
        source=source,
        event=event,
        error_type=type(error).__qualname__,
        error_text=text,
        traceback="".join(traceback.format_exception(error)),
    )


def _say_unlogged(handler: Handler) -> None:
    with contextlib.suppress(Exception):
        sys.stderr.write(f"eventsh: handler {handler.name} ({handler.location}) failed, and logging that raised:\n")
        traceback.print_exc()


def is_from(error: BaseException, code: CodeType) -> bool:
    """Whether an exception that the calling function caught came out of a call of `code`."""
    entry = error.__traceback__.tb_next if error.__traceback__ is not None else None
    return entry is not None and entry.tb_frame.f_code is code


def pass_on(error: BaseException) -> None:
    """Raise a KeyboardInterrupt out of a handler again in the main thread, where the program expects it."""
    if isinstance(error, KeyboardInterrupt):
        if threading.current_thread() is threading.main_thread():
            raise error
        _thread.interrupt_main()
