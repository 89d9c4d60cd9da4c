"""One client's rules, fed with frames as a broker would send them."""

from __future__ import annotations

import weakref

import pytest

from eventsh.core.session import SessionState
from eventsh.errors import ProtocolError, QueueOverflow, UsageError
from eventsh.protocol.frame import Flag, Kind, decode_header, encode_frame
from eventsh.protocol.messages import (
    Ask,
    Error,
    Gap,
    Goodbye,
    Hello,
    Receipt,
    Reply,
    Report,
    Request,
)
from tests.core.frames import (
    FEATURE_NAMES,
    NOW,
    ack_of,
    attach,
    attached,
    batch,
    data_of,
    gap_of,
    handle,
    make,
    own_event,
    take,
    take_one,
    welcome,
)

# --- attaching ---


def test_the_hello_says_who_this_is_and_what_it_has():
    session = make(worker_id=3, take_unique=False)
    assert attach(session, slots=[3, 1], worker_id=3) == Hello(
        "me", 5, 42, "worker", 3, False, 0, 0, 0, [], False, features=FEATURE_NAMES
    )
    session.receive([batch(1, "a"), batch(2, "b")])
    session.inbox.complete(session.inbox.next_delivery(NOW))
    session.disconnected()
    assert Hello.decode(session.connected()) == Hello(
        "me", 5, 42, "worker", 3, False, 1, 2, 1, [1, 3], False, told=1, places=[[1, 2, 0]], features=FEATURE_NAMES
    )


def test_the_hello_says_how_far_it_got_in_the_posts_to_everybody_of_each_epoch():
    session = make()
    attach(session, posts=10)
    session.receive([batch(1, "a", "b"), batch(3, "u", flags=Flag.UNIQUE), own_event(4, "worker_joined", {})])
    session.receive([encode_frame(Kind.CONFIRM, seq=11), Gap(7, 5, 11, "slow", posts=16).encode(seq=11)])
    session.receive([batch(12, "c"), Gap(0, 1, 14, "unseen", epoch=7, exact=False).encode(seq=14)])
    assert session.new_gaps[-1].data["exact"] is False
    session.disconnected()
    hello = attach(session, epoch=2, posts=3)
    assert hello.places == [[1, 17, 11]]
    # Sent again: it has that already, and it has its place in this epoch's order too.
    session.receive(
        [batch(1, "c", number=12, flags=Flag.RESENT), Gap(4, 1, 2, "killed", epoch=1, posts=21).encode(seq=2)]
    )
    session.disconnected()
    assert Hello.decode(session.connected()).places == [[2, 4, 0], [1, 21, 11]]
    gap = session.new_gaps[-1].data
    assert (gap["missed"], gap["epoch"], gap["first_seq"], gap["last_seq"]) == (4, 1, 0, 0)


def test_the_hello_names_brokers_in_the_order_of_attachment_whatever_their_numbers():
    session = make()
    for epoch in (5, 9, 2, 7, 5, 3):
        attach(session, epoch=epoch)
        session.disconnected()
    assert [epoch for epoch, _, _ in Hello.decode(session.connected()).places] == [3, 5, 7, 2, 9]


def test_the_hello_names_an_epoch_once_when_the_session_is_back_at_its_broker():
    session = make()
    for epoch, posts in ((5, 10), (9, 20), (5, 30)):
        attach(session, epoch=epoch, posts=posts)
        session.disconnected()
    assert Hello.decode(session.connected()).places == [[5, 30, 0], [9, 20, 0]]


def test_the_hello_says_for_which_brokers_a_gap_was_received_that_is_not_exact():
    session = make()
    for epoch in (5, 9, 2):
        attach(session, epoch=epoch, posts=4)
        session.disconnected()
    attach(session, epoch=3)
    session.receive([Gap(2, 1, 1, "restarted", epoch=9, posts=6, exact=False).encode(seq=1)])
    # It was never attached to this one: a later broker counts it as it likes.
    session.receive([Gap(0, 1, 2, "unseen", epoch=1, exact=False).encode(seq=2)])
    session.disconnected()
    hello = Hello.decode(session.connected())
    assert hello.unsure == [9]
    assert hello.places == [[3, 0, 0], [2, 4, 0], [9, 6, 0], [5, 4, 0]]


