"""One router and any number of sessions, joined by queues of bytes: what the tests of the core drive by hand."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from eventsh.core.broker.router import Router
from eventsh.core.broker.state import ClientConnection
from eventsh.core.delivery import Delivery
from eventsh.core.outbox import Outbox
from eventsh.core.registry import Registry
from eventsh.core.session import Session, SessionState
from eventsh.errors import QueueOverflow
from eventsh.options import Options
from eventsh.protocol.features import FEATURES
from eventsh.protocol.frame import HEADER_BYTES, MAX_BODY_BYTES, FrameDecoder, Header, Kind, decode_header
from eventsh.protocol.messages import Error, Message

BROKER_PID = 7
TIMEOUT_S = 5.0


class Channel:
    """One connection: frames under way in both directions, as bytes."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.link: ClientConnection | None = None
        self.up: deque[bytes] = deque()
        self.down: deque[bytes] = deque()
        self.up_decoder = FrameDecoder(MAX_BODY_BYTES)
        self.down_decoder = FrameDecoder(MAX_BODY_BYTES)


class Process:
    """One client process: a session, what it was told, and the deliveries that its handlers are busy with."""

    def __init__(self, number: int, *, max_queue_len: int = 10240, handles: bool = True, **session: Any) -> None:
        self.number = number
        self.outbox = Outbox(
            origin=self.number,
            pid=1000 + self.number,
            max_queue_len=max_queue_len,
            max_payload_len=65536,
        )
        registry = Registry()
        if handles:
            registry.register(print)
        self.registry = registry
        session.setdefault("identity", f"process {self.number}")
        # Its net's. Each process has a monotonic clock of its own, as if it was on a host of its own.
        self.clock: Callable[[], float] = lambda: 0.0
        session.setdefault("clock", lambda: self.clock() + 1000 * number)
        self.session = Session(self.outbox, registry, max_queue_len=max_queue_len, **session)
        self.channel: Channel | None = None
        self.is_alive = True
        self.messages: list[Message] = []
        self.busy: list[Delivery] = []
        self.handled: list[Delivery] = []

    def __repr__(self) -> str:
        return f"<process {self.number} of slot {self.session.worker_id}>"

    @property
    def is_attached(self) -> bool:
        return self.session.state not in (SessionState.DETACHED, SessionState.GREETING)

    @property
    def events(self) -> list[tuple[str, str, Any]]:
        """Everything that its handlers have seen or are busy with, in order."""
        return [
            (source, event, data)
            for delivery in self.handled
            for source, event, several in delivery.runs
            for data in several
        ]

    def data_of(self, *sources: str) -> list[Any]:
        return [data for source, _, data in self.events if source in sources]

    @property
    def gaps(self) -> list[dict[str, Any]]:
        return [data for source, event, data in self.events if (source, event) == ("eventsh", "gap")]


