"""Unique events and their keys."""

from __future__ import annotations

import pytest

from tests.core.net import (
    TIMEOUT_S,
    Net,
    Process,
    ack,
    confirmed,
    observer,
    post,
    post_unique,
    poster,
    ran,
    slot_of,
    worker,
    workers,
)


def test_a_unique_event_runs_in_one_worker_and_repeats_of_its_key_in_none():
    net = Net()
    everybody = workers(net, 3)
    post_unique(net, everybody[0], 1, "key")
    post_unique(net, everybody[1], 2, "key")
    net.run()
    assert sorted(ran(*everybody)) == [[], [], [1]]
    assert net.router.status(net.now)["broker"]["ignored_repeats"] == 1
    assert [process.outbox.queued for process in everybody] == [0, 0, 0]


def test_a_key_runs_again_after_its_timeout_and_its_next_repeat_is_ignored():
    net = Net(unique_timeout=0.04)
    (first,) = workers(net, 1)
    post_unique(net, first, 1, "key")
    net.now += 0.1
    post_unique(net, first, 2, "key")
    post_unique(net, first, 3, "key")
    net.run()
    assert ran(first) == [[1, 2]]


def test_a_unique_event_is_given_to_the_worker_with_the_least_to_do():
    net = Net()
    first, second, third = workers(net, 3)
    post(net, first, 1, 2)
    net.run(first, third)
    post_unique(net, first, "u1", "1")
    post_unique(net, first, "u2", "2")
    post_unique(net, first, "u3", "3")
    net.run()
    assert "u1" in ran(first, third)[0] + ran(first, third)[1]
    given = [sum(str(value).startswith("u") for value in data) for data in ran(first, second, third)]
    assert sum(given) == 3
    assert given[1] <= 1


def test_of_workers_with_equally_much_to_do_the_one_that_was_given_the_fewest_is_chosen():
    net = Net()
    everybody = workers(net, 3)
    for number in range(6):
        post_unique(net, everybody[0], number, str(number))
        net.run()
    assert [len(data) for data in ran(*everybody)] == [2, 2, 2]


def test_broadcasts_around_a_unique_event_reach_all_in_order():
    net = Net()
    first, second = workers(net, 2)
    post(net, first, 1)
    post_unique(net, first, "u", "key")
    post(net, first, 2)
    net.run()
    assert sorted(ran(first, second), key=len) == [[1, 2], [1, "u", 2]]


def test_a_unique_event_is_never_given_to_one_who_is_absent_draining_losing_or_only_watches():
    net = Net()
    first, second, third = workers(net, 3)
    observer(net)
    net.disconnect(second)
    third.session.leave(leave=False)
    net.flush(third)
    net.up(third.channel)
    for number in range(4):
        post_unique(net, first, number, str(number))
    net.run()
    assert ran(first) == [[0, 1, 2, 3]]


def test_an_observer_that_takes_unique_events_gets_them():
    net = Net()
    watching = net.attach(Process(1, role="observer", take_unique=True))
    post_unique(net, watching, 1, "key", receipt=True)
    net.run()
    assert ran(watching) == [[1]]


def test_a_full_observer_gets_a_unique_event_once_it_has_room():
    net = Net(max_queue_len=4)
    watching = net.attach(Process(1, role="observer", take_unique=True))
    post(net, poster(net, 80), 1, 2, 3, 4, batch=False)
    post_unique(net, poster(net, 81), "u", "key")
    net.run()
    assert ran(watching) == [[1, 2, 3, 4, "u"]]
    assert watching.gaps == []


def test_a_unique_event_is_confirmed_by_its_worker_alone():
    net = Net()
    first, second = workers(net, 2)
    posting, other = poster(net, 80), poster(net, 81)
    post_unique(net, posting, "u", "key")
    process, idle = given_to(net, [first, second])
    post(net, other, "b")
    ack(net, process)
    # The idle one has not yet said that it has the broadcast, and of the unique event it never will.
    assert confirmed(net, posting) == 1
    assert confirmed(net, other) == 0
    ack(net, idle)
    assert confirmed(net, other) == 1


def test_with_no_worker_a_unique_event_waits_and_its_key_is_free():
    net = Net()
    posting = poster(net)
    post_unique(net, posting, 1, "key")
    net.run()
    assert posting.outbox.queued == 1
    assert net.router.status(net.now)["broker"]["unique_keys"] == 0
    first = worker(net, 1)
    net.run()
    assert ran(first) == [[1]]
    assert posting.outbox.queued == 0