def test_the_hello_says_which_slots_nobody_holds():
    session = attached()
    for number, posts in ((3, 7), (4, 9), (3, 8), (4, None)):
        session.receive([Ask(0, "slot_holder", {"worker_id": number, "posts": posts}).encode()])
    session.receive([Ask(0, "slot_holder", {"worker_id": "x"}).encode()])
    assert session.take_output() == []
    session.disconnected()
    assert Hello.decode(session.connected()).vacant == [[3, 1, 8]]


def test_what_is_known_of_brokers_and_slots_long_gone_is_bounded():
    session = make()
    for epoch in range(1, 30):
        attach(session, epoch=epoch)
        for number in range(epoch * 10, epoch * 10 + 10):
            session.receive([Ask(0, "slot_holder", {"worker_id": number, "posts": 1}).encode()])
        session.disconnected()
    hello = Hello.decode(session.connected())
    assert [epoch for epoch, _, _ in hello.places] == list(range(29, 13, -1))
    assert len(hello.vacant) == 128
    assert hello.vacant[-1] == [299, 29, 1]


def test_the_welcome_tells_slot_and_limits():
    session = make()
    attach(session, worker_id=7)
    assert session.state is SessionState.ATTACHED
    assert (session.worker_id, session.inbox.epoch) == (7, 1)
    assert (session.outbox.window, session.outbox.max_payload_len) == (50, 1000)


def test_nothing_leaves_before_the_welcome():
    session = make()
    session.outbox.post("s", "e", 1)
    session.request("status", {})
    assert session.take_output() == []
    session.connected()
    assert session.take_output() == []
    assert session.take_ack() is None
    session.receive([welcome()])
    assert [decode_header(frame).kind for frame in session.take_output()] == [Kind.EVENTS, Kind.REQUEST]


@pytest.mark.parametrize(
    "frame",
    [
        batch(1, "a"),
        encode_frame(Kind.CONFIRM),
        Gap(1, 1, 1, "slow").encode(seq=1),
        Goodbye(True).encode(),
        Receipt(1, [], [], None).encode(),
        Reply(1, None, None).encode(),
    ],
    ids=lambda frame: Kind(decode_header(frame).kind).name,
)
def test_a_broker_that_begins_with_anything_but_a_welcome_or_an_error_breaks_the_protocol(frame):
    session = make()
    session.connected()
    with pytest.raises(ProtocolError, match="before the welcome"):
        session.receive([frame])
    assert session.state is SessionState.GREETING


def test_an_error_in_place_of_a_welcome_is_the_owners():
    session = make()
    session.connected()
    assert session.receive([Error("too_many", "full").encode()]) == [Error("too_many", "full")]


@pytest.mark.parametrize(
    "frame",
    [
        welcome(),
        encode_frame(Kind.HELLO, b"{}"),
        encode_frame(Kind.ACK),
        encode_frame(Kind.REPORT, b"{}"),
        encode_frame(Kind.CONFIRM, origin_seq=1),
        encode_frame(Kind.REPLY, b"{"),
        batch(1, count=0),
    ],
    ids=["a second welcome", "hello", "ack", "report", "a confirmation of nothing", "no JSON", "an empty batch"],
)
def test_what_a_broker_never_sends_breaks_the_protocol(frame):
    session = attached()
    with pytest.raises(ProtocolError):
        session.receive([frame])


def test_a_welcome_of_another_version_breaks_the_protocol():
    session = make()
    session.connected()
    with pytest.raises(ProtocolError, match="version 2"):
        session.receive([welcome(version=2)])


def test_an_event_with_the_place_of_an_earlier_one_breaks_the_protocol():
    session = attached()
    session.receive([batch(1, "a", "b")])
    with pytest.raises(ProtocolError):
        session.receive([batch(2, "again")])
    assert handle(session) == ["a", "b"]


def test_numbers_that_no_ack_could_hold_break_the_protocol():
    session = attached()
    with pytest.raises(ProtocolError):
        session.receive([batch(2**53 - 2, "a", "b")])
    session.receive([batch(2**53 - 3, "a", "b")])
    assert ack_of(session)
    session = make()
    session.connected()
    with pytest.raises(ProtocolError, match="'seq' of a welcome frame is -1, not within 0 to 9007199254740991"):
        session.receive([welcome(seq=-1)])


