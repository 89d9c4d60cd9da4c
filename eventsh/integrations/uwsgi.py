"""uWSGI: the place of a worker that ends in order is kept for its successor.

    # The module of the application
    from eventsh.integrations.uwsgi import attach_workers

    attach_workers()

`configure` by itself attaches each worker and not the master, with --lazy-apps and without.
"""

from __future__ import annotations

import atexit
from typing import Any

from eventsh.api import default_events
from eventsh.integrations.lifecycle import close_worker

__all__ = ["attach_workers"]


def attach_workers(address: str | None = None, **options: Any) -> None:
    """Attach each worker, mule and spooler of this uWSGI to the default bus, instead of calling `configure`.

    At the end of a worker, its slot is kept for `timeout` seconds: after a reload, or with --max-requests, its successor
    gets the events that were posted meanwhile.

    Args:
        address: as for `configure`.
        **options: as for `configure`.

    Raises:
        ConfigureError: the address or an option is wrong, or uWSGI runs without --enable-threads.
    """
    default_events().configure(address, **options)
    # After `configure`, so called before the close that `configure` has registered, which would give up the slot.
    atexit.register(close_worker, leave=False)
