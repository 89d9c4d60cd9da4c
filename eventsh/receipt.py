"""What became of one event, for whoever posted it and waited: which workers have it, and which handlers ran."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["HandlerRun", "Receipt", "WorkerReceipt"]


@dataclass(frozen=True, slots=True)
class HandlerRun:
    """One call of one handler. `error` is the type and text of what it raised, else None.

    `source` and `event` are the level it is registered at, None for all. `seconds` are from its call to its return; of
    an async handler, they are those until it was done, with all that ran while it waited.
    """

    name: str
    location: str
    source: str | None
    event: str | None
    seconds: float
    error: str | None


@dataclass(frozen=True, slots=True)
class WorkerReceipt:
    """One worker. `answered` says that its handlers have returned, and `handlers` then has all that ran, maybe none.

    A worker that has not `received` it gets it when it comes back in time, or is told of a gap. `pid` is None for one
    that has not answered, `worker_id` for an observer that takes unique events.
    """

    worker_id: int | None
    pid: int | None
    received: bool
    answered: bool
    handlers: tuple[HandlerRun, ...]


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of the post with this number. `unique` is None, "given" (to one worker), or "repeat" (its key is
    taken, so it was ignored)."""

    number: int
    workers: tuple[WorkerReceipt, ...]
    unique: str | None

    @property
    def is_complete(self) -> bool:
        """Whether every worker that was to get it has answered."""
        return all(worker.answered for worker in self.workers)

    @property
    def failures(self) -> tuple[HandlerRun, ...]:
        """The calls that raised, of all workers."""
        return tuple(run for worker in self.workers for run in worker.handlers if run.error is not None)