def test_leaving_ends_when_the_broker_says_that_this_was_all():
    session = attached()
    session.outbox.post("s", "e", 1)
    session.leave(leave=False)
    frames = session.take_output()
    assert [decode_header(frame).kind for frame in frames] == [Kind.EVENTS, Kind.GOODBYE]
    assert Goodbye.decode(frames[1]) == Goodbye(leave=False)
    assert str(session.state) == str(SessionState.LEAVING)
    session.receive([batch(1, "last"), Goodbye(leave=False).encode()])
    assert session.state is SessionState.DRAINED
    assert not session.inbox.is_idle
    assert handle(session) == ["last"]
    assert session.inbox.is_idle
    assert ack_of(session) == (1, 1)


def test_leaving_means_nothing_to_one_who_is_not_attached():
    session = make()
    session.leave()
    assert session.state is SessionState.DETACHED


# --- deliveries ---


def test_a_delivery_tells_the_posters_pid_and_its_place():
    session = attached()
    session.receive([batch(4, "a", "b")])
    (delivery,) = take(session)
    assert delivery.runs == [["s", "e", ["a", "b"]]]
    assert (delivery.pid, delivery.count, delivery.first_seq, delivery.last_seq, delivery.time_ns) == (77, 2, 4, 5, 1)


def test_a_unique_event_comes_without_its_key():
    session = attached()
    session.receive([batch(1, "u", flags=Flag.UNIQUE)])
    assert handle(session) == ["u"]


def test_events_wait_for_the_first_handler():
    session = attached(handles=False, timeout_s=5.0)
    session.receive([batch(1, "a")])
    session.inbox.post_local("s", "e", "local")
    assert session.inbox.next_delivery(NOW) is None
    assert session.inbox.has_work
    assert session.inbox.hold_until == NOW + 5.0
    session.inbox._registry.register(print)
    session.inbox.post_local("s", "e", "later")
    assert handle(session) == ["a", "local", "later"]


def test_events_wait_for_a_handler_no_longer_than_the_timeout():
    session = attached(handles=False, timeout_s=5.0)
    session.receive([batch(1, "a")])
    assert take(session, NOW) == []
    assert take(session, NOW + 4.9) == []
    assert handle(session, NOW + 5.0) == ["a"]


def test_events_do_not_wait_for_a_handler_once_they_are_many():
    session = attached(handles=False, max_queue_len=10)
    session.receive([batch(1, 1, 2, 3, 4)])
    assert take(session) == []
    session.receive([batch(5, 5)])
    assert handle(session) == [1, 2, 3, 4, 5]


def test_an_owner_that_closes_stops_waiting_for_a_handler():
    session = attached(handles=False)
    session.receive([batch(1, "a")])
    assert take(session) == []
    session.inbox.release()
    assert handle(session) == ["a"]


def test_a_local_event_takes_its_place_behind_what_has_arrived():
    session = attached()
    session.receive([batch(1, "a")])
    session.inbox.post_local("s", "e", "local")
    session.receive([batch(2, "b")])
    deliveries = take(session)
    assert data_of(deliveries) == ["a", "local", "b"]
    assert [delivery.pid for delivery in deliveries] == [77, None, 77]


def test_a_local_event_needs_no_broker_and_is_not_copied():
    session, data = make(), object()
    session.inbox.post_local("s", "e", data)
    session.inbox.post_local("s", "e", 2)
    assert handle(session)[0] is data
    assert session.inbox.is_idle


def test_what_is_posted_first_comes_before_everything_that_waits():
    session = attached()
    session.receive([batch(1, "a")])
    session.inbox.post_first("eventsh", "started", "first")
    assert handle(session) == ["first", "a"]


@pytest.mark.parametrize(("source", "event"), [("", "e"), ("s", ""), (None, "e"), ("s", 1)])
def test_a_local_event_needs_its_names(source, event):
    session = make()
    with pytest.raises(UsageError):
        session.inbox.post_local(source, event, 1)
    assert not session.inbox.has_work


