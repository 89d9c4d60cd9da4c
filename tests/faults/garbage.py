"""Row 7: what no client of ours would send, drawn from a seed, to the rules themselves and to a running broker."""

from __future__ import annotations

import random
import resource
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import orjson

from eventsh.core.broker.router import Router
from eventsh.core.broker.state import ClientConnection
from eventsh.core.outbox import Outbox
from eventsh.core.registry import Registry
from eventsh.core.session import Session, SessionState
from eventsh.errors import ProtocolError
from eventsh.options import Options
from eventsh.protocol.frame import MAX_BODY_BYTES, FrameDecoder, Kind, encode_frame
from tests.faults.processes import dial

__all__ = ["Stock", "Storm", "StormReport", "draw_frame", "hello_frame", "storm_broker", "storm_session"]

_U64 = 2**64 - 1
# Numbers at which things turn over, and small ones, which may by chance be right.
_NUMBERS = (0, 1, 2, 3, 7, 255, 2**16 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, _U64)
_TEXTS = ("", "x", "worker", "observer", "poster", "\u0000", "\ud7ff", "é" * 100, "status", "[", "a" * 5000)
# A client may well say these things wrongly.
_MEMBERS = (
    "identity",
    "origin",
    "pid",
    "role",
    "worker_id",
    "take_unique",
    "epoch",
    "received",
    "handled",
    "slots",
    "tells",
    "version",
    "id",
    "what",
    "arguments",
    "leave",
    "failed",
    "last",
    "events",
    "code",
    "message",
    "data",
    "error",
    "missed",
    "first_seq",
    "last_seq",
    "reason",
    "resumed",
    "seq",
    "timeout",
    "max_queue_len",
)
_KINDS = [int(kind) for kind in Kind]


def _draw_value(draw: random.Random, depth: int = 0) -> Any:
    dice = draw.randrange(9 if depth < 3 else 6)
    if dice < 3:
        number = draw.choice(_NUMBERS) if draw.random() < 0.7 else draw.getrandbits(63)
        return -number if draw.random() < 0.1 and number < 2**63 else number
    if dice == 3:
        return draw.choice(_TEXTS)
    if dice == 4:
        return draw.choice((True, False, None))
    if dice == 5:
        return draw.uniform(-1e300, 1e300)
    if dice == 6:
        return {draw.choice(_MEMBERS): _draw_value(draw, depth + 1) for _ in range(draw.randrange(4))}
    return [_draw_value(draw, depth + 1) for _ in range(draw.randrange(5))]


_HELLO = (
    '{"identity":"%x","origin":%d,"pid":1,"role":"%s","worker_id":null,"take_unique":false,"epoch":0,"received":0,'
    '"handled":0,"slots":[],"tells":false,"told":0,"host":"","version":1}'
)


def hello_frame(draw: random.Random, role: str = "poster") -> bytearray:
    """The hello of somebody new."""
    return encode_frame(Kind.HELLO, (_HELLO % (draw.getrandbits(64), draw.randrange(1, 2**32), role)).encode())


def _draw_body(draw: random.Random) -> bytes:
    dice = draw.random()
    if dice < 0.2:
        return draw.randbytes(draw.randrange(200))
    if dice < 0.4:
        return b'[["a","b",[' + b",".join([b"1"] * draw.randrange(5)) + b"]]]"
    if dice < 0.5:
        return draw.choice((b"[" * 5000, b"{}", b"[]", b"null", b"\xff\xfe", b'{"a":' * 300, b"\x03\x00key[1]", b""))
    if dice < 0.7:
        facts = orjson.loads(bytes(hello_frame(draw))[40:])
        facts[draw.choice(_MEMBERS)] = _draw_value(draw)
        return orjson.dumps(facts)
    return orjson.dumps({draw.choice(_MEMBERS): _draw_value(draw) for _ in range(draw.randrange(1, 8))})


