"""One child process as its supervisor sees it: start it, hear its states, tell it what to do, end it.

Decides nothing about restarts. The child's side of the two pipes is in child.py.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import orjson

__all__ = ["Process", "Program", "describe_status", "name_end"]

# A child that writes a line longer than this to its report pipe is not speaking the protocol; bounds what is held of it.
REPORT_LINE_BYTES = 256 * 1024

_log = logging.getLogger("eventsh.pool")


@dataclass(frozen=True, slots=True)
class Program:
    """What to run: `argv` without the flags of the two pipes, descriptors that it needs besides them, and its
    environment if that is not the supervisor's own. What a `silent` one logs is dropped."""

    argv: tuple[str, ...]
    pass_fds: tuple[int, ...] = ()
    env: Mapping[str, str] | None = None
    silent: bool = False


class Process:
    """A running or ended child. `ready` and `standby` are futures: True once reported, False if it ended before."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, report_fd: int, control_fd: int) -> None:
        loop = asyncio.get_running_loop()
        self.name = name
        self.pid = process.pid
        self.standby: asyncio.Future[bool] = loop.create_future()
        self.ready: asyncio.Future[bool] = loop.create_future()
        self.ended: asyncio.Future[int] = loop.create_future()
        # Set to the reason once a broker has handed over to another one, and waits to be ended.
        self.handed_over: asyncio.Future[str] = loop.create_future()
        self.ready_at: float | None = None
        self.facts: dict[str, Any] = {}
        """What came with the last report: `error` after "failed", whatever the program tells with "ready"."""
        self.on_in_hand: Callable[[int], None] | None = None
        """Called with the pid of a worker that died while it handled events, as a broker reports it."""
        self._loop = loop
        self._process = process
        self._control_fd = control_fd
        self._report_fd = report_fd
        self._rest = b""
        loop.add_reader(report_fd, self._read_reports)
        self._waiter = loop.create_task(self._wait(), name=f"wait for {name}")

    @classmethod
    async def start(cls, name: str, program: Program, *, standby: bool = False) -> Process:
        """Start `program` afresh. Raises OSError when there is no such program or no room for another process."""
        report_read, report_write = os.pipe()
        try:
            control_read, control_write = os.pipe()
        except OSError:
            os.close(report_read)
            os.close(report_write)
            raise
        flags = ["--report-fd", str(report_write), "--control-fd", str(control_read)]
        if standby:
            flags.append("--standby")
        try:
            process = await asyncio.create_subprocess_exec(
                *program.argv,
                *flags,
                stdin=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL if program.silent else None,
                env=program.env,
                pass_fds=(report_write, control_read, *program.pass_fds),
                # A session of its own. Ctrl-C and the end of a terminal go to the whole foreground group, and would
                # end workers before they are drained; ignoring SIGINT in them instead would be inherited by every
                # program that a handler starts. It also makes one group of a worker and what its handlers started.
                start_new_session=True,
            )
        except BaseException:
            os.close(report_read)
            os.close(control_write)
            raise
        finally:
            os.close(report_write)
            os.close(control_read)
        os.set_blocking(report_read, False)
        os.set_blocking(control_write, False)
        return cls(name, process, report_read, control_write)

    @property
    def error(self) -> str | None:
        """Why it could not do its work, in its own words."""
        error = self.facts.get("error")
        return error if isinstance(error, str) else None

    def tell(self, command: str, **facts: Any) -> None:
        """Send a command; a child that is gone is no error."""
        if self._control_fd < 0:
            return
        try:
            os.write(self._control_fd, orjson.dumps({"do": command, **facts}) + b"\n")
        except OSError as error:
            _log.debug("%s does not take %r: %s", self.name, command, error)

    def terminate(self) -> None:
        """Ask it to end by SIGTERM, which also ends a program that is still starting and reads no commands."""
        if not self.ended.done():
            # Not the process object's own way: it looks first whether the process has ended, which takes the status, and
            # what is left for the loop to wait for says 255.
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """End it and whatever it started, now. After its end: no effect, for its number may be somebody else's."""
        if self.ended.done():
            return
        # Nobody is left; macOS says it with EPERM when only zombies are.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    async def end_within(self, timeout_s: float) -> bool:
        """Wait for its end, and kill it after `timeout_s`. True if it ended by itself."""
        done, _ = await asyncio.wait((self.ended,), timeout=timeout_s)
        if done:
            return True
        _log.warning("%s (pid %d) has not stopped within %g s: killed", self.name, self.pid, timeout_s)
        self.kill()
        await asyncio.wait((self.ended,))
        return False

    async def _wait(self) -> None:
        status = await self._process.wait()
        # What it reported just before its end is still in the pipe. Waiting for the pipe's end instead could take for
        # ever: a process that a handler forked holds it open.
        self._read_reports()
        self._close()
        self.kill()  # what its handlers have forked must not outlive it
        for future in (self.standby, self.ready):
            if not future.done():
                future.set_result(False)
        self.ended.set_result(status)

    def _close(self) -> None:
        if self._report_fd >= 0:
            self._loop.remove_reader(self._report_fd)
            os.close(self._report_fd)
            os.close(self._control_fd)
            self._report_fd = self._control_fd = -1

    def _read_reports(self) -> None:
        while self._report_fd >= 0:
            try:
                data = os.read(self._report_fd, 65536)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._loop.remove_reader(self._report_fd)
                return
            *lines, self._rest = (self._rest + data).split(b"\n")
            for line in lines:
                self._take_report(line)
            if len(self._rest) > REPORT_LINE_BYTES:
                self._rest = b""

    def _take_report(self, line: bytes) -> None:
        try:
            report = orjson.loads(line)
            state = report["state"]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            _log.warning("%s (pid %d) reported what is no report: %.100r", self.name, self.pid, line)
            return
        if state == "in_hand":
            if self.on_in_hand is not None:
                self.on_in_hand(report["pid"])
            return
        self.facts = report
        if state == "standby" and not self.standby.done():
            self.standby.set_result(True)
        elif state == "ready" and not self.ready.done():
            self.ready_at = self._loop.time()
            self.ready.set_result(True)
        elif state == "handed_over" and not self.handed_over.done():
            self.handed_over.set_result(self.error or "")


def name_end(status: int) -> str:
    """How a process ended, in a word or two for programs: SIGKILL, or exit 3."""
    if status >= 0:
        return f"exit {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"


def describe_status(status: int) -> str:
    """How a process ended, for people."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"
