"""Unique events that their poster keeps until their handlers have returned: they survive the end of broker and worker together."""

from __future__ import annotations

import pytest

from eventsh.errors import QueueOverflow
from eventsh.protocol.features import FEATURES, KEPT_UNIQUE
from eventsh.protocol.frame import Flag, Kind, encode_frame
from eventsh.protocol.messages import Error
from tests.core.broker.test_router_refusals import hello, raw
from tests.core.net import (
    TIMEOUT_S,
    Net,
    Process,
    ack,
    error_codes,
    headers,
    post,
    post_unique,
    poster,
    ran,
    worker,
    workers,
)


def busy_pool(*values, count=2, **options):
    """Workers that have received these unique events and broadcasts (0) and run the handler of the first, and their poster, which
    knows all of them as confirmed."""
    net = Net(**options)
    everybody = workers(net, count)
    posting = poster(net)
    for value in values:
        if value:
            post_unique(net, posting, value, f"key {value}")
        else:
            post(net, posting, value)
    for process in everybody:
        ack(net, process)
        net.take(process)
    net.down(posting.channel)
    assert posting.outbox.queued == 0
    return net, everybody, posting


def holders(everybody, value):
    return [process for process in everybody if value in list(process.data_of("app"))]


def kill_both(net, *processes):
    """The broker and some of its workers end at the same instant."""
    for process in processes:
        process.is_alive = False
    net.replace_broker()


def test_a_confirmed_event_whose_broker_and_worker_end_together_runs_in_another_worker():
    net, everybody, posting = busy_pool("u")
    (victim,) = holders(everybody, "u")
    (other,) = [process for process in everybody if process is not victim]
    assert posting.outbox.kept == 1
    kill_both(net, victim)
    net.attach(posting)
    net.attach(other)
    worker(net, 50, victim.session.worker_id)
    net.run()
    assert sum("u" in data for data in ran(*(channel.process for channel in net.channels))) == 1
    assert posting.outbox.kept == 0


def test_an_event_whose_worker_lives_is_assigned_to_no_other_and_kept_until_its_handler_returns():
    net, everybody, posting = busy_pool("u")
    (holder,) = holders(everybody, "u")
    (other,) = [process for process in everybody if process is not holder]
    kill_both(net)
    for process in (posting, other, holder):
        net.attach(process)
    for _ in range(3):
        net.run(other, posting)
        net.flush(holder)
        net.up(holder.channel)
        net.down(holder.channel)
        # The repeat is taken, and does not end before its original does.
        net.take(holder)
    assert (ran(holder, other), posting.outbox.kept) == ([["u"], []], 1)
    net.run()
    assert (ran(holder, other), posting.outbox.kept) == ([["u"], []], 0)


def test_a_worker_that_ends_with_the_handler_at_work_after_it_was_sent_a_repeat_is_replaced():
    net, everybody, posting = busy_pool("u")
    (holder,) = holders(everybody, "u")
    (other,) = [process for process in everybody if process is not holder]
    kill_both(net)
    for process in (posting, other, holder):
        net.attach(process)
    for _ in range(3):
        net.run(other, posting)
        net.flush(holder)
        net.up(holder.channel)
        net.down(holder.channel)
        net.take(holder)
    slot = net.kill(holder)
    net.router.end_process(slot, net.now)
    net.collect()
    net.run(other, posting)
    assert (ran(other), posting.outbox.kept) == ([["u"]], 0)


def test_an_event_is_settled_when_its_handler_returns_whether_it_is_confirmed_or_not():
    net = Net()
    first, second = workers(net, 2)
    posting = poster(net)
    post(net, posting, 1)
    post_unique(net, posting, "u", "key")
    # The other worker has not received the broadcast, so nothing is confirmed.
    (holder,) = [process for process in (first, second) if len(process.channel.down) == 2]
    net.run(holder, posting)
    assert (posting.outbox.kept, posting.outbox.queued) == (0, 2)
    net.run()
    assert (posting.outbox.kept, posting.outbox.queued) == (0, 0)


def test_a_repeat_and_an_event_that_nobody_takes_are_not_kept():
    net = Net()
    (first,) = workers(net, 1)
    posting = poster(net)
    post_unique(net, posting, 1, "key")
    post_unique(net, posting, 2, "key")
    net.run()
    assert (ran(first), posting.outbox.kept) == ([[1]], 0)
    net.disconnect(first)
    post_unique(net, posting, 3, "other", receipt=True)
    net.run(posting)
    assert posting.outbox.kept == 0


def test_a_report_that_was_lost_with_the_connection_is_repeated_and_nothing_runs_again():
    net, everybody, posting = busy_pool("u", "v", "w")
    net.run(*everybody)
    assert posting.outbox.kept == 3
    net.disconnect(posting)
    net.attach(posting)
    net.run()
    assert posting.outbox.kept == 0
    assert sorted(value for data in ran(*everybody) for value in data) == ["u", "v", "w"]
    assert error_codes(posting) == []


