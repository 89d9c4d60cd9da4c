"""What this process waits for: that its client is attached, that its posts are confirmed, that the broker answers.

Sends nothing by itself and knows no connection: the client says when something has come.
"""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from eventsh.core.trace import Wait
from eventsh.errors import AuthenticationError, EventError, NotConnected

if TYPE_CHECKING:
    from eventsh.address import Address
    from eventsh.core.session import Session
    from eventsh.protocol.messages import Reply
    from eventsh.receipt import Receipt
    from eventsh.runtime.sender import Sender

__all__ = ["Waiters"]


class Owner(Protocol):
    """The client that brings what is waited for."""

    address: Address
    sender: Sender

    @property
    def is_attached(self) -> bool: ...

    @property
    def last_failure(self) -> BaseException | None: ...

    def release(self) -> None: ...


class _Place:
    """A place in the line for room. The line holds weak references, and the waiter's frame the place: a waiter that an
    exception out of a signal handler kept from leaving would hold up all others for ever."""

    __slots__ = ("__weakref__",)


class Waiters:
    """Those who wait for one client, in its loop. What they wait for is looked at in `check`."""

    def __init__(self, session: Session, owner: Owner) -> None:
        # Whoever waits, each with the condition. The client looks here first, for `check` is called for each read.
        self.waiting: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []
        self._session = session
        self._owner = owner
        self._replies: dict[int, asyncio.Future[Reply]] = {}
        self._first_attempt: asyncio.Future[None] | None = None
        # Who waits for room, in order.
        self._line: deque[weakref.ref[_Place]] = deque()
        # Nobody can wait for anything any more.
        self._is_over = False

    # --- what the client tells ---

    def check(self) -> None:
        """Something was confirmed, handled or attached."""
        for condition, future in list(self.waiting):
            if not future.done() and condition():
                future.set_result(None)

    def end_first_attempt(self, error: EventError | None) -> None:
        """An attempt to attach has failed, or not; only the first is waited for."""
        if self._first_attempt is None or self._first_attempt.done():
            return
        if error is None:
            self._first_attempt.set_result(None)
        else:
            self._first_attempt.set_exception(error)

    def take_reply(self, reply: Reply) -> None:
        """The broker answered a question."""
        if (future := self._replies.get(reply.id)) is not None and not future.done():
            future.set_result(reply)

    def lose_answers(self) -> None:
        """The connection is gone, and the answers with it."""
        address = self._owner.address
        for future in self._replies.values():
            if not future.done():
                future.set_exception(NotConnected(f"the connection to {address} broke before there was an answer"))

    def close(self) -> None:
        """The client is closed: what others wait for does not come."""
        self._is_over = True
        for _, future in self.waiting:
            if not future.done():
                future.set_exception(NotConnected(f"closed while waiting for {self._owner.address}"))
        self.end_first_attempt(NotConnected(f"closed before it was attached to {self._owner.address}"))

    # --- what is waited for ---

    async def wait_until(self, condition: Callable[[], bool], timeout: float | None, what: str) -> None:
        """Wait for `condition`, which is looked at whenever something was confirmed, handled or attached.

        Raises NotConnected that says `what` did not happen, or AuthenticationError if that is why.
        """
        if condition():
            return
        if self._is_over:
            raise NotConnected(f"closed while waiting for {self._owner.address}")
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiter = (condition, future)
        self.waiting.append(waiter)
        try:
            async with asyncio.timeout(timeout):
                await future
        except TimeoutError:
            failed = self._owner.last_failure
            error = AuthenticationError if isinstance(failed, AuthenticationError) else NotConnected
            raise error(f"{what} within {timeout:g} s: {self._situation()}") from None
        finally:
            with contextlib.suppress(ValueError):
                self.waiting.remove(waiter)

    def _situation(self) -> str:
        if self._owner.is_attached:
            return f"{self._session.outbox.queued} posts are not confirmed by {self._owner.address}"
        return str(self._owner.last_failure or f"nothing answers at {self._owner.address}")

    async def wait_ready(self, timeout: float | None) -> None:
        """Wait until attached. Raises NotConnected."""
        await self.wait_until(lambda: self._owner.is_attached, timeout, f"not attached to {self._owner.address}")

    async def wait_first_attempt(self, timeout: float | None) -> None:
        """Wait until attached, or raise what the first attempt failed with: for those who do not wait for a broker.
        To be called right after `start`."""
        self._first_attempt = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(timeout):
                await self._first_attempt
        except TimeoutError:
            raise NotConnected(f"not attached to {self._owner.address} within {timeout:g} s") from None

    async def wait_confirmed(self, timeout: float | None) -> None:
        """Wait until every live worker has all that was posted before this call. Raises NotConnected."""
        outbox = self._session.outbox
        number = outbox.number
        self._owner.sender.flush()
        await self.wait_until(lambda: outbox.confirmed >= number, timeout, "not confirmed")

    async def wait_room(self, timeout: float | None) -> None:
        """Wait until the queues of posts and of local events are at most half full. Raises NotConnected.

        Waiters are served in the order of their calls.
        """
        place = _Place()
        mine = weakref.ref(place)
        try:
            self._line.append(mine)
            self._owner.sender.flush()
            await self.wait_until(lambda: self._is_first(mine) and self._has_room(), timeout, "no room for posts")
        finally:
            # The frame may live on in a traceback.
            with contextlib.suppress(ValueError):
                self._line.remove(mine)
            # Not before this task has posted: to serve the next one at once would send it back to the end of the line.
            asyncio.get_running_loop().call_soon(self.check)

    def _is_first(self, mine: weakref.ref[_Place]) -> bool:
        line = self._line
        while line and line[0]() is None:
            line.popleft()
        return bool(line) and line[0] is mine

    def _has_room(self) -> bool:
        outbox = self._session.outbox
        return outbox.is_half_empty and self._session.inbox.local_queued <= outbox.max_queue_len // 2

    async def post_and_wait(
        self, source: str, event: str, data: Any, unique: str | None, timeout: float | None
    ) -> Receipt:
        """Post an event and wait until the handlers of all who have it have returned, or `timeout` is over.

        Raises what a post raises, and NotConnected when it is not even known who has it. What was held for a first
        handler is given out: this process would wait for itself.
        """
        outbox = self._session.outbox
        wait = Wait()
        if unique is None:
            outbox.post_receipt(source, event, data, trace=True, wait=wait)
        else:
            outbox.post_unique(source, event, data, unique, trace=True, wait=wait)
        self._owner.release()
        self._owner.sender.flush()
        try:
            await self.wait_until(lambda: wait.is_over, timeout, "no answer of the workers")
        except NotConnected:
            if wait.having is None:
                raise
        finally:
            outbox.forget(wait)
        return wait.receipt()

    async def ask(self, what: str, arguments: dict[str, Any], timeout: float | None) -> Any:
        """Ask the broker a question. Raises EventError when it has no answer, NotConnected when it gives none."""
        if not self._owner.is_attached:
            raise NotConnected(f"not attached to {self._owner.address}")
        number = self._session.request(what, arguments)
        future = self._replies[number] = asyncio.get_running_loop().create_future()
        self._owner.sender.flush()
        try:
            async with asyncio.timeout(timeout):
                reply = await future
        except TimeoutError:
            raise NotConnected(f"{self._owner.address}: the broker did not answer within {timeout:g} s") from None
        finally:
            del self._replies[number]
        if reply.error is not None:
            raise EventError(reply.error)
        return reply.data
