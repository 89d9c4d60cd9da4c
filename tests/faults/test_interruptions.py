from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from tests.faults.interruptions import WAYS, interrupt_posts


@pytest.mark.parametrize("by", WAYS)
def test_a_thread_that_is_interrupted_while_it_posts_loses_nothing(by):
    # Not tmp_path: a socket's path has to be short.
    with tempfile.TemporaryDirectory(prefix="evsh-", dir="/tmp", ignore_cleanup_errors=True) as directory:
        done = interrupt_posts(50_000, 100, by, Path(directory), timeout_s=150)
    assert done.interruptions >= 100
    assert done.posts >= 49_000
    assert (done.lost, done.twice, done.out_of_order) == (0, 0, 0)
