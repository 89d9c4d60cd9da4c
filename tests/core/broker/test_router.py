"""Events in, outputs out: who gets an event, in which order, and when its poster may forget it."""

from __future__ import annotations

from eventsh.protocol.frame import Kind, encode_frame
from tests.core.net import (
    TIMEOUT_S,
    Net,
    body,
    error_codes,
    fill,
    headers,
    observer,
    post,
    post_unique,
    poster,
    ran,
    workers,
)

# --- order, and to all ---


def test_a_broadcast_reaches_every_worker_the_poster_too_and_observers():
    net = Net()
    first, second, third = workers(net, 3)
    watching = observer(net)
    post(net, first, "a", "b")
    net.run()
    assert ran(first, second, third, watching) == [["a", "b"]] * 4


def test_all_workers_get_events_of_several_posters_in_one_order():
    net = Net()
    everybody = workers(net, 3)
    for turn in range(3):
        for process in everybody:
            post(net, process, f"{process.number}.{turn}")
    net.run()
    assert ran(*everybody) == [[f"{number}.{turn}" for turn in range(3) for number in (1, 2, 3)]] * 3


def test_frames_are_stamped_in_place_and_their_bodies_are_never_looked_at():
    net = Net()
    first, second = workers(net, 2)
    garbage = encode_frame(Kind.EVENTS, b"no JSON", count=3, pid=5, origin=99, origin_seq=1, seq=98, time_ns=97)
    first.channel.up.append(bytes(garbage))
    net.up(first.channel)
    (header,) = headers(second.channel.down, Kind.EVENTS)
    assert (header.origin, header.seq, header.pid, header.count) == (1, net.router.seq - 2, 5, 3)
    assert header.time_ns != 97
    assert body(second.channel.down[-1]) == b"no JSON"


def test_a_poster_gets_no_events_and_needs_no_slot():
    net = Net()
    (first,) = workers(net, 1)
    posting = poster(net)
    post(net, posting, 1)
    net.run()
    assert ran(first, posting) == [[1], []]
    assert posting.session.worker_id is None
    assert posting.outbox.queued == 0


def test_workers_are_told_who_joins_and_who_leaves():
    net = Net()
    first, second = workers(net, 2)
    net.disconnect(second)
    net.run()
    told = [(event, data) for source, event, data in first.events if source == "eventsh"]
    assert told[-2:] == [
        ("worker_joined", {"worker_id": 1, "pid": 1002}),
        ("worker_left", {"worker_id": 1, "pid": 1002, "kept": True}),
    ]


# --- what arrives twice, or never should ---


def test_a_batch_that_never_arrived_is_routed_after_the_reconnect():
    net = Net()
    first, second = workers(net, 2)
    first.outbox.post("app", "e", 1)
    net.flush(first)
    net.disconnect(first)
    net.attach(first)
    net.run()
    assert ran(first, second) == [[1]] * 2


def test_a_hole_in_a_posters_numbers_breaks_the_protocol():
    net = Net()
    first, second = workers(net, 2)
    post(net, first, 1)
    first.channel.up.append(bytes(encode_frame(Kind.EVENTS, b"[]", count=1, origin_seq=3)))
    net.up(first.channel)
    assert error_codes(first) == ["protocol"]
    assert second.is_attached


def test_a_poster_that_ignores_the_window_breaks_the_protocol():
    net = Net(max_queue_len=4)
    first, _ = workers(net, 2)
    first.outbox.window = 100
    fill(net, first, 4)
    assert first.is_attached
    post(net, first, 4)
    assert error_codes(first) == ["protocol"]


# --- for people ---


def test_status_tells_of_every_slot():
    net = Net(slots=3)
    first, second = workers(net, 2)
    net.router.end_process(net.disconnect(second), net.now)
    post(net, first, 1, 2)
    post_unique(net, first, 3, "key")
    net.run()
    net.now += 2
    status = net.router.status(net.now)
    assert [each["state"] for each in status["workers"]] == ["attached", "absent", "starting"]
    assert [each["worker_id"] for each in status["workers"]] == [0, 1, 2]
    # Two arrivals, one end, two broadcasts and the unique event, of which the third slot gets all but the last.
    assert (status["workers"][0]["handled"], status["workers"][2]["queued"]) == (6, 5)
    assert status["workers"][0]["uniques"] == 1
    assert (status["broker"]["events"], status["broker"]["unconfirmed"], status["broker"]["unique_keys"]) == (6, 0, 1)
    assert status["broker"]["uptime_s"] == 2


def test_an_observer_that_is_gone_is_forgotten():
    net = Net()
    first, second = observer(net, 90), observer(net, 91)
    net.router.end_process(net.kill(first), net.now)
    assert len(net.router.slots.observers) == 1
    net.disconnect(second)
    net.advance(TIMEOUT_S + 0.5)
    assert net.router.slots.observers == []
    assert net.notices == []
