"""Row 19: workers that hang under large events, and clients that keep to no limit; how much the broker grows."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eventsh.protocol.features import FEATURES
from eventsh.protocol.frame import Flag, FrameDecoder, Kind, encode_frame
from eventsh.protocol.messages import Hello
from eventsh.runtime.blocking import BlockingClient
from eventsh.runtime.endpoint import find_endpoint
from tests.faults.processes import Served, ask, dial, endpoint
from tests.faults.stops import rss_bytes

__all__ = ["GrowthReport", "abuse", "hang_workers", "take_keys"]

Say = Callable[[str], None]

MIB = 1024 * 1024
# As in the reports that brought the limit about.
_LARGE = "x" * 60_000
_TIMEOUT_S = 2.0
# Beside what the queues hold: posters' windows, frames that are being sent, the allocator.
SLACK_BYTES = 20 * MIB


@dataclass(slots=True)
class GrowthReport:
    """How much a broker grew over what it had at rest, by step, and how much it may have grown."""

    name: str
    allowed_bytes: int
    grew_bytes: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def check(self) -> None:
        for step, grew in self.grew_bytes.items():
            if grew > self.allowed_bytes:
                self.faults.append(f"{step}: {grew / MIB:.1f} MiB, allowed {self.allowed_bytes / MIB:.0f}")

    def __str__(self) -> str:
        steps = ", ".join(f"{step} {grew / MIB:.1f} MiB" for step, grew in self.grew_bytes.items())
        return f"row 19, {self.name}: the broker grew by {steps}; allowed {self.allowed_bytes / MIB:.0f} MiB" + "".join(
            f"\n  FAULT: {fault}" for fault in self.faults
        )


class _Pool:
    """A pool under a broker whose memory is looked at."""

    def __init__(self, path: Path, stack: ExitStack, workers: int, max_queue_bytes: int, transport: str) -> None:
        flags = [f"--timeout={_TIMEOUT_S}s", f"--max-queue-bytes={max_queue_bytes}", "--max-queue-len=100000"]
        self.served = Served(path, endpoint(transport, path), workers, *flags)
        stack.callback(self.served.stop)
        self.address = self.served.address
        state = self.status()
        self.broker: int = state["broker"]["pid"]
        self.poster = stack.enter_context(BlockingClient(*find_endpoint(self.address), timeout_s=60.0))
        for _ in range(100):
            self.poster.post("large", "e", _LARGE)
        self.poster.post_and_confirm("large", "e", 1)
        self.rest_bytes = rss_bytes(self.broker)

    def status(self) -> dict[str, Any]:
        state = ask(self.address)
        assert state is not None
        return state

    def worker(self, slot: int) -> dict[str, Any]:
        return next(row for row in self.status()["workers"] if row["worker_id"] == slot)

    def grew_bytes(self) -> int:
        return rss_bytes(self.broker) - self.rest_bytes

    def post(self, size_bytes: int) -> None:
        for _ in range(size_bytes // len(_LARGE)):
            self.poster.post("large", "e", _LARGE)
        self.poster.post_and_confirm("large", "e", 1)


def hang_workers(
    path: Path, say: Say, *, hung: int, max_queue_bytes: int = 64 * MIB, transport: str = "unix"
) -> GrowthReport:
    """Stop workers one after the other, each once the one before it is full, and post on."""
    allowed = max_queue_bytes * (1 if hung == 1 else 2) + SLACK_BYTES
    report = GrowthReport(f"{hung} hung at different places, {max_queue_bytes // MIB} MiB", allowed)
    with ExitStack() as stack:
        pool = _Pool(path, stack, hung + 1, max_queue_bytes, transport)
        for slot in range(1, hung + 1):
            pid = pool.worker(slot)["pid"]
            os.kill(pid, signal.SIGSTOP)
            stack.callback(_go_on, pid)
            most = 0
            end = time.monotonic() + 120.0
            while pool.worker(slot)["state"] != "dropping":
                assert time.monotonic() < end, pool.status()
                pool.post(4 * MIB)
                most = max(most, pool.grew_bytes())
            pool.post(2 * max_queue_bytes)
            report.grew_bytes[f"{slot} hung"] = max(most, pool.grew_bytes())
            say(str(report))
    report.check()
    return report


def _go_on(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


def take_keys(path: Path, *, keys: int) -> GrowthReport:
    """Post as many unique events whose keys have 60 kB each."""
    report = GrowthReport(f"{keys} keys of 60 kB", SLACK_BYTES)
    with ExitStack() as stack:
        pool = _Pool(path, stack, 2, 64 * MIB, "unix")
        for number in range(keys):
            pool.poster.post("large", "u", number, unique=_LARGE + str(number))
        pool.poster.post_and_confirm("large", "e", 1)
        report.grew_bytes["all keys"] = pool.grew_bytes()
    report.check()
    return report


def abuse(path: Path, *, clients: int) -> GrowthReport:
    """Raw clients: frames over the limit, more than the window, a hello full of slots."""
    # One worker hangs meanwhile, so that nothing leaves by itself.
    report = GrowthReport(f"{clients} raw clients of each kind", 64 * MIB + SLACK_BYTES)
    with ExitStack() as stack:
        pool = _Pool(path, stack, 2, 64 * MIB, "unix")
        pid = pool.worker(1)["pid"]
        for name, frames, features in _ABUSES:
            os.kill(pid, signal.SIGSTOP)
            stack.callback(_go_on, pid)
            sockets = [_send_raw(pool.address, number + 1, frames, features, stack) for number in range(clients)]
            report.grew_bytes[name] = pool.grew_bytes()
            for sock in sockets:
                sock.close()
            _go_on(pid)
        for number in range(clients):
            stack.enter_context(_greet(pool.address, 1000 + number, slots=list(range(1024)), epoch=1))
        report.grew_bytes["hellos full of slots"] = pool.grew_bytes()
        pool.post(MIB)
    report.check()
    return report


_ABUSES: list[tuple[str, list[bytes], list[str]]] = [
    ("frames of 16 MiB", [bytes(encode_frame(Kind.EVENTS, bytes(16 * MIB), count=1, origin_seq=1))], []),
    ("frames of 7 MiB", [bytes(encode_frame(Kind.EVENTS, bytes(7 * MIB), count=500, origin_seq=1))], sorted(FEATURES)),
    (
        "more than the window",
        [bytes(encode_frame(Kind.EVENTS, bytes(60_000), count=1, origin_seq=number)) for number in range(1, 1000)],
        sorted(FEATURES),
    ),
    (
        "keys over the limit",
        [
            bytes(encode_frame(Kind.EVENTS, b"\xff\xff" + bytes(MIB), count=1, origin_seq=1, flags=Flag.UNIQUE)),
        ],
        [],
    ),
]


def _greet(
    address: str, origin: int, features: list[str] | None = None, slots: list[int] | None = None, epoch: int = 0
) -> socket.socket:
    sock = dial(address)
    sock.settimeout(5.0)
    hello = Hello(
        f"raw {origin}",
        origin,
        os.getpid(),
        "poster",
        None,
        False,
        epoch,
        0,
        0,
        slots or [],
        False,
        features=features or [],
    )
    sock.sendall(hello.encode())
    decoder = FrameDecoder()
    while not decoder.receive_data(sock.recv(65536)):
        pass
    return sock


def _send_raw(address: str, origin: int, frames: list[bytes], features: list[str], stack: ExitStack) -> socket.socket:
    """Send what a correct client would not, until the broker has taken it or ended the connection."""
    sock = stack.enter_context(_greet(address, origin, features))
    with suppress(OSError):
        for frame in frames:
            sock.sendall(frame)
    return sock
