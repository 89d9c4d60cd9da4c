"""Places: late and respawned workers, reconnects, handing over, and a new broker."""

from __future__ import annotations

from eventsh.protocol.frame import Kind
from eventsh.protocol.messages import Goodbye
from tests.core.net import (
    TIMEOUT_S,
    Net,
    Process,
    ack,
    error_codes,
    fill,
    headers,
    observer,
    post,
    poster,
    ran,
    slot_of,
    worker,
    workers,
)

# --- slots, late and respawned workers ---


def test_what_is_posted_before_a_configured_slot_is_taken_waits_for_its_worker():
    net = Net(slots=2)
    first = worker(net, 1, 0)
    post(net, first, 1)
    net.advance(4)
    late = worker(net, 2, 1)
    net.run()
    assert ran(first, late) == [[1]] * 2
    assert late.gaps == []


def test_a_new_slot_begins_with_what_is_posted_after_it_came():
    net = Net()
    (first,) = workers(net, 1)
    post(net, first, "before")
    second = worker(net, 2)
    post(net, first, "after")
    net.run()
    assert ran(second) == [["after"]]
    assert second.gaps == []
    assert second.session.worker_id == 1


def test_a_successor_gets_what_its_predecessor_had_not_handled_and_what_came_meanwhile():
    net = Net()
    first, second = workers(net, 2)
    post(net, first, "handled")
    net.run()
    post(net, first, "received")
    ack(net, second)
    post(net, first, "under way")
    net.kill(second)
    post(net, first, "absent")
    successor = worker(net, 3, 1)
    net.run()
    assert ran(second, successor) == [["handled"], ["received", "under way", "absent"]]
    assert ran(first) == [["handled", "received", "under way", "absent"]]
    assert successor.gaps == []


def test_a_successor_that_asks_for_no_slot_gets_one_whose_process_has_ended():
    net = Net()
    first, second = workers(net, 2)
    slot = net.kill(second)
    post(net, first, 1)
    third = worker(net, 3)
    assert third.session.worker_id == 2
    net.router.end_process(slot, net.now)
    fourth = worker(net, 4)
    net.run()
    assert fourth.session.worker_id == 1
    assert ran(third, fourth) == [[], [1]]


def test_the_same_process_resumes_without_doubles_and_without_losses():
    net = Net()
    first, second = workers(net, 2)
    post(net, first, "handled", "busy", batch=False)
    net.down(second.channel)
    while net.take(second):
        pass
    net.complete(second)
    post(net, first, "under way")
    net.disconnect(second)
    post(net, first, "absent")
    net.attach(second)
    net.run()
    assert ran(second) == [["handled", "busy", "under way", "absent"]]
    assert second.gaps == []
    assert slot_of(net, 1).queue.events == 0


def test_a_process_whose_first_welcome_got_lost_is_known_when_it_comes_again():
    net = Net(epoch=5)
    (first,) = workers(net, 1)
    second = Process(2)
    # It has been attached to another broker before, and got far there.
    second.session.inbox.epoch, second.session.received, second.session.inbox.handled = 4, 1000, 1000
    channel = net.connect(second)
    net.up(channel)
    post(net, first, "a")
    net.cut(second)
    post(net, first, "b")
    net.attach(second)
    net.run()
    assert ran(second) == [["a", "b"]]
    assert list(net.router.slots.workers) == [0, 1]


def test_a_reconnect_that_comes_before_the_broker_saw_the_end_takes_the_place_over():
    net = Net()
    first, second = workers(net, 2)
    post(net, first, 1)
    old = net.cut(second)
    net.attach(second)
    post(net, first, 2)
    assert old not in net.channels
    net.run()
    assert ran(second) == [[1, 2]]
    assert second.session.worker_id == 1


def test_room_that_a_resuming_process_makes_lets_events_flow_on():
    net = Net(max_queue_len=4)
    first, second = workers(net, 2)
    net.run()
    posting = poster(net)
    fill(net, posting, 4)
    net.run(first)
    net.down(second.channel)
    net.disconnect(second)
    net.handle(second)
    post(net, first, "held")
    net.run(first)
    assert ran(first) == [[0, 1, 2, 3]]
    net.attach(second)
    net.run(first)
    assert ran(first) == [[0, 1, 2, 3, "held"]]
    net.run()
    assert ran(second) == [[0, 1, 2, 3, "held"]]


