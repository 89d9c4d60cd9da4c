"""Row 19 of FAULTS.md, briefly. The long form is `python -m tests.faults --row 19 --kills 15000`."""

from __future__ import annotations

import pytest

from tests.faults.campaign import directory
from tests.faults.heavy import MIB, abuse, hang_workers, take_keys


@pytest.mark.parametrize("hung", [1, 3])
def test_workers_that_hang_under_large_events_cost_the_broker_no_more_than_its_limit(hung):
    # So much that a bound in events, or one for each worker, shows beside the slack.
    with directory() as path:
        found = hang_workers(path, print, hung=hung, max_queue_bytes=32 * MIB)
    assert not found.faults, str(found)
    assert found.grew_bytes["1 hung"] > 16 * MIB


def test_long_unique_keys_cost_the_broker_their_digests():
    with directory() as path:
        found = take_keys(path, keys=1000)
    assert not found.faults, str(found)


def test_clients_that_keep_to_no_limit_are_bounded_by_the_broker():
    with directory() as path:
        found = abuse(path, clients=4)
    assert not found.faults, str(found)
