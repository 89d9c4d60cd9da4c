"""The broker process: the router's rules joined to a transport, a clock and the operating system.

Holds no rule of delivery. One and the same program is started by `eventsh serve`, and by a client with `broker="auto"`
where no broker runs; it imports little, so that it is there fast.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import math
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

from eventsh.core.broker.deaths import GONE
from eventsh.core.broker.router import Router
from eventsh.core.heartbeat import Heartbeat
from eventsh.errors import EventError, TransportError
from eventsh.options import Options, parse_broker_arguments
from eventsh.plugins import plugins
from eventsh.protocol.frame import MAX_BODY_BYTES, MAX_PAYLOAD_BYTES
from eventsh.runtime.child import EXIT_OK, EXIT_USAGE, Supervisor, add_child_arguments, start_child
from eventsh.runtime.clock import new_epoch
from eventsh.runtime.election import Log, lock_address, unlock_address
from eventsh.runtime.endpoint import find_endpoint
from eventsh.runtime.host import pid_space, process_state
from eventsh.runtime.loop import new_event_loop
from eventsh.runtime.presence import Presence
from eventsh.runtime.shares import Shares
from eventsh.runtime.token import broker_proofs
from eventsh.transport import is_trusted_peer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from eventsh.address import Address
    from eventsh.core.broker.state import ClientConnection, Slot
    from eventsh.errors import ProtocolError
    from eventsh.runtime.recording import BrokerRecording
    from eventsh.transport import Connection, Listener, Transport

__all__ = ["Broker", "Clock", "main"]

_log = logging.getLogger("eventsh.broker")

# How often the end of a process is looked for after its connection broke: soon at first, for a killed process is gone
# within milliseconds, and its unique events wait for that.
_FIRST_LOOK_S = 0.005
_LAST_LOOK_S = 0.25
# The longest message is the list of the unique events that a worker has from an earlier broker: 16,384 of them, and 2 MiB of
# keys as hexadecimal.
_MAX_MESSAGE_BYTES = 8 * 1024 * 1024
# How long the supervisor has to report how a process ended, after its end. It reports only its own workers, and at once.
_REPORT_S = 0.25
# Ends that were reported and not yet looked for.
_MAX_ENDS = 1024
# What the last frames may take to leave, when a broker stops.
_CLOSE_TIMEOUT_S = 0.5
# A broker whose loop does not turn for longer than this, and than two of its own ticks, stands still itself. Shorter is
# what a busy machine does to everybody.
_STANDSTILL_S = 0.25


class Clock:
    """Monotonic seconds, but for those in which this process itself stood still: stopped by a signal, or frozen with its
    container. It is read at least every `longest_s`; of a longer pause no more than that counts.

    Workers can make no progress while nobody reads what they say. With that time counted, a broker that goes on would
    drop the events of every worker whose queue is full.
    """

    def __init__(self, longest_s: float, read: Callable[[], float] = time.monotonic) -> None:
        self._longest_s = longest_s
        self._read = read
        self._last_s = read()
        self._stood_still_s = 0.0

    def __call__(self) -> float:
        now = self._read()
        stood_still_s = now - self._last_s - self._longest_s
        if stood_still_s > 0:
            self._stood_still_s += stood_still_s
        self._last_s = now
        return now - self._stood_still_s


class _Peer:
    """One connection: tells the broker what happens on it. A transport's Receiver."""

    __slots__ = ("broker", "connection", "is_lost", "is_paused", "limited", "link", "waiting")

    def __init__(self, broker: Broker, connection: Connection) -> None:
        self.broker = broker
        self.connection = connection
        self.limited = True
        self.is_paused = False
        # Received and not handled, because the connection's share of the turn was spent.
        self.waiting: list[bytearray] = []
        # It ended while frames waited.
        self.is_lost = False
        now = broker.clock()
        heartbeat = None
        if broker.transport.capabilities.crosses_hosts:
            heartbeat = Heartbeat(broker.options.heartbeat, self._signs, now)
        self.link = broker.router.connect(
            self,
            connection.peer.pid,
            now - connection.opening_s,
            heartbeat,
            unsent=self._unsent,
            is_trusted=is_trusted_peer(broker.transport, connection.peer),
        )

    def _signs(self) -> tuple[int, int]:
        # Reading is paused while frames wait: then each one that is handled is a sign.
        return self.connection.received_bytes - len(self.waiting), self.connection.unsent_bytes

    def _unsent(self) -> int:
        return self.connection.unsent_bytes

    @property
    def is_greeted(self) -> bool:
        return self.link.is_greeted

    def frames_received(self, frames: list[bytearray]) -> None:
        if self.waiting:
            self.waiting += frames
        elif not self.is_greeted:
            self._wait(frames)
        elif rest := self._handle(frames, self.broker.shares.begin()):
            self._wait(rest)
        self.broker.flush()

    def _wait(self, frames: list[bytearray]) -> None:
        self.waiting = frames
        self.link.begin_wait(self.broker.clock())
        self.connection.pause_reading()
        self.broker.shares.wait(self)

    def _handle(self, frames: list[bytearray], is_spent: Callable[[], bool]) -> list[bytearray]:
        """Handle frames until the budget is spent; return the others."""
        handled = self.broker.router.receive(self.link, frames, self.broker.clock(), is_spent)
        if self.limited and self.link.is_greeted:
            self.limited = False
            self.connection.limit_body(_max_body_bytes(self.broker.options))
        return frames[handled:]

    def handle_waiting(self, is_spent: Callable[[], bool]) -> bool:
        """Handle waiting frames; return whether any are left."""
        if not self.waiting:
            # The connection ended before its hello was handled.
            return False
        try:
            self.waiting = self._handle(self.waiting, is_spent)
        except Exception:  # noqa: BLE001 - it ends this connection alone, as a transport has it
            _log.exception("%s: handling what it sent failed, its connection is closed", self.connection.peer.label)
            self.waiting = []
            self.connection.abort()
        if self.waiting:
            return True
        self.link.end_wait(self.broker.clock())
        if self.is_lost:
            self.broker.lose(self.link)
        else:
            self.connection.resume_reading()
        return False

    def frames_refused(self, error: ProtocolError) -> None:
        self.broker.router.refuse(self.link, error)
        self.broker.flush()

    # What a slow peer has not taken is bounded by its queue in the router, and by what the router lets wait beside that.
    # It waits in the link, where a frame costs what it holds, or nothing if others wait for it too; each small write that
    # a loop keeps costs 1,200 bytes.
    def writing_paused(self) -> None:
        self.is_paused = True

    def writing_resumed(self) -> None:
        self.is_paused = False
        self.send_output()

    def send_output(self) -> None:
        frames, self.link.output = self.link.output, []
        self.connection.send(frames)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.link.is_greeted:
            self.waiting = []
        # What it sent before its end counts, and takes its turn as the rest of it did.
        self.is_lost = True
        if not self.waiting:
            self.broker.lose(self.link)


