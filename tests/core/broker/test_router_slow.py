"""Slow workers: what they hold up, for how long, and what they lose."""

from __future__ import annotations

import pytest

from tests.core.net import (
    TIMEOUT_S,
    Net,
    ack,
    confirmed,
    feed,
    observer,
    post,
    poster,
    ran,
    slot_of,
    slow_pool,
    worker,
    workers,
)


def test_a_full_queue_holds_everybody_and_then_the_poster():
    net, first, second, posting = slow_pool()
    posting.outbox.max_queue_len = 4
    assert feed(net, posting, first, second, 20) == 8
    assert ran(first) == [[1, 2, 3, 4]]
    assert slot_of(net, 1).queue.events == 4
    assert net.router.status(net.now)["broker"]["held"] == 4
    net.handle(second)
    net.run()
    assert ran(first, second) == [[1, 2, 3, 4, 5, 6, 7, 8]] * 2
    assert second.gaps == []


def test_a_slow_worker_is_waited_for_within_its_budget():
    net, first, second, posting = slow_pool()
    feed(net, posting, first, second, 8)
    for _ in range(6):
        net.advance((TIMEOUT_S - 0.5) / 6)
        net.take(second)
        net.complete(second)
        ack(net, second)
        net.run(posting, first)
        ack(net, second)
    net.run()
    assert second.gaps == []
    assert ran(first) == ran(second)


def test_progress_does_not_lengthen_the_time_in_which_a_slow_worker_holds_the_others_up():
    net, first, second, posting = slow_pool()
    feed(net, posting, first, second, 8)
    net.advance(TIMEOUT_S - 1)
    net.take(second)
    net.complete(second)
    ack(net, second)
    net.run(posting, first)
    assert slot_of(net, 1).queue.is_full
    net.advance(0.5)
    assert slot_of(net, 1).state == "attached"
    net.advance(0.5)
    assert slot_of(net, 1).state == "dropping"


def test_the_drop_comes_when_the_budget_ends_and_not_with_the_next_tick():
    net, first, second, posting = slow_pool()
    assert net.router.next_drop_at is None
    net.now += 0.125
    feed(net, posting, first, second, 6)
    assert net.router.next_drop_at == net.now + TIMEOUT_S
    net.now += TIMEOUT_S - 0.001
    net.router.settle(net.now)
    assert slot_of(net, 1).state == "attached"
    net.now += 0.001
    net.router.settle(net.now)
    net.collect()
    assert slot_of(net, 1).state == "dropping"
    assert net.router.next_drop_at is None
    net.run(posting, first)
    assert ran(first) == [[1, 2, 3, 4, 5, 6]]


def catch_up(net, slow):
    """The slow worker handles all that it has, and is given events again."""
    net.run(slow)
    assert slot_of(net, 1).state == "attached"


def test_a_worker_that_is_full_again_before_its_budget_has_refilled_is_dropped_for_what_is_left():
    net, first, second, posting = slow_pool()
    feed(net, posting, first, second, 6)
    net.advance(TIMEOUT_S)
    net.run(posting, first)
    catch_up(net, second)
    net.advance(10)
    feed(net, posting, first, second, 6)
    assert net.router.next_drop_at - net.now == pytest.approx(0.3)
    net.advance(0.5)
    net.run(posting, first)
    assert ran(first) == [list(range(1, 13))]
    catch_up(net, second)
    # At once, but for the dust of the two seconds since: what it missed is told.
    feed(net, posting, first, second, 6)
    assert net.router.next_drop_at is None
    assert slot_of(net, 1).state == "dropping"
    net.run()
    assert [gap["missed"] for gap in second.gaps] == [2, 2, 2]


def test_a_budget_refills_after_a_long_time_with_room():
    net, first, second, posting = slow_pool()
    feed(net, posting, first, second, 6)
    net.advance(TIMEOUT_S)
    net.run(posting, first)
    catch_up(net, second)
    net.now += TIMEOUT_S / 0.03
    feed(net, posting, first, second, 6)
    assert net.router.next_drop_at == pytest.approx(net.now + TIMEOUT_S)


def test_a_stopped_worker_earns_nothing_while_its_queue_is_full():
    net, first, second, posting = slow_pool()
    feed(net, posting, first, second, 6)
    net.advance(TIMEOUT_S)
    net.now += 10_000
    net.run(posting, first)
    catch_up(net, second)
    feed(net, posting, first, second, 6)
    assert slot_of(net, 1).state == "dropping"


