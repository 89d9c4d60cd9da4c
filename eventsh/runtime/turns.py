"""How far a dispatch is: the events of a run that are left, and whether an exception interrupted a handler or the loop.

Theory of operation: a signal handler may raise between any two instructions of a dispatching loop. An event that the loop
has taken must then be put back if its handler was not called, and must not if it was. A mark around each call would take
longer than the loop itself, so the traceback is read instead, which costs nothing until something is raised: it has the
instruction at which the loop stood.
"""

from __future__ import annotations

import dis
from collections.abc import Callable
from enum import IntEnum
from operator import length_hint
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any

from eventsh.core.failure import traceback_of
from eventsh.runtime.report import is_from

if TYPE_CHECKING:
    from eventsh.core.registry import Call, Handler, Match

__all__ = ["Loop", "Stage", "Turn"]

# With data, event, source and pid. A loop has no other call of so many arguments before this one.
_ARGUMENTS = 4


class Stage(IntEnum):
    """Where a dispatching loop stood when an exception was raised. Only with CALLED it is the handler's own."""

    NOTHING_TAKEN = 0
    TAKEN = 1
    CALLED = 2
    # The handler has returned, and nothing else has happened.
    UNSTORED = 3
    RETURNED = 4


class Loop:
    """The instructions of the first `for` loop of a function that calls handlers."""

    def __init__(self, function: Callable[..., Any]) -> None:
        assert isinstance(function, FunctionType)
        steps = list(dis.get_instructions(function))
        takes = next(index for index, step in enumerate(steps) if step.opname == "FOR_ITER")
        calls = [
            index
            for index, step in enumerate(steps)
            if index > takes and step.opname in ("PRECALL", "CALL") and step.arg == _ARGUMENTS
        ]
        # In 3.11 a call is two instructions, of which the first one calls what is written in C. While a Python function
        # runs, 3.11 stands at the last word of the call's cache: all of it is up to the next instruction.
        ends = calls[0] + 1 if steps[calls[0]].opname == "CALL" else calls[1] + 1
        self._taken = steps[takes + 1].offset
        self._calls = steps[calls[0]].offset
        self._returned = steps[ends].offset

    def stage_of(self, error: BaseException, call: Call) -> Stage:
        """Return where the loop stood, for an exception that its function has caught. `call` is the handler's."""
        trace = traceback_of(error)
        assert trace is not None
        at = trace.tb_lasti
        if at < self._taken:
            return Stage.NOTHING_TAKEN
        if at >= self._returned:
            return Stage.RETURNED if at > self._returned else Stage.UNSTORED
        if at < self._calls:
            return Stage.TAKEN
        function = call.__func__ if isinstance(call, MethodType) else call
        # Without a frame, entering the function failed: wrong arguments, or too deep a recursion. What is not a Python
        # function may have any frame.
        is_called = trace.tb_next is None or not isinstance(function, FunctionType) or is_from(error, function.__code__)
        return Stage.CALLED if is_called else Stage.TAKEN


class Turn:
    """The events of one run from `start` on, for as long as the handlers stay the same.

    For one sync handler `rest` iterates over the data that is left. Else `under_way` is the index of an event, and an
    iterator over the sync handlers that it has not been given to.
    """

    __slots__ = (
        *("at", "exit", "given", "handlers", "is_single", "later", "match", "noted", "now", "rest", "start", "stop"),
        "under_way",
    )

    def __init__(self, at: int, match: Match, datas: list[Any], start: int, noted: int, given: set[Handler]) -> None:
        self.at = at
        self.match = match
        self.start = start
        self.stop = min(len(datas), start + noted) if noted else len(datas)
        self.noted = noted
        # The async handlers that have their share of the run.
        self.given = given
        # A KeyboardInterrupt or SystemExit, to be passed on once the event is complete.
        self.exit: BaseException | None = None
        self.handlers = self.now = handlers = match.handlers
        self.later: tuple[Handler, ...] = ()
        self.is_single = not noted and len(handlers) == 1 and not handlers[0].is_async
        # Any, for mypy knows no iterator that can be set back.
        rest: Any = iter(datas)
        if self.is_single:
            rest.__setstate__(start)
        else:
            self.now = tuple([handler for handler in handlers if not handler.is_async])
            self.later = tuple([handler for handler in handlers if handler.is_async])
        self.rest = rest
        steps: Any = iter(self.now)
        self.under_way: tuple[int, Any] = (start if self.now else self.stop, steps)

    @property
    def is_stale(self) -> bool:
        """Whether the next event is one for other handlers."""
        return self.match.handlers is not self.handlers and length_hint(self.under_way[1]) == len(self.now)

    @property
    def reached(self) -> int:
        """The index of the first event of the run that was not given to all of the sync handlers."""
        return self.stop - length_hint(self.rest) if self.is_single else self.under_way[0]

    def put_back(self) -> None:
        """Put back the event, or the handler, that was taken last."""
        if self.is_single:
            rest: Any = self.rest
            rest.__setstate__(self.stop - length_hint(self.rest) - 1)
        else:
            steps: Any = self.under_way[1]
            steps.__setstate__(len(self.now) - length_hint(steps) - 1)
