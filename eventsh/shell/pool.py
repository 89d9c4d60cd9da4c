"""A pool that a shell starts for itself: `eventsh serve` as a process of its own, which ends with the shell.

    python -m eventsh.shell.pool --lifeline-fd FD --address A --workers N [--handlers X]...

The lifeline is a pipe that the shell holds open: its end, by whatever way the shell died, stops the pool in good order.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import IO

import orjson

from eventsh.commands.serve import ServeArguments, serve
from eventsh.commands.status import status
from eventsh.errors import EventError, TransportError
from eventsh.runtime.endpoint import complete_options, find_endpoint
from eventsh.runtime.interpreter import python_command, python_environment

__all__ = ["HostedPool", "main"]

# Handlers may import much.
_READY_TIMEOUT_S = 60.0
_LOOK_EACH_S = 0.03
_STOP_TIMEOUT_S = 15.0


class HostedPool:
    """A pool at `address`. `show_line` gets each line that its workers print, `show_log` what is logged of trouble; each in
    a thread of its own."""

    def __init__(
        self,
        address: str,
        workers: int,
        handlers: Sequence[str],
        show_line: Callable[[str], None],
        show_log: Callable[[str], None],
    ) -> None:
        self.workers = workers
        self.address = address
        self._show_log = show_log
        self._last_trouble = ""
        lifeline, self._held = os.pipe()
        command = [*python_command("eventsh.shell.pool"), f"--lifeline-fd={lifeline}", f"--address={address}"]
        command += [f"--workers={workers}", *(f"--handlers={name}" for name in handlers)]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=(lifeline,),
                env=python_environment(),
                # Ctrl-C is for the shell.
                start_new_session=True,
            )
        except BaseException:
            os.close(self._held)
            raise
        finally:
            os.close(lifeline)
        self._readers = [
            threading.Thread(target=self._read, args=streams, name="eventsh-pool-output", daemon=True)
            for streams in ((self._process.stdout, show_line), (self._process.stderr, self._take_log))
        ]
        for reader in self._readers:
            reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_ready(self) -> None:
        """Wait until every worker is attached. Raises TransportError when it can't start."""
        deadline = time.monotonic() + _READY_TIMEOUT_S
        while not self._is_ready():
            if self._process.poll() is not None:
                self.stop()
                raise TransportError(f"the pool did not start: {self._last_trouble or 'it ended without a word'}")
            if time.monotonic() > deadline:
                self.stop()
                raise TransportError(f"the pool was not ready within {_READY_TIMEOUT_S:g} s")
            time.sleep(_LOOK_EACH_S)

    def _is_ready(self) -> bool:
        try:
            answer = status(self.address, timeout_s=1.0)
        except EventError:
            return False
        # Not somebody else's broker that was there before.
        is_ours: bool = answer["broker"]["supervisor"] == self.pid
        return is_ours and sum(worker["state"] == "attached" for worker in answer["workers"]) >= self.workers

    def _read(self, stream: IO[bytes], take: Callable[[str], None]) -> None:
        with stream:
            for line in stream:
                take(line.decode(errors="backslashreplace").rstrip("\n"))

    def _take_log(self, line: str) -> None:
        """Logged as JSON, or written by whatever a handler does with standard error."""
        try:
            record = orjson.loads(line)
            level, message = record["level"], record["message"]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            level, message = "error", line
        # What goes well is seen anyway.
        if level not in ("debug", "info"):
            self._last_trouble = message
            self._show_log(message)

    def stop(self) -> None:
        """End it and wait for that."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            # The second signal kills its workers at once.
            self._process.send_signal(signal.SIGTERM)
            self._process.wait()
        if self._held >= 0:
            os.close(self._held)
            self._held = -1
        for reader in self._readers:
            reader.join(1.0)


def _stop_with(lifeline: int) -> None:
    while os.read(lifeline, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until the lifeline ends, or a signal comes."""
    parser = argparse.ArgumentParser(prog="python -m eventsh.shell.pool", allow_abbrev=False)
    parser.add_argument("--lifeline-fd", type=int, required=True)
    parser.add_argument("--address", required=True)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--handlers", action="append", default=[])
    known = parser.parse_args(arguments)
    os.set_inheritable(known.lifeline_fd, False)
    threading.Thread(target=_stop_with, args=(known.lifeline_fd,), name="eventsh-lifeline", daemon=True).start()
    try:
        return serve(
            ServeArguments(
                address=find_endpoint(known.address)[1],
                workers=known.workers,
                handlers=tuple(known.handlers),
                options=complete_options(),
                log_format="json",
            ),
            lambda _line: None,
        )
    except EventError as error:
        sys.stderr.write(f"{error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
