"""Check that this process runs threads."""

from __future__ import annotations

import sys

from eventsh.errors import ConfigureError

__all__ = ["check_threads"]


def check_threads() -> None:
    """Raise ConfigureError where a thread would start and then stand still.

    uWSGI before 2.0.27 keeps the interpreter's lock while it waits for requests, unless it is told that there are threads.
    """
    uwsgi = sys.modules.get("uwsgi")
    if uwsgi is not None and not getattr(uwsgi, "has_threads", True):
        raise ConfigureError("uWSGI runs no threads, and handlers run in one: start it with --enable-threads")