def test_a_full_local_queue_refuses_until_one_is_handled():
    session = make(max_queue_len=2)
    session.inbox.post_local("s", "e", 1)
    session.inbox.post_local("s", "e", 2)
    with pytest.raises(QueueOverflow, match="local queue holds 2 events, its limit is 2"):
        session.inbox.post_local("s", "e", 3)
    delivery = session.inbox.next_delivery(NOW)
    with pytest.raises(QueueOverflow, match="local queue holds 2 events, its limit is 2"):
        session.inbox.post_local("s", "e", 3)
    session.inbox.complete(delivery)
    session.inbox.post_local("s", "e", 4)
    assert handle(session) == [2, 4]


MALFORMED = {
    "no JSON": b"[",
    "nothing": b"",
    "no list": b"{}",
    "a number": b"1",
    "null": b"null",
    "an empty list": b"[]",
    "runs that are none": b"[1]",
    "runs that are too short": b'[["s","e"]]',
    "names that are none": b'[["s",1,[1]]]',
    "no source": b'[[null,"e",[1]]]',
    "no list of data": b'[["s","e",1]]',
    "a string of data": b'[["s","e","x"]]',
    "an object of runs": b'{"abc":1}',
    "more events than it said": b'[["s","e",[1,2]]]',
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED)
def test_a_batch_that_can_t_be_read_is_a_gap_in_its_place(body):
    session = attached()
    bad = encode_frame(Kind.EVENTS, body, count=1, pid=1, origin=8, origin_seq=2, seq=2)
    session.receive([batch(1, "before"), bad, batch(3, "behind", number=3)])
    before, gap, behind = take(session)
    assert data_of([before, behind]) == ["before", "behind"]
    assert gap_of(gap) == {"missed": 1, "first_seq": 2, "last_seq": 2, "epoch": 1, "exact": True}
    assert (session.gaps, session.missed, session.inbox.is_idle) == (1, 1, False)
    session.inbox.complete(before)
    assert ack_of(session) == (3, 1)
    session.inbox.complete(gap)
    session.inbox.complete(behind)
    assert ack_of(session) == (3, 3)
    assert session.inbox.is_idle


# --- acks ---


def test_received_is_acknowledged_at_once_and_handled_when_the_handlers_returned():
    session = attached()
    assert ack_of(session) is None
    session.receive([batch(1, "a", "b")])
    assert (session.unacked_received, session.unacked_handled) == (2, 0)
    assert ack_of(session) == (2, 0)
    (delivery,) = take(session)
    assert ack_of(session) is None
    session.inbox.complete(delivery)
    assert (session.unacked_received, session.unacked_handled) == (0, 2)
    assert ack_of(session) == (2, 2)
    assert ack_of(session) is None


def test_handled_goes_only_as_far_as_everything_before_it_is_done():
    session = attached()
    session.receive([batch(1, "a"), batch(2, "b"), batch(3, "c")])
    first, second, third = take(session)
    session.inbox.complete(third)
    assert ack_of(session) == (3, 0)
    session.inbox.complete(first)
    assert ack_of(session) == (3, 1)
    assert not session.inbox.is_idle
    session.inbox.complete(second)
    assert ack_of(session) == (3, 3)
    assert session.inbox.is_idle


def test_what_was_handled_between_hello_and_welcome_is_acknowledged_too():
    session = attached()
    session.receive([batch(1, "a")])
    (delivery,) = take(session)
    session.disconnected()
    assert Hello.decode(session.connected()).handled == 0
    session.inbox.complete(delivery)
    session.receive([welcome(resumed=True, seq=1)])
    assert ack_of(session) == (1, 1)


def test_failures_are_reported_once_for_a_turn_with_their_number_and_the_last_one():
    session = attached()
    session.report_failure({"handler": "a"})
    session.report_failure({"handler": "b"})
    (frame,) = session.take_output()
    assert Report.decode(frame) == Report(2, {"handler": "b"})
    assert session.take_output() == []


def test_requests_are_numbered():
    session = attached()
    numbers = [session.request("status", {"a": 1}), session.request("status", {})]
    assert [Request.decode(frame) for frame in session.take_output()] == [
        Request(numbers[0], "status", {"a": 1}),
        Request(numbers[1], "status", {}),
    ]
    assert numbers[0] != numbers[1]


