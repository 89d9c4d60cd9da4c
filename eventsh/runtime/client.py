"""One client at work in a running loop: a session's rules joined to a connection, a clock and the handlers.

Holds no rule of delivery. Finds or starts the broker, attaches again when the connection breaks, and pumps deliveries
to the dispatcher. Everything but `wake` happens in the loop's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Protocol

from eventsh.core.questions import ADD_SCRIPT, SCRIPT_REQUESTS
from eventsh.core.session import SessionState
from eventsh.core.trace import Wait
from eventsh.errors import AuthenticationError, EventError, NotConnected, ProtocolError
from eventsh.escape import expressible
from eventsh.event import LIFECYCLE_SOURCE
from eventsh.plugins import plugins
from eventsh.protocol.messages import Ask, Error, Message, Reply, Welcome
from eventsh.runtime.attach import Attacher, in_thread
from eventsh.runtime.dispatch import Dispatcher, HandlerFailure
from eventsh.transport import is_trusted_peer

if TYPE_CHECKING:
    from eventsh.address import Address
    from eventsh.core.delivery import Delivery
    from eventsh.core.registry import Registry
    from eventsh.core.session import Session
    from eventsh.options import Options
    from eventsh.receipt import Receipt
    from eventsh.runtime.attach import Attachment
    from eventsh.runtime.scripts import Scripts
    from eventsh.transport import Frame, Transport

__all__ = ["Client", "Deliveries"]

_log = logging.getLogger("eventsh")

# How much of a failure's text and traceback observers are told; the log has all of it.
_REPORT_CHARS = 4000
# Deliveries are dispatched for this long before the loop gets its turn: acks leave, and an application that shares the
# loop stays responsive.
_PUMP_BUDGET_S = 0.005
# So many full batches leave while the program still posts: two take a tenth less of the broker's time than one.
_BATCHES_AT_ONCE = 2
# What a post may wait for others to go with it, where much is under way already.
_COMPANY_S = 0.001
# "Received" is acknowledged at once, for posters wait for it. "Handled" only makes room in a queue, so it may wait for
# company: this long, or until this part of the queue is handled.
_HANDLED_DELAY_S = 0.02
_HANDLED_PART = 8


class Deliveries(Protocol):
    """What takes the deliveries: a Dispatcher, or a stand-in for a client without handlers."""

    @property
    def pending(self) -> int: ...

    def dispatch(self, delivery: Delivery) -> bool: ...

    def abandon(self) -> None: ...

    def close(self) -> None: ...


class Client:
    """A session kept attached to one address.

    `lock` guards the session's outbox where other threads post; `wake` may be called in any of them.
    """

    def __init__(
        self,
        transport: Transport,
        address: Address,
        options: Options,
        session: Session,
        registry: Registry,
        *,
        lock: AbstractContextManager[Any] | None = None,
        dispatcher: Deliveries | None = None,
        tap: Callable[[Deliveries], Deliveries] | None = None,
        on_state: Callable[[bool], None] | None = None,
        on_plugins: Callable[[], None] | None = None,
    ) -> None:
        self.address = address
        self.options = options
        self.session = session
        self._lock = lock if lock is not None else contextlib.nullcontext()
        self._is_shared = lock is not None
        self.on_state = on_state
        self._on_plugins = on_plugins
        self._loop = asyncio.get_running_loop()
        self._dispatcher: Deliveries = dispatcher or Dispatcher(
            registry, timeout_s=options.timeout, on_failure=self._take_failure, on_complete=self._complete
        )
        if tap is not None:
            self._dispatcher = tap(self._dispatcher)
        self._registry = registry
        # What operators brought from their shells; made when the first comes.
        self._scripts: Scripts | None = None
        self._replies: dict[int, asyncio.Future[Reply]] = {}
        self._first_attempt: asyncio.Future[None] | None = None
        self._woken = False
        self._was_attached = False
        self._pump_at: asyncio.Handle | None = None
        # When events are given out though no handler was ever registered. Apart, for it must not keep a pump from being
        # scheduled before that.
        self._hold_ends_at: asyncio.TimerHandle | None = None
        self._ack_at: asyncio.TimerHandle | None = None
        self._company_ends_at: asyncio.TimerHandle | None = None
        self._waiters: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []
        self._gaps_told = 0
        # Nobody can wait for anything any more.
        self._is_over = False
        self._attacher = Attacher(transport, address, session, self._lock, self)
        self._runner: asyncio.Task[None] | None = None

    @property
    def is_attached(self) -> bool:
        return self.session.state not in (SessionState.DETACHED, SessionState.PROVING, SessionState.GREETING)

    def start(self) -> None:
        """Begin to attach."""
        facts = {"worker_id": self.session.worker_id, "pid": self.session.outbox.pid}
        self.session.post_first(LIFECYCLE_SOURCE, "started", facts)
        self._runner = self._loop.create_task(self._keep_attached(), name=f"eventsh {self.address}")
        self._schedule_pump()

    # --- attaching: what the attacher tells ---

    async def _keep_attached(self) -> None:
        # In a thread, for it reads files; and before the first event, so that no hook misses one.
        await in_thread(plugins().load)
        if self._on_plugins is not None:
            self._on_plugins()
        await self._attacher.run()

    @property
    def attachment(self) -> Attachment | None:
        """The connection, while there is one."""
        return self._attacher.attachment

    def fail(self, error: EventError) -> None:
        """An attempt to attach failed; another one follows."""
        if self._first_attempt is not None and not self._first_attempt.done():
            self._first_attempt.set_exception(error)

    def lose(self) -> None:
        """The connection is gone."""
        was_attached = self.is_attached
        with self._lock:
            self.session.disconnected()
        if self._scripts is not None:
            # The broker gives them again; nobody could end them while it is away.
            self._scripts.clear()
        for future in self._replies.values():
            if not future.done():
                future.set_exception(NotConnected(f"the connection to {self.address} broke before there was an answer"))
        if was_attached and self.on_state is not None:
            self.on_state(False)
        self._check_waiters()

    # --- frames in, deliveries to handlers ---

    def receive(self, frames: Sequence[Frame]) -> None:
        """Frames came from the broker."""
        attachment = self.attachment
        assert attachment is not None
        assert attachment.connection is not None
        try:
            with self._lock:
                messages = self.session.receive(frames)
        except ProtocolError as error:
            _log.warning("%s: the broker broke the protocol: %s", self.address, error)
            attachment.connection.abort()
            return
        except AuthenticationError as error:
            attachment.failure = error
            attachment.connection.abort()
            return
        for message in messages:
            self._take_message(attachment, message)
        if self.session.gaps != self._gaps_told:
            self._tell_gap()
        if self.session.unacked_received:
            self._send_ack(at_once=True)
        if self._waiters:
            self._check_waiters()
        # A confirmation may have made room in the window.
        self._flush_patiently()
        if self.session.has_work:
            self._pump()

    def _take_message(self, attachment: Attachment, message: Message) -> None:
        if isinstance(message, Welcome):
            if not self._was_attached:
                self._was_attached = True
                self._tell_plugins("eventsh_worker_started", worker_id=message.worker_id, address=str(self.address))
            if self._first_attempt is not None and not self._first_attempt.done():
                self._first_attempt.set_result(None)
            if self.on_state is not None:
                self.on_state(True)
            if not attachment.welcomed.done():
                attachment.welcomed.set_result(message)
            self._check_waiters()
        elif isinstance(message, Reply):
            if (future := self._replies.get(message.id)) is not None and not future.done():
                future.set_result(message)
        elif isinstance(message, Ask):
            if message.what in SCRIPT_REQUESTS:
                self._take_script(attachment, message)
        elif isinstance(message, Error):
            attachment.refusal = message

    def _take_script(self, attachment: Attachment, ask: Ask) -> None:
        """The broker passes on code of an operator, or the end of it."""
        connection = attachment.connection
        assert connection is not None
        answer: dict[str, Any]
        if ask.what != ADD_SCRIPT and self._scripts is None:
            # What never came here is not missed.
            answer = {"error": None, "handlers": 0}
        elif not self.options.allow_scripts:
            answer = {"error": "this worker takes no code: allow_scripts is off", "handlers": 0}
        elif not is_trusted_peer(self._attacher.transport, connection.peer):
            answer = {"error": "this worker takes code only over a unix socket", "handlers": 0}
        else:
            if self._scripts is None:
                from eventsh.runtime.scripts import Scripts

                self._scripts = Scripts(self._registry, self._write_output)
            answer = self._scripts.take(ask.what, ask.arguments)
            if ask.what == ADD_SCRIPT and answer["error"] is None:
                self.session.release()
                self._schedule_pump()
        if answer["error"] is not None:
            answer["error"] = expressible(answer["error"])
            _log.warning("%s: script %s: %s", self.address, ask.arguments.get("name"), answer["error"])
        self.session.answer(ask.id, answer)
        self._wake_here()

    def _write_output(self, script: str, text: str) -> None:
        """A script printed; it may have done so in a thread of its own."""
        told = expressible(text)

        def write() -> None:
            if self.session.write_output(script, told):
                self._wake_here()

        # In place where that is possible: what a handler that prints without end prints must not pile up.
        if asyncio._get_running_loop() is self._loop:
            write()
        else:
            self._loop.call_soon_threadsafe(write)

    def _tell_gap(self) -> None:
        self._gaps_told = self.session.gaps
        gap = self.session.last_gap
        missed = gap["missed"] if gap["exact"] else "an unknown number of"
        _log.warning("%s: missed %s events: %s", self.address, missed, gap["reason"])
        self._tell_plugins("eventsh_gap", gap=gap)

    def _tell_plugins(self, hook: str, **facts: Any) -> None:
        if plugins().has_impl(hook):
            plugins().call(hook, **facts)

    def _schedule_pump(self) -> None:
        if self._pump_at is None:
            self._pump_at = self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        """Give deliveries to the handlers until none is left or the turn has lasted long enough."""
        self._cancel_pump()
        session, dispatcher = self.session, self._dispatcher
        now = time.monotonic()
        until = now + _PUMP_BUDGET_S
        while True:
            try:
                delivery = session.next_delivery(now)
            except ProtocolError as error:
                _log.error("%s: a batch can't be read and is dropped: %s", self.address, error)
                continue
            if delivery is None:
                if session.has_work and session.hold_until is not None:
                    self._hold_ends_at = self._loop.call_later(max(0.0, session.hold_until - now), self._pump)
                break
            try:
                is_done = dispatcher.dispatch(delivery)
            except (TypeError, ValueError) as error:
                # What handlers raise does not get here: this is a body that is JSON and no array of runs.
                _log.error(
                    "%s: a batch of process %s is malformed and is dropped: %s", self.address, delivery.pid, error
                )
                is_done = True
            if is_done:
                self._complete_now(delivery)
            # Before the next one is decoded: with the events of both, the collector of garbage would have its turn.
            del delivery
            now = time.monotonic()
            if now >= until:
                self._schedule_pump()
                break
        self._after_handling()

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
        self.session.complete(delivery)
        if delivery.is_unique:
            # Until the broker knows, it would have another worker run it again if this one died.
            self._send_ack(at_once=True)
        if delivery.trace is not None:
            self._wake_here()

    def _after_handling(self) -> None:
        if self.session.unacked_handled:
            if self.session.unacked_handled * _HANDLED_PART >= self.session.outbox.window:
                self._send_ack()
            elif self._ack_at is None:
                self._ack_at = self._loop.call_later(_HANDLED_DELAY_S, self._send_ack)
        if self._waiters:
            self._check_waiters()

    def _send_ack(self, *, at_once: bool = False) -> None:
        if not at_once and self._ack_at is not None:
            self._ack_at.cancel()
            self._ack_at = None
        ack = self.session.take_ack()
        connection = self._attacher.connection
        if ack is None or connection is None:
            return
        if at_once:
            connection.send_now((ack,))
        else:
            connection.send((ack,))

    def _take_failure(self, failure: HandlerFailure) -> None:
        facts = {name: text[:_REPORT_CHARS] for name, text in asdict(failure).items()}
        self.session.report_failure(facts)
        self._tell_plugins("eventsh_handler_failed", failure=facts)
        self._wake_here()

    # --- frames out ---

    def wake(self) -> None:
        """Something was posted: send it at the end of the loop's turn. Callable in any thread, under the lock."""
        if not self._is_shared and self.session.outbox.closed_batches >= _BATCHES_AT_ONCE:
            # A program that posts without giving the loop its turn would else keep the workers waiting until it does.
            self.flush(at_once=True)
        elif not self._woken:
            if self._is_shared:
                self._loop.call_soon_threadsafe(self._flush_patiently)
            else:
                self._loop.call_soon(self._flush_patiently)
            self._woken = True

    def _wake_here(self) -> None:
        self._loop.call_soon(self.flush)

    def wake_local(self) -> None:
        """Something was posted to this process alone. Callable in any thread."""
        if self._is_shared:
            self._loop.call_soon_threadsafe(self._pump)
        else:
            self._schedule_pump()

    def flush(self, *, at_once: bool = False) -> None:
        """Send what may leave now; `at_once`: not only when the loop has its turn."""
        with self._lock:
            self._woken = False
            frames = self.session.take_output()
        connection = self._attacher.connection
        if frames and connection is not None:
            (connection.send_now if at_once else connection.send)(frames)

    def _flush_patiently(self) -> None:
        """As `flush`, but where much is under way let what was posted wait for company: for a confirmation, or the time
        that it waits at most."""
        with self._lock:
            frames = self.session.take_output(patient=True)
            # While it waits no post has to wake anybody.
            self._woken = self.session.outbox.has_open_batch
        connection = self._attacher.connection
        if frames and connection is not None:
            connection.send(frames)
        if self._woken and self._company_ends_at is None:
            self._company_ends_at = self._loop.call_later(_COMPANY_S, self._end_company)

    def _end_company(self) -> None:
        self._company_ends_at = None
        self.flush()

    # --- waiting ---

    async def wait_until(self, condition: Callable[[], bool], timeout: float | None, what: str) -> None:
        """Wait for `condition`, which is looked at whenever something was confirmed, handled or attached.

        Raises NotConnected that says `what` did not happen, or AuthenticationError if that is why.
        """
        if condition():
            return
        if self._is_over:
            raise NotConnected(f"closed while waiting for {self.address}")
        future: asyncio.Future[None] = self._loop.create_future()
        waiter = (condition, future)
        self._waiters.append(waiter)
        try:
            async with asyncio.timeout(timeout):
                await future
        except TimeoutError:
            failed = self._attacher.last_failure
            error = AuthenticationError if isinstance(failed, AuthenticationError) else NotConnected
            raise error(f"{what} within {timeout:g} s: {self._situation()}") from None
        finally:
            with contextlib.suppress(ValueError):
                self._waiters.remove(waiter)

    def _situation(self) -> str:
        if self.is_attached:
            return f"{self.session.outbox.queued} posts are not confirmed by {self.address}"
        return str(self._attacher.last_failure or f"nothing answers at {self.address}")

    def _fail_waiters(self) -> None:
        """It is closed: what others wait for does not come."""
        self._is_over = True
        for _, future in self._waiters:
            if not future.done():
                future.set_exception(NotConnected(f"closed while waiting for {self.address}"))
        if self._first_attempt is not None and not self._first_attempt.done():
            self._first_attempt.set_exception(NotConnected(f"closed before it was attached to {self.address}"))

    def _check_waiters(self) -> None:
        for condition, future in list(self._waiters):
            if not future.done() and condition():
                future.set_result(None)

    async def wait_ready(self, timeout: float | None) -> None:
        """Wait until attached. Raises NotConnected."""
        await self.wait_until(lambda: self.is_attached, timeout, f"not attached to {self.address}")

    async def wait_first_attempt(self, timeout: float | None) -> None:
        """Wait until attached, or raise what the first attempt failed with: for those who do not wait for a broker.
        To be called right after `start`."""
        self._first_attempt = self._loop.create_future()
        try:
            async with asyncio.timeout(timeout):
                await self._first_attempt
        except TimeoutError:
            raise NotConnected(f"not attached to {self.address} within {timeout:g} s") from None

    async def wait_confirmed(self, timeout: float | None) -> None:
        """Wait until every live worker has all that was posted before this call. Raises NotConnected."""
        outbox = self.session.outbox
        with self._lock:
            number = outbox.number
        self.flush()
        await self.wait_until(lambda: outbox.confirmed >= number, timeout, "not confirmed")

    async def wait_room(self, timeout: float | None) -> None:
        """Wait until the queues of posts and of local events are at most half full. Raises NotConnected."""
        session, outbox = self.session, self.session.outbox

        def has_room() -> bool:
            return max(outbox.queued, session.local_queued) <= outbox.max_queue_len // 2

        self.flush()
        await self.wait_until(has_room, timeout, "no room for posts")

    async def post_and_wait(
        self, source: str, event: str, data: Any, unique: str | None, timeout: float | None
    ) -> Receipt:
        """Post an event and wait until the handlers of all who have it have returned, or `timeout` is over.

        Raises what a post raises, and NotConnected when it is not even known who has it. What was held for a first
        handler is given out: this process would wait for itself.
        """
        session = self.session
        wait = Wait()
        with self._lock:
            if unique is None:
                session.outbox.post_receipt(source, event, data, trace=True)
            else:
                session.outbox.post_unique(source, event, data, unique, trace=True)
            number = session.outbox.number
            session.waits[number] = wait
        session.release()
        self._schedule_pump()
        self.flush()
        try:
            await self.wait_until(lambda: wait.is_over, timeout, "no answer of the workers")
        except NotConnected:
            if wait.having is None:
                raise
        finally:
            del session.waits[number]
        return wait.receipt()

    async def ask(self, what: str, arguments: dict[str, Any], timeout: float | None) -> Any:
        """Ask the broker a question. Raises EventError when it has no answer, NotConnected when it gives none."""
        if not self.is_attached:
            raise NotConnected(f"not attached to {self.address}")
        number = self.session.request(what, arguments)
        future = self._replies[number] = self._loop.create_future()
        self.flush()
        try:
            async with asyncio.timeout(timeout):
                reply = await future
        except TimeoutError:
            raise NotConnected(f"{self.address}: the broker did not answer within {timeout:g} s") from None
        finally:
            del self._replies[number]
        if reply.error is not None:
            raise EventError(reply.error)
        return reply.data

    # --- the end ---

    async def close(self, *, leave: bool, timeout: float) -> None:
        """Take no more events, handle those that were given, confirm what was posted, and detach.

        All of it within `timeout` seconds; what could not be done by then is logged with its number.
        """
        deadline = self._loop.time() + timeout
        self._tell_plugins("eventsh_worker_stopping", worker_id=self.session.worker_id, address=str(self.address))
        await self._leave(leave, deadline)
        self.session.release()
        self._schedule_pump()
        await self._try(self._is_idle, deadline)
        with contextlib.suppress(EventError):
            self.session.post_local(LIFECYCLE_SOURCE, "stopping", {"worker_id": self.session.worker_id})
        self._schedule_pump()
        await self._try(self._is_idle, deadline)
        outbox = self.session.outbox
        if outbox.queued:
            self.flush()
            await self._try(lambda: not outbox.queued, deadline)
        if self.session.state in (SessionState.PROVING, SessionState.GREETING, SessionState.ATTACHED):
            # Attached since, perhaps for just these posts.
            await self._leave(leave, deadline)
            self._schedule_pump()
            await self._try(self._is_idle, deadline)
        await self._detach()
        if outbox.queued:
            _log.warning("%s: closed with %d posts that were not confirmed", self.address, outbox.queued)
        if not self._is_idle():
            _log.warning("%s: closed while handlers were still at work", self.address)

    async def _leave(self, leave: bool, deadline: float) -> None:
        """Say goodbye wherever the broker knows of us, and wait for the answer. Without it, a process that lives on would
        be expected back for `timeout` seconds, and everybody's posts would wait for that."""
        greeting = (SessionState.PROVING, SessionState.GREETING)
        await self._try(lambda: self.session.state not in greeting, deadline)
        self.session.leave(leave=leave)
        self.flush()
        await self._try(lambda: self.session.state in (SessionState.DRAINED, SessionState.DETACHED), deadline)

    def _is_idle(self) -> bool:
        return self.session.is_idle and not self._dispatcher.pending

    async def _try(self, condition: Callable[[], bool], deadline: float) -> None:
        with contextlib.suppress(NotConnected, AuthenticationError):
            await self.wait_until(condition, max(0.0, deadline - self._loop.time()), "")

    async def _detach(self) -> None:
        self._send_ack()
        self._fail_waiters()
        if self._runner is not None:
            self._runner.cancel()
            await asyncio.wait((self._runner,))
        await self._attacher.close()
        if self._company_ends_at is not None:
            self._company_ends_at.cancel()
        self._cancel_pump()
        self._dispatcher.close()

    def abandon(self) -> None:
        """In a forked child: let go of what belongs to the parent, without a word to the broker."""
        self._attacher.abandon()
        self._dispatcher.abandon()
        # Only has an effect if it was a handler that forked: then this thread must not go on in the parent's loop.
        self._loop.stop()

    def give_up(self) -> None:
        """Let go of everything at once, for nobody waits for it any more."""
        if self._runner is not None:
            self._runner.cancel()
        self._dispatcher.close()
        self._fail_waiters()
        if self.session.outbox.queued:
            _log.warning("%s: given up with %d posts that were not confirmed", self.address, self.session.outbox.queued)
        self.abandon()

    def change(self, options: Options) -> None:
        """Take other options into use; the address and what the client is stay as they are."""
        self.options = options
        if isinstance(self._dispatcher, Dispatcher):
            self._dispatcher.timeout_s = options.timeout
