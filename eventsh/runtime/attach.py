"""Keep a session attached: connect, say hello, start a broker where none is, and begin again when the connection ends.

Knows nothing of deliveries and handlers.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from eventsh.core.heartbeat import Beat, Heartbeat
from eventsh.errors import AuthenticationError, EventError, NotConnected, ProtocolError, TransportError
from eventsh.protocol.frame import MAX_BODY_BYTES, Kind, encode_frame
from eventsh.runtime.election import start_broker
from eventsh.runtime.hosted import start_hosted_broker
from eventsh.runtime.refusal import refusal_error

if TYPE_CHECKING:
    from eventsh.address import Address
    from eventsh.core.session import Session
    from eventsh.options import Options
    from eventsh.protocol.messages import Error, Welcome
    from eventsh.transport import Connection, Frame, Transport

__all__ = ["Attacher", "Attachment", "in_thread"]

T = TypeVar("T")

_log = logging.getLogger("eventsh")

# Reconnects: exponential backoff with full jitter, the first try at once (Brooker, "Exponential Backoff And Jitter").
_BACKOFF_FIRST_S = 0.02
_BACKOFF_LAST_S = 1.0
# An attachment that lasted less than this does not count as one: a broker that welcomes and drops us must not be a loop.
_LASTED_S = 1.0
# What a broker may take to answer a hello.
_WELCOME_TIMEOUT_S = 5.0


class Owner(Protocol):
    """Who is told how the attaching goes."""

    options: Options

    def receive(self, frames: Sequence[Frame]) -> None: ...

    def lose(self) -> None: ...

    def fail(self, error: EventError) -> None: ...


class Attachment:
    """One connection: a transport's Receiver, which falls silent when the next connection replaces it."""

    def __init__(self, attacher: Attacher, loop: asyncio.AbstractEventLoop) -> None:
        self.attacher = attacher
        self.connection: Connection | None = None
        self.refusal: Error | None = None
        self.failure: AuthenticationError | None = None
        self.welcomed: asyncio.Future[Welcome] = loop.create_future()
        self.lost: asyncio.Future[None] = loop.create_future()
        self._loop = loop
        self._beat_at: asyncio.TimerHandle | None = None

    def watch(self, interval_s: float) -> None:
        """Give up the connection when the broker gives no sign of life."""
        self._beat(Heartbeat(interval_s, self._signs, self._loop.time()))

    def _signs(self) -> tuple[int, int]:
        assert self.connection is not None
        return self.connection.received_bytes, self.connection.unsent_bytes

    def _beat(self, heartbeat: Heartbeat) -> None:
        assert self.connection is not None
        beat = heartbeat.check(self._loop.time())
        if beat is Beat.GIVE_UP:
            _log.warning("%s: the broker gives no sign of life: the connection is ended", self.attacher.address)
            self.connection.abort()
            return
        if beat is Beat.ASK:
            self.connection.send((encode_frame(Kind.PING),))
        self._beat_at = self._loop.call_later(heartbeat.check_s, self._beat, heartbeat)

    def frames_received(self, frames: list[bytearray]) -> None:
        self._receive(frames)

    def views_received(self, frames: list[Frame]) -> None:
        self._receive(frames)

    def _receive(self, frames: Sequence[Frame]) -> None:
        if self.attacher.attachment is self and not self.lost.done():
            self.attacher.owner.receive(frames)

    def frames_refused(self, error: ProtocolError) -> None:
        _log.warning("%s: the broker broke the protocol: %s", self.attacher.address, error)
        if self.connection is not None:
            self.connection.abort()

    # The outbox and the broker's window bound what is buffered.
    def writing_paused(self) -> None:
        pass

    def writing_resumed(self) -> None:
        pass

    def connection_lost(self, error: Exception | None) -> None:
        if self._beat_at is not None:
            self._beat_at.cancel()
        if not self.lost.done():
            self.lost.set_result(None)
        if not self.welcomed.done():
            self.welcomed.cancel()
        self.attacher.keep_frames()
        self.attacher.lose(self)


