"""Slots of processes that ask for no number: succession, and their end."""

from __future__ import annotations

import pytest

from eventsh.protocol.messages import Receipt, Reply
from tests.core.net import (
    TIMEOUT_S,
    Net,
    Process,
    ack,
    observer,
    post,
    poster,
    ran,
    slot_of,
    worker,
    workers,
)


def say_goodbye(net: Net, process: Process) -> None:
    """The broker has its goodbye; the process drains."""
    process.session.leave(leave=False)
    net.flush(process)
    assert process.channel is not None
    net.up(process.channel)


def leave(net: Net, process: Process) -> None:
    """End in order, keeping the slot for a successor."""
    say_goodbye(net, process)
    net.run(process)
    net.router.end_process(net.kill(process), net.now)


def pool(count: int) -> tuple[Net, list[Process]]:
    net = Net()
    attached = [worker(net, number) for number in range(1, count + 1)]
    net.run()
    return net, attached


def expire(net: Net) -> None:
    net.run()
    net.advance(TIMEOUT_S + 0.5)
    net.run()


def test_a_newcomer_succeeds_the_process_that_ended_first():
    net, (first, second, third) = pool(3)
    leave(net, third)
    net.advance(0.5)
    leave(net, second)
    post(net, first, 1)
    newcomers = [worker(net, 11), worker(net, 12), worker(net, 13)]
    net.run()
    assert [process.session.worker_id for process in newcomers] == [2, 1, 3]
    assert ran(*newcomers) == [[1], [1], []]


def test_a_slot_that_no_process_asked_for_ends_after_a_goodbye():
    net, (first, second) = pool(2)
    leave(net, second)
    post(net, first, 1)
    net.run()
    assert slot_of(net, 1).state == "absent"
    expire(net)
    assert [row["worker_id"] for row in net.router.status(net.now)["workers"]] == [0]
    assert net.notices == []
    late = worker(net, 3)
    net.run()
    assert (late.session.worker_id, ran(late), late.gaps) == (1, [[]], [])
    assert slot_of(net, 1).dropped == 0


def test_reloads_leave_no_slot_behind():
    net, pids = pool(4)
    for reload in range(1, 11):
        successors = [worker(net, 10 * reload + number) for number in range(4)]
        for process in pids:
            leave(net, process)
        pids = successors
        post(net, pids[0], reload)
        expire(net)
    assert len(net.router.slots.workers) == 4
    assert all(slot.state == "attached" and not slot.dropped for slot in net.router.slots.workers.values())
    assert net.notices == []


@pytest.mark.parametrize("asked_by", ["first", "second"])
def test_a_slot_that_was_asked_for_once_reports_what_it_dropped(asked_by: str):
    net = Net()
    (first,) = workers(net, 1)
    leave(net, worker(net, 2, 1 if asked_by == "first" else None))
    leave(net, worker(net, 3, 1 if asked_by == "second" else None))
    expire(net)
    post(net, first, "dropped")
    net.run()
    assert slot_of(net, 1).state == "absent"
    # One that asks for no number leaves it to the one that does.
    assert worker(net, 4).session.worker_id == 2
    late = worker(net, 5, 1)
    net.run()
    assert late.gaps[0]["missed"] == slot_of(net, 1).dropped > 0


@pytest.mark.parametrize("is_noticed", [True, False], ids=["noticed", "not-noticed"])
def test_a_killed_process_leaves_a_slot_whose_next_process_gets_the_gap(is_noticed: bool):
    net, (first, second) = pool(2)
    slot = net.kill(second)
    if is_noticed:
        net.router.end_process(slot, net.now)
    post(net, first, "dropped")
    expire(net)
    assert "slot 1 was not taken" in net.notices[-1]
    late = worker(net, 3)
    post(net, first, "after")
    net.run()
    assert late.session.worker_id == 1
    assert ran(late) == [["after"]]
    assert [gap["missed"] for gap in late.gaps] == [slot_of(net, 1).dropped]


