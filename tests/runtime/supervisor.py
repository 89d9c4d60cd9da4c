"""A pool of tests/runtime/children.py as a program. Usage: supervisor.py DIRECTORY WORKERS STOP_TIMEOUT"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eventsh.runtime.log import configure_logging
from eventsh.runtime.pool import Pool
from eventsh.runtime.process import Program

CHILDREN = str(Path(__file__).with_name("children.py"))


class Plan:
    def __init__(self, directory: str) -> None:
        self.directory = directory

    def broker_program(self) -> Program:
        return Program((sys.executable, CHILDREN, "broker", self.directory))

    def worker_program(self, worker_id: int) -> Program:
        return Program((sys.executable, CHILDREN, f"worker{worker_id}", self.directory))

    def broker_ready(self, facts: Mapping[str, Any]) -> None:
        print(f"broker ready {facts['pid']}", flush=True)

    def pool_ready(self) -> None:
        print("pool ready", flush=True)

    async def clean_up(self, broker_status: int | None) -> None:
        print(f"clean {broker_status}", flush=True)


async def main() -> int:
    pool = Pool(Plan(sys.argv[1]), int(sys.argv[2]), stop_timeout_s=float(sys.argv[3]))
    sizes = asyncio.create_task(follow_sizes(pool))
    try:
        return await pool.run()
    finally:
        sizes.cancel()


async def follow_sizes(pool: Pool) -> None:
    """SIGUSR1 adds a worker and SIGUSR2 takes one away."""
    wanted: asyncio.Queue[int] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, wanted.put_nowait, 1)
    loop.add_signal_handler(signal.SIGUSR2, wanted.put_nowait, -1)
    while True:
        change = await wanted.get()
        await pool.resize(len(pool.workers) + change)


configure_logging("text", logging.DEBUG)
sys.exit(asyncio.run(main()))
