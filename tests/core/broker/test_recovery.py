"""What a killed broker had queued for one who was left behind: the next one tells it how much that was."""

from __future__ import annotations

import pytest

from eventsh.core.epochs import encode_epoch
from eventsh.protocol.frame import Kind
from eventsh.protocol.messages import Ask
from tests.core.net import (
    TIMEOUT_S,
    Net,
    Process,
    ack,
    confirmed,
    feed,
    headers,
    observer,
    post,
    post_unique,
    poster,
    ran,
    slot_of,
    slow_pool,
    worker,
    workers,
)


def missed(process):
    return [gap["missed"] for gap in process.gaps]


def stalled(net, *others):
    """The first slot's worker handles and posts, the second's takes nothing any more, and nobody waits for it."""
    first, second = workers(net, 2)
    net.run(*others)
    post(net, first, 1, 2)
    net.run(first, *others)
    net.advance(TIMEOUT_S + 1)
    assert slot_of(net, 1).state == "stalled"
    return first, second


def begin_anew(net, *processes, epoch=None):
    """The broker is killed, and these come to the next one."""
    net.replace_broker(epoch)
    for process in processes:
        net.attach(process)
    net.run()


def test_a_stalled_worker_is_told_what_was_confirmed_without_it():
    net = Net()
    first, second = stalled(net)
    post(net, first, 3)
    net.run(first)
    assert confirmed(net, first) == 3
    net.replace_broker()
    net.attach(first)
    net.attach(second)
    post(net, first, 4)
    net.run()
    assert ran(first, second) == [[1, 2, 3, 4], [4]]
    assert (missed(first), missed(second)) == ([], [3])
    assert second.gaps[0]["epoch"] == 1
    assert "was killed" in second.gaps[0]["reason"]


def test_it_is_told_once_whatever_brokers_follow_and_whoever_comes_first():
    net = Net()
    first, second = stalled(net)
    net.run(first)
    for order in ((second, first), (first, second), (second, first)):
        begin_anew(net, *order)
    assert missed(second) == [2]
    assert missed(first) == []


def test_what_it_had_received_before_and_what_is_sent_again_is_not_counted():
    net = Net()
    first, second = workers(net, 2)
    post(net, first, "both")
    net.run()
    post(net, first, "received")
    net.down(second.channel)
    post(net, first, "missed")
    net.run(first)
    net.advance(TIMEOUT_S + 1)
    net.run(first)
    # Confirmed, but the word of it is lost with the broker and one more never came to it.
    first.outbox.post("app", "e", "again")
    begin_anew(net, first, second)
    assert ran(second) == [["both", "received", "again"]]
    assert missed(second) == [1]


def test_a_worker_that_was_losing_is_told_all_of_it():
    net, first, second, posting = slow_pool()
    feed(net, posting, first, second, 4)
    net.advance(TIMEOUT_S + 0.5)
    feed(net, posting, first, second, 7)
    assert slot_of(net, 1).state == "dropping"
    begin_anew(net, posting, first, second)
    assert ran(first, second) == [list(range(1, 12)), [1, 2, 3, 4]]
    assert missed(second) == [7]
    assert slot_of(net, 1).dropped == 7


def test_unique_events_are_not_counted_and_neither_are_the_brokers_own():
    net = Net()
    first, second = workers(net, 2)
    third = worker(net, 3)
    net.run()
    post(net, first, 1)
    net.run(first, third)
    net.advance(TIMEOUT_S + 1)
    for number in range(5):
        post_unique(net, first, number, f"key {number}")
    net.disconnect(third)
    net.attach(third)
    net.run(first, third)
    assert confirmed(net, first) == 6
    begin_anew(net, first, second, third)
    assert missed(second) == [1]
    assert missed(first) == missed(third) == []


def test_a_poster_that_is_no_worker_knows_of_it_too():
    net = Net()
    (only,) = workers(net, 1)
    posting = poster(net)
    post(net, posting, 1, 2)
    net.run(posting)
    net.advance(TIMEOUT_S + 1)
    net.run(posting)
    assert posting.outbox.queued == 0
    begin_anew(net, posting, only)
    assert (ran(only), missed(only)) == ([[]], [2])


def test_the_other_workers_know_of_it_where_the_poster_is_gone():
    net = Net()
    first, second = workers(net, 2)
    posting = poster(net)
    post(net, posting, 1)
    net.run(posting, first)
    net.advance(TIMEOUT_S + 1)
    # From now on nobody waits for the second, and each confirmation is told to all.
    post(net, posting, 2)
    net.run(posting, first)
    assert posting.outbox.queued == 0
    net.kill(posting)
    begin_anew(net, first, second)
    assert missed(second) == [2]


