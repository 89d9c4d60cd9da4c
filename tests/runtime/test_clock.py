"""The clock of epochs: it goes on from one process to the next, and each boot and each time namespace has its own."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time

import pytest

from eventsh.core.epochs import EpochOrder
from eventsh.runtime import clock
from eventsh.runtime.clock import new_epoch

PROGRAM = [sys.executable, "-c", "from eventsh.runtime.clock import new_epoch; print(new_epoch())"]
# The clock of its children is a day ahead. Where one is not root that takes a user namespace too.
AHEAD = ["unshare", "--time", "--boottime", "86400", "--fork"]


def _can_shift() -> bool:
    return shutil.which("unshare") is not None and subprocess.run([*AHEAD, "true"], check=False).returncode == 0


def epoch_by(*command: str) -> int:
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def test_epochs_of_one_boot_are_in_the_order_of_their_beginning_in_all_processes():
    before = new_epoch()
    between = epoch_by(*PROGRAM)
    after = new_epoch()
    order = EpochOrder(after)
    assert before < between < after
    assert order.is_later(between, before)
    assert order.is_later(after, between)
    assert not order.is_of_other_boot(before)


@pytest.mark.skipif(not _can_shift(), reason="this system gives us no time namespace")
def test_another_time_namespace_counts_as_another_boot():
    assert EpochOrder(new_epoch()).is_of_other_boot(epoch_by(*AHEAD, *PROGRAM))


def test_the_wall_clock_has_no_part_in_it(monkeypatch):
    monkeypatch.setattr(time, "time_ns", lambda: 0)
    before = new_epoch()
    monkeypatch.setattr(time, "time_ns", lambda: 1 << 60)
    assert 0 < new_epoch() - before < 1 << 30


def test_without_an_identity_each_broker_is_of_its_own_boot(monkeypatch):
    monkeypatch.setattr(clock, "_BOOT_ID", "/nowhere")
    assert len({new_epoch() >> 46 for _ in range(4)}) > 1
