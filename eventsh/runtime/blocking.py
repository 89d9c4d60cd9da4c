"""A client on a plain blocking socket, for programs that live for one post or one question.

The same session rules as everybody's, without a loop, a thread or a handler: importing asyncio alone would take longer
than all that `eventsh post` does.
"""

from __future__ import annotations

import errno
import os
import select
import time
from typing import TYPE_CHECKING, Any, Self

from eventsh.core.outbox import Outbox
from eventsh.core.registry import Registry
from eventsh.core.session import Session, SessionState
from eventsh.core.trace import Wait
from eventsh.errors import EventError, NotConnected, QueueOverflow, TransportError
from eventsh.options import Options
from eventsh.protocol.frame import MAX_BODY_BYTES, MAX_PAYLOAD_BYTES, FrameDecoder
from eventsh.protocol.messages import Error, Message, Receipt, Reply
from eventsh.runtime.endpoint import check_reachable, complete_options
from eventsh.runtime.refusal import refusal_error
from eventsh.runtime.token import client_proofs

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from eventsh.address import Address
    from eventsh.receipt import Receipt as Traced
    from eventsh.transport import Transport

__all__ = ["BlockingClient"]

_READ_BYTES = 256 * 1024
# Between two looks for a broker that is being started.
_RETRY_S = 0.02
# What did not happen in time, and what to do about it.
_NO_ANSWER = "the broker is stopped or overloaded: no answer"
_NOT_CONFIRMED = "a worker or the broker is stuck (see 'eventsh status'): not confirmed"
_NO_ROOM = "a worker or the broker is stuck (see 'eventsh status'): no room for posts"
# poll() takes a C int.
_LONGEST_POLL_MS = 2**31 - 1


