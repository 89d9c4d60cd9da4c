"""Handlers for `eventsh serve`: they write what they get to the ledger in the directory $FAULTS_LEDGER."""

from __future__ import annotations

import os

import eventsh
from tests.faults.ledger import Journal

_journal = Journal(os.environ["FAULTS_LEDGER"])
eventsh.register(_journal.load, "load")
eventsh.register(_journal.life, "eventsh")
