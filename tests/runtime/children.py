"""A child that a test's pool runs in place of brokers and workers. It does what its behaviour file says.

Usage: children.py NAME DIRECTORY. What it does is appended to DIRECTORY/journal, one `NAME PID WHAT` a line.
DIRECTORY/NAME.behaviour holds words, read at each start:
    fail        report a failure and exit 1, as for handlers that can't be imported
    die         exit 3 before any report
    hang        never report anything and ignore SIGTERM
    stubborn    become ready, then ignore every request to stop
    fork        leave a process of its own behind
    brief       be ready, then exit 0 at once
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from eventsh.runtime.child import add_child_arguments, start_child

parser = argparse.ArgumentParser()
parser.add_argument("name")
parser.add_argument("directory", type=Path)
parser.add_argument("--standby", action="store_true")
add_child_arguments(parser)
arguments = parser.parse_args()
behaviour_file = arguments.directory / f"{arguments.name}.behaviour"
behaviour = behaviour_file.read_text().split() if behaviour_file.exists() else []


def note(what: str, pid: int | None = None) -> None:
    with (arguments.directory / "journal").open("a") as journal:
        journal.write(f"{arguments.name} {pid or os.getpid()} {what}\n")


async def live() -> None:
    commands: asyncio.Queue[str] = asyncio.Queue()

    def take(command: str, **facts: Any) -> None:
        # A broker hears of the end of each worker too.
        if command != "ended":
            commands.put_nowait(command)

    supervisor.follow(asyncio.get_running_loop(), take, grace_s=3.0)
    if arguments.standby:
        # Noted first, as in all that follows: what the supervisor does at a report must not overtake the journal.
        note("standby")
        supervisor.report("standby")
        if await commands.get() != "attach":
            return
    if "fork" in behaviour:
        forked = os.fork()
        if not forked:
            time.sleep(600)
            os._exit(0)
        note("forked", forked)
    note("ready")
    supervisor.report("ready", pid=os.getpid())
    if "brief" in behaviour:
        return
    while True:
        command = await commands.get()
        note(command)
        if "stubborn" not in behaviour:
            return


supervisor = start_child(arguments.report_fd, arguments.control_fd, arguments.log_format)
note("started")
if "fail" in behaviour:
    sys.exit(supervisor.fail("handlers.py:3: no good", detail="Traceback\n  handlers.py"))
if "die" in behaviour:
    sys.exit(3)
if "hang" in behaviour:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    note("hanging")
    time.sleep(600)
asyncio.run(live())
note("ended")
