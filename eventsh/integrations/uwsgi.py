"""uWSGI: every worker takes part, and the master that forks them never does.

    # The module of the application
    from eventsh.integrations.uwsgi import attach_workers

    attach_workers()

Theory of operation. uWSGI forks in C, where Python's own at-fork hooks do not run (but with --py-call-osafterfork), after it
has loaded the application in the master; with --lazy-apps each worker loads the application itself. So the bus is configured
in uWSGI's post-fork hook, or at once in a process that is a worker already.
"""

from __future__ import annotations

import atexit
from typing import Any

import uwsgi

from eventsh.integrations.lifecycle import check_configuration, close_worker, configure_worker, detach_master
from eventsh.runtime.forks import call_in_uwsgi_workers
from eventsh.runtime.hosted import check_threads

__all__ = ["attach_workers"]


def attach_workers(address: str | None = None, **options: Any) -> None:
    """Attach each worker, mule and spooler of this uWSGI to the default bus, instead of calling `configure`.

    Call it once in the module of the application, with --lazy-apps or without.

    Args:
        address: as for `configure`.
        **options: as for `configure`.

    Raises:
        ConfigureError: the address or an option is wrong, or uWSGI runs without --enable-threads.
    """
    check_configuration(address, options)
    check_threads()

    def configure() -> None:
        configure_worker(address, options)
        # Before the close of the bus itself, which would give up this worker's slot: a successor takes it over.
        atexit.register(close_worker, leave=False)

    if uwsgi.worker_id():
        configure()
    else:
        detach_master()
        call_in_uwsgi_workers(configure)
