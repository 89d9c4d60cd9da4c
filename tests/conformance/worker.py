"""A worker of a conformance case as a process of its own. Usage: worker.py FACE ADDRESS OPTIONS

Each line of its input is a call of its Station, `[name, argument, ...]`; each line of its output the answer to one.
Its stderr holds what it logs at WARNING and above. At the end of its input it closes its bus.
"""

from __future__ import annotations

import json
import sys

from eventsh.testing.remote import answer_to
from tests.conformance.harness import Station

station = Station(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
for line in sys.stdin:
    name, *arguments = json.loads(line)
    try:
        answer_to(getattr(station, name)(*arguments))
    except Exception as error:  # noqa: BLE001 - the test is told, whatever it is
        answer_to(error=error)
station.end()