def test_a_slot_that_nobody_takes_is_dropped_after_the_timeout_and_its_next_process_is_told_how_much():
    net = Net(slots=2)
    first = worker(net, 1, 0)
    post(net, first, 1, 2)
    net.run()
    net.advance(TIMEOUT_S + 0.5)
    assert "slot 1" in net.notices[-1]
    assert slot_of(net, 1).queue.events == 0
    post(net, first, 3)
    net.run()
    late = worker(net, 2, 1)
    post(net, first, 4)
    net.run()
    assert ran(late) == [[4]]
    # Three posts and the first worker's arrival.
    assert [(gap["missed"], gap["first_seq"], gap["last_seq"]) for gap in late.gaps] == [(4, 1, 4)]
    assert slot_of(net, 1).dropped == 4


def test_nobody_is_told_of_a_gap_where_nothing_was_missed():
    net = Net(slots=1)
    net.advance(TIMEOUT_S + 0.5)
    late = worker(net, 1, 0)
    net.run()
    assert late.gaps == []
    assert net.notices == []


def test_who_asks_for_any_slot_is_told_of_no_gap_of_an_empty_one():
    net = Net(slots=1)
    post(net, poster(net), 1)
    net.advance(TIMEOUT_S + 0.5)
    late = worker(net, 1)
    net.run()
    assert (late.session.worker_id, late.gaps) == (0, [])


def test_a_process_that_comes_back_too_late_is_told_only_of_what_it_did_not_get():
    net = Net()
    first, second = workers(net, 2)
    post(net, first, "received", "received too")
    # It has these, but its ack does not arrive.
    net.down(second.channel)
    net.flush(second)
    net.cut(second)
    net.notice(net.channels[1])
    post(net, first, "dropped")
    net.run()
    net.advance(TIMEOUT_S + 0.5)
    net.attach(second)
    net.run()
    assert ran(second) == [["received", "received too"]]
    # The one post, and that it has left itself.
    assert [gap["missed"] for gap in second.gaps] == [2]
    assert slot_of(net, 1).dropped == 2


def test_a_successor_that_comes_too_late_is_told_of_what_was_received_and_not_handled_too():
    net = Net()
    first, second = workers(net, 2)
    post(net, first, "received")
    ack(net, second)
    net.kill(second)
    net.run()
    net.advance(TIMEOUT_S + 0.5)
    successor = worker(net, 3, 1)
    net.run()
    assert [gap["missed"] for gap in successor.gaps] == [2]


def test_a_gap_that_was_never_told_is_told_to_the_next_process():
    net = Net(slots=2, max_queue_len=100)
    first = worker(net, 1, 0)
    net.run()
    net.advance(TIMEOUT_S + 0.5)
    post(net, first, 1)
    net.run()
    # Its gap is under way when it dies, and its successor comes too late as well.
    net.kill(worker(net, 2, 1))
    net.advance(TIMEOUT_S + 0.5)
    net.run()
    successor = worker(net, 3, 1)
    net.run()
    everything_else = [seq for d in successor.handled if d.first_seq for seq in range(d.first_seq, d.last_seq + 1)]
    assert sum(gap["missed"] for gap in successor.gaps) == net.router.seq - len(everything_else)
    assert successor.gaps[0]["first_seq"] == 1


def test_a_process_that_lost_its_slot_to_another_one_gets_nothing_twice_when_it_has_it_again():
    net = Net()
    first, second = workers(net, 2)
    post(net, first, 1, 2)
    net.down(second.channel)
    net.disconnect(second)
    other = worker(net, 3, 1)
    net.down(other.channel)
    post(net, first, 3)
    net.kill(other)
    net.attach(second)
    post(net, first, 4)
    net.run()
    assert ran(second) == [[1, 2, 3, 4]]
    assert second.is_attached


def test_a_worker_that_leaves_for_good_takes_its_slot_along():
    net = Net()
    first, second = workers(net, 2)
    post(net, first, "before")
    net.down(second.channel)
    second.session.leave(leave=True)
    net.flush(second)
    net.up(second.channel)
    post(net, first, "after")
    net.run()
    assert ran(first, second) == [["before", "after"], ["before"]]
    assert second.session.state.name == "DRAINED"
    assert net.disconnect(second) is None
    assert list(net.router.slots.workers) == [0]


def test_a_worker_that_hands_over_leaves_what_follows_to_its_successor():
    net = Net()
    first, second = workers(net, 2)
    post(net, first, "before")
    net.down(second.channel)
    second.session.leave(leave=False)
    net.flush(second)
    net.up(second.channel)
    post(net, first, "after")
    net.run()
    net.disconnect(second)
    successor = worker(net, 3, 1)
    net.run()
    assert ran(second, successor) == [["before"], ["after"]]
    assert successor.gaps == []