def test_whoever_comes_while_one_is_left_behind_knows_of_it_too():
    net = Net()
    first, second = stalled(net)
    net.run(first)
    watching = observer(net)
    for process in (first, watching):
        net.kill(process)
    begin_anew(net, watching, second)
    assert missed(second) == [2]
    assert watching.gaps == []


def test_nobody_is_told_of_confirmations_of_others_while_all_workers_keep_up():
    net = Net()
    first, second = workers(net, 2)
    post(net, first, 1)
    ack(net, first)
    ack(net, second)
    assert headers(second.channel.down, Kind.CONFIRM) == []
    assert [header.seq for header in headers(first.channel.down, Kind.CONFIRM)] == [1]


def test_a_worker_that_is_stopped_for_several_brokers_is_told_of_each():
    net = Net()
    first, second = stalled(net)
    net.run(first)
    net.replace_broker()
    net.attach(first)
    post(net, first, "a", "b", "c")
    net.run(first)
    net.advance(TIMEOUT_S + 1)
    net.run(first)
    assert first.outbox.queued == 0
    net.replace_broker()
    net.attach(first)
    net.attach(second)
    post(net, first, "end")
    net.run()
    assert ran(second) == [["end"]]
    assert [(gap["epoch"], gap["missed"]) for gap in second.gaps] == [(1, 2), (2, 3)]
    assert missed(first) == []


@pytest.mark.parametrize("arrived", [0, 1])
def test_a_worker_whose_connection_breaks_before_it_was_told_is_told_once(arrived):
    net = Net()
    first, second = stalled(net)
    net.run(first)
    begin_anew(net, first)
    post(net, first, "a", "b", "c")
    net.run(first)
    net.advance(TIMEOUT_S + 1)
    net.run(first)
    assert first.outbox.queued == 0
    begin_anew(net, first)
    channel = net.connect(second)
    net.up(channel)
    # Nothing of what the broker says, or no more than the welcome.
    net.down(channel, arrived)
    net.disconnect(second)
    net.attach(second)
    net.run()
    assert [(gap["epoch"], gap["missed"]) for gap in second.gaps] == [(1, 2), (2, 3)]
    assert slot_of(net, 1).dropped == 5


def test_what_passed_at_the_new_broker_before_it_came_is_told_beside_it():
    net = Net()
    first, second = stalled(net)
    net.run(first)
    net.replace_broker()
    net.attach(first)
    net.run(first)
    net.advance(TIMEOUT_S + 1)
    post(net, first, "passed")
    net.run(first)
    net.attach(second)
    post(net, first, "end")
    net.run()
    assert ran(second) == [["end"]]
    assert [gap["epoch"] for gap in second.gaps] == [2, 1]
    # The first worker's arrival passed by too.
    assert missed(second) == [2, 2]


def test_a_worker_of_whom_nobody_had_told_a_new_broker_is_told_what_passed_before_it_came():
    net = Net()
    (first,) = workers(net, 1)
    net.replace_broker()
    posting = poster(net)
    post(net, posting, 1, 2)
    net.advance(TIMEOUT_S + 0.5)
    net.attach(first)
    net.run()
    assert (ran(first), missed(first)) == ([[]], [2])
    post(net, posting, 3)
    net.run()
    assert posting.outbox.queued == 0
    begin_anew(net, posting, first)
    assert (ran(first), missed(first)) == ([[3]], [2])


# --- a worker that is being restarted ---


@pytest.mark.parametrize("is_first", [True, False])
def test_a_process_that_takes_the_place_of_one_that_died_is_told_what_was_queued_for_it(is_first):
    net = Net(slots=2)
    first, second = workers(net, 2)
    post(net, first, "handled")
    net.run()
    post(net, first, "received")
    ack(net, second)
    net.router.end_process(net.kill(second), net.now)
    post(net, first, "absent", "absent too")
    net.run(first)
    assert confirmed(net, first) == 4
    net.replace_broker()
    successor = Process(3, worker_id=1)
    for process in (successor, first) if is_first else (first, successor):
        net.attach(process)
    post(net, first, "end")
    net.run()
    assert ran(second, successor) == [["handled"], ["end"]]
    assert (missed(successor), missed(first)) == ([3], [])
    assert successor.gaps[0]["epoch"] == 1


def test_a_slot_that_was_taken_again_in_time_is_owed_what_its_last_process_had_not_handled():
    net = Net()
    first, second = workers(net, 2)
    posting = poster(net)
    net.router.end_process(net.kill(second), net.now)
    post(net, first, 1)
    successor = worker(net, 3, 1)
    net.run()
    assert ran(successor) == [[1]]
    post(net, first, 2)
    ack(net, successor)
    net.kill(successor)
    net.run(first)
    net.router.end_process(slot_of(net, 1), net.now)
    net.run(first)
    third = Process(4, worker_id=1)
    begin_anew(net, posting, first, third)
    assert missed(third) == [1]
    assert missed(first) == []