# --- gaps ---


def test_a_gap_is_an_event_at_its_place():
    session = attached()
    session.receive([batch(1, "a"), Gap(7, 2, 8, "slow").encode(seq=8), batch(9, "b")])
    deliveries = take(session)
    source, event, (data,) = deliveries[1].runs[0]
    assert (source, event) == ("eventsh", "gap")
    assert data == {"missed": 7, "first_seq": 2, "last_seq": 8, "reason": "slow", "epoch": 1, "exact": True}
    assert (session.gaps, session.missed) == (1, 7)
    assert deliveries[1].pid is None
    for delivery in deliveries[:2]:
        session.inbox.complete(delivery)
    assert ack_of(session) == (9, 8)


# --- reconnects ---


def test_in_the_same_epoch_the_stream_goes_on_where_it_was():
    session = attached()
    session.receive([batch(1, "a"), batch(2, "b")])
    busy = take_one(session)
    session.disconnected()
    attach(session, resumed=True, seq=3)
    session.receive([batch(3, "c")])
    session.inbox.complete(busy)
    assert handle(session) == ["b", "c"]
    assert ack_of(session) == (3, 3)


def test_in_the_same_epoch_another_slot_means_that_what_passed_meanwhile_is_missing():
    session = attached()
    session.receive([batch(1, "a")])
    session.disconnected()
    attach(session, resumed=False, seq=6, worker_id=4)
    assert data_of(take(session))[1] | {"reason": ""} == {
        "missed": 5, "first_seq": 2, "last_seq": 6, "reason": "", "epoch": 1, "exact": True,
    }  # fmt: skip
    session.receive([batch(7, "b")])
    assert session.worker_id == 4


def test_in_the_same_epoch_another_slot_without_anything_missed_is_no_gap():
    session = attached()
    session.receive([batch(1, "a")])
    (busy,) = take(session)
    session.disconnected()
    attach(session, resumed=False, seq=1)
    assert session.gaps == 0
    session.inbox.complete(busy)
    assert ack_of(session) == (1, 1)


def test_a_poster_misses_nothing():
    session = make(role="poster")
    attach(session, worker_id=None)
    session.disconnected()
    attach(session, seq=100, worker_id=None)
    assert not session.inbox.has_work


@pytest.mark.parametrize(("resumed", "start"), [(False, 40), (True, 0)])
def test_a_new_epoch_starts_where_the_broker_says(resumed, start):
    session = attached()
    session.receive([batch(1, "a"), batch(2, "b"), batch(3, "c")])
    running, waiting_for_async = take_one(session), take_one(session)
    session.disconnected()
    attach(session, epoch=2, resumed=resumed, seq=40)
    assert (session.received, session.inbox.handled) == (start, start)
    assert ack_of(session) is None
    session.receive([batch(41, "d", number=4)])
    # What arrived before is handled first, and nobody is told: the broker that could be is no more.
    old, new = take(session)
    assert data_of([old, new]) == ["c", "d"]
    session.inbox.complete(new)
    assert ack_of(session) == (41, 41)
    for delivery in (old, waiting_for_async):
        session.inbox.complete(delivery)
        assert not session.inbox.is_idle
    session.inbox.complete(running)
    assert session.inbox.is_idle
    assert ack_of(session) is None


def test_after_a_brokers_death_what_this_process_has_is_dropped_and_acknowledged_in_its_turn():
    session = attached()
    session.receive([batch(1, "a", number=1), batch(2, "b", "c", number=2)])
    handle(session)
    session.disconnected()
    attach(session, epoch=2, resumed=True, seq=0)
    session.receive([
        batch(1, "other", origin=9, number=1),
        batch(2, "b", "c", number=2, flags=Flag.RESENT),
        batch(4, "d", number=4, flags=Flag.RESENT),
    ])  # fmt: skip
    assert handle(session) == ["other", "d"]
    assert ack_of(session) == (4, 4)
    session.disconnected()
    attach(session, epoch=3)
    session.receive([batch(1, "d", number=4, flags=Flag.RESENT), batch(2, "e", number=5, flags=Flag.RESENT)])
    assert handle(session) == ["e"]


