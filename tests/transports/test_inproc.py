from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

import pytest

from eventsh.address import Address
from eventsh.errors import ConfigureError, TransportError
from eventsh.testing import TransportConformance
from eventsh.testing.recorder import Recorder, event_frame
from eventsh.transport import Connection
from eventsh.transports.inproc import InprocConnection, InprocTransport


class TestConformance(TransportConformance):
    def make_address(self, directory: Path) -> str:
        return f"inproc:of {directory}"


@pytest.mark.parametrize(
    "address",
    [Address("inproc", host="name"), Address("inproc", "name", query={"a": "b"})],
    ids=["a host", "a query"],
)
def test_an_address_is_a_name(address):
    with pytest.raises(ConfigureError, match="inproc:NAME") as caught:
        InprocTransport().check_address(address)
    assert caught.value.option == "address"


class Echo(Recorder):
    """Sends everything back, from the loop of another thread."""

    def frames_received(self, frames: list[bytearray]) -> None:
        assert self.connection is not None
        self.connection.send(frames)


class EchoThread:
    """A thread with a loop of its own, in which a listener lives until `stop`."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.connections: list[Connection] = []
        self.ready = threading.Event()
        self.loop: asyncio.AbstractEventLoop | None = None
        self.thread = threading.Thread(target=lambda: asyncio.run(self.main()))
        self.thread.start()
        assert self.ready.wait(10)

    async def main(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.stopping = asyncio.Event()

        def on_connection(connection: Connection) -> Echo:
            connection.limit_body(1 << 22)
            self.connections.append(connection)
            return Echo(connection=connection)

        listener = await InprocTransport().listen(self.address, on_connection)
        self.ready.set()
        await self.stopping.wait()
        await listener.close()

    def stop(self) -> None:
        assert self.loop is not None
        self.loop.call_soon_threadsafe(self.stopping.set)
        self.thread.join(10)
        assert not self.thread.is_alive()


def test_the_ends_may_live_in_the_loops_of_different_threads():
    address = Address("inproc", "threads")

    async def main() -> None:
        recorder = Recorder()
        client = await InprocTransport().connect(address, lambda connection: recorder)
        client.limit_body(1 << 22)
        for number in range(3000):
            client.send([event_frame(number, 2000)])
        assert await recorder.until_frames(3000) == list(range(3000))
        client.close()
        await recorder.until(lambda recorder: recorder.lost == [None])
        if recorder.pauses:
            assert recorder.pauses == ["paused", "resumed"] * (len(recorder.pauses) // 2)

    echo = EchoThread(address)
    try:
        asyncio.run(main())
    finally:
        echo.stop()


def test_a_peer_whose_loop_ended_is_a_lost_connection():
    address = Address("inproc", "ended")

    async def main() -> None:
        recorder = Recorder()
        client = await InprocTransport().connect(address, lambda connection: recorder)
        client.send([event_frame(0)])
        await recorder.until_frames(1)
        echo.stop()
        client.send([event_frame(1)])
        await recorder.until(lambda recorder: recorder.lost)
        assert isinstance(recorder.lost[0], ConnectionResetError)

    echo = EchoThread(address)
    asyncio.run(main())


def test_one_wake_up_carries_all_that_is_sent_in_a_turn(monkeypatch):
    address = Address("inproc", "wake-ups")
    turns: list[InprocConnection] = []
    turn = InprocConnection._turn

    def counted(connection: InprocConnection) -> None:
        turns.append(connection)
        turn(connection)

    monkeypatch.setattr(InprocConnection, "_turn", counted)

    async def main() -> None:
        batches: list[int] = []
        recorder = Recorder(on_frames=lambda frames: batches.append(len(frames)))
        listener = await InprocTransport().listen(address, lambda connection: recorder)
        to_client = Recorder()
        client = await InprocTransport().connect(address, lambda connection: to_client)
        for number in range(100):
            client.send([event_frame(number)])
        await recorder.until_frames(100)
        assert batches == [100]
        await asyncio.sleep(0)
        assert len(turns) == 1
        client.close()
        await to_client.until(lambda recorder: recorder.lost)
        await listener.close()

    asyncio.run(main())


def test_a_live_listener_is_never_displaced():
    address = Address("inproc", "live")

    async def main() -> None:
        listener = await InprocTransport().listen(address, lambda connection: Recorder())
        with pytest.raises(TransportError, match="listens there already"):
            await InprocTransport().listen(address, lambda connection: Recorder())
        await listener.close()

    asyncio.run(main())


def test_a_forked_child_finds_no_listeners_of_its_parent():
    address = Address("inproc", "forked")

    async def connect_in_child() -> bytes:
        try:
            await InprocTransport().connect(address, lambda connection: Recorder())
        except TransportError:
            return b"nobody"
        return b"connected"

    async def main() -> bytes:
        listener = await InprocTransport().listen(address, lambda connection: Recorder())
        read_end, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                # A thread, because the loop of the parent counts as running in this one.
                thread = threading.Thread(target=lambda: os.write(write_end, asyncio.run(connect_in_child())))
                thread.start()
                thread.join()
            finally:
                os._exit(0)
        os.close(write_end)
        os.waitpid(pid, 0)
        answer = os.read(read_end, 100)
        os.close(read_end)
        await listener.close()
        return answer

    assert asyncio.run(main()) == b"nobody"