class Net:
    """A broker with its processes. Nothing moves unless a method says so; time stands still until `advance`."""

    def __init__(
        self, *, epoch: int = 1, now: float = 1000.0, features: frozenset[str] = FEATURES, **options: Any
    ) -> None:
        self.options = Options(**options)
        self.features = features
        self.now = now
        # How far people have set the wall clock, in seconds.
        self.clock_set_s = 0.0
        # Those of all brokers, in their order.
        self.epochs: list[int] = []
        self.router = self._new_router(epoch)
        self.channels: list[Channel] = []
        self.notices: list[str] = []

    def _new_router(self, epoch: int) -> Router:
        self.epochs.append(epoch)
        return Router(
            self.options,
            epoch=epoch,
            pid=BROKER_PID,
            wall_clock_ns=lambda: int((1_700_000_000 + self.now + self.clock_set_s) * 1e9),
            now=self.now,
            features=self.features,
        )

    # --- connections ---

    def connect(self, process: Process, *, pid: int | None = None) -> Channel:
        assert process.channel is None
        channel = Channel(process)
        channel.link = self.router.connect(channel, pid, self.now)
        process.channel = channel
        process.clock = lambda: self.now
        channel.up.append(bytes(process.session.connected()))
        self.channels.append(channel)
        self.collect()
        return channel

    def attach(self, process: Process, *, pid: int | None = None) -> Process:
        """Connect and say hello; the welcome has arrived."""
        channel = self.connect(process, pid=pid)
        self.up(channel)
        self.down(channel)
        return process

    def cut(self, process: Process) -> Channel:
        """The process has noticed the end of its connection; the broker has not."""
        channel = process.channel
        assert channel is not None
        process.channel = None
        channel.down.clear()
        process.session.disconnected()
        return channel

    def notice(self, channel: Channel) -> Any:
        """The broker has noticed the end of a connection."""
        assert channel.link is not None
        slot = self.router.disconnect(channel.link, self.now)
        channel.link = None
        channel.up.clear()
        self.channels.remove(channel)
        self.collect()
        return slot

    def disconnect(self, process: Process) -> Any:
        return self.notice(self.cut(process))

    def kill(self, process: Process) -> Any:
        """The process ends; the broker sees its connection end, and is not yet told that the process has."""
        process.is_alive = False
        return self.disconnect(process) if process.channel is not None else None

    def replace_broker(self, epoch: int | None = None) -> None:
        """kill -9 of the broker, and another one at its address."""
        for channel in list(self.channels):
            if channel.process.channel is channel:
                self.cut(channel.process)
        self.channels.clear()
        self.router = self._new_router(self.router.epoch + 1 if epoch is None else epoch)

    # --- frames ---

    def flush(self, process: Process, *, ack: bool = True) -> None:
        """What the process has to say is under way."""
        channel = process.channel
        if channel is None:
            return
        frames = process.session.take_output()
        if ack:
            frames += [frame] if (frame := process.session.take_ack()) is not None else []
        channel.up.extend(map(bytes, frames))

    def up(self, channel: Channel, frames: int = 1 << 30) -> None:
        """So many frames arrive at the broker."""
        data = b"".join(channel.up.popleft() for _ in range(min(frames, len(channel.up))))
        if channel.link is not None and data:
            self.router.receive(channel.link, channel.up_decoder.receive_data(data), self.now)
            self.collect()

    def down(self, channel: Channel, frames: int = 1 << 30) -> None:
        """So many frames arrive at the process."""
        data = b"".join(channel.down.popleft() for _ in range(min(frames, len(channel.down))))
        if channel.process.channel is channel:
            channel.process.messages += channel.process.session.receive(channel.down_decoder.receive_data(data))

    def collect(self) -> None:
        """Put what the router wants sent under way, and close what it wants closed."""
        self.router.announce_joined(self.now)
        for link in self.router.take_changed():
            channel: Channel = link.key
            channel.down.extend(map(bytes, link.output))
            link.output.clear()
            if link.is_closing:
                self.close(channel)
        self.notices += self.router.take_warnings()

    def close(self, channel: Channel) -> None:
        """The broker closed a connection; the last frames arrive."""
        self.down(channel)
        process = channel.process
        if process.channel is channel:
            self.cut(process)
        self.notice(channel)

    # --- handlers and time ---

    def take(self, process: Process) -> Delivery | None:
        """Give the next delivery to the handlers."""
        delivery = process.session.inbox.next_delivery(self.now)
        if delivery is not None:
            process.session.inbox.set_aside(delivery)
            process.handled.append(delivery)
            if delivery.runs:
                process.busy.append(delivery)
            else:
                # There is no handler to call.
                process.session.inbox.complete(delivery)
        return delivery

    def complete(self, process: Process, index: int = 0) -> None:
        process.session.inbox.complete(process.busy.pop(index))

    def handle(self, process: Process) -> None:
        """All handlers run and return."""
        while self.take(process) is not None:
            pass
        while process.busy:
            self.complete(process)

    def advance(self, seconds: float, *, step: float = 0.5) -> None:
        until = self.now + seconds
        while self.now < until:
            self.now = min(until, self.now + step)
            self.router.tick(self.now)
            self.collect()

    def run(self, *processes: Process) -> None:
        """Let these processes, or all of them, and the broker talk and handle until there is nothing left to do."""
        everybody = processes or [channel.process for channel in self.channels]
        for _ in range(1000):
            for process in everybody:
                self.handle(process)
                self.flush(process)
            channels = [channel for process in everybody if (channel := process.channel) is not None]
            if not any(channel.up or channel.down for channel in channels):
                return
            for channel in channels:
                self.up(channel)
            for channel in channels:
                self.down(channel)
        raise AssertionError("they never stop talking")


def headers(frames: Iterable[bytes], kind: Kind | None = None) -> list[Header]:
    return [header for frame in frames if (header := decode_header(frame)).kind == kind or kind is None]


def error_codes(process: Process) -> list[str]:
    return [message.code for message in process.messages if isinstance(message, Error)]


def body(frame: bytes) -> bytes:
    return frame[HEADER_BYTES:]


# What the tests say in a word.


def worker(net, number, slot=None, **options):
    return net.attach(Process(number, worker_id=slot, **options))


def workers(net, count):
    attached = [worker(net, number, number - 1) for number in range(1, count + 1)]
    net.run()
    return attached


def observer(net, number=90, **options):
    return net.attach(Process(number, role="observer", take_unique=False, **options))


def poster(net, number=80, **options):
    return net.attach(Process(number, role="poster", take_unique=False, **options))


def post(net, process, *data, batch=True):
    """Post, and have it arrive at the broker in one batch or in several."""
    for value in data:
        process.outbox.post("app", "e", value)
        if not batch:
            net.flush(process, ack=False)
    net.flush(process, ack=False)
    net.up(process.channel)


def post_unique(net, process, value, key, *, receipt=False):
    process.outbox.post_unique("app", "u", value, key, receipt=receipt)
    net.flush(process, ack=False)
    net.up(process.channel)


def ack(net, process):
    """What has arrived is acknowledged as received; nothing is handled."""
    net.down(process.channel)
    net.flush(process)
    net.up(process.channel)


def slot_of(net, number):
    return net.router.slots.workers[number]


def confirmed(net, process):
    """Let the confirmations that are under way arrive; give the last number confirmed."""
    net.down(process.channel)
    return process.outbox.confirmed


def ran(*processes):
    return [process.data_of("app") for process in processes]


def fill(net, process, count):
    """Post as many, one a batch, and as far as the window allows."""
    for value in range(count):
        post(net, process, value)


def slow_pool(limit=4):
    """Two workers and a poster; the second worker receives everything and handles nothing."""
    net = Net(max_queue_len=limit)
    first, second = workers(net, 2)
    return net, first, second, poster(net)


def feed(net, posting, fast, slow, count):
    """Post one after the other; everybody but the slow worker handles, and it says what it has received."""
    accepted = 0
    for _ in range(count):
        try:
            posting.outbox.post("app", "e", posting.outbox.number + 1)
        except QueueOverflow:
            break
        accepted += 1
        net.run(posting, fast)
        ack(net, slow)
        net.run(posting, fast)
    return accepted
