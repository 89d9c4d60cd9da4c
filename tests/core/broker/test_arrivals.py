"""Workers that join together are announced in one event to those who know it, and to the others one by one."""

from __future__ import annotations

import pytest

from eventsh.protocol.features import FEATURES, WORKERS_JOINED
from tests.core.net import Net, Process, observer, post, poster, worker

FIRST: frozenset[str] = frozenset()


def join(net, count, **options):
    """Attach workers within one turn of the broker."""
    announce = net.router.announce_joined
    net.router.announce_joined = lambda now: None
    try:
        return [net.attach(Process(number, **options)) for number in range(1, count + 1)]
    finally:
        net.router.announce_joined = announce
        net.collect()


def joins(process):
    """The lifecycle events about workers that joined: the numbers of each."""
    found = []
    for source, event, data in process.events:
        if source == "eventsh" and event in ("worker_joined", "workers_joined"):
            workers = data["workers"] if event == "workers_joined" else [data]
            found.append([worker["worker_id"] for worker in workers])
    return found


@pytest.mark.parametrize("count", [1, 16])
def test_as_many_as_a_pool_has_are_announced_one_by_one(count):
    net = Net()
    seeing = observer(net)
    join(net, count)
    net.run()
    assert joins(seeing) == [[number] for number in range(count)]


@pytest.mark.parametrize(("count", "sizes"), [(17, [17]), (20, [20]), (41, [20, 20, 1])])
def test_more_are_announced_in_one_event_of_a_bounded_size(count, sizes, monkeypatch):
    monkeypatch.setattr("eventsh.core.broker.arrivals._MOST", 20)
    net = Net()
    seeing = observer(net)
    members = join(net, count)
    net.run()
    assert [len(numbers) for numbers in joins(seeing)] == sizes
    assert [number for numbers in joins(seeing) for number in numbers] == list(range(count))
    assert joins(members[0]) == joins(members[-1]) == joins(seeing)


def test_a_client_that_does_not_know_the_event_gets_one_about_each_worker():
    net = Net()
    newer, older = observer(net, 90), observer(net, 91, features=FEATURES - {WORKERS_JOINED})
    first = observer(net, 92, features=FIRST)
    join(net, 17)
    net.run()
    assert joins(newer) == [list(range(17))]
    assert joins(older) == joins(first) == [[number] for number in range(17)]


def test_both_forms_stand_at_one_place_of_the_order():
    net = Net()
    newer, older = observer(net, 90), observer(net, 91, features=FIRST)
    posting = poster(net)
    post(net, posting, "before")
    join(net, 17)
    post(net, posting, "after")
    net.run()
    for process in (newer, older):
        names = [data if source == "app" else "joined" for source, _, data in process.events]
        assert names[0] == "before"
        assert names[-1] == "after"
        assert set(names[1:-1]) == {"joined"}


def test_a_worker_that_left_at_once_joined_before_it_left(monkeypatch):
    net = Net()
    seeing = observer(net)
    with monkeypatch.context() as patch:
        patch.setattr(net.router, "announce_joined", lambda now: None)
        joining = worker(net, 1)
        net.kill(joining)
    net.run()
    assert [event for source, event, _ in seeing.events if source == "eventsh"] == ["worker_joined", "worker_left"]


def test_a_number_that_no_process_asked_for_is_named_as_such():
    net = Net()
    seeing = observer(net)
    join(net, 17)
    net.run()
    ((_, _, data),) = [event for event in seeing.events if event[1] == "workers_joined"]
    assert all(worker["assigned"] is True for worker in data["workers"])
    assert [worker["pid"] for worker in data["workers"]] == [slot.pid for slot in net.router.slots.ordered_workers]


def test_a_hello_that_waits_for_its_turn_is_not_too_late():
    net = Net(hello_timeout=1.0)
    process = Process(1)
    link = net.connect(process).link
    assert link is not None
    net.advance(0.6)
    link.begin_wait(net.now)
    net.advance(5.0)
    link.end_wait(net.now)
    net.advance(0.3, step=0.1)
    assert not link.is_closing
    # What is left of its time goes on from there.
    net.advance(0.6, step=0.1)
    assert link.is_closing
