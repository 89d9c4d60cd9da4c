"""Keep a session attached: connect, say hello, start a broker where none is, and begin again when the connection ends.

Knows nothing of deliveries and handlers.
"""

from __future__ import annotations

import asyncio
import logging
import random
import shlex
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from eventsh.core.heartbeat import Beat, Heartbeat
from eventsh.errors import AuthenticationError, EventError, NotConnected, ProtocolError, TransportError, UsageError
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
# A client with posts and no broker warns after 1, 2, 4 ... times `timeout`, so that its log shows the trouble without being
# filled by it; and not less often than this, for whoever reads only the end of a log.
_WARN_EACH_S = 300.0
# How often it looks whether a warning is due. `timeout` may be shorter, and may be changed meanwhile.
_LOOK_EACH_S = 1.0
# Longer than any attempt takes: a broker has 10 s to start, and 5 s for its welcome.
_ATTEMPT_S = 20.0


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


class Overdue:
    """When to warn of posts that wait for a broker since `since`: after 1, 2, 4 ... times `timeout`. The clock is passed in."""

    def __init__(self, since: float) -> None:
        self._since = since
        self._next_s = 0.0

    def check(self, now: float, timeout_s: float) -> float | None:
        """Return for how many seconds there is no broker when a warning is due, else None."""
        waited_s = now - self._since
        if waited_s < max(timeout_s, self._next_s):
            return None
        self._next_s = waited_s + min(waited_s, _WARN_EACH_S)
        return waited_s


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
        # Whether `last_failure` is why this process can't start a broker. Between its attempts, and while another process
        # makes one, nobody listens or the broker that dies does not answer: that can't be mended, and does not replace it.
        self._cant_start = False
        self._session = session
        self._loop = asyncio.get_running_loop()
        # When the present attempt began, and the attachment whose end `run` waits for.
        self._began_at = self._loop.time()
        self._watched: Attachment | None = None
        self._missed_ends = 0
        self._overdue = Overdue(self._loop.time())
        self._look_at: asyncio.TimerHandle | None = None

    @property
    def connection(self) -> Connection | None:
        return self.attachment.connection if self.attachment is not None else None

    async def run(self) -> None:
        """Attach, and attach again, until cancelled."""
        self._overdue = Overdue(self._loop.time())
        self._look_later()
        try:
            await self._keep_attached()
        finally:
            if self._look_at is not None:
                self._look_at.cancel()

    async def _keep_attached(self) -> None:
        attempt = 0
        has_started = False
        while True:
            attachment = Attachment(self, self._loop)
            self._began_at, self._watched = self._loop.time(), None
            try:
                await self._attach(attachment)
                welcomed_at = self._loop.time()
                self._watched = attachment
                await asyncio.wait((attachment.lost,))
                # Again, in case that an exception interrupted the callback.
                self.lose(attachment)
                if attachment.refusal is not None:
                    _log.warning("%s: the broker ended the connection: %s", self.address, attachment.refusal.message)
                _log.info("%s: the connection to the broker is gone; attaching again", self.address)
                has_started = False
                if self._loop.time() - welcomed_at >= _LASTED_S:
                    attempt = 0
                    self._overdue = Overdue(self._loop.time())
                self._look_later()
                if attempt == 0:
                    attempt = 1
                    continue
            except EventError as error:
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
            raise _Unanswered(f"the broker at {self.address} did not answer a hello") from None
        self.last_failure = None
        self._cant_start = False
        if self.transport.capabilities.crosses_hosts and not attachment.lost.done():
            attachment.watch(self.owner.options.heartbeat)

    async def _start_broker(self, error: EventError) -> bool:
        """Start a broker where nobody listens, if that is wanted, and keep the reason why there is none.

        Returns:
            Whether it is worth connecting at once.
        """
        if self.owner.options.broker != "auto" or not _is_absent(error):
            self._note(error)
            return False
        start = start_broker if self.transport.capabilities.crosses_processes else start_hosted_broker
        try:
            is_started = await in_thread(start, self.transport, self.address, self.owner.options)
        except Exception as reason:  # noqa: BLE001 - no thread to be had, for one: a failed attempt like any other
            self._note(reason, is_start=True)
            return False
        if is_started:
            self._cant_start = False
            self.last_failure = error
        else:
            self._note(error)
        return is_started

    def _take_another_name(self, attachment: Attachment) -> bool:
        """After a refusal that another origin or slot mends: take one. True when it is worth trying at once."""
        code = attachment.refusal.code if attachment.refusal is not None else None
        if code == "origin_taken":
            self._session.outbox.rename(random.SystemRandom().randrange(1, 1 << 32))
            return True
        if code == "slot_taken" and self._session.wants_any_slot and self._session.worker_id is not None:
            self._session.worker_id = None
            return True
        return False

    def _note(self, error: BaseException, *, is_start: bool = False) -> None:
        """Keep the reason for whoever waits; log it when it is a new one."""
        if self._cant_start and not is_start and (_is_absent(error) or isinstance(error, _Unanswered)):
            return
        if str(error) != str(self.last_failure):
            # Waiting helps where nobody listens yet, and never against a wrong token or in a program that can't start one.
            level = logging.WARNING if isinstance(error, AuthenticationError | UsageError) else logging.INFO
            _log.log(level, "%s: not attached: %s", self.address, error)
        self._cant_start = is_start
        self.last_failure = error

    def _look_later(self) -> None:
        if self._look_at is None:
            self._look_at = self._loop.call_later(min(_LOOK_EACH_S, self.owner.options.timeout / 4), self._look)

    def _look(self) -> None:
        """Warn of posts that wait for a broker, when that is due."""
        self._look_at = None
        if self.attachment is not None and self.attachment.welcomed.done():
            return
        self._look_later()
        posts = self._session.outbox.queued
        waited_s = self._overdue.check(self._loop.time(), self.owner.options.timeout) if posts else None
        if waited_s is not None:
            waiting = "posts wait" if posts > 1 else "post waits"
            _log.warning(
                "%s: not attached for %.3g s, %d %s: %s", self.address, waited_s, posts, waiting, self._reason()
            )

    def _reason(self) -> str:
        """Return the last failure, with what a person can do about it."""
        reason = self.last_failure
        if reason is None:
            return "the first attempt has not ended yet"
        # The error of a wrong use has it already.
        return str(reason) if isinstance(reason, UsageError) else f"{reason}; {self._advice(reason)}"

    def _advice(self, reason: BaseException) -> str:
        if isinstance(reason, AuthenticationError):
            return "give both sides the same token (token_file)"
        if self.owner.options.broker != "auto" and _is_absent(reason):
            if not self.transport.capabilities.crosses_processes:
                return 'configure one bus of this process with broker="auto"'
            where = shlex.quote(str(self.address))
            return f"start a broker with 'eventsh serve --workers 0 --listen {where}', or configure broker=\"auto\""
        return "mend that or configure another address; attaching is tried again meanwhile"

    def keep_frames(self) -> None:
        """The memory that holds frames which wait for their handlers is about to go."""
        self._session.inbox.keep_frames()

    def lose(self, attachment: Attachment) -> None:
        """The connection is gone."""
        if self.attachment is attachment:
            self.owner.lose()
            self.attachment = None

    def rescue(self) -> None:
        """Have the connection do what an exception kept its callbacks from."""
        if self.connection is not None:
            self.connection.rescue()

    @property
    def is_stuck(self) -> bool:
        """Whether `run` does not go on, for an exception in the loop itself has lost its next step. Asked at each rescue."""
        if self._watched is None:
            return self._loop.time() - self._began_at > _ATTEMPT_S
        self._missed_ends = self._missed_ends + 1 if self._watched.lost.done() else 0
        return self._missed_ends > 1

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


def _is_absent(error: BaseException) -> bool:
    """Whether `error` is that of a connection to an address where nobody listens."""
    return isinstance(error, TransportError) and isinstance(error.__cause__, FileNotFoundError | ConnectionRefusedError)


class _Unanswered(NotConnected):
    """The other end accepted the connection, and neither welcomed nor refused it."""


async def in_thread(function: Callable[..., T], *arguments: Any) -> T:
    """Call what blocks without holding up the loop; at the end of the process, when there are no more threads to be had,
    holding it up."""
    try:
        work = asyncio.get_running_loop().run_in_executor(None, function, *arguments)
    except RuntimeError:
        return function(*arguments)
    return await work
