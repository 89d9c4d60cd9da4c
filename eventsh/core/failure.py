"""Name and text of an exception that a handler raised, whatever methods of its own do."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["error_text", "traceback_of", "type_name"]

# A class can define these anew; its exceptions would then raise in the midst of their own report.
_qualname = type.__dict__["__qualname__"]
_traceback = BaseException.__dict__["__traceback__"]


def type_name(error: BaseException) -> str:
    """Return the qualified name of its class."""
    return str.__str__(_qualname.__get__(type(error)))


def error_text(error: BaseException) -> str:
    """Return its text as a plain string."""
    try:
        return str.__str__(str(error))
    except BaseException:  # noqa: BLE001 - also a SystemExit: an error that can't be written must still be reported
        return "<its text could not be made>"


def traceback_of(error: BaseException) -> TracebackType | None:
    """Return its traceback."""
    found: TracebackType | None = _traceback.__get__(error)
    return found
