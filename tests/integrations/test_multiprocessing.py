"""A plain pool of multiprocessing, whose initializer configures each worker."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integrations.servers import ROOT


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_of_a_pool_take_part_also_a_killed_ones_successor_and_lose_nothing_at_their_end(
    method: str, directory: Path
):
    addresses = [f"unix:{directory}/{name}.sock" for name in ("first", "second")]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.integrations.pool_program", method, *addresses],
        env={**os.environ, "PYTHONPATH": str(ROOT), "JOURNAL": str(directory / "journal")},
        capture_output=True,
        timeout=50,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    facts = json.loads(done.stdout)
    assert facts["are_workers"]
    assert len(facts["once"]) == 1
    assert len(set(facts["second"]) - set(facts["first"])) == 1
    assert facts["at their end"] == [True, True]