def test_of_repeats_that_waited_for_a_worker_only_the_first_runs():
    net = Net()
    posting = poster(net)
    post_unique(net, posting, 1, "key")
    post_unique(net, posting, 2, "key")
    first = worker(net, 1)
    net.run()
    assert ran(first) == [[1]]
    assert posting.outbox.queued == 0


def test_a_unique_event_that_waited_for_a_stalled_worker_runs_when_it_is_back():
    net = Net()
    (first,) = workers(net, 1)
    posting = poster(net)
    post(net, posting, 1)
    net.advance(TIMEOUT_S + 0.5)
    assert slot_of(net, 0).state == "stalled"
    post_unique(net, posting, "u", "key")
    net.run()
    assert ran(first) == [[1, "u"]]


def test_a_waiting_unique_event_whose_poster_goes_is_the_posters_again():
    net = Net()
    posting = poster(net)
    post(net, posting, "before")
    post_unique(net, posting, "u", "key")
    post(net, posting, "after")
    net.run()
    assert posting.outbox.confirmed == 1
    net.disconnect(posting)
    first = worker(net, 1)
    net.run()
    assert ran(first) == [[]]
    net.attach(posting)
    net.run()
    assert ran(first) == [["u"]]
    assert posting.outbox.queued == 0


def test_nothing_behind_a_unique_event_that_its_poster_has_back_is_confirmed():
    net = Net()
    posting = poster(net)
    post_unique(net, posting, "u", "key")
    post(net, posting, "after")
    net.disconnect(posting)
    net.attach(posting)
    net.flush(posting)
    # The first of both comes again, waits again, and more is posted and done.
    net.up(posting.channel)
    post(net, posting, "more")
    net.run()
    assert posting.outbox.confirmed == 0


def given_to(net, processes):
    (slot,) = [slot for slot in net.router.slots if slot.uniques]
    (process,) = [process for process in processes if process.session.worker_id == slot.worker_id]
    (other,) = [each for each in processes if each is not process]
    return process, other


@pytest.mark.parametrize("how_far", ["under way", "received", "busy"])
def test_a_unique_event_goes_to_another_worker_when_its_process_ends_before_it_is_handled(how_far):
    net = Net()
    everybody = workers(net, 2)
    posting = poster(net)
    post_unique(net, posting, "u", "key")
    process, other = given_to(net, everybody)
    if how_far != "under way":
        ack(net, process)
    if how_far == "busy":
        net.take(process)
        net.take(process)
    slot = net.kill(process)
    net.run()
    assert ran(other) == [[]]
    net.router.end_process(slot, net.now)
    net.collect()
    net.run()
    assert ran(other) == [["u"]]
    assert posting.outbox.queued == 0
    # Its key has been taken all the time.
    post_unique(net, posting, "again", "key")
    net.run()
    assert ran(other) == [["u"]]


def test_a_unique_event_that_was_handled_and_acknowledged_is_not_given_again():
    net = Net()
    everybody = workers(net, 2)
    posting = poster(net)
    post_unique(net, posting, "u", "key")
    process, other = given_to(net, everybody)
    net.run()
    net.router.end_process(net.kill(process), net.now)
    net.collect()
    net.run()
    assert ran(other) == [[]]


def test_a_unique_event_of_a_process_that_comes_back_in_time_stays_its_own():
    net = Net()
    everybody = workers(net, 2)
    posting = poster(net)
    post_unique(net, posting, "u", "key")
    process, other = given_to(net, everybody)
    net.disconnect(process)
    net.run()
    assert posting.outbox.queued == 1
    net.attach(process)
    net.run()
    assert ran(process, other) == [["u"], []]
    assert posting.outbox.queued == 0


@pytest.mark.parametrize("how_far", ["received", "handled"])
def test_a_unique_event_whose_ack_is_lost_with_the_connection_is_confirmed_when_its_process_is_back(how_far):
    net = Net()
    everybody = workers(net, 2)
    posting = poster(net)
    post_unique(net, posting, "u", "key")
    post(net, posting, "behind it")
    process, other = given_to(net, everybody)
    net.down(process.channel)
    if how_far == "handled":
        net.handle(process)
    net.disconnect(process)
    net.run()
    assert posting.outbox.queued == 2
    net.attach(process)
    net.run()
    assert ran(process, other) == [["u", "behind it"], ["behind it"]]
    assert posting.outbox.queued == 0


