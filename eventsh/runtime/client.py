"""One client at work in a running loop: a session's rules joined to a connection, a clock and the handlers.

Holds no rule of delivery. Finds or starts the broker, attaches again when the connection breaks, and pumps deliveries
to the dispatcher. What it has to say leaves by its sender; who waits for something is with its waiters. Everything but
`wake_local` happens in the loop's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Protocol

from eventsh.core.questions import SCRIPT_REQUESTS
from eventsh.core.session import SessionState
from eventsh.errors import AuthenticationError, EventError, ProtocolError
from eventsh.event import LIFECYCLE_SOURCE
from eventsh.plugins import plugins
from eventsh.protocol.messages import Ask, Error, Message, Reply, Welcome
from eventsh.runtime.attach import Attacher, in_thread
from eventsh.runtime.dispatch import Dispatcher, HandlerFailure
from eventsh.runtime.exits import raise_exit
from eventsh.runtime.farewell import Farewell
from eventsh.runtime.intake import ScriptIntake
from eventsh.runtime.sender import Sender
from eventsh.runtime.waiters import Waiters
from eventsh.runtime.watchdog import Watchdog
from eventsh.transport import is_trusted_peer

if TYPE_CHECKING:
    from eventsh.address import Address
    from eventsh.core.delivery import Delivery
    from eventsh.core.registry import Registry
    from eventsh.core.session import Session
    from eventsh.options import Options
    from eventsh.runtime.attach import Attachment
    from eventsh.transport import Frame, Transport

__all__ = ["Client", "Deliveries"]

_log = logging.getLogger("eventsh")

# How much of a failure's text and traceback observers are told; the log has all of it.
_REPORT_CHARS = 4000
# Deliveries are dispatched for this long before the loop gets its turn: acks leave, and an application that shares the
# loop stays responsive.
_PUMP_BUDGET_S = 0.005
# "Received" is acknowledged at once, for posters wait for it. "Handled" only makes room in a queue, so it may wait for
# company: this long, or until this part of the queue is handled.
_HANDLED_DELAY_S = 0.02
_HANDLED_PART = 8
# How often the watchdog looks for work whose callback was lost.
_RESCUE_S = 0.5


class Deliveries(Protocol):
    """What takes the deliveries: a Dispatcher, or a stand-in for a client without handlers."""

    @property
    def pending(self) -> int: ...

    def dispatch(self, delivery: Delivery) -> bool: ...

    def abandon(self) -> None: ...

    def close(self) -> None: ...


class Client:
    """A session kept attached to one address.

    Other threads may post to the session's outbox, call `wake_local` and wake the sender.
    """

    def __init__(
        self,
        transport: Transport,
        address: Address,
        options: Options,
        session: Session,
        registry: Registry,
        *,
        dispatcher: Deliveries | None = None,
        tap: Callable[[Deliveries], Deliveries] | None = None,
        on_state: Callable[[bool], None] | None = None,
        on_plugins: Callable[[], None] | None = None,
        on_exit: Callable[[BaseException], None] = raise_exit,
    ) -> None:
        self.address = address
        self.options = options
        self.session = session
        self.on_state = on_state
        self._on_exit = on_exit
        self._has_exited = False
        self._on_plugins = on_plugins
        self._loop = asyncio.get_running_loop()
        # Its own, which is told what a stand-in need not know.
        self._handlers = None
        if dispatcher is None:
            dispatcher = self._handlers = Dispatcher(
                registry,
                timeout_s=options.timeout,
                on_failure=self._take_failure,
                on_complete=self._complete,
                on_exit=self._pass_exit,
            )
        self._dispatcher: Deliveries = dispatcher if tap is None else tap(dispatcher)
        self._was_attached = False
        self._is_closing = False
        self._pump_at: asyncio.Handle | None = None
        # When events are given out though no handler was ever registered. Apart, for it must not keep a pump from being
        # scheduled before that.
        self._hold_ends_at: asyncio.TimerHandle | None = None
        self._ack_at: asyncio.TimerHandle | None = None
        self._told_withdrawn = 0
        self._attacher = Attacher(transport, address, session, self)
        self.sender = Sender(session, self._attacher)
        self.waiters = Waiters(session, self)
        self._thread = threading.get_ident()
        self._watchdog = Watchdog(self._look_for_lost_callbacks, _RESCUE_S)
        self._intake = ScriptIntake(session, registry, self)
        self._runner: asyncio.Task[None] | None = None

    @property
    def is_attached(self) -> bool:
        return self.session.state not in (SessionState.DETACHED, SessionState.PROVING, SessionState.GREETING)

    def start(self) -> None:
        """Begin to attach."""
        facts = {"worker_id": self.session.worker_id, "pid": self.session.outbox.pid}
        self.session.inbox.post_first(LIFECYCLE_SOURCE, "started", facts)
        self._runner = self._loop.create_task(self._keep_attached(), name=f"eventsh {self.address}")
        self._watchdog.start()
        self._schedule_pump()

    # --- attaching: what the attacher tells ---

    async def _keep_attached(self) -> None:
        # In a thread, for it reads files; and before the first event, so that no hook misses one.
        await in_thread(plugins().load)
        if self._on_plugins is not None:
            self._on_plugins()
        await self._attacher.run()

    @property
    def last_failure(self) -> BaseException | None:
        """Why the last attempt to attach failed."""
        return self._attacher.last_failure

    @property
    def attachment(self) -> Attachment | None:
        """The connection, while there is one."""
        return self._attacher.attachment

    def fail(self, error: EventError) -> None:
        """An attempt to attach failed; another one follows."""
        self.waiters.end_first_attempt(error)

    def lose(self) -> None:
        """The connection is gone."""
        was_attached = self.is_attached
        self.session.disconnected()
        self._intake.clear()
        self.waiters.lose_answers()
        if was_attached and self.on_state is not None:
            self.on_state(False)
        self.waiters.check()

    # --- frames in, deliveries to handlers ---

    def receive(self, frames: Sequence[Frame]) -> None:
        """Frames came from the broker."""
        attachment = self.attachment
        assert attachment is not None
        assert attachment.connection is not None
        try:
            messages = self.session.receive(frames)
            for message in messages:
                self._take_message(attachment, message)
            if self.session.new_gaps:
                self._report_gaps()
            if self.session.unacked_received:
                self._send_ack(at_once=True)
            if self.waiters.waiting:
                self.waiters.check()
            # A confirmation may have made room in the window.
            self.sender.flush_lingering()
        except ProtocolError as error:
            _log.warning("%s: the broker broke the protocol: %s", self.address, error)
            attachment.connection.abort()
            return
        except AuthenticationError as error:
            attachment.failure = error
            attachment.connection.abort()
            return
        except BaseException:
            # Out of a signal handler, anywhere in this. The next connection begins after the last frame that was received.
            attachment.connection.abort()
            raise
        if self.session.inbox.has_work:
            try:
                self._pump()
            except BaseException as error:  # noqa: BLE001 - raised again
                # It is no reason to end the connection.
                self._loop.call_soon(_raise, error)

    def _take_message(self, attachment: Attachment, message: Message) -> None:
        if isinstance(message, Welcome):
            if not self._was_attached:
                self._was_attached = True
                self._tell_plugins("eventsh_worker_started", worker_id=message.worker_id, address=str(self.address))
            self.waiters.end_first_attempt(None)
            if self.session.withdrawn != self._told_withdrawn:
                self._log_withdrawn()
            if self.on_state is not None:
                self.on_state(True)
            if not attachment.welcomed.done():
                attachment.welcomed.set_result(message)
            self.waiters.check()
        elif isinstance(message, Reply):
            self.waiters.take_reply(message)
        elif isinstance(message, Ask):
            if message.what in SCRIPT_REQUESTS:
                assert attachment.connection is not None
                is_trusted = is_trusted_peer(self._attacher.transport, attachment.connection.peer)
                self._intake.take(message, is_trusted=is_trusted)
        elif isinstance(message, Error):
            attachment.refusal = message

    def _report_gaps(self) -> None:
        gaps, self.session.new_gaps = self.session.new_gaps, []
        for gap in gaps:
            if gap.notice:
                # Where the program's logging raises, the connection must not end for it.
                with contextlib.suppress(Exception):
                    _log.warning("%s: %s", self.address, gap.notice)
            self._tell_plugins("eventsh_gap", gap=gap.data)
        # A batch that could not be read is reported to the broker.
        self.sender.schedule_flush()

    def _log_withdrawn(self) -> None:
        withdrawn = self.session.withdrawn - self._told_withdrawn
        self._told_withdrawn = self.session.withdrawn
        _log.warning(
            "%s: %d posts are in a form that this broker does not know, because it runs an older version of eventsh: its"
            " workers get a gap in their place",
            self.address,
            withdrawn,
        )

    def _tell_plugins(self, hook: str, **facts: Any) -> None:
        if plugins().has_impl(hook):
            plugins().call(hook, **facts)

    def release(self) -> None:
        """Give out what was held for a first handler."""
        self.session.inbox.release()
        self._schedule_pump()

    def wake_local(self) -> None:
        """Something was posted to this process alone. Callable in any thread."""
        if threading.get_ident() == self._thread:
            self._schedule_pump()
        else:
            self._loop.call_soon_threadsafe(self._pump)

    def _schedule_pump(self) -> None:
        if self._pump_at is None:
            self._pump_at = self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        """Give deliveries to the handlers until none is left or the turn has lasted long enough."""
        self._cancel_pump()
        try:
            self._dispatch()
            self._after_handling()
        except BaseException:
            # Out of a signal handler, or the exit of a handler of events. The delivery goes on where it was.
            self._schedule_pump()
            raise

    def _dispatch(self) -> None:
        inbox, dispatcher = self.session.inbox, self._dispatcher
        now = time.monotonic()
        until = now + _PUMP_BUDGET_S
        while True:
            delivery = inbox.next_delivery(now)
            if delivery is None:
                if inbox.has_work and inbox.hold_until is not None:
                    self._hold_ends_at = self._loop.call_later(max(0.0, inbox.hold_until - now), self._pump)
                break
            try:
                is_over = dispatcher.dispatch(delivery)
            except BaseException:
                if delivery.is_over:
                    # The program may end here, and the event must not be handled again.
                    self._complete_now(delivery)
                    self._send_ack(at_once=True)
                raise
            if is_over:
                self._complete_now(delivery)
            else:
                inbox.set_aside(delivery)
            # Before the next one is decoded: with the events of both, the collector of garbage would have its turn.
            del delivery
            now = time.monotonic()
            if now >= until:
                self._schedule_pump()
                break

    def rescue(self) -> None:
        """Do what an exception out of a signal handler kept a callback from."""
        self.sender.rescue()
        for delivery in self.session.inbox.owed():
            self._complete_now(delivery)
        if self._handlers is not None:
            self._handlers.rescue()
        self._attacher.rescue()
        if self._runner is not None and not self._is_closing and (self._runner.done() or self._attacher.is_stuck):
            self._runner.cancel()
            self._runner = self._loop.create_task(self._keep_attached(), name=f"eventsh {self.address}")
        self.waiters.check()
        self._send_ack()
        if self.session.inbox.has_work:
            self._pump()

    def _cancel_pump(self) -> None:
        for handle in (self._pump_at, self._hold_ends_at):
            if handle is not None:
                handle.cancel()
        self._pump_at = self._hold_ends_at = None

    def _complete(self, delivery: Delivery) -> None:
        """The last async handler of a delivery returned."""
        self._complete_now(delivery)
        self._after_handling()

    def _complete_now(self, delivery: Delivery) -> None:
        self.session.inbox.complete(delivery)
        if delivery.is_unique or delivery.is_redelivered:
            # Until the broker knows, it would have another worker run a unique one again if this one died; and nothing follows an
            # event that is sent alone because a process died in it.
            self._send_ack(at_once=True)
        if delivery.trace is not None:
            self.sender.schedule_flush()

    def _after_handling(self) -> None:
        if self.session.new_gaps:
            self._report_gaps()
        if self.session.unacked_handled:
            if self.session.unacked_handled * _HANDLED_PART >= self.session.outbox.window:
                self._send_ack()
            elif self._ack_at is None:
                self._ack_at = self._loop.call_later(_HANDLED_DELAY_S, self._send_ack)
        if self.waiters.waiting:
            self.waiters.check()

    def _send_ack(self, *, at_once: bool = False) -> None:
        if not at_once and self._ack_at is not None:
            self._ack_at.cancel()
            self._ack_at = None
        connection = self._attacher.connection
        if connection is None:
            return
        try:
            ack = self.session.take_ack()
            if ack is None:
                return
            if at_once:
                connection.send_now((ack,))
            else:
                connection.send((ack,))
        except BaseException:
            # Perhaps it was not sent, and posters wait for it. Twice is harmless.
            self.session.forget_ack()
            raise

    def _take_failure(self, failure: HandlerFailure) -> None:
        facts = {name: text[:_REPORT_CHARS] for name, text in asdict(failure).items()}
        self.session.report_failure(facts)
        self.sender.schedule_flush()
        self._tell_plugins("eventsh_handler_failed", failure=facts)

    def _pass_exit(self, error: BaseException) -> None:
        """Pass on every KeyboardInterrupt, and the first SystemExit: others would interrupt the cleaning up after it."""
        if issubclass(type(error), SystemExit):
            if self._has_exited:
                return
            self._has_exited = True
        self._on_exit(error)

    # --- callbacks that were lost ---

    def _look_for_lost_callbacks(self) -> None:
        """In the watchdog's thread: have the loop look at work that is left. An exception out of a signal handler may have
        ended the callback that would have done it."""
        session = self.session
        is_owed = (
            session.outbox.queued
            or not session.inbox.is_idle
            or session.unacked_handled
            or session.unacked_received
            or not self.is_attached
            or (self._runner is not None and self._runner.done())
        )
        if is_owed:
            try:
                self._loop.call_soon_threadsafe(self.rescue)
            except RuntimeError:
                # The program closed the loop without closing the bus.
                self.stop_watching()

    # --- the end ---

    async def close(self, *, leave: bool, timeout: float) -> None:
        """Take no more events, handle those that were given, confirm what was posted, and detach.

        All of it within `timeout` seconds; what could not be done by then is logged with its number.
        """
        self._tell_plugins("eventsh_worker_stopping", worker_id=self.session.worker_id, address=str(self.address))
        await Farewell(self, leave=leave, deadline=self._loop.time() + timeout).say()
        await self._detach()
        outbox = self.session.outbox
        if outbox.unconfirmed:
            _log.warning("%s: closed with %d posts that were not confirmed", self.address, outbox.unconfirmed)
        if outbox.has_unbatched:
            waiting = outbox.queued - outbox.unconfirmed
            _log.warning("%s: closed with %d posts that were not sent: configure() sends them", self.address, waiting)
        if not self.is_idle:
            _log.warning("%s: closed while handlers were still at work", self.address)

    @property
    def is_idle(self) -> bool:
        """Whether every handler of what came has returned."""
        return self.session.inbox.is_idle and not self._dispatcher.pending

    async def _detach(self) -> None:
        self._is_closing = True
        self._send_ack()
        self.waiters.close()
        if self._runner is not None:
            self._runner.cancel()
            await asyncio.wait((self._runner,))
        await self._attacher.close()
        self._watchdog.stop()
        self.sender.close()
        self._cancel_pump()
        self._dispatcher.close()

    def abandon(self) -> None:
        """In a forked child: let go of what belongs to the parent, without a word to the broker."""
        self._attacher.abandon()
        self._dispatcher.abandon()
        # Only has an effect if it was a handler that forked: then this thread must not go on in the parent's loop.
        self._loop.stop()

    @property
    def is_in_handler(self) -> bool:
        """Whether a handler calls this. In the loop's thread only."""
        return self._handlers is not None and self._handlers.is_in_handler

    @property
    def under_way(self) -> Delivery | None:
        """The delivery whose handlers are being called."""
        return None if self._handlers is None else self._handlers.under_way

    def stop_watching(self) -> None:
        """End the threads that watch this client. In any thread."""
        self._watchdog.stop()
        if self._handlers is not None:
            self._handlers.stop_watching()

    def give_up(self) -> None:
        """Let go of everything at once, for nobody waits for it any more."""
        self.stop_watching()
        self._is_closing = True
        if self._runner is not None:
            self._runner.cancel()
        self._dispatcher.close()
        self.waiters.close()
        self._attacher.reset()
        self.abandon()

    def change(self, options: Options) -> None:
        """Take other options into use; the address and what the client is stay as they are."""
        self.options = options
        if self._handlers is not None:
            self._handlers.timeout_s = options.timeout


def _raise(error: BaseException) -> None:
    raise error