def test_a_process_whose_predecessor_ended_unseen_is_told_that_nobody_knows_what_it_missed():
    net = Net()
    first, second = workers(net, 2)
    posting = poster(net)
    post(net, first, 1)
    ack(net, second)
    net.run(first)
    net.replace_broker()
    third = Process(3, worker_id=1)
    for process in (posting, third, first):
        net.attach(process)
    net.run()
    (gap,) = third.gaps
    assert (gap["missed"], gap["exact"], gap["epoch"]) == (0, False, 1)
    assert "an unknown number of events" in net.notices[-1]
    # Told once, and nothing is made of it later.
    net.router.end_process(net.kill(third), net.now)
    fourth = worker(net, 4, 1)
    net.run()
    begin_anew(net, first, fourth)
    assert missed(fourth) == missed(first) == []


def test_a_process_in_a_slot_that_nobody_held_before_is_told_nothing():
    net = Net(slots=2)
    (first,) = workers(net, 1)
    net.replace_broker()
    net.attach(first)
    second = worker(net, 2, 1)
    net.run()
    assert second.gaps == []


def test_what_came_after_the_goodbye_of_a_worker_that_makes_room_is_told_to_its_successor():
    net = Net()
    first, second = workers(net, 2)
    post(net, first, "its last")
    second.session.leave(leave=False)
    net.flush(second)
    net.up(second.channel)
    post(net, first, "for the next")
    net.run(first)
    assert confirmed(net, first) == 2
    net.replace_broker()
    net.attach(first)
    successor = worker(net, 3, 1)
    net.run()
    assert missed(successor) == [1]


def test_whoever_comes_after_a_slot_became_vacant_is_told_so_and_when_it_no_longer_is():
    net = Net()
    first, second = workers(net, 2)
    post(net, first, 1)
    net.run()
    net.disconnect(second)
    asked = [message.arguments for message in observer(net).messages if isinstance(message, Ask)]
    assert asked == [{"worker_id": 1, "posts": 1}]
    net.attach(second)
    late = poster(net)
    assert not [message for message in late.messages if isinstance(message, Ask)]


def test_a_process_that_asks_for_any_place_is_owed_nothing():
    net = Net()
    first, second = workers(net, 2)
    net.router.end_process(net.kill(second), net.now)
    post(net, first, 1)
    net.run(first)
    net.replace_broker()
    net.attach(first)
    net.advance(TIMEOUT_S + 1)
    newcomer = worker(net, 3)
    net.run()
    assert newcomer.session.worker_id == 1
    assert missed(newcomer) == []


def test_a_worker_that_dies_before_it_was_told_leaves_that_to_its_successor():
    net = Net()
    first, second = stalled(net)
    net.run(first)
    net.replace_broker()
    net.attach(second)
    net.kill(second)
    net.attach(first)
    successor = worker(net, 3, 1)
    net.run()
    assert missed(successor) == [2]


def test_a_notice_that_was_dropped_with_its_queue_is_told_later():
    net = Net()
    first, second = stalled(net)
    net.run(first)
    net.replace_broker()
    net.attach(first)
    net.attach(second)
    net.kill(second)
    net.run()
    net.advance(TIMEOUT_S + 1)
    successor = worker(net, 3, 1)
    net.run()
    assert [gap["missed"] for gap in successor.gaps if gap["epoch"] == 1] == [2]


def test_a_worker_whose_broker_is_killed_before_it_told_of_a_gap_can_attach_to_the_next():
    net = Net(slots=2)
    worker(net, 1, 0)
    net.advance(TIMEOUT_S + 1)
    second = Process(2, worker_id=1)
    channel = net.connect(second)
    net.up(channel)
    # The welcome alone; what it missed is an event of eventsh's own, and so more than all posts.
    net.down(channel, 1)
    begin_anew(net, second)
    assert second.is_attached


@pytest.mark.parametrize("is_late", [True, False])
def test_what_a_slot_was_owed_is_not_owed_again_once_somebody_came_for_it(is_late):
    net = Net()
    first, second = workers(net, 2)
    post(net, first, "handled")
    net.run()
    net.kill(second)
    post(net, first, "missed")
    net.run(first)
    net.replace_broker()
    # Whoever comes late never sees the other one join.
    third = Process(3, worker_id=1)
    for process in (third, first) if is_late else (first, third):
        net.attach(process)
    post(net, first, 3, 4, 5)
    net.run()
    assert ran(third)[0][-3:] == [3, 4, 5]
    # It is killed together with its broker.
    fourth = Process(4, worker_id=1)
    begin_anew(net, first, fourth)
    assert [(gap["missed"], gap["exact"]) for gap in fourth.gaps] == [(0, False)]


