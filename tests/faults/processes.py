"""The processes of a campaign: the pool that `eventsh serve` runs, programs on their own, and questions to the broker.

Everything started here is ended here, by its own pid.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from eventsh.commands.status import status
from eventsh.errors import EventError
from eventsh.runtime.endpoint import find_endpoint

__all__ = [
    "DEADLINE_S",
    "HANDLERS",
    "TRANSPORTS",
    "Program",
    "Served",
    "ask",
    "dial",
    "endpoint",
    "environment",
    "is_alive",
    "wait_until",
]

ROOT = str(Path(__file__).parents[2])
TRANSPORTS = ("unix", "shm", "tcp")
HANDLERS = str(Path(__file__).with_name("handlers.py"))
DEADLINE_S = 60.0
_READY = re.compile(rb"\(pid (\d+)\) is ready")


def wait_until(condition: Callable[[], object], what: str, deadline_s: float = DEADLINE_S) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {deadline_s:g} s: {what}")
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    """Whether `pid` still runs; a zombie that its parent has not fetched does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def ask(address: str, timeout_s: float = 10.0) -> dict[str, Any] | None:
    """The broker's own account; None while there is no broker that answers."""
    try:
        return status(address, timeout_s=timeout_s)
    except EventError:
        return None


def environment(directory: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("EVENTSH_")}
    return {**kept, "PYTHONPATH": ROOT, "FAULTS_LEDGER": str(directory)}


def endpoint(transport: str, path: Path) -> str:
    """An address of one of TRANSPORTS, for what runs in the directory `path`."""
    if transport != "tcp":
        return f"{transport}:{path}/run/e.sock"
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{sock.getsockname()[1]}"


def dial(address: str) -> socket.socket:
    """A plain socket to whoever listens at `address`."""
    transport, found = find_endpoint(address)
    sock = transport.dial(found, 10.0)
    assert sock is not None
    return sock


class Served:
    """A running `eventsh serve` whose handlers write to the ledger in `directory`."""

    def __init__(self, directory: Path, address: str, workers: int, *flags: str, handlers: str = HANDLERS) -> None:
        self.directory = directory
        self.address = address
        command = [sys.executable, "-m", "eventsh", "serve", "--workers", str(workers), "--handlers", handlers]
        with (directory / "serve.out").open("wb") as out, (directory / "serve.err").open("wb") as err:
            self.process = subprocess.Popen(
                [*command, "--listen", address, *flags], stdout=out, stderr=err, env=environment(directory)
            )
        self._ready: dict[int, float] = {}
        self._read = 0
        wait_until(lambda: self._look(workers), f"{workers} workers are ready: {self.log[-2000:]}")

    def _look(self, workers: int) -> bool:
        assert self.process.poll() is None, f"serve has ended: {self.log[-2000:]}"
        state = ask(self.address)
        return state is not None and sum(worker["state"] == "attached" for worker in state["workers"]) == workers

    @property
    def log(self) -> str:
        return (self.directory / "serve.err").read_text(errors="replace")

    def ready(self) -> dict[int, float]:
        """Which processes the supervisor has called ready, and when that was seen here."""
        with (self.directory / "serve.err").open("rb") as log:
            log.seek(self._read)
            # A line that is not whole yet is read the next time.
            for line in log.read().splitlines(keepends=True):
                if line.endswith(b"\n"):
                    self._read += len(line)
                    if found := _READY.search(line):
                        self._ready[int(found[1])] = time.monotonic()
        return self._ready

    def stop(self) -> int:
        """End it in good order; its exit status."""
        self.process.terminate()
        try:
            return self.process.wait(30.0)
        except subprocess.TimeoutExpired:
            self.kill()
            return self.process.wait()

    def kill(self) -> None:
        """End it now. Its children end by themselves once it is gone."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait()


class Program:
    """A running tests/faults/program.py."""

    def __init__(
        self, directory: Path, address: str, poster: int, rate: float, slow: float, seed: int, **options: Any
    ) -> None:
        arguments = [str(directory), address, str(poster), str(rate), str(slow), str(seed), json.dumps(options)]
        name = f"program-{poster}-{time.monotonic_ns()}.err"
        with (directory / name).open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.program", *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=err,
                env=environment(directory),
                cwd=ROOT,
            )
        self.pid = self.process.pid

    def __enter__(self) -> Self:
        assert self.hear() == "ready"
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def tell(self, word: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(f"{word}\n".encode())
        self.process.stdin.flush()

    def hear(self, deadline_s: float = DEADLINE_S) -> str:
        """The next line that it says."""
        assert self.process.stdout
        readable, _, _ = select.select([self.process.stdout], [], [], deadline_s)
        if not readable:
            raise TimeoutError(f"program {self.pid} said nothing for {deadline_s:g} s")
        return self.process.stdout.readline().decode().strip()

    def end(self, deadline_s: float = 30.0) -> int:
        assert self.process.stdin
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            return self.process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()
        finally:
            if self.process.stdout:
                self.process.stdout.close()
