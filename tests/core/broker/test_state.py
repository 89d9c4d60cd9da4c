"""The records of the broker's state: each state of a slot, and the transitions that the table allows."""

from __future__ import annotations

import pytest

from eventsh.core.broker.state import TRANSITIONS, Absence, InvalidTransition, SlotState
from tests.core.net import TIMEOUT_S, Net, post, post_unique, poster, slot_of, worker


def state_of(net: Net, number: int) -> str:
    """As a user sees it."""
    (row,) = [row for row in net.router.status(net.now)["workers"] if row["worker_id"] == number]
    return str(row["state"])


@pytest.mark.parametrize("state", SlotState)
@pytest.mark.parametrize("target", SlotState)
def test_a_slot_enters_the_states_that_the_table_lists_and_no_other(state, target):
    net = Net(slots=1)
    slot = slot_of(net, 0)
    slot.state = state
    net.advance(1.0)
    before = slot.since
    if target in TRANSITIONS[state]:
        slot.transition(target, net.now)
        assert (slot.state, slot.since) == (target, net.now)
    else:
        with pytest.raises(InvalidTransition, match=f"worker 0 can't go from {state} to {target}"):
            slot.transition(target, net.now)
        assert (slot.state, slot.since) == (state, before)


def test_every_state_has_a_row_and_can_be_left():
    assert set(TRANSITIONS) == set(SlotState)
    assert all(targets for targets in TRANSITIONS.values())


def test_a_slot_that_nobody_took_is_starting_until_it_expires():
    net = Net(slots=1)
    assert state_of(net, 0) == "starting"
    net.advance(TIMEOUT_S + 1)
    assert state_of(net, 0) == "absent"
    assert slot_of(net, 0).absence is Absence.EXPIRED


def test_status_says_since_when_a_worker_is_in_its_state():
    net = Net(slots=1)
    worker(net, 1, 0)
    net.run()
    net.advance(0.5)
    row = net.router.status(net.now)["workers"][0]
    assert (row["state"], row["since_s"]) == ("attached", 0.5)


def test_a_worker_that_receives_nothing_is_stalled_until_it_does():
    net = Net(slots=1)
    first, posting = worker(net, 1, 0), poster(net)
    net.run()
    post(net, posting, "a")
    net.advance(TIMEOUT_S + 1)
    assert state_of(net, 0) == "stalled"
    net.run(first)
    assert state_of(net, 0) == "attached"


def test_a_worker_whose_queue_stays_full_is_dropping_until_it_has_caught_up():
    net = Net(slots=1, max_queue_len=4)
    first, posting = worker(net, 1, 0), poster(net)
    net.run()
    post(net, posting, *range(4))
    net.advance(TIMEOUT_S + 1)
    assert state_of(net, 0) == "dropping"
    net.run(first)
    assert state_of(net, 0) == "attached"


@pytest.mark.parametrize("leave", [False, True])
def test_a_worker_is_draining_after_its_goodbye(leave):
    net = Net(slots=1)
    first = worker(net, 1, 0)
    net.run()
    first.session.leave(leave=leave)
    net.flush(first)
    net.up(first.channel)
    assert state_of(net, 0) == "draining"
    net.disconnect(first)
    if leave:
        assert net.router.slots.workers == {}
    else:
        assert state_of(net, 0) == "absent"
        assert slot_of(net, 0).absence is Absence.VACANT


@pytest.mark.parametrize(("is_stalled", "absence"), [(False, Absence.AWAITED), (True, Absence.LAGGING)])
def test_a_worker_whose_connection_broke_is_awaited_unless_it_was_stalled(is_stalled, absence):
    net = Net(slots=1)
    first, posting = worker(net, 1, 0), poster(net)
    net.run()
    if is_stalled:
        post(net, posting, "a")
        net.advance(TIMEOUT_S + 1)
    net.disconnect(first)
    assert (state_of(net, 0), slot_of(net, 0).absence) == ("absent", absence)
    assert slot_of(net, 0).is_live is not is_stalled
    net.router.end_process(slot_of(net, 0), net.now)
    assert slot_of(net, 0).absence is Absence.VACANT


def test_a_worker_of_an_earlier_broker_is_resyncing_until_it_has_named_its_unique_events():
    net = Net()
    first, posting = worker(net, 1, 0), poster(net)
    net.run()
    post_unique(net, posting, 1, "key")
    net.run()
    net.replace_broker()
    net.attach(first)
    assert state_of(net, 0) == "resyncing"
    net.run()
    assert state_of(net, 0) == "attached"
