"""RQ: each job's process takes part while its job runs, and what the job posted is delivered before that process ends.

    rq worker --worker-class eventsh.integrations.rq.EventsWorker

RQ forks a process for each job and ends it by `os._exit`, which runs no `atexit`.
"""

from __future__ import annotations

from typing import Any, ClassVar

from rq.worker import Worker

from eventsh.integrations.lifecycle import check_configuration, close_worker, configure_worker, confirm_posts

__all__ = ["EventsMixin", "EventsWorker"]


class EventsMixin:
    """Add events to a worker class of RQ: `class MyWorker(EventsMixin, SpawnWorker)`.

    A job's process is attached from the beginning of its job to the end; a SimpleWorker, which runs jobs in its own
    process, from its first job on.

    Attributes:
        events_address: the address, as for `configure`.
        events_options: the options, as for `configure`.
    """

    events_address: ClassVar[str | None] = None
    events_options: ClassVar[dict[str, Any]] = {}

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        check_configuration(cls.events_address, cls.events_options)

    # The signature differs between releases of RQ.
    def perform_job(self, job: Any, *arguments: Any, **options: Any) -> bool:
        """Run a job between the attach and the confirmation of its posts."""
        configure_worker(self.events_address, self.events_options)
        try:
            return bool(super().perform_job(job, *arguments, **options))  # type: ignore[misc]
        finally:
            if self.is_horse:  # type: ignore[attr-defined]
                # The process of the next job is no successor of this one.
                close_worker(leave=True)
            else:
                confirm_posts(f"job {job.id}")


class EventsWorker(EventsMixin, Worker):
    """RQ's worker, with the default address and options."""
