"""Shares of the broker's time: each connection's frames get a budget in each turn of the loop, round robin.

Theory of operation. One read returns up to 256 KiB: seven full batches of a busy poster, or 6,500 acks, pings or requests, which
cost the broker from 2 us to milliseconds each. So the budget is time, not a number of frames. Frames over the budget wait,
reading of their connection is paused until they are handled, and so no more than one read waits for each connection. Full
batches are exempt (see `Router.receive`): a read holds few of them, and to split it would only double the writes to the workers.

Connections that have not said hello share one budget: the hellos of a thousand clients that reconnect at once, or of one
client that comes and goes all the time, take no more of a turn than one busy connection.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

__all__ = ["Claimant", "Shares"]

# A poster's full read costs the broker 0.1 to 0.3 ms. With a budget of 1 ms a flood took four fifths of the broker from it.
BUDGET_S = 0.0002
# Longer, because a turn in which workers joined ends with a write to every client.
GREETING_BUDGET_S = 0.002
# The longest that joins may wait for others, to be announced in one event, while hellos keep coming. With a tenth of it a busy
# host handles fewer hellos in between than make one event, and each of them is announced to all.
GATHER_S = 0.5


class Claimant(Protocol):
    """A connection with frames that wait."""

    @property
    def is_greeted(self) -> bool:
        """Whether it has said hello."""

    def handle_waiting(self, is_spent: Callable[[], bool]) -> bool:
        """Handle waiting frames until `is_spent` returns True; return whether any are left."""


class Shares:
    """Connections whose frames wait for a turn of the loop. `turned` is called at the end of each such turn."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        turned: Callable[[], None],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._loop = loop
        self._turned = turned
        self._clock = clock
        self._greeted: deque[Claimant] = deque()
        self._greeting: deque[Claimant] = deque()
        self._is_scheduled = False
        self._gathers_until = 0.0

    @property
    def gathers(self) -> bool:
        """Whether more hellos wait, so that joins are announced together with theirs in a later turn."""
        return bool(self._greeting) and self._clock() < self._gathers_until

    def begin(self) -> Callable[[], bool]:
        """Begin a connection's budget for this turn; return a function that returns whether it is spent."""
        return self._begin(BUDGET_S)

    def _begin(self, budget_s: float) -> Callable[[], bool]:
        clock = self._clock
        end = clock() + budget_s
        return lambda: clock() >= end

    def wait(self, claimant: Claimant) -> None:
        """Have a connection's waiting frames handled in later turns."""
        if claimant.is_greeted:
            self._greeted.append(claimant)
        else:
            if not self._greeting:
                self._gathers_until = self._clock() + GATHER_S
            self._greeting.append(claimant)
        self._schedule()

    def _schedule(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._is_scheduled = False
        for _ in range(len(self._greeted)):
            self._serve(self._greeted.popleft())
        is_spent = self._begin(GREETING_BUDGET_S)
        for _ in range(len(self._greeting)):
            self._serve(self._greeting.popleft())
            if is_spent():
                break
        if self._greeted or self._greeting:
            self._schedule()
        self._turned()
        if self._clock() >= self._gathers_until:
            self._gathers_until = self._clock() + GATHER_S

    def _serve(self, claimant: Claimant) -> None:
        if claimant.handle_waiting(self.begin()):
            self.wait(claimant)
