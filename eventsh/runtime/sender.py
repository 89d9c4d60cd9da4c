"""When what a client has posted, and what else it has to say, leaves: in the loop's next turn, at once, or in company.

Decides nothing about acks, and keeps nothing: what may leave is the session's affair.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from eventsh.core.session import Session
    from eventsh.runtime.attach import Attacher

__all__ = ["Sender"]

# So many full batches leave while the program still posts: two take a tenth less of the broker's time than one.
_BATCHES_AT_ONCE = 2
# What a post may wait for others to go with it, where much is under way already.
_COMPANY_S = 0.001


class Sender:
    """The way out of one session, over whatever connection it has. `wake` may be called in any thread."""

    def __init__(
        self, session: Session, attacher: Attacher, lock: AbstractContextManager[Any], *, is_shared: bool
    ) -> None:
        self._session = session
        self._attacher = attacher
        self._lock = lock
        # Other threads post too.
        self._is_shared = is_shared
        self._loop = asyncio.get_running_loop()
        self._woken = False
        self._company_ends_at: asyncio.TimerHandle | None = None

    def wake(self) -> None:
        """Something was posted: send it at the end of the loop's turn. Callable in any thread, under the lock."""
        if not self._is_shared and self._session.outbox.closed_batches >= _BATCHES_AT_ONCE:
            # A program that posts without giving the loop its turn would else keep the workers waiting until it does.
            self.flush(at_once=True)
        elif not self._woken:
            if self._is_shared:
                self._loop.call_soon_threadsafe(self.flush_patiently)
            else:
                self._loop.call_soon(self.flush_patiently)
            self._woken = True

    def wake_here(self) -> None:
        """Something is to be told to the broker: send it in the loop's next turn. In the loop's thread."""
        self._loop.call_soon(self.flush)

    def flush(self, *, at_once: bool = False) -> None:
        """Send what may leave now; `at_once`: not only when the loop has its turn."""
        with self._lock:
            self._woken = False
            frames = self._session.take_output()
        connection = self._attacher.connection
        if frames and connection is not None:
            (connection.send_now if at_once else connection.send)(frames)

    def flush_patiently(self) -> None:
        """As `flush`, but where much is under way let what was posted wait for company: for a confirmation, or the time
        that it waits at most."""
        with self._lock:
            frames = self._session.take_output(patient=True)
            # While it waits no post has to wake anybody.
            self._woken = self._session.outbox.has_open_batch
        connection = self._attacher.connection
        if frames and connection is not None:
            connection.send(frames)
        if self._woken and self._company_ends_at is None:
            self._company_ends_at = self._loop.call_later(_COMPANY_S, self._end_company)

    def _end_company(self) -> None:
        self._company_ends_at = None
        self.flush()

    def close(self) -> None:
        """Nothing waits for company any more."""
        if self._company_ends_at is not None:
            self._company_ends_at.cancel()
