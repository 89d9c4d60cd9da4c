"""Connections over shared memory that come and go, by either side and in any way, and what they leave behind.

python -m tests.transports.shm_connects [--connects 10000]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from eventsh.address import Address
from eventsh.options import Options
from eventsh.testing.recorder import DEADLINE_S, Recorder, event_frame, turns
from eventsh.transport import Connection
from eventsh.transports.shm import ShmTransport

__all__ = ["come_and_go", "maps"]

SIZE = 40_000


def maps() -> int:
    """How many rings are mapped here."""
    return Path("/proc/self/maps").read_text().count("memfd:eventsh-ring")


def _receive(recorder: Recorder, connection: Connection) -> Recorder:
    return recorder


async def come_and_go(path: str, connects: int) -> list[tuple[int, int, int]]:
    """Numbers of descriptors, maps and tasks: with a listener before the first connection, after the last, and without."""
    transport, address = ShmTransport(Options(ring_size=1024 * 1024)), Address("shm", path)
    accepted: list[tuple[Connection, Recorder]] = []

    def on_connection(connection: Connection) -> Recorder:
        accepted.append((connection, Recorder()))
        return accepted[-1][1]

    async def standing() -> tuple[int, int, int]:
        await turns()
        gc.collect()
        return len(os.listdir("/proc/self/fd")), maps(), len(asyncio.all_tasks())

    listener = await transport.listen(address, on_connection)
    found = [await standing()]
    for number in range(connects):
        to_client = Recorder()
        client = await transport.connect(address, partial(_receive, to_client))
        async with asyncio.timeout(DEADLINE_S):
            while not accepted:
                await asyncio.sleep(0)
        server, to_server = accepted.pop()
        client.send([event_frame(number, SIZE)])
        server.send([event_frame(number, SIZE)])
        await to_server.until_frames(1)
        # At times the client has read nothing of what it is to read.
        if number % 3:
            await to_client.until_frames(1)
        ends: tuple[Callable[[], None], ...] = (client.close, client.abort, server.close, server.abort)
        ends[number % 4]()
        for recorder in (to_client, to_server):
            await recorder.until(lambda recorder: recorder.lost)
    found.append(await standing())
    await listener.close()
    found.append(await standing())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connects", type=int, default=10_000)
    connects = parser.parse_args().connects
    with tempfile.TemporaryDirectory(prefix="evsh-", dir="/tmp") as directory:
        before, after, closed = asyncio.run(come_and_go(f"{directory}/s", connects))
    print(f"{connects} connections: descriptors, maps and tasks {before} before, {after} after, {closed} at the end")
    if before != after:
        raise SystemExit("something was left behind")


if __name__ == "__main__":
    main()
