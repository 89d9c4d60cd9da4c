"""The installed command line, run as people run it: processes of their own, with their output and exit status."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COMMAND = [sys.executable, "-m", "eventsh"]
ROOT = str(Path(__file__).parents[2])
# A command is a process, which takes some seconds to start where many others run.
DEADLINE_S = 60.0

# Writes a line for each event, and hangs on one.
HANDLERS = """
import json, os, time
import eventsh

journal = os.open({journal!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

@eventsh.on("test")
def handle(data, event, source, pid):
    os.write(journal, json.dumps([os.getpid(), event, data]).encode() + b"\\n")
    while event == "hang":
        time.sleep(1)
"""


def wait_until(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, f"not within {DEADLINE_S} s: {what}"
        time.sleep(0.01)


@dataclass
class Done:
    status: int
    out: str
    err: str


def environment(address: str) -> dict[str, str]:
    # Buffered output, as people have it, fails at other places.
    left_out = ("EVENTSH_", "PYTHONUNBUFFERED")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
    return {**kept, "PYTHONPATH": ROOT, "EVENTSH_ADDRESS": address, "COLUMNS": "80"}


def run(address: str, *arguments: str | bytes, stdin: bytes = b"", out: int = subprocess.PIPE) -> Done:
    done = subprocess.run(
        [*COMMAND, *arguments],
        input=stdin,
        stdout=out,
        stderr=subprocess.PIPE,
        env=environment(address),
        timeout=DEADLINE_S,
        check=False,
    )
    return Done(done.returncode, (done.stdout or b"").decode(), done.stderr.decode())


class Pool:
    """A running `eventsh serve`. Its handlers keep a journal, unless it is told to go without."""

    def __init__(self, directory: Path, *flags: str, workers: int = 4, prints: bool = False) -> None:
        self.directory = directory
        self.address = f"unix:{directory}/run/e.sock"
        handlers = directory / "handlers.py"
        handlers.write_text(HANDLERS.format(journal=str(directory / "journal")))
        chosen = [] if prints else ["--handlers", str(handlers)]
        with (directory / "out").open("wb") as out, (directory / "err").open("wb") as err:
            self.process = subprocess.Popen(
                [*COMMAND, "serve", "--workers", str(workers), *chosen, *flags],
                stdout=out,
                stderr=err,
                env=environment(self.address),
            )
        try:
            wait_until(lambda: "Ctrl-C stops it" in self.out or self.process.poll() is not None, "it serves")
            assert self.process.poll() is None, self.err
        except BaseException:
            self.stop()
            raise

    @property
    def out(self) -> str:
        return (self.directory / "out").read_text()

    @property
    def err(self) -> str:
        return (self.directory / "err").read_text()

    def run(self, *arguments: str | bytes, stdin: bytes = b"", out: int = subprocess.PIPE) -> Done:
        return run(self.address, *arguments, stdin=stdin, out=out)

    def start(self, *arguments: str, **streams: Any) -> subprocess.Popen[bytes]:
        streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
        return subprocess.Popen([*COMMAND, *arguments], env=environment(self.address), **streams)

    def status(self) -> dict[str, Any]:
        done = self.run("status", "--json")
        assert done.status == 0, done.err
        answer: dict[str, Any] = json.loads(done.out)
        return answer

    def is_served_anew(self, before: int) -> bool:
        """Whether another broker than `before` has the workers."""
        done = self.run("status", "--json")
        if done.status != 0:
            return False
        state = json.loads(done.out)
        attached = all(worker["state"] == "attached" for worker in state["workers"])
        return bool(state["broker"]["pid"] != before and attached)

    def handled(self, event: str) -> dict[int, list[Any]]:
        """The data of all events of this name that each process handled, in its order."""
        found: dict[int, list[Any]] = {}
        path = self.directory / "journal"
        for line in path.read_text().splitlines() if path.exists() else []:
            pid, name, data = json.loads(line)
            if name == event:
                found.setdefault(pid, []).append(data)
        return found

    def wait_handled(self, event: str, expected: Sequence[Any], workers: int = 4) -> None:
        """Wait until this many workers have handled exactly these, each once and in this order."""
        count = len(expected) * workers
        wait_until(lambda: sum(map(len, self.handled(event).values())) >= count, f"{event} is handled")
        assert list(self.handled(event).values()) == [list(expected)] * workers

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                return self.process.wait(DEADLINE_S)
            except subprocess.TimeoutExpired:
                self.process.send_signal(signal.SIGTERM)  # the second one kills at once
        return self.process.wait(DEADLINE_S)
