"""When frames leave: in the loop's next turn, at once, or a little later together with others.

Holds no rule: the session and its outbox decide which frames may leave.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from eventsh.core.session import Session
    from eventsh.runtime.attach import Attacher

__all__ = ["Sender"]

# How long a post may wait for others in its batch, where many batches are under way already.
_LINGER_S = 0.001


class Sender:
    """The way out of one session, over the connection of the moment."""

    def __init__(self, session: Session, attacher: Attacher) -> None:
        self._session = session
        self._attacher = attacher
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._is_sending = False
        self._linger_ends_at: asyncio.TimerHandle | None = None

    def wake(self) -> None:
        """Send posted events at the end of the loop's turn. In any thread; never raises for a loop that has ended."""
        # Before the call: the loop may have sent and gone to sleep before it returns.
        self._session.outbox.is_awake[0] = True
        with contextlib.suppress(RuntimeError):
            if threading.get_ident() == self._thread:
                self._loop.call_soon(self.flush_lingering)
            else:
                self._loop.call_soon_threadsafe(self.flush_lingering)

    def schedule_flush(self) -> None:
        """Send control messages in the loop's next turn. In the loop's thread."""
        self._loop.call_soon(self.flush)

    def push(self) -> None:
        """Send full batches while the program still posts and the loop has no turn."""
        # A signal handler may post while frames are being taken: they leave with the next wake-up.
        if not self._is_sending and threading.get_ident() == self._thread:
            self._send(at_once=True)

    def flush(self) -> None:
        """Send frames that may leave now."""
        self._send()

    def flush_lingering(self) -> None:
        """As `flush`, but while many batches are under way let posts wait for others."""
        self._send(linger=True)
        if self._session.outbox.has_unbatched and self._linger_ends_at is None:
            self._linger_ends_at = self._loop.call_later(_LINGER_S, self._end_linger)

    def _end_linger(self) -> None:
        self._linger_ends_at = None
        self._send()

    def _send(self, *, linger: bool = False, at_once: bool = False) -> None:
        outbox = self._session.outbox
        try:
            self._is_sending = True
            # Before the frames are taken: what is posted from here on wakes the loop again.
            outbox.is_awake[0] = False
            frames = self._session.take_output(linger=linger)
            connection = self._attacher.connection
            if frames and connection is not None:
                (connection.send_now if at_once else connection.send)(frames)
            if outbox.has_unbatched:
                # A confirmation, a welcome or the end of the linger time sends them: no post has to wake the loop.
                outbox.is_awake[0] = True
        except BaseException:
            # A signal handler raised. Frames that were taken may not have left: only a new connection sends them again.
            self._attacher.reset()
            raise
        finally:
            self._is_sending = False

    def rescue(self) -> None:
        """Send whatever waits because a callback was lost to an exception out of a signal handler."""
        self._linger_ends_at = None
        self._send()

    def close(self) -> None:
        """Stop the linger timer."""
        if self._linger_ends_at is not None:
            self._linger_ends_at.cancel()