@pytest.mark.parametrize(("handler_s", "limit"), [(0.005, 200), (0.01, 20), (0.05, 200)])
def test_beside_a_worker_that_is_slower_than_the_load_the_others_keep_their_rate(handler_s, limit):
    net = Net(max_queue_len=limit)
    fast, slow = workers(net, 2)
    posting = poster(net)
    step_s, each, seconds = 0.01, 6, 20
    began, free_at = net.now, net.now
    first_after = offered = 0
    for turn in range(int((seconds + TIMEOUT_S) / step_s)):
        if turn == int(TIMEOUT_S / step_s):
            first_after, offered = len(ran(fast)[0]), 0
        offered += each
        for _ in range(min(each, posting.outbox.max_queue_len - posting.outbox.queued)):
            posting.outbox.post("app", "e", posting.outbox.number + 1)
        net.now = began + turn * step_s
        if (drop_at := net.router.next_drop_at) is not None and drop_at <= net.now:
            net.router.settle(net.now)
            net.collect()
        net.run(posting, fast)
        net.down(slow.channel)
        while free_at <= net.now and net.take(slow) is not None:
            free_at = max(free_at, net.now - step_s) + handler_s * slow.busy[0].count
            net.complete(slow)
        net.flush(slow)
        net.up(slow.channel)
    kept = (len(ran(fast)[0]) - first_after) / offered
    assert kept >= 0.95, kept
    net.run()
    missed = sum(gap["missed"] for gap in slow.gaps)
    assert missed > 0
    assert len(ran(slow)[0]) + missed == len(ran(fast)[0])


def test_a_drop_that_repeats_is_logged_once_in_a_while():
    net, first, second, posting = slow_pool()
    for _ in range(20):
        feed(net, posting, first, second, 6)
        net.advance(TIMEOUT_S if not net.notices else 0.1)
        net.run(posting, first)
        catch_up(net, second)
    assert len(second.gaps) == 20
    assert len(net.notices) == 2
    net.advance(10)
    feed(net, posting, first, second, 6)
    net.advance(1)
    assert len(net.notices) == 3
    assert "(timeout)" in net.notices[-1]


@pytest.mark.parametrize("leave", [True, False])
def test_a_worker_that_said_goodbye_holds_nobody_up(leave):
    net, first, second, posting = slow_pool()
    feed(net, posting, first, second, 8)
    assert slot_of(net, 1).queue.is_full
    second.session.leave(leave=leave)
    net.flush(second)
    net.up(second.channel)
    net.run(posting, first)
    assert feed(net, posting, first, second, 10) == 10
    assert ran(first) == [list(range(1, 19))]
    if leave:
        return
    net.handle(second)
    net.flush(second)
    net.up(second.channel)
    net.disconnect(second)
    for number in range(19, 29):
        post(net, posting, number)
        net.run(posting, first)
    assert ran(first) == [list(range(1, 29))]
    successor = worker(net, 3, 1)
    net.run()
    # From 5 on, and that its predecessor left.
    missed = sum(gap["missed"] for gap in successor.gaps)
    assert missed + len(ran(successor)[0]) == 28 - 4 + 1


def test_a_worker_that_was_stalled_for_the_timeout_has_held_posters_up_for_long_enough():
    net = Net(max_queue_len=4)
    first, _ = workers(net, 2)
    posting = poster(net)
    post(net, posting, 1)
    net.advance(TIMEOUT_S + 0.5)
    assert slot_of(net, 1).state == "stalled"
    for number in range(2, 20):
        post(net, posting, number)
        net.run(posting, first)
    assert slot_of(net, 1).state == "dropping"
    assert ran(first) == [list(range(1, 20))]


def test_after_the_timeout_the_slow_worker_alone_loses_and_the_others_go_on_at_full_speed():
    net, first, second, posting = slow_pool()
    feed(net, posting, first, second, 6)
    net.advance(TIMEOUT_S + 0.5)
    assert "worker 1 was too slow: its full queue held posters up for 5 s (timeout)" in net.notices[-1]
    net.run(posting, first)
    assert feed(net, posting, first, second, 30) == 30
    assert ran(first) == [list(range(1, 37))]
    assert slot_of(net, 1).state == "dropping"
    net.run()
    assert ran(second) == [[1, 2, 3, 4]]
    assert [gap["missed"] for gap in second.gaps] == [32]
    assert slot_of(net, 1).dropped == 32
    feed(net, posting, first, second, 1)
    net.run()
    assert ran(second) == [[1, 2, 3, 4, 37]]
    assert sum("worker 1" in notice for notice in net.notices) == 2