def test_a_kept_slot_is_taken_before_one_that_expired():
    net, (first, second, third) = pool(3)
    net.router.end_process(net.kill(second), net.now)
    expire(net)
    leave(net, third)
    post(net, first, 1)
    newcomer = worker(net, 4)
    net.run()
    assert (newcomer.session.worker_id, ran(newcomer)) == (2, [[1]])


def test_a_newcomer_gets_what_came_since_the_goodbye_of_a_process_that_still_drains():
    net, (first, second) = pool(2)
    post(net, first, "before")
    ack(net, second)
    net.take(second)
    say_goodbye(net, second)
    post(net, first, "since")
    newcomer = worker(net, 3)
    post(net, first, "after")
    net.run(first, newcomer)
    assert (newcomer.session.worker_id, ran(newcomer)) == (2, [["since", "after"]])
    # A second one is the successor of none.
    assert ran(worker(net, 4)) == [[]]
    net.run()
    assert ran(second) == [["before"]]
    net.disconnect(second)
    assert 1 not in net.router.slots.workers
    assert newcomer.gaps == []


def test_a_process_that_comes_back_succeeds_no_other():
    net, (first, second) = pool(2)
    post(net, first, 1)
    net.run()
    second.session.worker_id = None
    second.session.identity = "another"
    net.kill(second)
    leave(net, worker(net, 3))
    net.attach(second)
    assert second.session.worker_id not in (0, 1, 2)


def test_no_receipt_and_no_question_waits_for_a_process_that_said_goodbye():
    net, (first, second) = pool(2)
    say_goodbye(net, second)
    posting = poster(net)
    posting.outbox.post_receipt("app", "e", 1)
    asking = observer(net)
    number = asking.session.request("handlers", {})
    for process in (posting, asking):
        net.flush(process)
        net.up(process.channel)
    net.run(first, posting, asking)
    assert [m for m in posting.messages if isinstance(m, Receipt)] == [Receipt(1, [0], [], None)]
    (reply,) = [m for m in asking.messages if isinstance(m, Reply)]
    assert (reply.id, [row["worker_id"] for row in reply.data["workers"]]) == (number, [0])


def test_a_goodbye_ends_the_wait_for_an_answer():
    net, (first, second) = pool(2)
    asking = observer(net)
    asking.session.request("handlers", {})
    net.flush(asking)
    net.up(asking.channel)
    net.run(first, asking)
    assert not [m for m in asking.messages if isinstance(m, Reply)]
    say_goodbye(net, second)
    net.run(first, asking)
    assert [m for m in asking.messages if isinstance(m, Reply)]


def test_a_new_broker_keeps_no_slot_that_no_process_asked_for():
    net, (first, second) = pool(2)
    numbered = worker(net, 3, 7)
    net.run()
    for process in (second, numbered):
        net.kill(process)
    net.replace_broker()
    net.attach(first)
    assert slot_of(net, 1).absence == slot_of(net, 7).absence == "awaited"
    expire(net)
    assert sorted(net.router.slots.workers) == [0, 7]


def test_a_new_broker_waits_for_no_process_that_said_goodbye_and_queues_for_its_successor():
    net, (first, second) = pool(2)
    leave(net, second)
    net.run()
    net.replace_broker()
    net.attach(first)
    post(net, first, 1)
    net.run(first)
    assert first.outbox.queued == 0
    successor = worker(net, 3)
    net.run()
    assert (successor.session.worker_id, ran(successor)) == (1, [[1]])


def test_a_removed_slot_is_not_named_to_the_next_broker():
    net, (first, second) = pool(2)
    leave(net, second)
    net.run()
    expire(net)
    net.replace_broker()
    net.attach(first)
    assert list(net.router.slots.workers) == [0]


def test_a_number_that_a_broker_chose_stays_its_choice_at_the_next_one():
    net, (first, second) = pool(2)
    net.replace_broker()
    for process in (first, second):
        net.attach(process)
    net.run()
    leave(net, second)
    expire(net)
    assert list(net.router.slots.workers) == [0]


def test_slots_that_exist_from_the_start_end_with_processes_that_asked_for_none():
    net = Net(slots=2)
    first, second = worker(net, 1), worker(net, 2)
    ack(net, first)
    leave(net, second)
    expire(net)
    assert list(net.router.slots.workers) == [0]
