"""Celery: each process that runs tasks takes part, and what a finished task posted is delivered.

    # tasks.py
    from eventsh.integrations.celery import attach_workers

    app = Celery("tasks", broker=...)
    attach_workers()

Theory of operation. Celery ends its children in ways that run neither `atexit` nor any signal of Celery's: a hard time
limit and a revoked task are SIGKILL, and a master that dies takes its children with it. So posts are confirmed when a task
returns, and not only when its process ends: then a process that runs no task has nothing to lose.
"""

from __future__ import annotations

import logging
from typing import Any

from billiard.pool import EX_RECYCLE
from celery import signals
from celery.concurrency.prefork import TaskPool as PreforkPool

from eventsh.errors import ConfigureError
from eventsh.integrations.lifecycle import (
    check_configuration,
    close_worker,
    configure_worker,
    confirm_posts,
    detach_master,
)

__all__ = ["attach_workers"]

_log = logging.getLogger("eventsh")


def attach_workers(address: str | None = None, **options: Any) -> None:
    """Attach each process that runs tasks of this program's Celery worker to the default bus.

    Call it once where the application is made; the processes of a prefork pool, and the worker itself with the pools
    solo and threads, are attached when they start. The master of a prefork pool is never attached, and a program that
    only sends tasks is not touched. Each task ends once what it posted is confirmed, after `timeout` seconds at most.

    Args:
        address: as for `configure`.
        **options: as for `configure`.

    Raises:
        ConfigureError: the address or an option is wrong.
    """
    check_configuration(address, options)

    def configure(**_: Any) -> None:
        try:
            configure_worker(address, options)
        except ConfigureError as error:
            # Raised, Celery would log a traceback that ends with this line.
            _log.error("this process runs tasks without events: %s", error)

    def configure_unless_prefork(sender: Any, **_: Any) -> None:
        if not isinstance(sender.pool, PreforkPool):
            configure()

    # Not weakly: nothing else holds these functions. By name, so that a second call replaces the first one.
    connect = {"weak": False}
    signals.worker_before_create_process.connect(_detach_master, dispatch_uid="eventsh master", **connect)
    signals.worker_process_init.disconnect(dispatch_uid="eventsh child")
    signals.worker_process_init.connect(configure, dispatch_uid="eventsh child", **connect)
    signals.worker_ready.disconnect(dispatch_uid="eventsh worker")
    signals.worker_ready.connect(configure_unless_prefork, dispatch_uid="eventsh worker", **connect)
    signals.task_postrun.connect(_confirm, dispatch_uid="eventsh task", **connect)
    signals.worker_process_shutdown.connect(_close_child, dispatch_uid="eventsh child", **connect)
    signals.worker_shutdown.connect(_close_worker, dispatch_uid="eventsh worker", **connect)


def _detach_master(**_: Any) -> None:
    detach_master()


def _confirm(task: Any = None, **_: Any) -> None:
    confirm_posts(f"task {getattr(task, 'name', task)}")


def _close_child(exitcode: int | None = None, **_: Any) -> None:
    # With --max-tasks-per-child a successor takes over the slot. After a shrinking pool and at the end, nobody does.
    close_worker(leave=exitcode != EX_RECYCLE)


def _close_worker(**_: Any) -> None:
    close_worker(leave=True)
