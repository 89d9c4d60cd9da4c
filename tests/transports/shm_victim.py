"""A broker or a poster that kills itself at one step of writing a frame into shared memory.

python -m tests.transports.shm_victim broker|poster ADDRESS STEP NUMBER: at STEP of its NUMBERth frame.
"""

from __future__ import annotations

import os
import signal
import sys

from eventsh.api import Events
from eventsh.runtime.broker import main as serve
from eventsh.transports import memory

__all__ = ["POSTS", "fill"]

POSTS = 12


def fill(number: int) -> list[object]:
    """Data large enough for the ring."""
    return [number, str(number) * (50_000 // len(str(number)))]


def die_at(step: str, number: int) -> None:
    written = 0

    def look(now: str) -> None:
        nonlocal written
        written += now == "begin"
        if now == step and written == number:
            os.kill(os.getpid(), signal.SIGKILL)

    memory.on_step = look


def post(address: str) -> None:
    with Events(address, broker="never", role="observer") as bus:
        bus.wait_ready(30)
        for number in range(POSTS):
            bus.post("shm", "event", fill(number))
            bus.flush(30)


if __name__ == "__main__":
    role, address, step, number = sys.argv[1:]
    die_at(step, int(number))
    if role == "broker":
        sys.exit(serve(["--address", address, "--linger=none"]))
    post(address)
