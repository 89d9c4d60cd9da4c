"""Processes with pids of their own, as in a container."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

__all__ = ["CONTAINER", "needs_container"]

# What stands before a command. Where one is not root it takes a user namespace too.
CONTAINER = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", *([] if os.geteuid() == 0 else ["-Ur"])]


def _can_contain() -> bool:
    return shutil.which("unshare") is not None and subprocess.run([*CONTAINER, "true"], check=False).returncode == 0


needs_container = pytest.mark.skipif(not _can_contain(), reason="this system gives us no pid namespace")