def test_a_process_that_lost_its_unique_event_and_is_given_it_again_runs_it_once():
    net = Net()
    first, second = workers(net, 2)
    posting = poster(net)
    post_unique(net, posting, "u", "key")
    process, other = given_to(net, [first, second])
    ack(net, process)
    net.disconnect(process)
    net.run()
    net.advance(TIMEOUT_S + 0.5)
    # The other one has it now, and hands it back.
    net.attach(process)
    net.down(process.channel)
    slot = net.kill(other)
    net.router.end_process(slot, net.now)
    net.collect()
    net.run()
    assert ran(process) == [["u"]]


def test_a_unique_event_that_a_process_did_not_get_goes_to_another_if_its_slot_is_dropping():
    net = Net(max_queue_len=4)
    first, second = workers(net, 2)
    posting = poster(net)
    post(net, posting, 1)
    net.run(posting, second)
    # The first is busy with the broadcast.
    post_unique(net, posting, "unique", "key")
    assert slot_of(net, 1).uniques
    for value in range(2, 7):
        post(net, posting, value)
        net.run(first, posting)
    net.advance(6)
    post(net, posting, 7)
    net.run(first, posting)
    assert slot_of(net, 1).is_dropping
    net.disconnect(second)
    net.attach(second)
    net.run()
    assert ran(first, second)[0].count("unique") == 1
    assert "unique" not in ran(second)[0]


def test_a_successor_that_takes_no_unique_events_does_not_inherit_any():
    net = Net()
    everybody = workers(net, 2)
    posting = poster(net)
    post_unique(net, posting, "u", "key")
    process, other = given_to(net, everybody)
    ack(net, process)
    net.kill(process)
    successor = worker(net, 3, process.session.worker_id, take_unique=False)
    net.run()
    assert ran(successor, other) == [[], ["u"]]


def test_an_expired_slots_unique_events_go_to_others_and_are_no_part_of_its_gap():
    net = Net()
    everybody = workers(net, 2)
    posting = poster(net)
    post_unique(net, posting, "u", "key")
    process, other = given_to(net, everybody)
    slot = net.kill(process).worker_id
    net.run()
    net.advance(TIMEOUT_S + 0.5)
    net.run()
    assert ran(other) == [["u"]]
    successor = worker(net, 3, slot)
    net.run()
    # Missed: that its predecessor has left.
    assert [gap["missed"] for gap in successor.gaps] == [1]


def test_a_worker_that_was_losing_when_it_died_gives_its_unique_events_to_others_too():
    net = Net(max_queue_len=4)
    first, second = workers(net, 2)
    posting = poster(net)
    net.run()
    post_unique(net, posting, "u", "key")
    process, other = given_to(net, [first, second])
    for _ in range(3):
        post(net, posting, "b")
        net.run(posting, other)
        ack(net, process)
    net.advance(TIMEOUT_S + 0.5)
    assert slot_of(net, process.session.worker_id).state == "dropping"
    net.kill(process)
    net.run()
    net.advance(TIMEOUT_S + 0.5)
    net.run()
    assert "u" in ran(other)[0]


def test_a_confirmed_unique_event_that_waits_for_a_worker_survives_its_posters_end():
    net = Net()
    (first,) = workers(net, 1)
    posting = poster(net)
    post_unique(net, posting, "u", "key")
    ack(net, first)
    net.down(posting.channel)
    assert posting.outbox.queued == 0
    net.router.end_process(net.kill(first), net.now)
    net.disconnect(posting)
    successor = worker(net, 2)
    net.run()
    assert ran(successor) == [["u"]]


def test_more_than_1024_keys_at_once_let_no_repeat_through():
    net = Net(max_queue_len=100_000)
    (first,) = workers(net, 1)
    for value in ("first", "repeat"):
        for number in range(3000):
            first.outbox.post_unique("app", "u", [value, number], str(number))
        net.run()
    assert ran(first) == [[["first", number] for number in range(3000)]]


def test_a_full_table_of_keys_holds_what_follows_until_a_key_expires():
    net = Net(max_unique_keys=2, unique_timeout=1.0)
    first = worker(net, 1)
    for number in range(3):
        post_unique(net, first, number, str(number))
    post(net, first, "behind")
    net.run()
    assert ran(first) == [[0, 1]]
    net.advance(1.5)
    net.run()
    assert ran(first) == [[0, 1, 2, "behind"]]
