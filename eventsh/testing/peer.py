"""The other end of a test, as a process of its own, that can be stopped and killed.

Usage: python -m eventsh.testing.peer ADDRESS [PLUGIN]. Each line of its input is a call, a JSON list of
a method's name and its arguments; each line of its output the answer to one. At the end of its input it ends.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

from eventsh.address import parse_address
from eventsh.plugins import find_transport, plugins
from eventsh.protocol.frame import MAX_BODY_BYTES
from eventsh.runtime.endpoint import complete_options
from eventsh.testing.recorder import DEADLINE_S, Recorder, event_frame
from eventsh.testing.remote import Remote, answer_to

if TYPE_CHECKING:
    from collections.abc import Callable

    from eventsh.address import Address
    from eventsh.transport import Connection, Listener, Transport

__all__ = ["PeerProcess", "register_plugin"]

# Longer than any test. Whoever asked for the child kills it before.
CHILD_LIFE_S = 10 * DEADLINE_S


def register_plugin(name: str | None) -> None:
    """Have the module `name` as a plugin of this process, unless its entry point has made it one."""
    if name is not None:
        manager = plugins()
        manager.load()
        module = importlib.import_module(name)
        if not manager.is_registered(module):
            manager.register(module, name)


class PeerProcess(Remote):
    """A peer, as the test that started it sees it. `call` blocks: whoever shares a loop with the transport under test calls
    it in a thread."""

    def __init__(self, address: str, plugin: str | None) -> None:
        super().__init__(["-m", "eventsh.testing.peer", address, *([plugin] if plugin else [])])

    def stop(self) -> None:
        """SIGSTOP, and wait until it stands still."""
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOWAIT)

    def go_on(self) -> None:
        """SIGCONT."""
        self.process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        # It may stand still, or be in the midst of something that never ends.
        self.kill()
        super().end()


class Peer:
    """What a peer can be told to do."""

    def __init__(self, transport: Transport, address: Address) -> None:
        self.transport = transport
        self.address = address
        self.recorders: list[Recorder] = []
        self.listener: Listener | None = None

    def begin(self, connection: Connection) -> Recorder:
        connection.limit_body(MAX_BODY_BYTES)
        self.recorders.append(Recorder(connection=connection))
        return self.recorders[-1]

    @property
    def connections(self) -> list[Connection]:
        return [recorder.connection for recorder in self.recorders if recorder.connection is not None]

    async def listen(self) -> str:
        self.listener = await self.transport.listen(self.address, self.begin)
        return self.listener.address

    async def connect(self) -> None:
        await self.transport.connect(self.address, self.begin)

    async def connected(self, count: int) -> None:
        """Wait until that many connections were made."""
        async with asyncio.timeout(DEADLINE_S):
            while len(self.recorders) < count:
                await asyncio.sleep(0.001)

    async def send(self, first: int, count: int, size: int) -> None:
        """Send numbered frames over every connection, a turn of the loop after each ten."""
        for number in range(first, first + count):
            for connection in self.connections:
                connection.send([event_frame(number, size)])
            if number % 10 == 0:
                await asyncio.sleep(0)

    async def paused(self) -> None:
        """Wait until the first connection was told to pause writing."""
        await self.recorders[0].until(lambda recorder: recorder.pauses)

    async def received(self, count: int) -> list[int]:
        """Wait for that many frames on the first connection; give their numbers."""
        return await self.recorders[0].until_frames(count)

    async def fork(self, child: str) -> int:
        """Fork a child, which lives until it is killed; give its pid. An "idle" one does nothing; a "connecting" one
        connects by itself and sends frame 1."""
        pid = os.fork()
        if pid:
            return pid
        try:
            if child == "connecting":
                asyncio.run(self._live_as_child())
            time.sleep(CHILD_LIFE_S)
        except BaseException as error:  # noqa: BLE001 - a child must not go on as its parent
            sys.stderr.write(f"the forked child: {type(error).__name__}: {error}\n")
        finally:
            os._exit(0)

    async def _live_as_child(self) -> None:
        connection = await self.transport.connect(self.address, lambda connection: Recorder())
        connection.send([event_frame(1)])
        await asyncio.sleep(CHILD_LIFE_S)


async def _main(address: str, plugin: str | None) -> None:
    register_plugin(plugin)
    found = parse_address(address)
    peer = Peer(find_transport(found.scheme).with_options(complete_options()), found)
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while line := await lines.readline():
        name, *arguments = json.loads(line)
        call: Callable[..., Any] = getattr(peer, name)
        try:
            answer_to(await call(*arguments))
        except Exception as error:  # noqa: BLE001 - the test is told, whatever it is
            answer_to(error=error)


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None))