def test_a_report_of_an_event_that_was_sent_again_is_repeated_too():
    net, everybody, posting = busy_pool("u", 0, "v", count=1)
    kill_both(net, *everybody)
    net.attach(posting)
    net.flush(posting)
    net.up(posting.channel)
    others = [worker(net, 50, 0), worker(net, 51, 1)]
    net.run(*others)
    assert sorted(value for data in ran(*others) for value in data) == ["u", "v"]
    assert posting.outbox.kept == 2
    net.disconnect(posting)
    # They would be assigned to the other one each.
    for value in "xyz":
        post_unique(net, net.attach(Process(70 + ord(value), role="poster")), value, value)
        net.run(*others)
    net.attach(posting)
    net.run()
    assert sorted(value for data in ran(*others) for value in data) == ["u", "v", "x", "y", "z"]
    assert posting.outbox.kept == 0


def test_kept_events_leave_in_the_order_of_their_numbers_before_the_window():
    net, everybody, posting = busy_pool("u", 0, "v", 0, "w", count=1)
    posting.outbox.post("app", "e", "unconfirmed")
    net.flush(posting)
    kill_both(net, *everybody)
    net.attach(posting)
    posting.outbox.post("app", "e", "new")
    net.flush(posting, ack=False)
    sent = headers(posting.channel.up, Kind.EVENTS)
    assert [header.origin_seq for header in sent] == [1, 3, 5, 6, 7]
    assert [bool(header.flags & Flag.RESENT) for header in sent] == [True, True, True, True, False]
    net.up(posting.channel)
    other = worker(net, 50, 0)
    net.run()
    assert ran(other) == [["unconfirmed", "new", "u", "v", "w"]]
    assert error_codes(posting) == []
    assert (posting.outbox.kept, posting.outbox.queued) == (0, 0)


def test_no_more_kept_events_than_the_window_has_places_are_under_way_and_all_of_them_run():
    net = Net(max_queue_len=4)
    everybody = workers(net, 3)
    posting = poster(net)
    for number in range(11):
        post_unique(net, posting, number, f"key {number}")
        for process in everybody:
            ack(net, process)
        net.down(posting.channel)
    confirmed = posting.outbox.confirmed
    assert confirmed > 4
    kill_both(net, *everybody)
    net.attach(posting)
    net.flush(posting)
    sent = headers(posting.channel.up, Kind.EVENTS)
    assert [header.origin_seq for header in sent if header.origin_seq <= confirmed] == [1, 2, 3, 4]
    others = [worker(net, 50 + number, number) for number in range(3)]
    net.run()
    assert sorted(value for data in ran(*others) for value in data) == list(range(11))
    assert error_codes(posting) == []
    assert posting.outbox.kept == 0


def test_an_event_sent_again_is_no_repeat_of_one_that_took_its_key_since():
    net, everybody, posting = busy_pool("u", unique_timeout=1.0)
    (victim,) = holders(everybody, "u")
    (other,) = [process for process in everybody if process is not victim]
    net.advance(2.0)
    post_unique(net, posting, "later", "key u")
    net.run(other, posting)
    assert ran(other) == [["later"]]
    kill_both(net, victim)
    net.attach(posting)
    net.attach(other)
    worker(net, 50, victim.session.worker_id)
    net.run()
    assert sum("u" in data for data in ran(*(channel.process for channel in net.channels))) == 1


def test_an_event_sent_again_comes_before_a_repeat_of_its_key_that_waits_too():
    net, everybody, posting = busy_pool("u")
    (victim,) = holders(everybody, "u")
    (other,) = [process for process in everybody if process is not victim]
    kill_both(net, victim)
    net.attach(other)
    late = poster(net, 81)
    post_unique(net, late, "repeat", "key u")
    net.attach(posting)
    net.flush(posting)
    net.up(posting.channel)
    successor = worker(net, 50, victim.session.worker_id)
    net.run()
    assert sorted(ran(other, successor)) == [[], ["u"]]
    assert (posting.outbox.kept, late.outbox.kept) == (0, 0)


def test_a_process_that_is_away_for_a_moment_keeps_the_events_that_it_named():
    net, everybody, posting = busy_pool("u")
    (holder,) = holders(everybody, "u")
    (other,) = [process for process in everybody if process is not holder]
    kill_both(net)
    for process in (holder, other):
        net.attach(process)
        net.flush(process)
        net.up(process.channel)
    net.disconnect(holder)
    net.attach(posting)
    net.run(posting, other)
    assert ran(other) == [[]]
    net.attach(holder)
    net.run()
    assert (ran(holder, other), posting.outbox.kept) == ([["u"], []], 0)