class Broker:
    """A router that serves one address in the running loop. Everything here happens in that loop.

    Raises ConfigureError when the token's file can't be used.
    """

    def __init__(
        self,
        transport: Transport,
        address: Address,
        options: Options,
        *,
        supervisor: int | None = None,
        on_in_hand: Callable[[int], None] | None = None,
    ) -> None:
        self.transport = transport
        self.address = address
        self.options = options
        self._interval_s = min(
            max(min(options.timeout / 8, options.hello_timeout / 8, options.heartbeat / 4), 0.01), 0.25
        )
        self.clock = Clock(max(2 * self._interval_s, _STANDSTILL_S))
        self.presence = Presence(self)
        self.router = Router(
            options,
            epoch=new_epoch(),
            pid=os.getpid(),
            wall_clock_ns=time.time_ns,
            now=self.clock(),
            supervisor=supervisor,
            host=pid_space(),
            new_proof=broker_proofs(options.token_file),
            on_rival=self.presence.answer,
        )
        # Called with the pid of each process that died while it handled events.
        self._on_in_hand = on_in_hand
        self._supervisor = supervisor
        # How processes ended, by pid, and whether that was meant, as the supervisor reports it.
        self._ends: dict[int, tuple[str, bool]] = {}
        self._listener: Listener | None = None
        self._loop = asyncio.get_running_loop()
        self.shares = Shares(self._loop, self.flush)
        self._timer: asyncio.TimerHandle | None = None
        # For a worker whose budget ends before the next tick, and the time of that.
        self._drop_timer: asyncio.TimerHandle | None = None
        self._drop_at = math.inf
        self._alone_since = self.clock()
        self._alone = asyncio.Event()
        self._recording: BrokerRecording | None = None
        self.stopping = asyncio.Event()

    @property
    def listening(self) -> str:
        """The address that clients can connect to, with what the system chose filled in."""
        return self._listener.address if self._listener is not None else str(self.address)

    async def start(self) -> None:
        """Listen, and record if that is wanted. Raises TransportError and RecordingError."""
        self._listener = await self.transport.listen(self.address, self._accept)
        # Before the loop's next turn, so that no event is missed.
        if self.options.record is not None or self.options.flight_recorder is not None:
            await self._record()
        self._tick()

    def is_reachable(self) -> bool:
        """Whether the address still leads here. To be called every few seconds."""
        return self._listener is None or self._listener.keep()

    async def listen_anew(self) -> None:
        """Open the endpoint again, after `is_reachable` was False. Open connections stay. Raises TransportError."""
        former = self._listener
        self._listener = await self.transport.listen(self.address, self._accept)
        if former is not None:
            await former.close()

    async def stop_listening(self) -> None:
        """Remove the endpoint. Open connections stay."""
        if self._listener is not None:
            await self._listener.close()

    async def _record(self) -> None:
        # Imported here: most brokers record nothing, and start sooner without.
        from eventsh.runtime.recording import BrokerRecording

        try:
            self._recording = self.router.sink = BrokerRecording(
                self.options,
                epoch=self.router.epoch,
                pid=os.getpid(),
                address=self.listening,
                on_synced=self._settle,
            )
        except EventError:
            await self.stop_listening()
            raise

    def _settle(self) -> None:
        """What waited for the disk, or for a worker with a full queue, can go on."""
        self.router.settle(self.clock())
        self.flush()

    def command(self, command: str, **facts: Any) -> None:
        """Do what the supervisor says."""
        if command == "ended":
            self._take_end(**facts)
        elif command != "dump":
            self.stopping.set()
        elif self._recording is not None:
            self._recording.dump("SIGUSR2")

    async def load_plugins(self) -> None:
        """Load plugins, and tell them that the broker is there. Clients are served meanwhile: looking for plugins takes
        longer than starting."""
        try:
            await self._loop.run_in_executor(None, plugins().load)
        except RuntimeError:
            # No thread to be had: clients wait a moment.
            plugins().load()
        self._tell_plugins("eventsh_broker_started")

    def _tell_plugins(self, hook: str) -> None:
        if plugins().has_impl(hook):
            plugins().call(hook, address=self.listening, pid=os.getpid(), epoch=self.router.epoch)

    async def close(self) -> None:
        """End every connection once what was sent has left, and remove the endpoint."""
        await self.presence.end()
        self._tell_plugins("eventsh_broker_stopping")
        for slot in self.router.slots.workers.values():
            if slot.queue.events:
                _log.warning("stopped with %d events that %s has not handled", slot.queue.events, slot.label)
        for timer in (self._timer, self._drop_timer):
            if timer is not None:
                timer.cancel()
        await self.stop_listening()
        for link in list(self.router.connections):
            link.key.send_output()
            link.key.connection.close()
        # Their ends arrive in this loop; a peer that reads no more is not waited for.
        if self.router.connections:
            self._alone.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                    await self._alone.wait()
        for link in list(self.router.connections):
            link.key.connection.abort()
        if self._recording is not None:
            await self._recording.close()

    def _accept(self, connection: Connection) -> _Peer:
        peer = _Peer(self, connection)
        self._loop.call_soon(self.flush)
        return peer

    def flush(self) -> None:
        """Send what the router decided."""
        if not self.shares.gathers:
            self.router.announce_joined(self.clock())
        for link in self.router.take_changed():
            peer: _Peer = link.key
            if link.output and (link.is_closing or not peer.is_paused):
                peer.send_output()
            if link.is_gone:
                peer.connection.abort()
            elif link.is_closing:
                peer.connection.close()
        for notice in self.router.take_warnings():
            _log.warning("%s", notice)
        drop_at = self.router.next_drop_at
        if drop_at is not None and drop_at < self._drop_at:
            self._call_at_drop(drop_at)

    def _call_at_drop(self, drop_at: float) -> None:
        """Have the router act when the budget of a worker ends. A budget of a few milliseconds, as one that has just been
        used up, would be overdrawn many times over until the next tick."""
        if self._drop_timer is not None:
            self._drop_timer.cancel()
        self._drop_at = drop_at
        self._drop_timer = self._loop.call_later(max(0.0, drop_at - self.clock()), self._drop)

    def _drop(self) -> None:
        # It may have had room meanwhile: then the next call is at the end of what is left by now.
        self._drop_at = math.inf
        self._settle()

    def lose(self, link: ClientConnection) -> None:
        """A connection is gone."""
        slot = self.router.disconnect(link, self.clock())
        self.flush()
        # Elsewhere the number is that of another process, or of none.
        is_here = bool(link.pid) or link.host == self.router.host != ""
        if not self.router.connections:
            self._alone_since = self.clock()
            self._alone.set()
        if slot is not None and slot.pid is not None and is_here:
            wait_s = _REPORT_S if self._supervisor is not None else 0.0
            self._watch_end(slot, slot.pid, slot.identity, _FIRST_LOOK_S, wait_s)

    def _watch_end(self, slot: Slot, pid: int, identity: str | None, delay_s: float, wait_s: float) -> None:
        """Report the end of the process that held `slot` to the router, unless another process holds the slot by then. Wait up to
        `wait_s` after the end for the supervisor's report of it."""
        if slot.connection is not None or slot.identity != identity or slot.is_expired or self.stopping.is_set():
            return
        has_ended = _has_ended(pid)
        if has_ended and (wait_s <= 0 or pid in self._ends):
            self._end(slot, pid)
        else:
            later = min(delay_s * 2, _LAST_LOOK_S)
            wait_s -= delay_s if has_ended else 0.0
            self._loop.call_later(delay_s, self._watch_end, slot, pid, identity, later, wait_s)

    def _take_end(self, pid: int, ended: str, meant: bool) -> None:
        """Note how a process ended, as the supervisor reports it: before its connection ends, or after that."""
        self._ends[pid] = (ended, meant)
        while len(self._ends) > _MAX_ENDS:
            del self._ends[next(iter(self._ends))]
        for slot in self.router.slots.workers.values():
            if slot.pid == pid and slot.connection is None and not slot.is_expired:
                self._end(slot, pid)

    def _end(self, slot: Slot, pid: int) -> None:
        ended, meant = self._ends.pop(pid, (GONE, False))
        if self.router.end_process(slot, self.clock(), ended=ended, counts=not meant) and self._on_in_hand is not None:
            self._on_in_hand(pid)
        self.flush()

    def _tick(self) -> None:
        # Set first: whatever goes wrong here, time must go on.
        self._timer = self._loop.call_later(self._interval_s, self._tick)
        now = self.clock()
        self.router.tick(now)
        self.flush()
        linger = self.options.linger
        if linger is not None and not self.router.connections and now - self._alone_since >= linger:
            self.stopping.set()


