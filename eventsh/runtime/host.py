"""Which processes can look each other up by their pids, and what one does that can."""

from __future__ import annotations

import os

__all__ = ["pid_space", "process_state"]


def pid_space() -> str:
    """A name that two processes have in common only if a pid means the same process to both: they run in one boot of one
    machine, and not in two containers. Empty where the system does not tell."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            boot = file.read().strip()
        return f"{boot} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""


def process_state(pid: int) -> str:
    """The letter of the state of a process, as `ps` has it: T where it is stopped, Z where it has ended and nobody has taken
    note. Empty where there is none, or the system does not tell."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            # The state follows the name in parentheses, which may itself hold any character.
            return stat.read().rpartition(b")")[2].split()[0].decode()
    except (OSError, IndexError):
        return ""
