"""Every connection ends once, is told so last, and in good order nothing is lost."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import pytest

from eventsh.errors import TransportError
from eventsh.testing.bench import Bench, case
from eventsh.testing.recorder import DEADLINE_S, LARGE_BYTES, Recorder, event_frame, numbers, turns

if TYPE_CHECKING:
    from eventsh.transport import Connection

__all__ = ["EndCases"]


class EndCases:
    """Part of TransportConformance."""

    @case
    async def test_close_sends_what_was_sent_before_it(self, bench: Bench) -> None:
        async with bench.connected() as pair:
            pair.raise_limits()
            for n in range(8):
                pair.client.send([event_frame(n, LARGE_BYTES)])
            pair.client.close()
            pair.client.send([event_frame(8)])
            assert await pair.to_server.until_frames(8) == list(range(8))
            await pair.until_lost()
            assert len(pair.to_server.frames) == 8
            assert (pair.to_client.lost, pair.to_server.lost) == ([None], [None])

    @case
    async def test_abort_ends_both_sides_at_once(self, bench: Bench) -> None:
        async with bench.connected() as pair:
            pair.raise_limits()
            pair.server.pause_reading()
            # More than any transport has room for on the way.
            pair.client.send([event_frame(n, LARGE_BYTES) for n in range(80)])
            pair.client.abort()
            assert pair.to_client.lost == [], "told out of a call"
            await pair.to_client.until(lambda recorder: recorder.lost == [None])
            pair.server.resume_reading()
            await pair.until_lost()
            assert numbers(pair.to_server.frames) == list(range(len(pair.to_server.frames)))
            assert len(pair.to_server.frames) < 80

    @pytest.mark.parametrize("calls", [("close", "close"), ("abort", "abort"), ("close", "abort"), ("abort", "close")])
    @case
    async def test_the_end_is_told_once_and_nothing_has_an_effect_after_it(
        self, bench: Bench, calls: tuple[str, str]
    ) -> None:
        async with bench.connected() as pair:
            for call in calls:
                getattr(pair.server, call)()
            await pair.until_lost()
            for connection in (pair.client, pair.server):
                connection.send([event_frame(0)])
                connection.send([event_frame(1), event_frame(2)])
                connection.send_now([event_frame(3)])
                connection.pause_reading()
                connection.resume_reading()
                connection.close()
                connection.abort()
                assert connection.unsent_bytes == 0
            await pair.until_lost()

    @case
    async def test_both_sides_may_close_at_once(self, bench: Bench) -> None:
        async with bench.connected() as pair:
            pair.client.close()
            pair.server.close()
            assert pair.to_client.lost == pair.to_server.lost == [], "told out of a call"
            await pair.until_lost()

    @case
    async def test_what_the_peer_said_before_it_closed_is_received_by_one_that_is_sending(self, bench: Bench) -> None:
        async with bench.connected() as pair:
            pair.server.send([event_frame(1)])
            pair.server.close()
            pair.client.send([event_frame(2)])
            await turns(2)
            pair.client.send([event_frame(3)])
            await pair.until_lost()
            assert numbers(pair.to_client.frames) == [1]

    @case
    async def test_open_connections_stay_when_the_listener_closes(self, bench: Bench) -> None:
        async with bench.connected() as pair:
            await pair.listener.close()
            await pair.listener.close()
            pair.client.send([event_frame(1)])
            assert await pair.to_server.until_frames(1) == [1]
            with pytest.raises(TransportError):
                await bench.connect(Recorder())

    @case
    async def test_a_receiver_that_raises_loses_its_connection_alone(
        self, bench: Bench, caplog: pytest.LogCaptureFixture
    ) -> None:
        def fail(frames: list[bytearray]) -> None:
            raise ZeroDivisionError("on purpose")

        with caplog.at_level(logging.ERROR):
            async with bench.connected() as pair:
                to_other = Recorder()
                other = await bench.connect(to_other)
                pair.to_client.on_frames = fail
                pair.server.send([event_frame(0)])
                await pair.until_lost()
                assert [record.name for record in caplog.records] == ["eventsh"]
                assert "on purpose" in caplog.text
                assert to_other.lost == []
                other.close()
                await to_other.until(lambda recorder: recorder.lost)

    @case
    async def test_on_connection_that_raises_reaches_the_caller_of_connect(self, bench: Bench) -> None:
        def fail(connection: Connection) -> Recorder:
            raise ZeroDivisionError("on purpose")

        async with bench.listening() as (_, accepted):
            with pytest.raises(ZeroDivisionError):
                await bench.transport.connect(bench.address, fail)
            async with asyncio.timeout(DEADLINE_S):
                while not (accepted and accepted[0].lost):
                    await asyncio.sleep(0.001)

    @case
    async def test_on_connection_that_raises_in_a_listener_ends_that_connection(
        self, bench: Bench, caplog: pytest.LogCaptureFixture
    ) -> None:
        def fail(connection: Connection) -> Recorder:
            raise ZeroDivisionError("on purpose")

        with caplog.at_level(logging.ERROR):
            listener = await bench.transport.listen(bench.address, fail)
            recorder = Recorder()
            await bench.connect(recorder)
            await recorder.until(lambda recorder: recorder.lost)
            await turns(2)
            await listener.close()
            assert "on purpose" in caplog.text
