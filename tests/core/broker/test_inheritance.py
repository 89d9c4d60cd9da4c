"""Unique events across a broker's death: what the old broker gave to one worker, the new one gives to no other."""

from __future__ import annotations

import pytest

from eventsh.core.broker.keys import KeyTable
from eventsh.protocol.frame import Kind, decode_header
from eventsh.protocol.messages import Taken
from tests.core.net import TIMEOUT_S, Net, Process, post_unique, ran, worker


def pool_with_a_unique_event_under_way(*, returns: bool = True) -> tuple[Net, Process, Process, Process]:
    """A poster, the worker that has its unique event but has not said so, and another one; the broker is then replaced.

    `returns`: the handler has returned."""
    net = Net()
    posting = worker(net, 1, 0, take_unique=False)
    first, second = worker(net, 2, 1), worker(net, 3, 2)
    net.run()
    post_unique(net, posting, "u", "key")
    holder = first if first.channel is not None and first.channel.down else second
    other = second if holder is first else first
    assert holder.channel is not None
    net.down(holder.channel)
    assert net.take(holder) is not None
    if returns:
        net.complete(holder)
    assert ran(holder, other) == [["u"], []]
    net.replace_broker()
    return net, posting, holder, other


def test_a_unique_event_that_is_sent_again_waits_for_the_worker_that_has_it():
    net, posting, holder, other = pool_with_a_unique_event_under_way()
    net.attach(posting)
    net.attach(other)
    net.run(posting, other)
    assert ran(other) == [[]]
    assert posting.outbox.queued == 1
    net.attach(holder)
    net.run()
    assert ran(holder, other) == [["u"], []]
    assert posting.outbox.queued == 0


def test_a_repeat_of_a_key_is_ignored_by_the_next_broker_too():
    net, posting, holder, other = pool_with_a_unique_event_under_way()
    for process in (posting, holder, other):
        net.attach(process)
    net.run()
    post_unique(net, posting, "again", "key")
    net.run()
    assert ran(holder, other) == [["u"], []]
    assert net.router.status(net.now)["broker"]["ignored_repeats"] == 1
    assert posting.outbox.queued == 0


def test_a_unique_event_whose_worker_died_with_the_broker_runs_elsewhere_after_the_timeout():
    net, posting, holder, other = pool_with_a_unique_event_under_way()
    net.attach(posting)
    net.attach(other)
    net.run(posting, other)
    assert ran(other) == [[]]
    assert holder.channel is None
    net.advance(TIMEOUT_S + 0.5)
    net.run(posting, other)
    assert ran(other) == [["u"]]
    assert posting.outbox.queued == 0


def tell_and_die(net: Net, posting: Process, holder: Process, other: Process) -> None:
    """The holder says what it has and is assigned the event once more, but ends before it acknowledges that."""
    for process in (posting, other, holder):
        net.attach(process)
    net.flush(holder, ack=False)
    assert holder.channel is not None
    net.up(holder.channel)
    slot = net.kill(holder)
    net.router.end_process(slot, net.now)
    net.collect()
    net.run(posting, other)


def test_a_worker_that_has_an_event_from_the_old_broker_and_dies_after_telling_is_replaced():
    net, posting, holder, other = pool_with_a_unique_event_under_way(returns=False)
    tell_and_die(net, posting, holder, other)
    assert ran(other) == [["u"]]
    assert posting.outbox.queued == 0


def test_a_worker_that_has_told_that_it_has_handled_an_event_and_dies_is_not_replaced():
    net, posting, holder, other = pool_with_a_unique_event_under_way()
    tell_and_die(net, posting, holder, other)
    assert ran(other) == [[]]
    assert posting.outbox.queued == 0
    assert posting.outbox.kept == 0


def test_new_unique_events_wait_until_the_old_brokers_workers_have_told_what_they_have():
    net, posting, holder, other = pool_with_a_unique_event_under_way()
    net.attach(posting)
    net.attach(other)
    net.run(posting, other)
    post_unique(net, posting, "new", "another key")
    net.run(posting, other)
    assert ran(other) == [[]]
    net.attach(holder)
    net.run()
    assert sorted(ran(holder)[0] + ran(other)[0]) == ["new", "u"]


def test_the_first_broker_waits_for_nobody():
    net = Net(slots=3)
    first = worker(net, 1, 0)
    net.run()
    post_unique(net, first, "u", "key")
    net.run()
    assert ran(first) == [["u"]]


def test_what_was_told_and_lost_with_the_connection_is_told_again():
    net, posting, holder, other = pool_with_a_unique_event_under_way()
    net.attach(posting)
    net.attach(other)
    # The welcome has arrived, but what the holder has to tell is lost.
    net.attach(holder)
    net.flush(holder, ack=False)
    net.disconnect(holder)
    net.run(posting, other)
    assert ran(other) == [[]]
    net.attach(holder)
    net.run()
    assert ran(holder, other) == [["u"], []]
    assert posting.outbox.queued == 0


def test_a_worker_that_has_told_is_not_waited_for_after_another_reconnect():
    net, posting, holder, other = pool_with_a_unique_event_under_way()
    for process in (posting, other, holder):
        net.attach(process)
    net.run()
    net.disconnect(holder)
    net.attach(holder)
    assert net.router.slots.is_complete


def is_repeat_after(age_s: float, set_s: float, *, by_first_version: bool = False) -> bool:
    """A unique event, a new broker and a set clock when the event is `age_s` old, and its key once more."""
    net = Net()
    posting, holder = worker(net, 1, 0, take_unique=False), worker(net, 2, 1)
    net.run()
    post_unique(net, posting, "u", "key")
    net.run()
    net.advance(age_s)
    net.clock_set_s = set_s
    net.replace_broker()
    net.attach(posting)
    net.attach(holder)
    net.flush(holder)
    assert holder.channel is not None
    if by_first_version:
        (taken,) = [frame for frame in holder.channel.up if decode_header(frame).kind == Kind.TAKEN]
        place = holder.channel.up.index(taken)
        holder.channel.up[place] = bytes(Taken(Taken.decode(taken).events).encode())
    net.run()
    post_unique(net, posting, "again", "key")
    net.run()
    is_repeat = bool(net.router.status(net.now)["broker"]["ignored_repeats"])
    assert ran(holder) == [["u"] if is_repeat else ["u", "again"]]
    return is_repeat


@pytest.mark.parametrize("set_s", [0, 60, -3600, 31_536_000, -31_536_000])
def test_a_key_stays_taken_for_what_is_left_of_its_time_wherever_the_wall_clock_is_set(set_s):
    assert [is_repeat_after(age_s, set_s) for age_s in (0, 0.95 * TIMEOUT_S, 1.05 * TIMEOUT_S)] == [True, True, False]


def test_a_worker_of_the_first_version_names_no_ages_and_its_stamps_count():
    ages_s = (0.5, 0.9 * TIMEOUT_S, 1.1 * TIMEOUT_S)
    assert [is_repeat_after(age_s, 0, by_first_version=True) for age_s in ages_s] == [True, True, False]


def test_a_key_that_two_workers_name_stays_taken_for_the_longer_time():
    for ages_s in ((4.0, 1.0), (1.0, 4.0)):
        keys = KeyTable(5.0, 10)
        for age_s in ages_s:
            keys.take(b"k", 100.0, age_s=age_s)
        assert keys.is_taken(b"k", 103.9)
        assert not keys.is_taken(b"k", 104.0)
