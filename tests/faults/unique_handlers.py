"""Handlers for `eventsh serve`: they write when each unique event begins and ends to the ledger in $FAULTS_LEDGER."""

from __future__ import annotations

import os
import threading
from typing import Any

import eventsh
from tests.faults.ledger import Journal, Kind

_journal = Journal(os.environ["FAULTS_LEDGER"])


@eventsh.on("load", "unique")
def run(data: Any, event: str, source: str, pid: int | None) -> None:
    poster, number, takes_s = data
    _journal.write(Kind.UNIQUE, poster, number)
    if takes_s:
        threading.Event().wait(takes_s)
    _journal.write(Kind.UNIQUE_ENDED, poster, number)