class BlockingClient:
    """A poster that is attached from `__enter__` to `__exit__`. It gets no events.

    `timeout_s` bounds each call, not the whole. Raises TransportError when nobody listens, NotConnected when the time
    is over or the broker ends the connection, AuthenticationError when one of the two could not prove who it is. The
    token is that of `token_file`, or else of the environment.
    """

    def __init__(
        self, transport: Transport, address: Address, *, timeout_s: float, token_file: str | None = None
    ) -> None:
        check_reachable(transport, address)
        self.transport = transport
        self.address = address
        self.timeout_s = timeout_s
        self.outbox = Outbox(
            origin=int.from_bytes(os.urandom(4), "little") or 1,
            pid=os.getpid(),
            max_queue_len=Options().max_queue_len,
            # The broker tells its own limit in its welcome, and that is the one that counts.
            max_payload_len=MAX_PAYLOAD_BYTES,
        )
        identity = os.urandom(16).hex()
        self.session = Session(
            self.outbox, Registry(), identity=identity, clock=time.monotonic, role="poster", take_unique=False
        )
        self.session.new_proof = client_proofs(token_file or complete_options().token_file)
        self.receipts: dict[int, Receipt] = {}
        self._replies: dict[int, Reply] = {}
        self._is_refused = False
        self._decoder = FrameDecoder(MAX_BODY_BYTES)
        self._unsent = bytearray()
        self._socket: socket.socket | None = None

    def __enter__(self) -> Self:
        self._connect(time.monotonic() + self.timeout_s)
        try:
            self._exchange(lambda: self.session.state is SessionState.ATTACHED, _NO_ANSWER)
        except BaseException:
            self._close()
            raise
        self.outbox.max_queue_len = self.outbox.window
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _connect(self, deadline: float) -> None:
        """Connect and say hello. Where nobody listens, wait only if somebody has the address: a broker that is just
        being started, or started again."""
        while True:
            try:
                connection = self.transport.dial(self.address, max(deadline - time.monotonic(), 0.001))
                break
            except TransportError as error:
                if not isinstance(error.__cause__, FileNotFoundError | ConnectionRefusedError):
                    raise
                if time.monotonic() + _RETRY_S >= deadline or not self._is_taken():
                    raise
            time.sleep(_RETRY_S)
        if connection is None:
            raise TransportError(
                f"the {self.address.scheme} transport can't be used for one post at a time: it has no blocking socket"
            )
        self._socket = connection
        connection.setblocking(False)
        self._unsent += self.session.connected()

    def _is_taken(self) -> bool:
        # Not needed by a post that finds its broker.
        from eventsh.runtime.election import is_locked

        return is_locked(self.transport, self.address)

    def _reconnect(self, deadline: float, reason: str) -> None:
        """The broker is gone in the middle of it: what is not confirmed goes to the next one. Raises NotConnected when
        there is none in time."""
        self._close()
        if self.session.state in (SessionState.GREETING, SessionState.PROVING):
            # Closed before the welcome: at once again would be as often as the processor allows.
            time.sleep(_RETRY_S)
        self.session.disconnected()
        self._unsent.clear()
        self._decoder = FrameDecoder(MAX_BODY_BYTES)
        try:
            self._connect(deadline)
        except TransportError as error:
            raise NotConnected(
                f"the connection to {self.address} broke ({reason}), and there is no other: {error}"
            ) from error

    @property
    def confirmed(self) -> int:
        """How many posts every live worker has, counted from the first."""
        return self.outbox.confirmed

    def post(self, source: str, event: str, data: Any, *, unique: str | None = None, receipt: bool = False) -> int:
        """Post one event, and give its number; waits for room when the queue is full. It leaves with the next `flush`,
        or with any call that waits."""
        self._when_room(lambda: self._put(source, event, data, unique, receipt=receipt))
        return self.outbox.number

    def receipt(self, number: int) -> Receipt:
        """Wait until every live worker has the post with this number, which asked for a receipt, and all before it.
        Receipts of earlier ones are forgotten."""
        self._exchange(lambda: number in self.receipts and self.outbox.confirmed >= number, _NOT_CONFIRMED)
        receipt = self.receipts[number]
        self.receipts.clear()
        return receipt

    def post_and_confirm(self, source: str, event: str, data: Any, *, unique: str | None = None) -> Receipt:
        """Post one event and wait until every live worker has it, and all that was posted before."""
        return self.receipt(self.post(source, event, data, unique=unique, receipt=True))

    def post_and_wait(self, source: str, event: str, data: Any, *, unique: str | None = None) -> Traced:
        """Post one event and wait until the handlers of all who have it have returned. When the time is over, gives what
        is known by then; raises NotConnected when that is not even who has it, or when the broker refused this client."""
        wait = Wait()
        self._when_room(lambda: self._put(source, event, data, unique, receipt=True, wait=wait))
        try:
            self._exchange(lambda: wait.is_over, _NOT_CONFIRMED)
        except NotConnected:
            # Where the broker refused the client, it is not the time that is over.
            if wait.having is None or self._is_refused:
                raise
        return wait.receipt()

    def post_body(
        self, body: bytes, count: int, *, pid: int, flags: int = 0, key: bytes = b"", worker: int | None = None
    ) -> None:
        """As `Outbox.post_body`; waits for room when the queue is full."""
        self._when_room(
            lambda: self.outbox.post_body(body, count, pid=pid, flags=flags, key=key, worker=worker), room=count
        )

    def idle(self, seconds: float, descriptors: Sequence[int] = ()) -> bool:
        """Wait so long, but not longer than until one of `descriptors` can be read. True if one can.

        Precise to a tenth of a millisecond, where poll() and epoll only know whole ones."""
        assert self._socket is not None
        until = time.monotonic() + seconds
        while True:
            left_s = max(0.0, until - time.monotonic())
            ready, _, _ = select.select([self._socket.fileno(), *descriptors], [], [], left_s)
            if any(descriptor in ready for descriptor in descriptors):
                return True
            if not ready:
                return False
            # Confirmations, or the end of the connection, which the next call makes up for.
            try:
                self._receive(self._socket)
            except OSError:
                time.sleep(min(left_s, _RETRY_S))
                return False

    def flush(self) -> None:
        """Send what was posted, without waiting until it is confirmed."""
        self._exchange(lambda: not self._unsent, _NO_ROOM)

    def confirm(self) -> None:
        """Wait until every live worker has all that was posted."""
        self._exchange(lambda: not self.outbox.queued, _NOT_CONFIRMED)

    def ask(self, what: str, arguments: dict[str, Any] | None = None) -> Any:
        """Ask the broker a question. Raises EventError when it has no answer."""
        number = self.session.request(what, arguments or {})
        self._exchange(lambda: number in self._replies, _NO_ANSWER, again=False)
        reply = self._replies.pop(number)
        if reply.error is not None:
            raise EventError(reply.error)
        return reply.data

    def _put(
        self, source: str, event: str, data: Any, unique: str | None, *, receipt: bool, wait: Wait | None = None
    ) -> None:
        trace = wait is not None
        if unique is not None:
            self.outbox.post_unique(source, event, data, unique, receipt=receipt, trace=trace, wait=wait)
        elif receipt:
            self.outbox.post_receipt(source, event, data, trace=trace, wait=wait)
        else:
            self.outbox.post(source, event, data)

    def _when_room(self, put: Callable[[], None], room: int = 1) -> None:
        try:
            put()
        except QueueOverflow:
            half = max(0, min(self.outbox.max_queue_len // 2, self.outbox.max_queue_len - room))
            self._exchange(lambda: self.outbox.queued <= half and self.outbox.is_half_empty, _NO_ROOM)
            put()

    def _exchange(self, until: Callable[[], bool], what: str, *, again: bool = True) -> None:
        """Send and receive until the condition holds. Both at once, for the broker may wait for us to read.

        With `again` a connection that breaks is replaced, in the same time."""
        deadline = time.monotonic() + self.timeout_s
        poll = select.poll()
        while True:
            for frame in self.session.take_output():
                self._unsent += frame
            if until():
                return
            connection = self._socket
            assert connection is not None
            poll.register(connection, select.POLLIN | (select.POLLOUT if self._unsent else 0))
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not poll.poll(min(left_s * 1000, _LONGEST_POLL_MS)):
                raise NotConnected(f"{self.address}: {what} within {self.timeout_s:g} s")
            try:
                if self._unsent:
                    self._send(connection)
                self._receive(connection)
            except OSError as error:
                if not again:
                    raise NotConnected(f"the connection to {self.address} broke: {error.strerror}") from error
                poll.unregister(connection)
                self._reconnect(deadline, error.strerror or "closed")

    def _send(self, connection: socket.socket) -> None:
        try:
            sent = connection.send(self._unsent)
        except (BlockingIOError, BrokenPipeError, ConnectionResetError):
            # When it is closed there may still be something to read, which says why; at its end reading fails too.
            return
        del self._unsent[:sent]

    def _receive(self, connection: socket.socket) -> None:
        try:
            data = connection.recv(_READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            raise ConnectionResetError(errno.ECONNRESET, "the broker closed it")
        frames = self._decoder.receive_data(data)
        for message in self.session.receive(frames):
            self._take(message)
        if self._decoder.error is not None:
            raise self._decoder.error

    def _take(self, message: Message) -> None:
        if isinstance(message, Receipt):
            self.receipts[message.number] = message
        elif isinstance(message, Reply):
            self._replies[message.id] = message
        elif isinstance(message, Error):
            self._is_refused = True
            raise refusal_error(self.address, message)
