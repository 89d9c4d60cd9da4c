"""gunicorn's server hooks: every worker takes part, and the master that forks them never does.

    # gunicorn.conf.py
    from eventsh.integrations.gunicorn import post_fork, pre_fork, worker_exit

The application then need not call `eventsh.configure`. With an address or options:

    from eventsh.integrations.gunicorn import hooks
    pre_fork, post_fork, worker_exit = hooks("unix:/run/app/events.sock", timeout=10)

Handlers run in a thread of each worker, so the workers must have threads: sync, gthread or an ASGI one, not gevent.
Knows gunicorn only by the objects that it hands to its hooks.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from eventsh.integrations.lifecycle import check_configuration, close_worker, configure_worker, detach_master

__all__ = ["Hooks", "hooks", "post_fork", "pre_fork", "worker_exit"]


class Hooks(NamedTuple):
    """The settings of gunicorn, in the order in which it calls them."""

    pre_fork: Callable[[Any, Any], None]
    post_fork: Callable[[Any, Any], None]
    worker_exit: Callable[[Any, Any], None]


def hooks(address: str | None = None, **options: Any) -> Hooks:
    """The hooks for workers that are configured so. Raises ConfigureError, which keeps gunicorn from starting."""
    check_configuration(address, options)

    def post_fork(server: Any, worker: Any) -> None:
        _configure_when_loaded(worker, address, options)

    return Hooks(pre_fork, post_fork, worker_exit)


def pre_fork(server: Any, worker: Any) -> None:
    """Detach the master, which a preloaded application has attached: it must not take events that are meant for workers,
    and must not have threads when it forks. Its workers are configured as it was."""
    detach_master()


def post_fork(server: Any, worker: Any) -> None:
    """Configure this worker as soon as it has loaded the application."""
    _configure_when_loaded(worker, None, {})


def worker_exit(server: Any, worker: Any) -> None:
    """Finish what this worker was given and detach it. Its place is kept for `timeout` seconds, so that a successor
    misses nothing: at a reload, gunicorn ends the workers before their successors have loaded the application."""
    # The master calls this hook too, for a worker that was gone when it wanted to kill it.
    if worker.pid == os.getpid():
        close_worker(leave=False)


def _configure_when_loaded(worker: Any, address: str | None, options: dict[str, Any]) -> None:
    # Not at once: what is kept for a worker that died would arrive before the application has registered its handlers.
    after_load = worker.cfg.post_worker_init

    def post_worker_init(worker: Any) -> None:
        _end_in_order()
        configure_worker(address, options)
        after_load(worker)

    worker.cfg.set("post_worker_init", post_worker_init)


def _end_in_order() -> None:
    """Have a signal that would kill this worker end it by SystemExit, so that gunicorn calls `worker_exit`.

    uvicorn's worker takes signals for itself, and when its server has shut down raises the one that it was sent again, for
    the handler that was there before.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _exit)


def _exit(number: int, frame: Any) -> None:
    sys.exit(0)
