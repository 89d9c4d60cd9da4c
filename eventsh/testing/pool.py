"""A pool of `eventsh serve` for one test: real processes, with the handlers of the program under test."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

from eventsh.commands.handlers import handlers
from eventsh.commands.post import post_and_wait
from eventsh.commands.status import status
from eventsh.errors import EventError
from eventsh.testing.recorder import DEADLINE_S
from eventsh.testing.remote import wait_ended

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from eventsh.receipt import Receipt

__all__ = ["ServedPool"]


class ServedPool:
    """A running `eventsh serve`. It finds modules where this process does."""

    def __init__(self, address: str, files: Sequence[str | Path], workers: int, log: Path) -> None:
        self.address = address
        self.workers = workers
        self._log = log
        flags = [flag for file in files for flag in ("--handlers", str(file))]
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "eventsh", "serve", "--listen", address, "--workers", str(workers), *flags],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )

    @property
    def output(self) -> str:
        """What it and its workers have written so far, logs included."""
        return self._log.read_text(errors="replace")

    def wait_ready(self) -> None:
        """Wait until every worker is attached. Raises EventError with what it wrote, if it ended or is not in time."""
        end = time.monotonic() + DEADLINE_S
        while "Ctrl-C stops it" not in self.output:
            if self.process.poll() is not None or time.monotonic() > end:
                raise EventError(f"the pool did not start: {self.output}")
            time.sleep(0.01)

    def post(self, source: str, event: str, data: Any = None, *, unique: str | None = None) -> Receipt:
        """Post an event and wait for the handlers of all workers: which ran where, and what failed."""
        return post_and_wait(self.address, source, event, data, unique=unique, timeout_s=DEADLINE_S)[0]

    def status(self) -> dict[str, Any]:
        """As `eventsh status --json`."""
        return status(self.address, timeout_s=DEADLINE_S)

    def handlers(self) -> list[dict[str, Any]]:
        """As `eventsh handlers --json`."""
        return handlers(self.address, timeout_s=DEADLINE_S)

    def stop(self) -> None:
        """End it in good order, and wait for that."""
        if self.process.poll() is None:
            self.process.terminate()
        wait_ended(self.process)