class Attacher:
    """The one task that attaches, for as long as it is not cancelled."""

    def __init__(
        self,
        transport: Transport,
        address: Address,
        session: Session,
        owner: Owner,
    ) -> None:
        self.transport = transport
        self.address = address
        self.owner = owner
        self.attachment: Attachment | None = None
        self.last_failure: BaseException | None = None
        self._session = session
        self._loop = asyncio.get_running_loop()
        # The slot that the user asked for; any other one was the broker's choice and may change.
        self._wanted_slot = session.worker_id

    @property
    def connection(self) -> Connection | None:
        return self.attachment.connection if self.attachment is not None else None

    async def run(self) -> None:
        """Attach, and attach again, until cancelled."""
        attempt = 0
        has_started = False
        while True:
            attachment = Attachment(self, self._loop)
            try:
                await self._attach(attachment)
                welcomed_at = self._loop.time()
                await asyncio.wait((attachment.lost,))
                if attachment.refusal is not None:
                    _log.warning("%s: the broker ended the connection: %s", self.address, attachment.refusal.message)
                _log.info("%s: the connection to the broker is gone; attaching again", self.address)
                has_started = False
                if self._loop.time() - welcomed_at >= _LASTED_S:
                    attempt = 0
                if attempt == 0:
                    attempt = 1
                    continue
            except EventError as error:
                self._note(error)
                self.owner.fail(error)
                # Once between two attachments: a broker that dies at its start must not be a loop.
                if await self._start_broker(error) and not has_started:
                    has_started = True
                    continue
                if self._take_another_name(attachment):
                    continue
            except Exception:  # noqa: BLE001 - whatever it is, giving up for ever would be worse
                _log.exception("%s: attaching failed; trying again", self.address)
            attempt += 1
            longest = min(_BACKOFF_LAST_S, _BACKOFF_FIRST_S * 2 ** min(attempt, 16))
            await asyncio.sleep(random.uniform(0, longest))

    async def _attach(self, attachment: Attachment) -> None:
        """Connect and be welcomed. Raises TransportError, NotConnected, AuthenticationError."""

        def begin(connection: Connection) -> Attachment:
            attachment.connection = connection
            return attachment

        connection = await self.transport.connect(self.address, begin)
        self.attachment = attachment
        connection.limit_body(MAX_BODY_BYTES)
        first = self._session.connected()
        connection.send((first,))
        try:
            async with asyncio.timeout(_WELCOME_TIMEOUT_S):
                await attachment.welcomed
        except (TimeoutError, asyncio.CancelledError) as error:
            connection.abort()
            self.lose(attachment)
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                raise
            if attachment.failure is not None:
                raise attachment.failure from None
            if attachment.refusal is not None:
                raise refusal_error(self.address, attachment.refusal) from None
            raise NotConnected(f"the broker at {self.address} did not answer a hello") from None
        self.last_failure = None
        if self.transport.capabilities.crosses_hosts and not attachment.lost.done():
            attachment.watch(self.owner.options.heartbeat)

    async def _start_broker(self, error: EventError) -> bool:
        """Start a broker where nobody listens, if that is wanted. True when it is worth connecting at once."""
        if self.owner.options.broker != "auto" or not isinstance(error, TransportError):
            return False
        if not isinstance(error.__cause__, FileNotFoundError | ConnectionRefusedError):
            return False
        start = start_broker if self.transport.capabilities.crosses_processes else start_hosted_broker
        try:
            return await in_thread(start, self.transport, self.address, self.owner.options)
        except Exception as reason:  # noqa: BLE001 - no thread to be had, for one: a failed attempt like any other
            self._note(reason)
            return False

    def _take_another_name(self, attachment: Attachment) -> bool:
        """After a refusal that another origin or slot mends: take one. True when it is worth trying at once."""
        code = attachment.refusal.code if attachment.refusal is not None else None
        if code == "origin_taken":
            self._session.outbox.rename(random.SystemRandom().randrange(1, 1 << 32))
            return True
        if code == "slot_taken" and self._wanted_slot is None and self._session.worker_id is not None:
            self._session.worker_id = None
            return True
        return False

    def _note(self, error: BaseException) -> None:
        """Keep the reason for whoever waits; log it when it is a new one."""
        if str(error) != str(self.last_failure):
            # Waiting helps where nobody listens yet, and never against a wrong token.
            level = logging.WARNING if isinstance(error, AuthenticationError) else logging.INFO
            _log.log(level, "%s: not attached: %s", self.address, error)
        self.last_failure = error

    def keep_frames(self) -> None:
        """The memory that holds frames which wait for their handlers is about to go."""
        self._session.inbox.keep_frames()

    def lose(self, attachment: Attachment) -> None:
        """The connection is gone."""
        if self.attachment is attachment:
            self.attachment = None
            self.owner.lose()

    def reset(self) -> None:
        """End the connection because its stream may be broken; another one follows."""
        if self.connection is not None:
            self.connection.abort()

    async def close(self) -> None:
        """Close the connection once what was sent has left, but wait no longer than half a second for that."""
        attachment = self.attachment
        if attachment is not None and attachment.connection is not None:
            attachment.connection.close()
            await asyncio.wait((attachment.lost,), timeout=0.5)
            attachment.connection.abort()

    def abandon(self) -> None:
        """In a forked child: forget the connection, which is the parent's."""
        self.attachment = None


async def in_thread(function: Callable[..., T], *arguments: Any) -> T:
    """Call what blocks without holding up the loop; at the end of the process, when there are no more threads to be had,
    holding it up."""
    try:
        work = asyncio.get_running_loop().run_in_executor(None, function, *arguments)
    except RuntimeError:
        return function(*arguments)
    return await work