def draw_frame(draw: random.Random) -> bytearray:
    """One frame: whole, of a known kind, and most probably wrong in some other way."""

    def number(bits: int) -> int:
        return min(draw.choice(_NUMBERS) if draw.random() < 0.8 else draw.getrandbits(bits), (1 << bits) - 1)

    body = _draw_body(draw)
    kind = draw.choice(_KINDS)
    flags = 0 if draw.random() < 0.5 else draw.getrandbits(8)
    return encode_frame(
        kind,
        body,
        flags=flags,
        count=draw.choice((0, 1, 1, 1, 2, 4, 65535)),
        pid=number(32),
        origin=number(32),
        origin_seq=number(64),
        seq=number(64),
        time_ns=number(64),
    )


class Stock:
    """Wrong frames in plenty: each is one of a few thousand, and often with another byte changed."""

    def __init__(self, draw: random.Random) -> None:
        self._draw = draw
        self._frames = [draw_frame(draw) for _ in range(4000)]

    def take(self) -> bytearray:
        draw = self._draw
        frame = bytearray(draw.choice(self._frames))
        if draw.random() < 0.5:
            # Not the length and the kind: what is no frame is for the decoder, which sees it from `storm_broker`.
            frame[draw.randrange(5, len(frame))] = draw.getrandbits(8)
        return frame


@dataclass(slots=True)
class StormReport:
    """What a storm was, and what those got who behaved."""

    frames: int = 0
    connections: int = 0
    refused: int = 0
    posted: int = 0
    handled: list[int] = field(default_factory=list)
    took_s: float = 0.0
    grew_bytes: int = 0