def test_a_goodbye_follows_the_events_before_it():
    net = Net()
    first, second = workers(net, 2)
    post(net, first, 1)
    second.channel.up.append(bytes(Goodbye(leave=True).encode()))
    net.up(second.channel)
    kinds = [header.kind for header in headers(second.channel.down)]
    assert kinds[-2:] == [Kind.EVENTS, Kind.GOODBYE]


def test_a_poster_may_say_goodbye_too():
    net = Net()
    posting = poster(net)
    posting.session.leave()
    net.run()
    assert posting.session.state.name == "DRAINED"


# --- a new broker ---


def test_workers_that_come_late_to_a_new_broker_miss_nothing_that_others_posted_there():
    net = Net()
    first, second, third = workers(net, 3)
    post(net, first, 1)
    net.replace_broker()
    net.attach(first)
    net.run(first)
    post(net, first, 2)
    net.run(first)
    # Nobody forgets a post before those have it who are on their way.
    assert first.outbox.queued > 0
    net.advance(TIMEOUT_S - 1)
    net.attach(second)
    net.attach(third)
    net.run()
    assert ran(first, second, third) == [[1, 2]] * 3
    assert [process.gaps for process in (first, second, third)] == [[], [], []]
    assert first.outbox.queued == 0


def test_a_worker_whose_connection_broke_just_before_its_broker_died_misses_nothing():
    net = Net()
    first, second = workers(net, 2)
    net.disconnect(second)
    post(net, first, 1)
    net.run()
    assert first.outbox.queued == 1
    net.replace_broker()
    net.attach(first)
    post(net, first, 2)
    net.run()
    net.attach(second)
    net.run()
    assert ran(first, second) == [[1, 2]] * 2


def test_a_worker_that_never_comes_to_the_new_broker_is_waited_for_no_longer_than_the_timeout():
    net = Net()
    first, second = workers(net, 2)
    net.replace_broker()
    net.attach(first)
    post(net, first, 1)
    net.run(first)
    assert first.outbox.queued == 1
    net.advance(TIMEOUT_S + 0.5)
    net.run(first)
    assert first.outbox.queued == 0
    net.attach(second)
    net.run()
    assert [gap["missed"] for gap in second.gaps] == [2]


def test_a_stranger_that_posts_first_to_a_new_broker_reaches_the_old_ones_workers():
    net = Net()
    first, second = workers(net, 2)
    net.replace_broker()
    stranger = worker(net, 7)
    post(net, stranger, "first")
    net.run(stranger)
    assert stranger.outbox.queued == 0
    net.attach(second)
    net.run()
    net.attach(first)
    net.run()
    # The stranger has the first one's slot, for nobody had told the broker of it: it takes another.
    assert error_codes(first) == ["slot_taken"]
    first.session.worker_id = None
    net.attach(first)
    net.run()
    assert ran(stranger, second) == [["first"]] * 2


def test_a_stranger_is_not_given_the_slot_of_one_who_is_on_its_way_to_a_new_broker():
    net = Net()
    first, second = workers(net, 2)
    net.replace_broker()
    net.attach(first)
    stranger = worker(net, 7)
    assert stranger.session.worker_id == 2
    net.attach(second)
    assert (second.session.worker_id, error_codes(second)) == (1, [])


def test_what_was_too_much_for_a_new_broker_to_keep_is_told_as_a_gap():
    net = Net()
    workers(net, 1)
    (first,) = [channel.process for channel in net.channels]
    net.replace_broker()
    posting = poster(net)
    for number in range(300):
        post(net, posting, number)
    net.attach(first)
    net.run()
    assert ran(first) == [list(range(256))]
    assert [gap["missed"] for gap in first.gaps] == [44]


def test_a_broker_that_is_no_longer_new_keeps_nothing_for_strangers():
    net = Net()
    net.replace_broker()
    post(net, poster(net), 1)
    net.advance(TIMEOUT_S + 0.5)
    stranger = worker(net, 1)
    net.run()
    assert (ran(stranger), stranger.gaps) == ([[]], [])


def test_nobody_looks_for_the_process_of_an_observer_that_was_given_up():
    net = Net()
    slot = net.disconnect(observer(net))
    assert not slot.is_expired
    net.advance(TIMEOUT_S + 1)
    assert slot.is_expired
    assert net.router.slots.observers == []
