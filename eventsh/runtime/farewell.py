"""How a client leaves in good order: it takes no more events, handles those it was given, and has its posts confirmed.

Each step waits at most until the deadline, and the next follows all the same. What is left then is the client's to tell.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from eventsh.core.session import SessionState
from eventsh.errors import AuthenticationError, EventError, NotConnected
from eventsh.event import LIFECYCLE_SOURCE

if TYPE_CHECKING:
    from eventsh.runtime.client import Client

__all__ = ["Farewell"]


class Farewell:
    """The end of one client, until it may be detached."""

    def __init__(self, client: Client, *, leave: bool, deadline: float) -> None:
        self._client = client
        self._session = client.session
        self._leave = leave
        # Of the loop's clock.
        self._deadline = deadline

    async def say(self) -> None:
        """Leave, and have everything handled and confirmed that can be by the deadline."""
        session, outbox = self._session, self._session.outbox
        await self._say_goodbye()
        await self._finish()
        with contextlib.suppress(EventError):
            session.inbox.post_local(LIFECYCLE_SOURCE, "stopping", {"worker_id": session.worker_id})
        await self._finish()
        if outbox.queued or outbox.kept:
            self._client.sender.flush()
            await self._try(lambda: not (outbox.queued or outbox.kept))
        if session.state in (SessionState.PROVING, SessionState.GREETING, SessionState.ATTACHED):
            # Attached since, perhaps for just these posts.
            await self._say_goodbye()
            await self._finish()

    async def _say_goodbye(self) -> None:
        """Say goodbye wherever the broker knows of us, and wait for the answer. Without it, a process that lives on would
        be expected back for `timeout` seconds, and everybody's posts would wait for that."""
        session = self._session
        greeting = (SessionState.PROVING, SessionState.GREETING)
        await self._try(lambda: session.state not in greeting)
        session.leave(leave=self._leave)
        self._client.sender.flush()
        await self._try(lambda: session.state in (SessionState.DRAINED, SessionState.DETACHED))

    async def _finish(self) -> None:
        self._client.release()
        await self._try(lambda: self._client.is_idle)

    async def _try(self, condition: Callable[[], bool]) -> None:
        left_s = max(0.0, self._deadline - asyncio.get_running_loop().time())
        with contextlib.suppress(NotConnected, AuthenticationError):
            await self._client.waiters.wait_until(condition, left_s, "")
