from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import eventsh_chaos
import pytest

from eventsh.address import Address, parse_address
from eventsh.errors import ConfigureError
from eventsh.plugins import PluginManager
from eventsh.testing import TransportConformance
from eventsh.testing.bench import Bench
from eventsh.testing.recorder import DEADLINE_S, Recorder, event_frame, numbers
from eventsh.transport import Connection, Transport


class TestWithoutFaults(TransportConformance):
    plugin = "eventsh_chaos"

    def make_address(self, directory: Path) -> str:
        return f"chaos+unix:{directory}/s"


class TestWithFaultsThatBreakNoConnection(TransportConformance):
    """What is late, split or stalled is still whole, in order, and all there."""

    plugin = "eventsh_chaos"

    def make_address(self, directory: Path) -> str:
        return f"chaos+inproc:{directory}?delay=1ms&jitter=2ms&split=0.2&stall=0.01&stall_for=5ms&seed=1"


def chaos(scheme: str = "inproc") -> Transport:
    manager = PluginManager({"EVENTSH_DISABLE_PLUGINS": "all"})
    manager.register(eventsh_chaos, "chaos")
    return manager.find_transport(f"chaos+{scheme}")


def in_bench(query: str, main: Any) -> None:
    """Run `main(bench)` over an address with this query."""
    address = parse_address(f"chaos+inproc:{query}?{query}")
    bench = Bench(chaos(), address)
    bench.run(main(bench))


async def send_until_cut(bench: Bench, most: int = 10_000) -> int:
    """Send frames one by one over a fresh connection until it is cut. Gives how many were sent."""
    async with bench.connected() as pair:
        for number in range(most):
            pair.client.send([event_frame(number)])
            await asyncio.sleep(0)
            if pair.to_client.lost:
                break
        await pair.until_lost()
        received = numbers(pair.to_server.frames)
        assert received == list(range(len(received)))
        return number


def test_a_connection_is_cut_by_chance_and_what_arrived_before_is_whole() -> None:
    async def main(bench: Bench) -> None:
        lives = [await send_until_cut(bench) for _ in range(10)]
        assert len(set(lives)) > 3
        assert max(lives) < 1000

    in_bench("cut=0.05&seed=5", main)


def test_the_same_seed_cuts_at_the_same_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    def lives_with(query: str) -> list[int]:
        lives: list[int] = []
        monkeypatch.setattr(eventsh_chaos, "_connections", iter(range(1000)))

        async def main(bench: Bench) -> None:
            lives.extend([await send_until_cut(bench) for _ in range(3)])

        in_bench(query, main)
        return lives

    assert lives_with("cut=0.05&seed=7") == lives_with("cut=0.05&seed=7")
    assert lives_with("cut=0.05&seed=7") != lives_with("cut=0.05&seed=8")


def test_a_connection_on_which_nothing_is_sent_is_cut_after_its_life(caplog: pytest.LogCaptureFixture) -> None:
    async def main(bench: Bench) -> None:
        async with bench.connected() as pair:
            await pair.until_lost()

    in_bench("life=20ms", main)
    assert "chaos: cut" in caplog.text


def test_frames_are_late_by_the_delay_and_leave_before_a_close() -> None:
    async def main(bench: Bench) -> None:
        async with bench.connected() as pair:
            loop = asyncio.get_running_loop()
            start_s = loop.time()
            for number in range(100):
                pair.client.send([event_frame(number)])
            assert pair.client.unsent_bytes > 0
            pair.client.close()
            assert await pair.to_server.until_frames(100) == list(range(100))
            assert loop.time() - start_s >= 0.05
            await pair.until_lost()
            assert (pair.to_client.lost, pair.to_server.lost) == ([None], [None])

    in_bench("delay=50ms", main)


def test_what_is_held_up_pauses_the_sender_until_it_has_left() -> None:
    async def main(bench: Bench) -> None:
        async with bench.connected() as pair:
            for number in range(20):
                pair.client.send([event_frame(number, 30_000)])
            assert pair.to_client.pauses == ["paused"]
            assert await pair.to_server.until_frames(20) == list(range(20))
            await pair.to_client.until(lambda recorder: recorder.pauses == ["paused", "resumed"])

    in_bench("delay=20ms", main)


def test_a_stall_holds_up_all_that_follows() -> None:
    async def main(bench: Bench) -> None:
        async with bench.connected() as pair:
            start_s = asyncio.get_running_loop().time()
            pair.client.send([event_frame(number) for number in range(3)])
            await pair.to_server.until_frames(3)
            assert asyncio.get_running_loop().time() - start_s >= 0.1

    in_bench("stall=1&stall_for=100ms", main)


@pytest.mark.parametrize(
    ("query", "why"),
    [
        ("cut=2", "cut must be a probability from 0 to 1, not '2'"),
        ("split=x", "split must be a probability"),
        ("cut=nan", "cut must be a probability"),
        ("delay=soon", "delay"),
        ("life=-1", "life"),
        ("seed=1.5", "seed must be a whole number"),
        ("dleay=5ms", "asks for dleay, and unix knows nothing of the kind"),
    ],
)
def test_a_fault_that_can_t_be_is_refused_by_its_name(query: str, why: str) -> None:
    with pytest.raises(ConfigureError, match=why):
        chaos("unix").check_address(parse_address(f"chaos+unix:/tmp/s?{query}"))


def test_what_the_inner_transport_refuses_is_refused_too() -> None:
    with pytest.raises(ConfigureError, match="107"):
        chaos("unix").check_address(Address("chaos+unix", "/" + "x" * 200))


def test_the_inner_transport_gets_the_options_that_are_not_faults() -> None:
    seen: list[Address] = []

    class Spy(type(chaos("unix")._inner)):  # type: ignore[misc]
        def check_address(self, address: Address) -> None:
            seen.append(address)

    eventsh_chaos.Chaos().wrap(Spy()).check_address(parse_address("chaos+unix:/tmp/s?cut=0.1&other=x"))
    assert list(map(str, seen)) == ["unix:/tmp/s?other=x"]


def test_a_listener_tells_an_address_with_the_faults() -> None:
    async def main(bench: Bench) -> None:
        async with bench.listening() as (listener, _):
            assert parse_address(listener.address) == bench.address

    in_bench("cut=0.1&seed=3", main)


def test_chaos_can_be_wrapped_again_and_the_lock_is_that_of_the_inner_address() -> None:
    transport = chaos("chaos+unix")
    assert transport.scheme == "chaos+chaos+unix"
    assert transport.lock_path(parse_address("chaos+chaos+unix:/tmp/s?cut=1")) == "/tmp/s.lock"


def test_a_receiver_that_raises_when_told_to_pause_loses_its_connection(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(Recorder):
        def writing_paused(self) -> None:
            raise ZeroDivisionError("on purpose")

    async def main(bench: Bench) -> None:
        async with bench.listening() as (_, accepted):
            recorder = Failing()

            def begin(connection: Connection) -> Recorder:
                return recorder

            client = await bench.transport.connect(bench.address, begin)
            await bench.until_count(accepted, 1)
            client.send([event_frame(0, 400_000)])
            async with asyncio.timeout(DEADLINE_S):
                await recorder.until_lost()

    in_bench("delay=1s", main)
    assert "on purpose" in caplog.text
