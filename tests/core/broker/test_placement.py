"""Which worker gets a unique event when it is ordered."""

from __future__ import annotations

from tests.core.net import Net, post_unique, poster, ran, worker, workers


def begin_one(net, process):
    """The process receives what is under way, and its handler of the first event runs."""
    net.down(process.channel)
    net.flush(process)
    net.up(process.channel)
    assert net.take(process) is not None


def busy_pool(count=4, seconds=1.0):
    """Workers of which the first has run the handler of one unique event for so long, and a poster."""
    net = Net()
    everybody = workers(net, count)
    posting = poster(net)
    post_unique(net, posting, "long", "long")
    (busy,) = [process for process in everybody if process.channel.down]
    begin_one(net, busy)
    net.advance(seconds, step=0.01)
    others = [process for process in everybody if process is not busy]
    return net, busy, others, posting


def test_a_worker_that_has_run_a_handler_for_a_second_gets_none_of_sixteen_events_at_once():
    net, busy, others, posting = busy_pool()
    for number in range(16):
        post_unique(net, posting, number, f"key {number}")
    net.run(posting, *others)
    assert ran(busy) == [["long"]]
    assert sorted(len(data) for data in ran(*others)) == [5, 5, 6]


def test_a_worker_whose_oldest_event_is_young_counts_by_its_unhandled_events():
    net, busy, others, posting = busy_pool(seconds=0.04)
    for number in range(7):
        post_unique(net, posting, number, f"key {number}")
    # One was there before, and each has two now.
    net.down(busy.channel)
    net.run(posting, *others)
    net.run(busy)
    assert sorted(len(data) for data in ran(busy, *others)) == [2, 2, 2, 2]


def test_it_is_the_oldest_event_that_counts_not_the_last_one_that_was_enqueued():
    net, busy, others, posting = busy_pool()
    posting.outbox.post("app", "e", "to all")
    net.flush(posting)
    net.up(posting.channel)
    net.run(posting, *others)
    post_unique(net, posting, "u", "key")
    net.run(posting, *others)
    net.down(busy.channel)
    net.flush(busy)
    assert sum("u" in data for data in ran(*others)) == 1


def test_it_counts_again_like_the_others_once_the_oldest_event_is_handled():
    net, busy, _others, posting = busy_pool()
    net.complete(busy)
    net.run()
    for number in range(4):
        post_unique(net, posting, number, f"key {number}")
    net.run()
    # It was assigned one more than each of the others before.
    assert len(ran(busy)[0]) == 2


def test_of_busy_workers_alone_the_one_with_the_fewest_unhandled_events_is_chosen():
    net = Net()
    first, second = workers(net, 2)
    posting = poster(net)
    for number in range(3):
        post_unique(net, posting, number, f"key {number}")
    net.advance(1.0)
    post_unique(net, posting, "last", "last")
    net.run()
    assert sorted(len(data) for data in ran(first, second)) == [2, 2]


def test_a_successor_with_old_events_comes_after_the_others_until_it_has_handled_them():
    net, busy, others, posting = busy_pool(count=2)
    posting.outbox.post("app", "e", "to all")
    net.flush(posting)
    net.up(posting.channel)
    net.run(posting, *others)
    net.advance(1.0)
    slot = net.kill(busy)
    net.router.end_process(slot, net.now)
    net.collect()
    net.run(posting, *others)
    successor = worker(net, 50, slot.worker_id)
    for number in range(3):
        post_unique(net, posting, number, f"key {number}")
    net.run(posting, *others)
    assert len(ran(*others)[0]) == 5
    net.run()
    for number in range(3):
        post_unique(net, posting, number, f"more {number}")
    net.run()
    assert 1 <= sum(isinstance(value, int) for value in ran(successor)[0]) <= 3


def test_an_event_stays_where_it_was_assigned_when_its_worker_becomes_busy():
    net = Net()
    first, second = workers(net, 2)
    posting = poster(net)
    for number in range(2):
        post_unique(net, posting, number, f"key {number}")
    begin_one(net, first)
    net.advance(3.0)
    net.run(posting, second)
    assert len(ran(second)[0]) == 1
