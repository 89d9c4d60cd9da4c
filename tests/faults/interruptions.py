"""Row 15: exceptions raised in the thread that posts, by a signal handler or as a time limit set on the thread."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.faults.processes import environment

PROGRAM = Path(__file__).with_name("interrupted_poster.py")
WAYS = ("signal", "thread")


@dataclass(frozen=True, slots=True)
class Interruptions:
    """What became of the posts of one program."""

    by: str
    posts: int
    interruptions: int
    lost: int
    twice: int
    out_of_order: int

    @property
    def faults(self) -> int:
        return self.lost + self.twice + self.out_of_order


def interrupt_posts(posts: int, interruptions: int, by: str, directory: Path, timeout_s: float) -> Interruptions:
    """Run the program until it has posted and was interrupted at least so often."""
    done = subprocess.run(
        [sys.executable, str(PROGRAM), f"unix:{directory}/i.sock", str(posts), str(interruptions), by],
        env=environment(directory),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    if done.returncode:
        raise AssertionError(f"the program ended with {done.returncode}: {done.stderr}")
    return Interruptions(by, **json.loads(done.stdout))
