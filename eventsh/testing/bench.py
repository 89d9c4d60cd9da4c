"""What a case of the conformance kit stands on: a transport, an address, a loop, and peers to talk to."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, cast

import pytest

from eventsh.testing.peer import PeerProcess
from eventsh.testing.recorder import DEADLINE_S, Pair, Recorder, turns

if TYPE_CHECKING:
    from eventsh.address import Address
    from eventsh.transport import Connection, Listener, Receiver, Transport

__all__ = ["Bench", "case", "open_descriptors"]

P = ParamSpec("P")


def case(
    function: Callable[Concatenate[Any, Bench, P], Coroutine[Any, Any, None]],
) -> Callable[Concatenate[Any, Bench, P], None]:
    """Make a plain test of a coroutine: it runs in the bench's loop. No plugin of pytest's is needed for that."""

    def test(self: Any, bench: Bench, *args: P.args, **kwargs: P.kwargs) -> None:
        bench.run(function(self, bench, *args, **kwargs))

    # pytest finds the names of the fixtures by way of __wrapped__.
    return cast("Callable[Concatenate[Any, Bench, P], None]", wraps(function)(test))


@dataclass
class Bench:
    """One transport and one address of it, at which nobody listens, for one test."""

    transport: Transport
    address: Address
    new_loop: Callable[[], asyncio.AbstractEventLoop] | None = None
    plugin: str | None = None
    ended: ExitStack = field(default_factory=ExitStack)

    def run(self, main: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine in a fresh loop."""
        with asyncio.Runner(loop_factory=self.new_loop) as runner:
            runner.run(main)

    async def leave_stale_endpoint(self) -> None:
        """Leave behind what a listener leaves that was killed; or, inside one process, whose loop has ended."""
        if self.transport.capabilities.crosses_processes:
            (await self.listening_peer()).kill()
            return

        async def listen() -> None:
            await self.transport.listen(self.address, lambda connection: Recorder())

        await asyncio.to_thread(asyncio.run, listen())

    async def connect(self, recorder: Recorder) -> Connection:
        """Connect to the address."""

        def begin(connection: Connection) -> Receiver:
            recorder.connection = connection
            return recorder

        return await self.transport.connect(self.address, begin)

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[tuple[Listener, list[Recorder]]]:
        """A listener, and a list that grows by the recorder of each connection that it accepts."""
        accepted: list[Recorder] = []

        def on_connection(connection: Connection) -> Recorder:
            accepted.append(Recorder(connection=connection))
            return accepted[-1]

        listener = await self.transport.listen(self.address, on_connection)
        try:
            yield listener, accepted
        finally:
            await listener.close()
            for recorder in accepted:
                assert recorder.connection is not None
                recorder.connection.abort()
            for recorder in accepted:
                await recorder.until(lambda recorder: recorder.lost)
            await turns(2)

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Pair]:
        """A listener and one client."""
        async with self.listening() as (listener, accepted):
            to_client = Recorder()
            client = await self.connect(to_client)
            await self.until_count(accepted, 1)
            server = accepted[0].connection
            assert server is not None
            try:
                yield Pair(listener, client, server, to_client, accepted[0])
            finally:
                client.abort()
                await to_client.until(lambda recorder: recorder.lost)

    async def until_count(self, accepted: list[Recorder], count: int) -> None:
        """Wait until that many connections were accepted."""
        async with asyncio.timeout(DEADLINE_S):
            while len(accepted) < count:
                await asyncio.sleep(0.001)

    # Peers in processes of their own. They are ended after the test.

    async def listening_peer(self) -> PeerProcess:
        """A peer that listens at the address."""
        peer = await self._start_peer()
        await asyncio.to_thread(peer.call, "listen")
        return peer

    async def connecting_peer(self) -> PeerProcess:
        """A peer that has connected to the address."""
        peer = await self._start_peer()
        await asyncio.to_thread(peer.call, "connect")
        return peer

    async def fork(self, peer: PeerProcess, child: str) -> None:
        """Have a peer fork a child. See `Peer.fork`."""
        pid = await asyncio.to_thread(peer.call, "fork", child)
        self.ended.callback(os.kill, pid, signal.SIGKILL)

    async def _start_peer(self) -> PeerProcess:
        if not self.transport.capabilities.crosses_processes:
            pytest.skip("the transport does not leave its process")
        peer = await asyncio.to_thread(PeerProcess, str(self.address), self.plugin)
        self.ended.callback(peer.end)
        return peer


def open_descriptors() -> int:
    """How many descriptors this process has, and one more for looking."""
    return len(os.listdir("/dev/fd"))