def test_a_process_that_does_not_come_back_within_the_timeout_loses_the_events_that_it_named():
    net, everybody, posting = busy_pool("u")
    (holder,) = holders(everybody, "u")
    (other,) = [process for process in everybody if process is not holder]
    kill_both(net)
    for process in (holder, other):
        net.attach(process)
        net.flush(process)
        net.up(process.channel)
    net.disconnect(holder)
    net.attach(posting)
    net.advance(TIMEOUT_S + 1)
    net.run(posting, other)
    assert (ran(other), posting.outbox.kept) == ([["u"]], 0)


def test_a_poster_has_no_room_while_its_kept_events_fill_its_queue_in_bytes():
    net = Net()
    (first,) = workers(net, 1)
    posting = poster(net)
    posting.outbox.max_queue_bytes = 10_000

    def post_and_confirm():
        for number in range(20):
            post_unique(net, posting, "x" * 1000, f"key {number}")
            ack(net, first)
            net.down(posting.channel)

    with pytest.raises(QueueOverflow, match="max_queue_bytes"):
        post_and_confirm()
    assert posting.outbox.queued == 0
    assert 7 <= posting.outbox.kept <= 10
    net.run()
    post_unique(net, posting, "x" * 1000, "last")
    net.run()
    assert (len(ran(first)[0]), posting.outbox.kept) == (posting.outbox.number, 0)


def test_what_was_handled_while_its_poster_was_away_is_settled_when_it_is_back():
    net = Net()
    first, killed = workers(net, 2)
    net.router.end_process(net.disconnect(killed), net.now)
    posting = poster(net)
    post_unique(net, posting, "u", "key")
    net.up(posting.channel)
    # The confirmation is lost with the connection, and the handlers return before there is another.
    net.disconnect(posting)
    net.run(first)
    # With a slot that nobody waits for, the confirmation comes beside the welcome.
    channel = net.connect(posting)
    net.up(channel)
    net.down(channel)
    net.run(first, posting)
    assert ran(first) == [["u"]]
    assert (posting.outbox.queued, posting.outbox.kept) == (0, 0)


@pytest.mark.parametrize("old", ["broker", "poster"])
def test_beside_a_broker_or_a_poster_that_does_not_know_kept_events_nothing_is_kept(old):
    without = FEATURES - {KEPT_UNIQUE}
    net = Net(features=without if old == "broker" else FEATURES)
    (first,) = workers(net, 1)
    posting = net.attach(Process(80, role="poster", features=without if old == "poster" else FEATURES))
    post_unique(net, posting, "u", "key")
    net.run(first)
    channel = posting.channel
    assert channel is not None
    assert [header.kind for header in headers(channel.down)][-1] == Kind.CONFIRM
    assert Kind.SETTLED not in {header.kind for header in headers(channel.down)}
    net.down(channel)
    assert (posting.outbox.queued, posting.outbox.kept) == (0, 0)


def test_kept_events_are_not_sent_to_a_broker_that_does_not_know_them():
    net, _, posting = busy_pool("u", 0, "v", count=1)
    net.features = FEATURES - {KEPT_UNIQUE}
    net.replace_broker()
    net.attach(posting)
    post(net, posting, 1)
    assert (posting.outbox.kept, error_codes(posting)) == (0, [])


def kept_frame(number, *, count=1):
    body = b"\x01\x00k" + b'[["app","u",[1]]]'
    return encode_frame(Kind.EVENTS, body, flags=Flag.UNIQUE | Flag.RESENT, count=count, origin_seq=number)


@pytest.mark.parametrize(
    ("numbers", "reason"),
    [((10, 20, 30, 40), "max_queue_len"), ((10, 101, 103), "post 103 came after post 101")],
)
def test_a_client_that_sends_kept_events_beyond_the_rules_is_disconnected(numbers, reason):
    net = Net(max_queue_len=3)
    frames = [kept_frame(number) for number in numbers]
    messages = raw(net, hello(role="poster", confirmed=100, features=[KEPT_UNIQUE]), *frames)
    (error,) = [message for message in messages if isinstance(message, Error)]
    assert reason in error.message


def test_a_hello_with_an_impossible_number_of_confirmed_posts_is_refused():
    messages = raw(Net(), hello(role="poster", confirmed=-1, features=[KEPT_UNIQUE]))
    assert [message.code for message in messages if isinstance(message, Error)] == ["protocol"]


def test_what_a_dead_poster_kept_is_remembered_no_longer_than_it_is_under_way():
    net, everybody, posting = busy_pool("u", "v", count=1)
    kill_both(net, *everybody)
    net.attach(posting)
    net.flush(posting)
    net.up(posting.channel)
    known = net.router._state.posters._by_origin[posting.outbox.origin]
    # No worker is there: they are the poster's again.
    assert known.is_busy
    net.kill(posting)
    assert not known.is_busy
