"""How a command ended: its exit status, one for each kind of trouble, so that a script can tell them apart."""

from __future__ import annotations

from enum import IntEnum

from eventsh.errors import EventError, NotConnected, QueueOverflow, TransportError, UsageError

__all__ = ["Exit", "Interrupted", "NobodyAttached", "advice", "exit_status"]


class Exit(IntEnum):
    """The exit statuses of `eventsh`; the README's table says the same."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NO_BROKER = 3
    TIMEOUT = 4
    NOBODY = 5
    HANDLER_FAILED = 6


class Interrupted(KeyboardInterrupt):
    """Ctrl-C ended a command that has something to say of what it has done."""


class NobodyAttached(EventError):
    """No worker is attached that could get an event."""


def exit_status(error: EventError) -> Exit:
    """The exit status for an error that ended a command."""
    if isinstance(error, UsageError):
        return Exit.USAGE
    if isinstance(error, NobodyAttached):
        return Exit.NOBODY
    if isinstance(error, TransportError):
        cause = error.__cause__
        if isinstance(cause, FileNotFoundError | ConnectionRefusedError):
            return Exit.NO_BROKER
        # The broker is there, and its backlog is full: it accepts nobody.
        return Exit.TIMEOUT if isinstance(cause, TimeoutError | BlockingIOError) else Exit.FAILED
    if isinstance(error, NotConnected | QueueOverflow):
        return Exit.TIMEOUT
    return Exit.FAILED


def advice(error: EventError) -> str:
    """What to do about it, as the end of a sentence, where the error's own text can't know; or nothing."""
    if exit_status(error) is Exit.NO_BROKER:
        return "; start one with 'eventsh serve --workers 4', or say where it is with --address"
    return ""
