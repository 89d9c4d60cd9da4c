"""Processes of the last released version of eventsh and of this one, side by side."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

HERE = Path(__file__).parent
PROGRAM = str(HERE / "program.py")
# The package as it was released, `git archive --format=zip TAG eventsh`. The next release puts its own beside it.
RELEASED = HERE / "eventsh-0.1.0.zip"
DEADLINE_S = 60.0


def wait_until(condition: Callable[[], object], what: Callable[[], str]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, f"not within {DEADLINE_S:g} s: {what()}"
        time.sleep(0.05)


@dataclass(frozen=True)
class Version:
    """One version of the package. `root` is the directory that it is imported from."""

    name: str
    root: str

    def start(self, *command: str) -> subprocess.Popen[str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("EVENTSH_")}
        pipe = subprocess.PIPE
        return subprocess.Popen(
            [sys.executable, *command],
            env={**kept, "PYTHONPATH": self.root},
            cwd=self.root,
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            text=True,
        )

    def run(self, *command: str) -> str:
        """Run a command that ends by itself; give its output."""
        return finish(self.start(*command))


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for a process that ends by itself; give its output."""
    out, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, (process.args, out, err)
    return out


def versions(directory: Path) -> dict[str, Version]:
    """The released one, unpacked below `directory`, and this one."""
    with zipfile.ZipFile(RELEASED) as package:
        package.extractall(directory)
    return {"old": Version("old", str(directory)), "new": Version("new", str(HERE.parents[1]))}


class Pool:
    """Processes at one address. Use it in a `with` statement: all of them end with it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.address = f"unix:{directory}/e.sock"
        self.processes: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.communicate()

    def start(self, version: Version, *command: str, ready: str) -> subprocess.Popen[str]:
        """Start a process and wait until it prints a line that begins with `ready`."""
        process = version.start(*command)
        self.processes.append(process)
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith(ready), (version.name, command, line, self.end(process))
        return process

    def broker(self, version: Version, *flags: str) -> subprocess.Popen[str]:
        process = version.start("-m", "eventsh.runtime.broker", "--address", self.address, "--linger=none", *flags)
        self.processes.append(process)
        assert process.stderr is not None
        line = process.stderr.readline()
        assert "listens on" in line, (version.name, line, self.end(process))
        return process

    def worker(self, version: Version, name: str) -> Worker:
        journal = self.directory / name
        return Worker(self.start(version, PROGRAM, "worker", self.address, str(journal), ready="ready"), journal)

    def status(self, version: Version) -> dict[str, Any]:
        """The broker's own account, by the command of this version."""
        answer: dict[str, Any] = json.loads(version.run("-m", "eventsh", "status", "--json", "--address", self.address))
        return answer

    def end(self, process: subprocess.Popen[str], number: int = signal.SIGKILL) -> str:
        """End a process by a signal, and wait for it; give what it wrote to its standard error."""
        process.send_signal(number)
        return process.communicate(timeout=DEADLINE_S)[1]


@dataclass
class Worker:
    """A worker, and what its handler has seen."""

    process: subprocess.Popen[str]
    journal: Path

    def seen(self) -> list[tuple[str, str, Any]]:
        text = self.journal.read_text() if self.journal.exists() else ""
        # The last line may be under way.
        return [tuple(json.loads(line)) for line in text[: text.rfind("\n") + 1].splitlines()]

    def data_of(self, event: str, source: str = "app") -> list[Any]:
        return [data for from_, name, data in self.seen() if (from_, name) == (source, event)]

    @property
    def gaps(self) -> list[dict[str, Any]]:
        return self.data_of("gap", "eventsh")