# --- clocks, and hosts that were restarted ---

SECOND_NS = 1_000_000_000
# Three boots of one host. By their numbers, the epochs of boot B are the smallest ones and those of boot C the largest.
BOOTS = {
    name: (lambda at_s, name=name: encode_epoch(name, at_s * SECOND_NS)) for name in (b"boot A", b"boot B", b"boot C")
}
BOOT_B, BOOT_A, BOOT_C = sorted(BOOTS.values(), key=lambda boot: boot(1))


def told(process):
    return [(gap["epoch"], gap["missed"], gap["exact"]) for gap in process.gaps]


def two_brokers_of_which_one_was_missed(net, epoch):
    """The second worker takes nothing, and is away for all of the broker `epoch`. Each broker confirmed posts without it."""
    first, second = stalled(net)
    net.run(first)
    net.replace_broker(epoch)
    net.attach(first)
    post(net, first, "a", "b", "c")
    net.run(first)
    net.advance(TIMEOUT_S + 1)
    net.run(first)
    assert first.outbox.queued == 0
    return first, second


@pytest.mark.parametrize(("boot", "other"), [(BOOT_A, BOOT_B), (BOOT_B, BOOT_C), (BOOT_C, BOOT_A)])
@pytest.mark.parametrize("is_first", [True, False])
def test_after_a_restart_of_the_host_a_worker_gets_gaps_that_are_not_exact_for_the_boot_before(boot, other, is_first):
    net = Net(epoch=boot(900))
    first, second = two_brokers_of_which_one_was_missed(net, other(20))
    begin_anew(net, *((first, second) if is_first else (second, first)), epoch=other(30))
    # What it missed of the present boot is as exact as ever.
    of_before = [(missed, exact) for epoch, missed, exact in told(second) if epoch == boot(900)]
    assert of_before == ([(2, False)] if is_first else [(0, False), (2, False)])
    assert [gap for gap in told(second) if gap[0] != boot(900)] == [(other(20), 3, True)]
    assert "was restarted" in second.gaps[0]["reason"]
    # The first worker may have missed something too that only clients on the host knew of.
    assert told(first) == [(boot(900), 0, False)]
    # Once each.
    for at_s, order in ((40, (second, first)), (50, (first, second))):
        begin_anew(net, *order, epoch=other(at_s))
    assert (len(first.gaps), len(second.gaps)) == (1, 2 if is_first else 3)


def test_a_gap_of_a_boot_before_that_is_lost_with_its_broker_is_sent_by_the_next():
    net = Net(epoch=BOOT_C(900))
    first, second = stalled(net)
    net.run(first)
    net.replace_broker(BOOT_A(1))
    channel = net.connect(second)
    net.up(channel)
    # The welcome alone.
    net.down(channel, 1)
    assert second.gaps == []
    begin_anew(net, first, second, epoch=BOOT_A(2))
    assert told(second) == [(BOOT_C(900), 2, False)]


def test_of_two_boots_before_this_one_nothing_is_missed_silently():
    for second_boot in (BOOT_A, BOOT_C):
        net = Net(epoch=BOOT_B(900))
        first, second = two_brokers_of_which_one_was_missed(net, second_boot(20))
        begin_anew(net, first, second, epoch=encode_epoch(b"boot D", SECOND_NS))
        assert [exact for _, _, exact in told(second)] == [False] * len(second.gaps)
        assert (BOOT_B(900), 2, False) in told(second)


def test_a_process_that_takes_a_slot_after_a_restart_of_the_host_gets_a_gap_that_is_not_exact():
    net = Net(slots=2, epoch=BOOT_C(900))
    first, second = workers(net, 2)
    post(net, first, "handled")
    net.run()
    net.router.end_process(net.kill(second), net.now)
    net.run(first)
    net.replace_broker(BOOT_A(5))
    net.attach(first)
    successor = worker(net, 3, 1)
    net.run()
    assert told(successor) == [(BOOT_C(900), 0, False)]


def test_a_newer_version_of_the_broker_is_not_another_boot():
    net = Net(epoch=1_700_000_000 * SECOND_NS)
    first, second = two_brokers_of_which_one_was_missed(net, BOOT_A(20))
    begin_anew(net, first, second, epoch=BOOT_A(30))
    assert told(second) == [(1_700_000_000 * SECOND_NS, 2, True), (BOOT_A(20), 3, True)]
    assert first.gaps == []


def test_workers_of_a_broker_that_handed_over_to_an_older_one_get_exact_gaps():
    net = Net(epoch=BOOT_A(50))
    first, second = stalled(net)
    net.run(first)
    begin_anew(net, first, second, epoch=BOOT_A(40))
    assert told(second) == [(BOOT_A(50), 2, True)]
    assert first.gaps == []