def test_a_gap_stands_at_its_place_between_events():
    net, first, second, posting = slow_pool()
    feed(net, posting, first, second, 4)
    net.advance(TIMEOUT_S + 0.5)
    feed(net, posting, first, second, 3)
    net.run()
    feed(net, posting, first, second, 1)
    net.run()
    seen = [data if source == "app" else event for source, event, data in second.events if event != "worker_joined"]
    assert seen == [1, 2, 3, 4, "gap", 8]
    (gap,) = second.gaps
    assert gap["last_seq"] - gap["first_seq"] + 1 == gap["missed"] == 3


def test_a_worker_that_receives_nothing_delays_confirmations_for_the_timeout_at_most():
    net = Net()
    first, second = workers(net, 2)
    post(net, first, 1)
    net.run(first)
    net.advance(TIMEOUT_S - 0.5)
    assert confirmed(net, first) == 0
    net.advance(1)
    assert confirmed(net, first) == 1
    assert slot_of(net, 1).state == "stalled"
    assert len(net.notices) == 1
    net.run()
    assert slot_of(net, 1).state == "attached"
    assert ran(second) == [[1]]


def test_a_gap_counts_events_and_not_batches():
    net, first, second, posting = slow_pool(limit=10)
    feed(net, posting, first, second, 10)
    assert slot_of(net, 1).queue.is_full
    net.advance(TIMEOUT_S + 0.5)
    for _ in range(3):
        post(net, posting, *range(7))
        net.run(posting, first)
    net.run()
    assert [gap["missed"] for gap in second.gaps] == [21]


def test_a_worker_that_receives_little_by_little_is_waited_for():
    net = Net()
    first, second = workers(net, 2)
    for number in range(4):
        post(net, first, number)
    net.run(first)
    for _ in range(3):
        net.advance(TIMEOUT_S - 1)
        net.down(second.channel, 1)
        net.flush(second)
        net.up(second.channel)
        assert slot_of(net, 1).state == "attached"
    assert net.notices == []


def test_observers_hold_nobody_and_lose_at_once():
    net = Net(max_queue_len=4)
    first = worker(net, 1)
    net.run()
    watching, posting = observer(net), poster(net)
    for number in range(20):
        post(net, posting, number)
        net.run(posting, first)
    assert ran(first) == [list(range(20))]
    net.run()
    assert ran(watching) == [[0, 1, 2, 3]]
    assert [gap["missed"] for gap in watching.gaps] == [16]


def test_the_queue_of_a_slot_is_over_its_limit_by_one_batch_at_most():
    net = Net(max_queue_len=10)
    first, _ = workers(net, 2)
    posting, other = poster(net), poster(net, 81)
    net.run(first)
    for process in (posting, other):
        post(net, process, *range(9))
    assert slot_of(net, 1).queue.events == 18
    post(net, first, 1)
    assert slot_of(net, 1).queue.events == 18


def test_an_absent_worker_with_a_full_queue_holds_the_others_for_the_timeout_at_most():
    net = Net(max_queue_len=4)
    first, second = workers(net, 2)
    net.run()
    net.disconnect(second)
    posting = poster(net)
    for number in range(8):
        post(net, posting, number)
        net.run(posting, first)
    assert len(ran(first)[0]) == 3
    net.advance(TIMEOUT_S + 0.5)
    net.run(posting, first)
    assert ran(first) == [list(range(8))]


def test_a_lossy_worker_that_dies_leaves_its_queue_and_its_gap_to_its_successor():
    net, first, second, posting = slow_pool()
    feed(net, posting, first, second, 4)
    net.advance(TIMEOUT_S + 0.5)
    feed(net, posting, first, second, 3)
    net.kill(second)
    successor = worker(net, 3, 1)
    net.run()
    assert ran(successor) == [[1, 2, 3, 4]]
    # Three posts, the end of its predecessor and its own arrival.
    assert [gap["missed"] for gap in successor.gaps] == [5]


def test_a_lossy_worker_that_dies_and_has_no_successor_in_time_is_one_gap():
    net, first, second, posting = slow_pool()
    feed(net, posting, first, second, 4)
    net.advance(TIMEOUT_S + 0.5)
    feed(net, posting, first, second, 3)
    net.kill(second)
    net.run()
    net.advance(TIMEOUT_S + 0.5)
    assert slot_of(net, 1).queue.events == 0
    successor = worker(net, 3, 1)
    net.run()
    assert ran(successor) == [[]]
    assert [gap["missed"] for gap in successor.gaps] == [8]
