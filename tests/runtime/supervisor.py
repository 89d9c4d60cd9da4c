"""A pool of tests/runtime/children.py as a program. Usage: supervisor.py DIRECTORY WORKERS STOP_TIMEOUT"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eventsh.runtime import backoff
from eventsh.runtime.log import configure_logging
from eventsh.runtime.pool import Pool
from eventsh.runtime.process import Program

MAX_WORKERS = 3
CHILDREN = str(Path(__file__).with_name("children.py"))


class Plan:
    def __init__(self, directory: str) -> None:
        self.directory = directory

    def broker_program(self, workers: int) -> Program:
        print(f"broker for {workers}", flush=True)
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
    return await Pool(
        Plan(sys.argv[1]), int(sys.argv[2]), max_workers=MAX_WORKERS, stop_timeout_s=float(sys.argv[3])
    ).run()


if __name__ == "__main__":
    # What comes after it is to be seen too; the five restarts before it take 3.1 s.
    backoff.RESTART_WINDOW_S = 3.5
    configure_logging("text", logging.DEBUG)
    sys.exit(asyncio.run(main()))
