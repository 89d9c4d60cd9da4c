"""The conformance kit on one transport, as a program: a line of JSON for each test. It needs no checkout.

Usage: python -m eventsh.testing.check SCHEME_OR_ADDRESS. What pytest itself prints is dropped. A test that hangs ends
the program, with the tracebacks of all threads on stderr.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

__all__: list[str] = []

# Read by the tests: pytest can't hand them arguments. They are a file of their own, as pytest must be the one who imports
# the kit: it rewrites what asserts, so that a failure shows values.
TARGET_ENV = "EVENTSH_CHECK_TARGET"
TESTS = str(Path(__file__).with_name("checked.py"))
# Every wait of the kit ends much sooner: what takes longer blocks the loop.
HANG_S = 180.0


class Reporter:
    """Tells each test's outcome as soon as it is known."""

    def __init__(self, descriptor: int) -> None:
        self.out = os.fdopen(descriptor, "w")

    def tell(self, **facts: Any) -> None:
        self.out.write(json.dumps(facts) + "\n")
        self.out.flush()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        faulthandler.dump_traceback_later(HANG_S, exit=True, file=sys.__stderr__ or 2)
        self.tell(test=_name(nodeid), outcome="started")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        # Setting up and taking down are told only where they fail: a test has one outcome.
        if report.when != "call" and report.passed:
            return
        error = report.longreprtext if report.failed else ""
        self.tell(test=_name(report.nodeid), outcome=report.outcome, seconds=round(report.duration, 3), error=error)


def _name(nodeid: str) -> str:
    return nodeid.rpartition("::")[2]


def main() -> int:
    os.environ[TARGET_ENV] = sys.argv[1]
    # The lines go to what was the output; pytest's own words go nowhere.
    reporter = Reporter(os.dup(1))
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)
    arguments = ["-p", "no:cacheprovider", "--import-mode=importlib", "-c", os.devnull, "--rootdir", "/", TESTS]
    return int(pytest.main(arguments, plugins=[reporter]))


if __name__ == "__main__":
    sys.exit(main())
