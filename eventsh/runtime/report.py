"""Reports of handlers that fail or are slow: to the log, and failures also to the owner of the dispatcher.

Never the payload: it may be secret, and it may be large. What an exception says of it is the handler's own doing.

Theory of operation: a report runs code of the program: filters and handlers of its logging, methods of the exception,
plugins. None of it may keep a delivery from being completed, so each call of such code goes through `_attempt`. A
KeyboardInterrupt or SystemExit that it raises is passed on like one of the handler itself.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from eventsh.core.failure import error_text, traceback_of, type_name
from eventsh.escape import escape

if TYPE_CHECKING:
    from types import CodeType

    from eventsh.core.registry import Handler

__all__ = ["HandlerFailure", "Reporter", "is_from"]

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
    """Counts and reports. `slow` and `slow_delivery` may be called from any thread. No method raises on its own account.

    Args:
        on_failure: Receives each failure.
        on_exit: Receives each KeyboardInterrupt and SystemExit, in any thread. It may raise it.
    """

    def __init__(self, on_failure: Callable[[HandlerFailure], None], on_exit: Callable[[BaseException], None]) -> None:
        self.failed = 0
        self.on_exit = on_exit
        self._on_failure = on_failure

    def failure(self, handler: Handler, source: str, event: str, error: BaseException) -> BaseException | None:
        """Count the failed call, log it with the full traceback, and pass it on.

        Returns:
            The KeyboardInterrupt or SystemExit for `on_exit`, once the event is complete: the handler's, else the report's.
        """
        self.failed += 1
        handler.errors += 1
        raised = [error]
        failure = _describe(handler, source, event, error, raised)
        is_formatted = len(raised) == 1
        what = ("handler %s (%s) failed on event %r of %r", handler.name, handler.location, event, source)
        if is_formatted:
            info = (type(error), error, traceback_of(error))
            is_logged = _attempt(lambda: _log.error(*what, exc_info=info), raised)
        else:
            text = f"{what[0]}, and its traceback can't be formatted:\n%s"
            is_logged = _attempt(lambda: _log.error(text, *what[1:], failure.traceback), raised)
        if not is_logged:
            _say_unlogged(failure.traceback, raised)
        if not _attempt(lambda: self._on_failure(failure), raised):
            text = "the failure of handler %s (%s) could not be passed on: %s"
            why = f"{type_name(raised[-1])}: {error_text(raised[-1])}"
            _attempt(lambda: _log.error(text, handler.name, handler.location, why), raised)
        return _take_exit(raised)

    def forked(self, handler: Handler) -> None:
        """In a child that a handler forked and did not end."""
        self._log(
            logging.ERROR,
            "handler %s (%s) forked, and returned in the child too, which ends here: have the child call os._exit",
            handler.name,
            handler.location,
        )

    def slow(self, handler: Handler, source: str, event: str, seconds: float, timeout_s: float) -> None:
        """Warn of one call, over or still going on."""
        self._log(
            logging.WARNING,
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
        self._log(
            logging.WARNING,
            "the handlers of a batch of %d events have taken %.3g s, over the timeout of %g s: %s",
            count,
            seconds,
            timeout_s,
            named,
        )

    def _log(self, level: int, text: str, *facts: object) -> None:
        raised: list[BaseException] = []
        if not _attempt(lambda: _log.log(level, text, *facts), raised):
            _say_unlogged(text % facts, raised)
        if (exit_error := _take_exit(raised)) is not None:
            self.on_exit(exit_error)


def _attempt(action: Callable[[], object], raised: list[BaseException]) -> bool:
    """Run code of the program. False: it raised, and the exception is the last in `raised`."""
    try:
        action()
    except BaseException as error:  # noqa: BLE001 - see the top of this file
        raised.append(error)
        return False
    return True


def _take_exit(raised: list[BaseException]) -> BaseException | None:
    # By type: isinstance() would ask the exception for its __class__.
    found = next((error for error in raised if issubclass(type(error), KeyboardInterrupt | SystemExit)), None)
    # The tracebacks hold frames that hold this list.
    raised.clear()
    return found


def _describe(
    handler: Handler, source: str, event: str, error: BaseException, raised: list[BaseException]
) -> HandlerFailure:
    trace = traceback_of(error)
    name, text = type_name(error), error_text(error)
    lines: list[str] = []
    if not _attempt(lambda: lines.extend(traceback.format_exception(type(error), error, trace)), raised):
        # Without the text of the exception and of its causes, which is what can't be formatted.
        lines[:] = [*traceback.format_tb(trace), f"{name}: {text}\n"]
    return HandlerFailure(
        handler=handler.name,
        location=handler.location,
        source=source,
        event=event,
        error_type=name,
        error_text=text,
        traceback="".join(lines),
    )


def _say_unlogged(text: str, raised: list[BaseException]) -> None:
    """Write a report to stderr that the program's logging could not take."""
    why = raised[-1]
    told = f"{text.rstrip()}\neventsh could not log this: {type_name(why)}: {error_text(why)}\n"
    lines = [escape(line) for line in told.split("\n")]
    _attempt(lambda: sys.stderr.write("\n".join(lines)), raised)


def is_from(error: BaseException, code: CodeType) -> bool:
    """Whether an exception that the calling function caught came out of a call of `code`."""
    trace = traceback_of(error)
    entry = trace.tb_next if trace is not None else None
    return entry is not None and entry.tb_frame.f_code is code
