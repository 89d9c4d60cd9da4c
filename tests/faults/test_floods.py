"""Row 20 of FAULTS.md, briefly: turns are counted, not times. The long form is `python -m tests.faults --row 20 --kills 3`."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Self

import pytest

from eventsh.api import AsyncEvents
from eventsh.options import Options
from eventsh.protocol.features import FEATURES
from eventsh.protocol.frame import MAX_BODY_BYTES, FrameDecoder, Kind, decode_header, encode_frame
from eventsh.protocol.messages import Handled, Hello, Report, Request
from eventsh.runtime.broker import Broker
from eventsh.runtime.endpoint import find_endpoint

DEADLINE_S = 30.0
BODY = b'[["flood","tick",[1]]]'
# Each with as many frames as the socket's buffer holds.
FLOODS: dict[str, tuple[str, Callable[[int], bytes | bytearray]]] = {
    "requests": ("poster", lambda number: Request(number, "status", {}).encode()),
    "empty acks": ("observer", lambda number: encode_frame(Kind.ACK)),
    "pings": ("poster", lambda number: encode_frame(Kind.PING)),
    "handled": ("observer", lambda number: Handled(1, 1, [], None, None).encode()),
    "reports": ("observer", lambda number: Report(1, {"error": "x"}).encode()),
    "small frames": ("poster", lambda number: encode_frame(Kind.EVENTS, BODY, count=1, origin_seq=number)),
}
FRAMES = 1500
CROWD = 200


class Served:
    """A broker in this loop, and what it handled: the origin of each connection, once for each frame."""

    def __init__(self, path: str, **options: object) -> None:
        self.path = path
        values = Options.from_values(linger=None, **options)
        self.broker = Broker(*find_endpoint(f"unix:{path}", values), values)
        self.handled: list[int | None] = []
        self.on_handled: Callable[[], None] = lambda: None
        self._receive = self.broker.router.receive
        self.broker.router.receive = self._count  # type: ignore[method-assign]
        self.sockets = ExitStack()

    async def __aenter__(self) -> Self:
        await self.broker.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.sockets.close()
        await self.broker.close()

    def _count(self, link, frames, *rest):
        count = self._receive(link, frames, *rest)
        # A connection that breaks the rules, or ends, has no poster.
        self.handled += [link.poster.origin if link.poster else None] * count
        self.on_handled()
        return count

    def connect(self, origin: int, role: str = "poster", features: frozenset[str] = FEATURES) -> socket.socket:
        sock = self.sockets.enter_context(socket.socket(socket.AF_UNIX))
        sock.connect(self.path)
        hello = Hello(f"client {origin}", origin, os.getpid(), role, None, False, 0, 0, 0, [], False)
        hello.features[:] = sorted(features)
        sock.sendall(hello.encode())
        return sock

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not condition():
                await asyncio.sleep(0)


def take(sock: socket.socket, decoder: FrameDecoder) -> list[bytearray]:
    """The frames that have come."""
    frames: list[bytearray] = []
    sock.setblocking(False)
    try:
        while data := sock.recv(1 << 18):
            frames += decoder.receive_data(data)
    except BlockingIOError:
        pass
    return frames


@pytest.mark.parametrize("flood", FLOODS)
def test_others_are_served_while_what_one_client_sent_in_one_go_is_handled(flood, tmp_path):
    role, frame = FLOODS[flood]

    async def main() -> None:
        async with Served(str(tmp_path / "e.sock")) as served:
            flooder, other = served.connect(7, role), served.connect(8)
            await served.until(lambda: len(served.handled) == 2)
            served.handled.clear()
            flooder.sendall(b"".join(bytes(frame(number)) for number in range(1, FRAMES + 1)))

            def begin() -> None:
                # The first frames of the flood are being handled: the other client comes after all of it.
                served.on_handled = lambda: None
                other.sendall(encode_frame(Kind.EVENTS, BODY, count=1, origin_seq=1))

            served.on_handled = begin
            await served.until(lambda: len(served.handled) > FRAMES)
            assert served.handled.count(7) == FRAMES
            assert served.handled.index(8) < FRAMES // 2

    asyncio.run(main())


def test_others_are_served_while_a_crowd_says_hello(tmp_path):
    async def main() -> None:
        async with Served(str(tmp_path / "e.sock")) as served:
            other = served.connect(8)
            await served.until(lambda: len(served.handled) == 1)
            served.handled.clear()
            served.on_handled = lambda: time.sleep(0.001)
            for origin in range(100, 100 + CROWD):
                served.connect(origin, "worker")
            # All of the crowd is accepted, and has its hello read, before this is.
            await served.until(lambda: len(served.handled) > 0)
            other.sendall(encode_frame(Kind.EVENTS, BODY, count=1, origin_seq=1))
            await served.until(lambda: len(served.handled) == CROWD + 1)
            assert served.handled.index(8) < CROWD // 2

    asyncio.run(main())


def test_a_hello_that_waits_for_its_turn_is_in_time(tmp_path):
    async def main() -> None:
        async with Served(str(tmp_path / "e.sock"), hello_timeout=0.2) as served:
            # One a turn, and so one every 10 ms: the last ones wait for five times as long as a hello may take.
            served.on_handled = lambda: time.sleep(0.01)
            crowd = [served.connect(origin) for origin in range(100, 200)]
            await served.until(lambda: len(served.handled) >= len(crowd))
            await asyncio.sleep(0)
            kinds = [
                [decode_header(frame).kind for frame in take(sock, FrameDecoder(MAX_BODY_BYTES))] for sock in crowd
            ]
            assert [kind for kind in kinds if Kind.WELCOME not in kind] == []

    asyncio.run(main())


def test_all_that_a_client_sent_before_its_end_is_handled_in_order(tmp_path):
    async def main() -> None:
        async with Served(str(tmp_path / "e.sock")) as served:
            seen: list[int] = []
            async with AsyncEvents(f"unix:{tmp_path}/e.sock", broker="never") as events:
                events.register(lambda data, *_: seen.append(data), "flood")
                await events.wait_ready()
                flooder = served.connect(7)
                await served.until(lambda: 7 in served.handled)
                flooder.sendall(b"".join(numbered(number) for number in range(1, FRAMES + 1)))
                flooder.close()
                await served.until(lambda: len(seen) == FRAMES)
            assert seen == list(range(1, FRAMES + 1))
            await served.until(lambda: not served.broker.router.connections)

    asyncio.run(main())


def test_what_waits_of_a_flood_is_bounded_and_a_broken_rule_ends_it_in_its_place(tmp_path):
    async def main() -> None:
        async with Served(str(tmp_path / "e.sock")) as served:
            flooder = served.connect(7)
            await served.until(lambda: len(served.handled) == 1)
            (link,) = served.broker.router.connections
            waited: list[int] = []
            served.on_handled = lambda: waited.append(sum(map(len, link.key.waiting)))
            served.broker.shares.begin = lambda: lambda: True  # type: ignore[method-assign]
            ping = bytes(encode_frame(Kind.PING))
            # A second hello, and pings after it that do not count.
            hello = Hello("client 7", 7, 1, "poster", None, False, 0, 0, 0, [], False).encode()
            flooding = asyncio.create_task(asyncio.to_thread(send_all, flooder, ping * 10_000 + hello + ping * 10))
            decoder, kinds = FrameDecoder(MAX_BODY_BYTES), list[int]()

            def is_over() -> bool:
                kinds.extend(decode_header(frame).kind for frame in take(flooder, decoder))
                return Kind.ERROR in kinds

            await served.until(is_over)
            await flooding
            assert kinds.count(Kind.PONG) == 10_000
            # What one read takes.
            assert 0 < max(waited) <= 256 * 1024

    asyncio.run(main())


def numbered(number: int) -> bytes:
    body = b'[["flood","tick",[%d]]]' % number
    return bytes(encode_frame(Kind.EVENTS, body, count=1, origin_seq=number))


def send_all(sock: socket.socket, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[sock.send(view) :]
        except BlockingIOError:
            time.sleep(0.001)
        except OSError:
            return


def test_each_frame_that_is_handled_while_others_wait_is_a_sign_of_life(tmp_path):
    async def main() -> None:
        async with Served(str(tmp_path / "e.sock")) as served:
            flooder = served.connect(7)
            await served.until(lambda: len(served.handled) == 1)
            (link,) = served.broker.router.connections
            signs: list[int] = []
            served.broker.shares.begin = lambda: lambda: True  # type: ignore[method-assign]
            served.on_handled = lambda: signs.append(link.key._signs()[0])
            flooder.sendall(bytes(encode_frame(Kind.PING)) * 10)
            await served.until(lambda: len(signs) == 10)
            # While the frames of one read are handled, nothing is received.
            assert len(set(signs[1:])) == 9

    asyncio.run(main())


@pytest.mark.parametrize("crowd", [16, 17, 60])
def test_workers_that_join_together_are_one_event_for_those_who_know_it(crowd, tmp_path):
    async def main() -> None:
        async with Served(str(tmp_path / "e.sock")) as served:
            newer, older = served.connect(8, "observer"), served.connect(9, "observer", FEATURES - {"workers-joined"})
            await served.until(lambda: len(served.handled) == 2)
            joined: dict[socket.socket, list[tuple[str, int]]] = {newer: [], older: []}
            decoders = {sock: FrameDecoder(MAX_BODY_BYTES) for sock in joined}
            # All say hello before the first of them is handled.
            for origin in range(100, 100 + crowd):
                served.connect(origin, "worker")

            def have_all() -> bool:
                for sock, found in joined.items():
                    for frame in take(sock, decoders[sock]):
                        found.extend(workers_of(frame))
                return all(len(found) >= crowd for found in joined.values())

            await served.until(have_all)
            for found in joined.values():
                assert sorted(number for _, number in found) == list(range(crowd))
            assert {event for event, _ in joined[older]} == {"worker_joined"}
            if crowd <= 16:
                assert {event for event, _ in joined[newer]} == {"worker_joined"}
            else:
                assert "workers_joined" in {event for event, _ in joined[newer]}

    asyncio.run(main())


def workers_of(frame: bytearray) -> list[tuple[str, int]]:
    """The workers that joined by a lifecycle event, each with the event's name."""
    header = decode_header(frame)
    if header.kind != Kind.EVENTS:
        return []
    ((source, event, (data,)),) = json.loads(frame[-header.length :])
    assert source == "eventsh"
    workers = data["workers"] if event == "workers_joined" else [data]
    return [(event, worker["worker_id"]) for worker in workers]