def test_what_is_not_marked_as_resent_is_never_taken_for_a_repeat():
    session = attached()
    session.receive([batch(1, "a", "b", "c", number=1)])
    # By chance another poster drew the origin of one that has left.
    session.receive([batch(4, "new", number=1)])
    assert handle(session) == ["a", "b", "c", "new"]


def test_a_unique_event_between_broadcasts_does_not_hide_one_that_is_resent():
    session = attached()
    session.receive([batch(1, "u", number=5, flags=Flag.UNIQUE)])
    session.disconnected()
    attach(session, epoch=2)
    session.receive([
        batch(1, "b", number=4, flags=Flag.RESENT),
        batch(2, "u", number=5, flags=Flag.UNIQUE | Flag.RESENT),
        batch(3, "v", number=6, flags=Flag.UNIQUE | Flag.RESENT),
    ])  # fmt: skip
    assert handle(session) == ["u", "b", "v"]


def test_posts_that_are_not_confirmed_leave_again_on_the_next_connection():
    session = attached()
    session.outbox.post("s", "e", 1)
    session.take_output()
    session.outbox.post("s", "e", 2)
    session.take_output()
    session.receive([encode_frame(Kind.CONFIRM, origin_seq=1)])
    session.disconnected()
    attach(session, epoch=2)
    (frame,) = session.take_output()
    assert (decode_header(frame).origin_seq, decode_header(frame).flags) == (2, Flag.RESENT)


def test_requests_die_with_their_connection():
    session = attached()
    session.request("status", {})
    session.disconnected()
    attach(session)
    assert session.take_output() == []


# --- who else is there ---


def test_the_slots_of_the_others_are_known_when_the_broker_dies():
    session = make()
    attach(session, slots=[1, 2])
    session.receive([
        own_event(1, "worker_joined", {"worker_id": 0, "pid": 42}),
        own_event(2, "worker_joined", {"worker_id": 7, "pid": 43}),
        own_event(3, "worker_left", {"worker_id": 2, "pid": 44, "kept": False}),
        own_event(4, "worker_left", {"worker_id": 1, "pid": 45, "kept": True}),
        own_event(5, "handler_error", {"worker_id": 99}),
        own_event(6, "worker_joined", None),
    ])  # fmt: skip
    session.disconnected()
    assert Hello.decode(session.connected()).slots == [0, 1, 7]


def test_the_slots_of_workers_that_joined_together_are_known_when_the_broker_dies():
    session = make()
    attach(session, slots=[1, 2])
    session.receive([
        own_event(1, "workers_joined", {"workers": [{"worker_id": 0, "pid": 42}, {"worker_id": 7, "pid": 43, "assigned": True}]}),
        own_event(2, "workers_joined", {"workers": [None, {"worker_id": -1}, {"worker_id": "4"}, {"worker_id": 5, "pid": 44}]}),
        own_event(3, "workers_joined", {"workers": {"worker_id": 8}}),
        own_event(4, "worker_left", {"worker_id": 0, "pid": 42, "kept": False}),
    ])  # fmt: skip
    session.disconnected()
    hello = Hello.decode(session.connected())
    assert (hello.slots, hello.assigned_slots) == ([1, 2, 5, 7], [7])


def test_events_of_a_poster_say_nothing_of_slots():
    session = attached()
    forged = own_event(1, "worker_joined", {"worker_id": 5})
    forged[12] = 8
    session.receive([forged])
    session.disconnected()
    assert Hello.decode(session.connected()).slots == []


def test_views_that_wait_are_copied_before_their_memory_goes():
    session = attached()
    memory = bytearray(batch(1, "first", "x" * 100))
    shown = memoryview(memory).toreadonly()
    session.receive([shown, batch(3, "second")])
    session.inbox.post_local("s", "local", "third")
    del shown
    session.inbox.keep_frames()
    memory[:] = bytes(len(memory))
    assert handle(session) == ["first", "x" * 100, "second", "third"]


def test_a_view_is_let_go_once_it_is_decoded():
    session = attached()
    shown = memoryview(bytearray(batch(1, "first"))).toreadonly()
    gone = weakref.ref(shown)
    session.receive([shown])
    del shown
    assert gone() is not None
    (delivery,) = take(session)
    assert gone() is None
    assert data_of([delivery]) == ["first"]