def _max_body_bytes(options: Options) -> int:
    """The longest body that a client may send: a message, or an event on top of a batch with its unique key."""
    return max(_MAX_MESSAGE_BYTES, options.max_payload_len + MAX_BODY_BYTES - MAX_PAYLOAD_BYTES)


def _has_ended(pid: int) -> bool:
    """Whether no process has this number, or only its unreaped remains."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return process_state(pid) in ("Z", "X")


def _parse_arguments(arguments: Sequence[str]) -> tuple[argparse.Namespace, Options]:
    parser = argparse.ArgumentParser(prog="python -m eventsh.runtime.broker", description=__doc__)
    parser.add_argument("--address", required=True)
    parser.add_argument("--lock-fd", type=int, help="the locked file of the address, inherited")
    parser.add_argument("--keep-lock-file", action="store_true", help="somebody else holds the lock too")
    parser.add_argument("--supervisor-pid", type=int, help="the process that starts this one again when it dies")
    parser.add_argument("--detach", action="store_true", help="go on as a process of nobody's")
    add_child_arguments(parser)
    known, rest = parser.parse_known_args(arguments)
    return known, parse_broker_arguments(rest)


def _lock_for(transport: Transport, address: Address, inherited: int | None) -> int | None:
    """The lock of the address, from whoever started this broker, or else taken here: listening removes what stands at the
    address, so without the lock a second broker would displace a live one. None where the transport has no lock."""
    if inherited is not None or transport.lock_path(address) is None:
        return inherited
    lock = lock_address(transport, address)
    if lock is None:
        raise TransportError(f"a broker is already running at {address}")
    return lock


async def _serve(known: argparse.Namespace, options: Options, supervisor: Supervisor) -> int:
    try:
        transport, address = find_endpoint(known.address, options)
        lock = _lock_for(transport, address, known.lock_fd)
        log = Log(transport, address, sys.stderr.fileno())
        try:
            broker = Broker(
                transport,
                address,
                options,
                supervisor=known.supervisor_pid,
                on_in_hand=lambda pid: supervisor.report("in_hand", pid=pid),
            )
            await broker.start()
        except EventError:
            _release(transport, address, known, lock, log)
            raise
    except EventError as error:
        _log.error("%s", error)
        return supervisor.fail(str(error))

    def handed_over(reason: str) -> None:
        log.leave()
        if known.supervisor_pid is None:
            broker.stopping.set()
        else:
            # It ends the workers first, while they still have this broker.
            supervisor.report("handed_over", error=reason)

    loop = asyncio.get_running_loop()
    supervisor.follow(loop, broker.command)
    loop.add_signal_handler(signal.SIGUSR2, broker.command, "dump")
    supervisor.report("ready", address=broker.listening, pid=os.getpid(), epoch=broker.router.epoch)
    if known.supervisor_pid is None:
        # A supervisor says it itself.
        _log.info("broker %d listens on %s", os.getpid(), broker.listening)
    broker.presence.begin(None if known.keep_lock_file else lock, log, handed_over)
    await broker.load_plugins()
    await broker.stopping.wait()
    await broker.close()
    _release(transport, address, known, lock, log)
    return EXIT_OK


def _release(transport: Transport, address: Address, known: argparse.Namespace, lock: int | None, log: Log) -> None:
    """Remove the files that are this broker's own."""
    if lock is not None and not known.keep_lock_file:
        log.remove()
        unlock_address(transport, address, lock)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a broker until it is told to stop, or until nobody has been attached for `linger` seconds."""
    try:
        known, options = _parse_arguments(sys.argv[1:] if arguments is None else arguments)
    except EventError as error:
        sys.stderr.write(f"eventsh broker: {error}\n")
        return EXIT_USAGE
    if known.detach and os.fork():
        # Before any thread or loop exists. The starter waits for this process only, and the broker gets a parent that
        # reaps it, whatever becomes of the starter.
        os._exit(EXIT_OK)
    supervisor = start_child(known.report_fd, known.control_fd, known.log_format)
    if known.lock_fd is not None:
        os.set_inheritable(known.lock_fd, False)
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(_serve(known, options, supervisor))


if __name__ == "__main__":
    sys.exit(main())
