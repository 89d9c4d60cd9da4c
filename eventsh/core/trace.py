"""Follow one event to its handlers: what a worker notes of their calls, and what a poster makes of all workers' answers.

Knows no clock: the owner measures, and decides how long it waits.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from eventsh.core.failure import error_text, type_name
from eventsh.escape import expressible
from eventsh.protocol.messages import Handled
from eventsh.protocol.messages import Receipt as Having
from eventsh.receipt import HandlerRun, Receipt, WorkerReceipt

if TYPE_CHECKING:
    from eventsh.core.registry import Handler

__all__ = ["Trace", "Wait"]

# An answer has to fit into one frame of 16 MiB, whatever a character takes there. What failed is told first.
_MAX_RUNS = 1000
_MAX_CHARS = 500
# An observer that takes unique events has no number of its own.
_OBSERVER = -1


def _plain(text: str) -> str:
    # A file name or an exception can hold what JSON can't express.
    return expressible(text[:_MAX_CHARS])


@dataclass(slots=True)
class Trace:
    """In a worker: an event whose poster wants to know which handlers ran."""

    origin: int
    number: int
    runs: list[HandlerRun] = field(default_factory=list)

    def note(self, handler: Handler, seconds: float, error: BaseException | None) -> None:
        """A handler returned, or raised."""
        text = None
        if error is not None:
            text = _plain(f"{type_name(error)}: {error_text(error)}".removesuffix(": "))
        source, event = (None if level is None else _plain(level) for level in (handler.source, handler.event))
        self.runs.append(HandlerRun(_plain(handler.name), _plain(handler.location), source, event, seconds, text))

    def note_unread(self, reason: str) -> None:
        """Note that this process could not read the event, so that its poster need not wait for an answer."""
        self.runs.append(HandlerRun("(not read)", "", None, None, 0.0, _plain(f"the event can't be read: {reason}")))

    def answer(self) -> Handled:
        """What the poster is told once all have returned."""
        runs = self.runs
        if len(runs) > _MAX_RUNS:
            runs = sorted(runs, key=lambda run: run.error is None)[:_MAX_RUNS]
        return Handled(self.origin, self.number, [asdict(run) for run in runs], None, None)


class Wait:
    """In a poster: one event that it wants to know the handlers of."""

    def __init__(self) -> None:
        self.having: Having | None = None
        # Its waiter has given up.
        self.is_abandoned = False
        self._answers: dict[int, Handled] = {}

    def take(self, message: Having | Handled) -> None:
        """The broker tells who has it, or a worker that its handlers have returned; in any order."""
        if isinstance(message, Having):
            self.having = message
        else:
            self._answers[_OBSERVER if message.worker_id is None else message.worker_id] = message

    def abandon(self) -> None:
        """Note that its waiter has given up."""
        self.is_abandoned = True

    @property
    def is_over(self) -> bool:
        """Whether everybody who has the event has answered."""
        if self.having is None:
            return False
        if self.having.unique == "given" and self._answers:
            # Perhaps another one than it was given to at first, which died.
            return True
        return self._answers.keys() >= set(self.having.workers)

    def receipt(self) -> Receipt:
        """What is known so far. Only once the broker has told who has it."""
        having = self.having
        assert having is not None
        known: set[int] = set() if having.unique == "given" and self._answers else {*having.workers, *having.missing}
        numbers = sorted(known | self._answers.keys())
        return Receipt(having.number, tuple(self._worker(number, having) for number in numbers), having.unique)

    def _worker(self, number: int, having: Having) -> WorkerReceipt:
        answer = self._answers.get(number)
        worker_id = None if number == _OBSERVER else number
        if answer is None:
            return WorkerReceipt(worker_id, None, number in having.workers, answered=False, handlers=())
        runs = tuple(_read_run(run) for run in answer.handlers)
        return WorkerReceipt(worker_id, answer.pid, received=True, answered=True, handlers=runs)


def _read_run(run: dict[str, Any]) -> HandlerRun:
    return HandlerRun(run["name"], run["location"], run["source"], run["event"], float(run["seconds"]), run["error"])
