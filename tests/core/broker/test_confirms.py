"""What posters are told of their posts: when they are confirmed, and who has them."""

from __future__ import annotations

from eventsh.protocol.frame import Kind
from eventsh.protocol.messages import Receipt
from tests.core.net import (
    TIMEOUT_S,
    Net,
    ack,
    confirmed,
    headers,
    observer,
    post,
    post_unique,
    poster,
    ran,
    worker,
    workers,
)


def test_a_post_is_confirmed_once_every_worker_has_received_it():
    net = Net()
    first, second, third = workers(net, 3)
    post(net, first, 1)
    ack(net, first)
    ack(net, second)
    assert confirmed(net, first) == 0
    ack(net, third)
    assert confirmed(net, first) == 1


def test_handlers_that_are_still_busy_delay_no_confirmation():
    net = Net()
    (first,) = workers(net, 1)
    post(net, first, 1)
    ack(net, first)
    assert confirmed(net, first) == 1
    assert ran(first) == [[]]


def test_a_worker_that_may_come_back_delays_confirmations_until_its_process_ends_or_for_the_timeout():
    net = Net()
    first, second = workers(net, 2)
    slot = net.disconnect(second)
    post(net, first, 1)
    ack(net, first)
    net.advance(TIMEOUT_S - 0.5)
    assert confirmed(net, first) == 0
    net.router.end_process(slot, net.now)
    net.collect()
    assert confirmed(net, first) == 1
    third = worker(net, 3, 1)
    net.run()
    net.disconnect(third)
    post(net, first, 2)
    ack(net, first)
    net.advance(TIMEOUT_S + 0.5)
    assert confirmed(net, first) == 2


def test_observers_ended_and_draining_workers_delay_no_confirmation():
    net = Net()
    first, second, third = workers(net, 3)
    observer(net)
    net.router.end_process(net.disconnect(second), net.now)
    third.session.leave()
    net.flush(third)
    net.up(third.channel)
    post(net, first, 1)
    ack(net, first)
    assert confirmed(net, first) == 1


def test_with_no_worker_at_all_a_broadcast_is_confirmed_at_once():
    net = Net()
    posting = poster(net)
    post(net, posting, 1)
    assert confirmed(net, posting) == 1


def test_batches_sent_again_after_a_reconnect_are_confirmed_and_not_routed_twice():
    net = Net()
    first, second = workers(net, 2)
    post(net, first, 1, 2)
    net.disconnect(first)
    net.attach(first)
    net.run()
    assert ran(first, second) == [[1, 2]] * 2
    assert first.outbox.queued == 0


def test_a_confirmation_that_got_lost_with_its_connection_comes_again():
    net = Net()
    (first,) = workers(net, 1)
    post(net, first, 1)
    ack(net, first)
    net.disconnect(first)
    assert first.outbox.queued == 1
    net.attach(first)
    net.run()
    assert first.outbox.queued == 0
    assert ran(first) == [[1]]


def receipt_of(net, process):
    net.down(process.channel)
    (receipt,) = [message for message in process.messages if isinstance(message, Receipt)]
    return receipt


def test_a_receipt_names_the_workers_that_have_a_broadcast_and_those_that_do_not():
    net = Net()
    first, second, third = workers(net, 3)
    posting = poster(net)
    net.router.end_process(net.disconnect(third), net.now)
    posting.outbox.post_receipt("app", "e", 1)
    net.flush(posting)
    net.up(posting.channel)
    net.run(first, second)
    assert receipt_of(net, posting) == Receipt(1, [0, 1], [2], None)


def test_a_receipt_of_a_unique_event_says_who_has_it_or_why_nobody_has():
    for prepared, expected in (
        ("given", Receipt(1, [0], [], "given")),
        ("repeat", Receipt(1, [], [], "repeat")),
        ("nobody", Receipt(1, [], [], "nobody")),
    ):
        net = Net()
        posting = poster(net)
        if prepared != "nobody":
            (first,) = workers(net, 1)
        if prepared == "repeat":
            post_unique(net, first, 0, "key")
        post_unique(net, posting, 1, "key", receipt=True)
        net.run()
        assert receipt_of(net, posting) == expected
        assert posting.outbox.queued == 0
        if prepared == "nobody":
            late = worker(net, 5)
            post_unique(net, posting, 2, "key")
            net.run()
            assert ran(late) == [[2]]


def test_confirmations_do_not_pile_up_for_a_process_that_is_stopped():
    net = Net(max_queue_len=4)
    first, second = workers(net, 2)
    link = second.channel.link
    # What is for it stays in the link, as where the kernel takes no more.
    collect = net.collect

    def collect_from_others():
        net.router._outgoing.changed.pop(link, None)
        collect()

    net.collect = collect_from_others  # type: ignore[method-assign]
    for number in range(4):
        post(net, first, number)
        ack(net, first)
    net.advance(TIMEOUT_S + 1)
    for number in range(4, 104):
        post(net, first, number)
        net.run(first)
    assert confirmed(net, first) == 104
    told = headers(link.output, Kind.CONFIRM)
    assert len(told) <= 5
    assert told[-1].seq == 104


def test_posters_that_left_cost_nothing_where_all_are_told():
    net = Net(max_queue_len=4)
    first, _ = workers(net, 2)
    for number in range(100, 105):
        net.disconnect(poster(net, number))
    told = []
    tell = net.router._confirms._send

    def note(poster):
        told.append(poster.origin)
        tell(poster)

    net.router._confirms._send = note  # type: ignore[method-assign]
    post(net, first, 1)
    ack(net, first)
    net.advance(TIMEOUT_S + 1)
    assert confirmed(net, first) == 1
    assert set(told) == {1, 2}
