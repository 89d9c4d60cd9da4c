"""Handlers for `eventsh serve` that write down what data they got, in a few bytes whatever it was."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import eventsh
from tests.faults.jsons import digest

_journal = os.open(
    Path(os.environ["FAULTS_LEDGER"]) / f"{os.getpid()}.digests", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600
)


@eventsh.on("json")
def note(data: Any, event: str, source: str, pid: int | None) -> None:
    os.write(_journal, json.dumps([event, digest(data)]).encode() + b"\n")