class Storm:
    """A router with a worker and a poster that behave, and any number of connections that do not."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.now = 0.0
        options = Options(linger=None)
        self.router = Router(options, epoch=1, pid=2, wall_clock_ns=lambda: int(self.now * 1e9), now=self.now)
        self.report = StormReport()
        self._stock = Stock(self.draw)
        self.worker, self._worker_link = self._attach("worker", 1)
        self.poster, self._poster_link = self._attach("poster", 2)

    def _attach(self, role: str, origin: int) -> tuple[Session, ClientConnection]:
        outbox = Outbox(origin=origin, pid=origin, max_queue_len=10240, max_payload_len=65536)
        identity = f"good {role}"
        session = Session(outbox, Registry(), identity=identity, clock=lambda: self.now, role=role, take_unique=False)
        session.inbox.release()
        link = self.router.connect(f"good {role}", origin, self.now)
        self.router.receive(link, [session.connected()], self.now)
        self._deliver(session, link)
        assert session.state is SessionState.ATTACHED
        return session, link

    def _deliver(self, session: Session, link: ClientConnection) -> None:
        frames, link.output = link.output, []
        assert not link.is_closing, f"{link.key} was closed: {frames}"
        session.receive([bytearray(frame) for frame in frames])

    def run(self, frames: int) -> StormReport:
        """Send `frames` wrong frames, in connections of a few each."""
        started, before = time.monotonic(), _peak_bytes()
        while self.report.frames < frames:
            self._abuse()
            self._behave()
        self.report.took_s = time.monotonic() - started
        self.report.grew_bytes = _peak_bytes() - before
        return self.report

    def _abuse(self) -> None:
        draw, router, report = self.draw, self.router, self.report
        link = router.connect("bad", draw.randrange(2**22), self.now)
        batch = [self._stock.take() for _ in range(draw.randrange(1, 12))]
        if draw.random() < 0.8:
            # No worker: one that takes nothing may hold the others up for `timeout`, which is another row.
            batch.insert(0, hello_frame(draw, draw.choice(("poster", "observer"))))
        for frame in batch:
            if link.is_closing:
                break
            report.frames += 1
            if frame[4] == Kind.HELLO and b'"worker"' in frame:
                continue
            router.receive(link, [frame], self.now)
        report.connections += 1
        report.refused += link.is_closing
        slot = router.disconnect(link, self.now)
        if slot is not None:
            router.end_process(slot, self.now)

    def _behave(self) -> None:
        """The poster posts, the worker handles, and time passes."""
        self.now += 0.01
        self.report.posted += 1
        self.poster.outbox.post("good", "e", self.report.posted)
        self.router.receive(self._poster_link, self.poster.take_output(), self.now)
        self._deliver(self.worker, self._worker_link)
        while self.worker.inbox.has_work:
            delivery = self.worker.inbox.next_delivery(self.now)
            assert delivery is not None
            for source, _, datas in delivery.runs:
                if source == "good":
                    self.report.handled += datas
            self.worker.inbox.complete(delivery)
        ack = self.worker.take_ack()
        if ack is not None:
            self.router.receive(self._worker_link, [ack], self.now)
        self._deliver(self.poster, self._poster_link)
        self.router.tick(self.now)
        self.router.take_changed()
        self.router.take_warnings()


def storm_session(seed: int, frames: int) -> int:
    """Give a client what no broker of ours would send; how many times it refused. It must raise nothing else."""
    draw, refused, given = random.Random(seed), 0, 0
    stock = Stock(draw)
    while given < frames:
        outbox = Outbox(origin=1, pid=1, max_queue_len=100, max_payload_len=65536)
        session = Session(outbox, Registry(), identity="x", clock=time.monotonic)
        session.inbox.release()
        session.connected()
        batch = [stock.take() for _ in range(draw.randrange(1, 6))]
        if draw.random() < 0.9:
            welcome: dict[str, Any] = {"epoch": 1, "pid": 1, "worker_id": 0, "resumed": False, "seq": 0, "timeout": 1.0}
            welcome |= {"max_queue_len": 100, "max_payload_len": 65536, "slots": [], "version": 1}
            batch.insert(0, encode_frame(Kind.WELCOME, orjson.dumps(welcome)))
        given += len(batch)
        try:
            session.receive(batch)
        except ProtocolError:
            refused += 1
        while session.inbox.has_work:
            delivery = session.inbox.next_delivery(0.0)
            if delivery is not None:
                session.inbox.complete(delivery)
        session.take_ack()
        session.take_output()
    return refused


def storm_broker(address: str, seed: int, frames: int, say: Callable[[str], None]) -> StormReport:
    """Send wrong frames, cut anywhere, to the broker that listens at `address`."""
    draw, report = random.Random(seed), StormReport()
    stock = Stock(draw)
    started = time.monotonic()
    while report.frames < frames:
        with dial(address) as sock:
            stream = bytearray()
            if draw.random() < 0.8:
                stream += hello_frame(draw, draw.choice(("poster", "observer")))
            for _ in range(draw.randrange(1, 12)):
                frame = stock.take()
                if draw.random() < 0.2:
                    frame[draw.randrange(5)] = draw.getrandbits(8)
                if not (frame[4] == Kind.HELLO and b'"worker"' in frame):
                    stream += frame
                    report.frames += 1
            if draw.random() < 0.3:
                del stream[draw.randrange(len(stream)) :]
            with suppress(BrokenPipeError, ConnectionResetError):
                sock.sendall(stream)
                sock.shutdown(socket.SHUT_WR)
            report.refused += _is_refused(sock)
        report.connections += 1
        if report.connections % 2000 == 0:
            say(f"{report.frames}/{frames} frames after {time.monotonic() - started:.0f} s")
    report.took_s = time.monotonic() - started
    return report


def _is_refused(sock: socket.socket) -> bool:
    """Read until the broker closes; whether it said an error. What it says must be frames."""
    decoder, kinds = FrameDecoder(MAX_BODY_BYTES), set()
    with suppress(ConnectionResetError):
        while data := sock.recv(65536):
            kinds |= {frame[4] for frame in decoder.receive_data(data)}
            assert decoder.error is None, decoder.error
    return Kind.ERROR in kinds


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
