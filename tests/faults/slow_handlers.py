"""As handlers.py, but worker 1 sleeps for each event as long as the file "slow" of the ledger's directory says, while it exists."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import eventsh
from tests.faults.ledger import Journal

_directory = os.environ["FAULTS_LEDGER"]
_slow = str(Path(_directory) / "slow")
_journal = Journal(_directory)
_pace: dict[str, float] = {}


def load(data: Any, event: str, source: str, pid: int | None) -> None:
    if _pace and os.path.exists(_slow):
        if not _pace["s"]:
            _pace["s"] = float(Path(_slow).read_text())
        time.sleep(_pace["s"])
    _journal.load(data, event, source, pid)


def life(data: Any, event: str, source: str, pid: int | None) -> None:
    if event == "started" and data["worker_id"] == 1:
        _pace["s"] = 0.0
    _journal.life(data, event, source, pid)


eventsh.register(load, "load")
eventsh.register(life, "eventsh")
