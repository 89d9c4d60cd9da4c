"""What every process that a supervisor starts does first, and its line to that supervisor.

Two pipes: on `--report-fd` the child tells its state, on `--control-fd` it is told what to do. Both carry one JSON
object a line. The end of the control pipe means that the supervisor is gone, by whatever way it died: the kernel
closes the pipe also after `kill -9`. Knows nothing of brokers and workers.

    child -> supervisor   {"state": "ready" | "standby" | "failed" | "handed_over", ...}
    supervisor -> child   {"do": "attach" | "hand_over" | "dump" | "stop"}

A broker has more to report, for it knows which event a worker had in hand, and its supervisor how the worker ended:

    supervisor -> broker  {"do": "ended", "pid": 7, "ended": "SIGKILL", "meant": false}
    broker -> supervisor  {"state": "in_hand", "pid": 7}
"""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import orjson

from eventsh.escape import expressible
from eventsh.runtime.log import LogFormat, configure_logging

if TYPE_CHECKING:
    import argparse
    from asyncio import AbstractEventLoop
    from collections.abc import Callable, Iterator

__all__ = ["EXIT_FAILED", "EXIT_OK", "EXIT_USAGE", "Supervisor", "add_child_arguments", "start_child"]

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2  # argparse's own

# Two texts of this length fit into a pipe (64 KiB) however JSON escapes them: a supervisor that is stopped for a while
# does not block its children.
REPORT_TEXT_CHARS = 3000

# What an orphan may take to drain when its caller sets nothing else.
ORPHAN_GRACE_S = 10.0


def add_child_arguments(parser: argparse.ArgumentParser) -> None:
    """Give `parser` the flags that a supervisor adds for every child."""
    parser.add_argument("--report-fd", type=int, metavar="FD", help="write this process's states there")
    parser.add_argument("--control-fd", type=int, metavar="FD", help="read commands there; stop at its end")
    parser.add_argument("--log-format", choices=("text", "json"), default="text")


def start_child(
    report_fd: int | None = None, control_fd: int | None = None, log_format: LogFormat = "text"
) -> Supervisor:
    """Make this process a child in good order, before it imports anything of the user's. Call it once, first.

    From here on the process ends when its supervisor does. With no descriptors (started by hand) only the signals
    and the logging are set up.
    """
    # A signal that the supervisor had blocked or ignored while it started us would stay so for ever, here and in
    # everything that handlers start. SIGPIPE is left as Python sets it.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    configure_logging(log_format)
    for descriptor in (report_fd, control_fd):
        if descriptor is not None:
            # It was made inheritable to get here; programs that handlers start must not hold it.
            os.set_inheritable(descriptor, False)
    return Supervisor(report_fd, control_fd)


class Supervisor:
    """The supervisor as its child sees it: somebody to report to, who gives commands and can die."""

    def __init__(self, report_fd: int | None, control_fd: int | None) -> None:
        self._report_fd = report_fd
        self._lock = threading.Lock()
        self._early: list[tuple[str, dict[str, Any]]] = []
        self._deliver: Callable[[str, dict[str, Any]], None] | None = None
        self._grace_s = ORPHAN_GRACE_S
        if control_fd is not None:
            # A thread, not the loop: there is no loop yet while handlers are imported, and a handler that blocks the
            # loop for ever must not keep an orphan alive.
            threading.Thread(target=self._read, args=(control_fd,), name="eventsh-lifeline", daemon=True).start()

    def report(self, state: str, **facts: Any) -> None:
        """Tell the supervisor that this process is now `state`. A supervisor that is gone is no error."""
        if self._report_fd is None:
            return
        texts = {name: _shortened(value) for name, value in facts.items()}
        # Nobody may read any more; the end of the control pipe says so too.
        with suppress(OSError):
            os.write(self._report_fd, orjson.dumps({"state": state, **texts}) + b"\n")

    def fail(self, error: str, **facts: Any) -> int:
        """Report that this process can't do its work, and why in one line. Gives the exit status to end with."""
        self.report("failed", error=error, **facts)
        return EXIT_FAILED

    def follow(
        self, loop: AbstractEventLoop, on_command: Callable[..., object], *, grace_s: float = ORPHAN_GRACE_S
    ) -> None:
        """Have `on_command` called in `loop` for each command, with its facts by name, those included that came before this call.

        SIGTERM, SIGINT and the death of the supervisor arrive as "stop" too. After that death the process has
        `grace_s` seconds to end by itself, then it is ended.
        """

        def deliver(command: str, facts: dict[str, Any]) -> None:
            # A closed loop: the process is ending already.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(partial(on_command, command, **facts))

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, on_command, "stop")
        with self._lock:
            self._grace_s = grace_s
            self._deliver = deliver
            for command, facts in self._early:
                deliver(command, facts)
            self._early.clear()

    def _read(self, control_fd: int) -> None:
        for command, facts in _commands(control_fd):
            self._take(command, facts)
        # Before `follow` nothing is attached and nothing can be lost: end now, in the middle of an import if need be.
        with self._lock:
            following = self._deliver is not None
        if following:
            self._take("stop", {})
            threading.Event().wait(self._grace_s)
        os._exit(EXIT_FAILED)

    def _take(self, command: str, facts: dict[str, Any]) -> None:
        with self._lock:
            # Delivered under the lock, so that no command overtakes one that came before `follow`.
            if self._deliver is None:
                self._early.append((command, facts))
            else:
                self._deliver(command, facts)


def _commands(control_fd: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every command, until the other end is closed. A line that is no command is passed over."""
    rest = b""
    while True:
        try:
            data = os.read(control_fd, 4096)
        except OSError:
            return
        if not data:
            return
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            try:
                facts = orjson.loads(line)
                command = facts.pop("do")
            except (orjson.JSONDecodeError, AttributeError, KeyError, TypeError):
                continue
            if isinstance(command, str):
                yield command, facts


def _shortened(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = expressible(value)
    return text if len(text) <= REPORT_TEXT_CHARS else text[: REPORT_TEXT_CHARS - 3] + "..."
