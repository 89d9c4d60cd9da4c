"""Frames keep their boundaries, their order and their bytes; what is no frame is refused."""

from __future__ import annotations

import pytest

from eventsh.errors import ProtocolError
from eventsh.protocol.frame import HEADER_BYTES, MAX_BODY_BYTES, PRE_HELLO_BODY_BYTES, Kind, encode_frame
from eventsh.testing.bench import Bench, case
from eventsh.testing.recorder import LARGE_BYTES, event_frame, numbers, turns

__all__ = ["FrameCases"]


class FrameCases:
    """Part of TransportConformance."""

    @case
    async def test_frames_keep_their_boundaries_and_their_order(self, bench: Bench) -> None:
        async with bench.connected() as pair:
            pair.client.send([event_frame(n, size) for n, size in enumerate((0, 1, 100, 5000, 60000, 8, 9))])
            for n in range(7, 5000):
                pair.client.send([event_frame(n)])
            assert await pair.to_server.until_frames(5000) == list(range(5000))

    @case
    async def test_many_frames_in_one_call_arrive(self, bench: Bench) -> None:
        async with bench.connected() as pair:
            # More than one writev takes, and more than is joined.
            pair.client.send([event_frame(n, 200) for n in range(5000)])
            assert await pair.to_server.until_frames(5000) == list(range(5000))

    @case
    async def test_large_frames_arrive_both_ways_at_once(self, bench: Bench) -> None:
        async with bench.connected() as pair:
            pair.raise_limits()
            for n in range(16):
                pair.client.send([event_frame(n, LARGE_BYTES)])
                pair.server.send([event_frame(n, LARGE_BYTES), event_frame(100 + n)])
            assert await pair.to_server.until_frames(16) == list(range(16))
            received = await pair.to_client.until_frames(32)
            assert received == [number for n in range(16) for number in (n, 100 + n)]

    @case
    async def test_every_kind_of_buffer_can_be_sent(self, bench: Bench) -> None:
        async with bench.connected() as pair:
            pair.client.send([bytes(event_frame(0)), event_frame(1), memoryview(event_frame(2))])
            pair.client.send((memoryview(event_frame(3)),))
            pair.client.send_now([memoryview(event_frame(4))])
            pair.client.send([])
            assert await pair.to_server.until_frames(5) == [0, 1, 2, 3, 4]

    @case
    async def test_the_receiver_owns_its_frames(self, bench: Bench) -> None:
        async with bench.connected() as pair:
            sent = event_frame(7)
            pair.client.send([sent])
            pair.client.send([sent])
            await pair.to_server.until_frames(2)
            first, second = pair.to_server.frames
            first[:] = bytes(len(first))
            assert numbers([sent, second]) == [7, 7]

    @case
    async def test_send_now_keeps_the_order_of_what_was_sent(self, bench: Bench) -> None:
        async with bench.connected() as pair:
            pair.raise_limits()
            for n in range(0, 60, 3):
                pair.client.send_now([event_frame(n)])
                pair.client.send([event_frame(n + 1, LARGE_BYTES)])
                pair.client.send_now([event_frame(n + 2, LARGE_BYTES)])
            assert await pair.to_server.until_frames(60) == list(range(60))

    @pytest.mark.parametrize("limit", [PRE_HELLO_BODY_BYTES, LARGE_BYTES, MAX_BODY_BYTES])
    @case
    async def test_a_body_may_have_any_size_up_to_the_limit(self, bench: Bench, limit: int) -> None:
        async with bench.connected() as pair:
            pair.raise_limits(limit)
            sizes = [0, 1, limit - 1, limit]
            for size in sizes:
                pair.client.send([encode_frame(Kind.EVENTS, bytes(size))])
            pair.client.send([encode_frame(Kind.EVENTS, bytes(limit + 1))])
            await pair.to_server.until(lambda recorder: recorder.refused)
            assert [len(frame) - HEADER_BYTES for frame in pair.to_server.frames] == sizes
            assert str(limit + 1) in str(pair.to_server.refused[0])
            assert str(limit) in str(pair.to_server.refused[0])

    @pytest.mark.parametrize(
        "garbage",
        [
            b"\xff" * 100,
            b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 3,
            bytes(encode_frame(0)),
            bytes(encode_frame(200)),
            bytes(encode_frame(Kind.EVENTS, bytes(PRE_HELLO_BODY_BYTES + 1))),
        ],
        ids=["ones", "http", "kind 0", "kind 200", "too large"],
    )
    @case
    async def test_garbage_is_refused_once_after_the_good_frames(self, bench: Bench, garbage: bytes) -> None:
        async with bench.connected() as pair:
            pair.client.send([event_frame(0), event_frame(1), garbage, event_frame(2)])
            await pair.to_server.until(lambda recorder: recorder.refused)
            pair.client.send([event_frame(3), garbage])
            await turns()
            assert numbers(pair.to_server.frames) == [0, 1]
            assert len(pair.to_server.refused) == 1
            assert isinstance(pair.to_server.refused[0], ProtocolError)
            pair.server.close()
            await pair.until_lost()

    @case
    async def test_the_limit_of_a_body_can_be_raised(self, bench: Bench) -> None:
        async with bench.connected() as pair:
            pair.client.send([encode_frame(Kind.EVENTS, bytes(PRE_HELLO_BODY_BYTES))])
            await pair.to_server.until(lambda recorder: len(recorder.frames) == 1)
            pair.server.limit_body(100_000)
            pair.client.send([encode_frame(Kind.EVENTS, bytes(100_000))])
            await pair.to_server.until(lambda recorder: len(recorder.frames) == 2)
            pair.client.send([encode_frame(Kind.EVENTS, bytes(100_001))])
            await pair.to_server.until(lambda recorder: recorder.refused)
            assert "100001" in str(pair.to_server.refused[0])
            assert "100000" in str(pair.to_server.refused[0])
