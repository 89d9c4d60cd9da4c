"""Life of a worker process in a server that forks: from its master to its end."""

from __future__ import annotations

import logging
from typing import Any

from eventsh.api import Events, default_events
from eventsh.errors import EventError
from eventsh.options import Options
from eventsh.runtime.bus import default_bus, open_buses
from eventsh.runtime.endpoint import find_endpoint

__all__ = ["check_configuration", "close_worker", "configure_worker", "confirm_posts", "detach_master"]

_log = logging.getLogger("eventsh")

# The configuration of a master that its application attached. Of the process, not of a server's hooks: gunicorn makes
# its hooks anew at each reload, but does not load a preloaded application again.
_masters: tuple[str | None, dict[str, Any]] = (None, {})


def check_configuration(address: str | None, options: dict[str, Any]) -> None:
    """Raise ConfigureError now for a configuration that each worker would refuse later."""
    Options.from_values(**options)
    find_endpoint(address)


def detach_master() -> None:
    """Detach this process before it forks, if its application attached it, and keep the configuration for its workers.

    A master must not handle events that are meant for workers, and must not have threads when it forks.
    """
    global _masters
    if default_events().configured():
        _masters = default_bus().configuration()
        default_events().close()


def configure_worker(address: str | None, options: dict[str, Any]) -> None:
    """Configure the default bus of this worker as its master was, except for `address` and `options`."""
    masters_address, masters_options = _masters
    default_events().configure(address or masters_address, **{**masters_options, **options})


def confirm_posts(task: str) -> None:
    """Wait until every live worker has what this process posted, on any bus with a thread.

    Waits for `timeout` seconds at most, then logs a WARNING that names `task`.
    """
    for events, bus in _open_events():
        try:
            events.flush(bus.options.timeout)
        except EventError as error:
            _log.warning("%s ended before what it posted was confirmed: %s", task, error)


def close_worker(*, leave: bool) -> None:
    """Close every bus with a thread before this process ends without `atexit`. `leave` as in `Events.close`.

    Logs a WARNING for each bus that can't be closed, and closes the others.
    """
    for events, bus in _open_events():
        try:
            events.close(leave=leave)
        except EventError as error:
            _log.warning("%s: not closed before the process ends: %s", bus.address, error)


def _open_events() -> list[tuple[Events, Any]]:
    # A bus in a loop of the program's own can be waited for in that loop alone.
    return [(Events._over(bus), bus) for bus in open_buses() if bus.thread is not None]
