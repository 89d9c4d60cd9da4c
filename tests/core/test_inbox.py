"""What waits for handlers: local events and their limit, the wait for a first handler, and what replaces an inbox."""

from __future__ import annotations

import threading

import pytest

from eventsh.core.delivery import Delivery, decode_runs
from eventsh.errors import ProtocolError, QueueOverflow
from eventsh.protocol.frame import Flag
from eventsh.protocol.messages import Handled
from tests.core.frames import NOW, ack_of, attach, attached, batch, data_of, handle, make, own_event, take, take_one


def fill(inbox, count):
    for number in range(count):
        inbox.post_local("s", "e", number)


def is_full(inbox):
    try:
        inbox.post_local("s", "e", "more")
    except QueueOverflow:
        return True
    return False


# --- the limit of local events ---


@pytest.mark.parametrize("how", ["waiting", "under way", "aside"])
def test_a_local_event_counts_until_its_handlers_have_returned(how):
    inbox = make(max_queue_len=3).inbox
    fill(inbox, 3)
    delivery = None
    if how != "waiting":
        delivery = inbox.next_delivery(NOW)
        if how == "aside":
            inbox.set_aside(delivery)
    assert inbox.local_queued == 3
    assert is_full(inbox)
    inbox.complete(delivery or inbox.next_delivery(NOW))
    assert inbox.local_queued == 2
    assert not is_full(inbox)
    assert is_full(inbox)


def test_events_of_others_do_not_count_as_local():
    session = attached(max_queue_len=3)
    session.receive([batch(1, *range(50))])
    fill(session.inbox, 3)
    assert is_full(session.inbox)
    delivery = session.inbox.next_delivery(NOW)
    session.inbox.complete(delivery)
    assert is_full(session.inbox)
    assert session.inbox.local_queued == 3


def test_a_completion_that_is_repeated_frees_one_place():
    inbox = make(max_queue_len=3).inbox
    fill(inbox, 3)
    delivery = take_one_of(inbox)
    for _ in range(3):
        inbox.complete(delivery)
    assert inbox.local_queued == 2


def take_one_of(inbox):
    delivery = inbox.next_delivery(NOW)
    inbox.set_aside(delivery)
    return delivery


def test_a_count_that_an_exception_made_too_large_is_corrected_where_it_matters():
    inbox = make(max_queue_len=3).inbox
    fill(inbox, 2)
    aside = take_one_of(inbox)
    # A post that was interrupted between its two steps, five times.
    inbox._local_in += 5
    assert not is_full(inbox)
    assert inbox.local_queued == 3
    assert is_full(inbox)
    inbox.complete(aside)
    assert inbox.local_queued == 2


def test_an_event_of_eventsh_s_own_comes_first_and_counts_while_it_waits():
    inbox = make(max_queue_len=2).inbox
    fill(inbox, 1)
    inbox.post_first("eventsh", "started", {})
    assert inbox.local_queued == 2
    first, second = inbox.next_delivery(NOW), None
    assert first.runs == [["eventsh", "started", [{}]]]
    assert (first.last_seq, first.count, first.pid) == (0, 1, None)
    inbox.complete(first)
    second = inbox.next_delivery(NOW)
    assert second.runs == [["s", "e", [0]]]
    assert (second.last_seq, second.count, second.pid) == (0, 1, None)


# --- the wait for a first handler ---


def test_the_wait_ends_with_a_handler_at_its_time_or_at_half_of_the_queue():
    for end in ("handler", "time", "half"):
        session = attached(handles=False, max_queue_len=11, timeout_s=5.0)
        inbox = session.inbox
        assert inbox.next_delivery(NOW) is None
        # Nothing waits: the time has not begun.
        untils = [inbox.hold_until]
        session.receive([batch(1, 1, 2), batch(3, 3, 4)])
        assert inbox.next_delivery(NOW) is None
        untils.append(inbox.hold_until)
        assert inbox.next_delivery(NOW + 4.999) is None
        assert [*untils, inbox.hold_until] == [None, NOW + 5, NOW + 5]
        if end == "handler":
            inbox._registry.register(print)
            assert inbox.next_delivery(NOW) is not None
        elif end == "time":
            assert inbox.next_delivery(NOW + 5) is not None
        else:
            session.receive([batch(5, 5)])
            assert inbox.next_delivery(NOW) is not None
        # It does not begin again.
        inbox.complete(inbox.next_delivery(NOW))
        assert inbox.next_delivery(NOW) is not None


def test_local_events_do_not_end_the_wait():
    session = attached(handles=False, max_queue_len=4)
    fill(session.inbox, 4)
    assert session.inbox.next_delivery(NOW) is None
    session.inbox.release()
    assert session.inbox.next_delivery(NOW) is not None


# --- deliveries ---


def test_a_delivery_is_the_first_until_it_is_completed_or_set_aside():
    session = attached()
    session.receive([batch(1, "a"), batch(2, "b")])
    inbox = session.inbox
    first = inbox.next_delivery(NOW)
    assert inbox.next_delivery(NOW) is first
    inbox.set_aside(first)
    second = inbox.next_delivery(NOW)
    assert second is not first
    # It has left its place: what is there now stays.
    inbox.set_aside(first)
    assert inbox.next_delivery(NOW) is second
    inbox.complete(first)
    assert inbox.next_delivery(NOW) is second
    assert inbox.handled == 1
    inbox.complete(second)
    assert (inbox.handled, inbox.is_idle, inbox.has_work) == (2, True, False)


def test_what_is_over_and_not_completed_is_owed():
    session = attached()
    session.receive([batch(1, "a"), batch(2, "b"), batch(3, "c")])
    inbox = session.inbox
    inbox.post_local("s", "e", "local")
    assert inbox.owed() == []
    first, second = take_one(session), take_one(session)
    under_way = inbox.next_delivery(NOW)
    assert inbox.owed() == []
    first.at = second.at = under_way.at = 1
    second.add_share("async")
    assert inbox.owed() == [first]
    second.end_share("async")
    second.end_share("async")
    assert inbox.owed() == [first, second]
    inbox.complete(first)
    inbox.complete(second)
    assert inbox.owed() == []
    inbox.complete(under_way)
    local = take_one(session)
    local.at = 1
    assert inbox.owed() == [local]
    inbox.complete(local)
    assert inbox.owed() == []


def test_a_stale_delivery_is_owed_until_it_is_completed_and_then_forgotten():
    session = attached()
    session.receive([batch(1, "a"), batch(2, "b")])
    aside, inbox = take_one(session), session.inbox
    waiting = inbox.next_delivery(NOW)
    session.disconnected()
    attach(session, epoch=2, seq=10)
    assert inbox.handled == 10
    assert inbox.owed() == []
    aside.at = 1
    assert inbox.owed() == [aside]
    # Begun before and found again: noted once.
    assert inbox.next_delivery(NOW) is waiting
    assert len(inbox._stale) == 2
    inbox.complete(waiting)
    assert not inbox.is_idle
    inbox.complete(aside)
    assert (inbox.is_idle, inbox.handled, inbox._stale) == (True, 10, [])


def test_an_epoch_that_begins_twice_keeps_what_is_not_done_once():
    session = attached()
    session.receive([batch(1, "a"), batch(2, "b")])
    first, second = take_one(session), take_one(session)
    session.inbox.complete(second)
    for _ in range(2):
        session.inbox.begin(2, 5)
    assert session.inbox._stale == [first]
    assert (session.inbox.epoch, session.inbox.handled) == (2, 5)


@pytest.mark.parametrize("role", ["worker", "observer"])
def test_a_poster_that_waits_is_answered_by_workers_and_by_whoever_has_a_unique_event(role):
    session = attached(role=role)
    session.receive([
        batch(1, "a", flags=Flag.TRACE | Flag.RECEIPT, number=4),
        batch(2, "u", flags=Flag.TRACE | Flag.UNIQUE, number=5),
        batch(3, "c", number=6),
    ])  # fmt: skip
    handle(session)
    answers = [Handled.decode(frame) for frame in session.take_output()]
    assert [(answer.origin, answer.number) for answer in answers] == [(8, 4), (8, 5)][role != "worker" :]


def test_a_replayed_or_unique_event_says_so():
    session = attached()
    session.receive([batch(1, "a", flags=Flag.REPLAYED), batch(2, "u", flags=Flag.UNIQUE), batch(3, "c")])
    found = [(each.is_replayed, each.is_unique) for each in take(session)]
    assert found == [(True, False), (False, True), (False, False)]


def test_frames_for_a_recorder_are_not_decoded_and_are_their_own():
    session = attached(reads_whole=True)
    frame = batch(1, "a", "b")
    session.receive([memoryview(frame), batch(3, "c")])
    first, second = take(session)
    assert (first.frame, first.runs, first.count, first.last_seq) == (frame, [], 2, 2)
    assert first.frame is not frame
    assert isinstance(first.frame, bytearray)
    assert second.frame == batch(3, "c")


# --- an inbox that replaces another ---


def test_local_events_move_to_another_inbox_and_those_of_eventsh_do_not():
    session = attached()
    session.receive([batch(1, "a")])
    inbox = session.inbox
    fill(inbox, 3)
    inbox.post_first("eventsh", "started", {})
    inbox.complete(inbox.next_delivery(NOW))
    inbox.post_first("eventsh", "started", {})
    taken = inbox.take_local()
    assert data_of(taken) == [0, 1, 2]
    assert not inbox.has_work
    following = make(max_queue_len=4).inbox
    following.put_local(taken)
    assert following.local_queued == 3
    assert not is_full(following)
    assert is_full(following)


def test_an_event_that_its_handlers_have_does_not_move():
    inbox = make().inbox
    fill(inbox, 3)
    under_way = inbox.next_delivery(NOW)
    assert data_of(inbox.take_local(under_way)) == [1, 2]


def test_events_that_are_posted_while_views_are_copied_are_kept():
    session = attached()
    shown = memoryview(batch(1, "a"))
    session.receive([shown, batch(2, "b")])
    inbox = session.inbox
    poster = threading.Thread(target=fill, args=(inbox, 100))
    poster.start()
    inbox.keep_frames()
    poster.join()
    assert [type(item[1]) for item in list(inbox.waiting) if type(item) is tuple] == [bytearray, bytearray]
    assert len(handle(session)) == 102


# --- runs ---


@pytest.mark.parametrize(
    ("body", "count"),
    [
        (b'[["s","e",[1,2]],["t","e",[3]]]', 3),
        (b'[["s","e",[]]]', 0),
    ],
)
def test_runs_hold_as_many_events_as_the_frame_said(body, count):
    assert decode_runs(memoryview(body), count) is not None
    for other in (count + 1, count - 1):
        with pytest.raises(ProtocolError, match=f"a batch said to hold {other} events holds {count}"):
            decode_runs(memoryview(body), other)


@pytest.mark.parametrize(
    "body",
    [b"{}", b"1", b"null", b"[1]", b"[[]]", b'[["s","e"]]', b'[["s","e",[1],2]]', b'[[1,"e",[1]]]', b'[["s",1,[1]]]',
     b'[["s","e",1]]', b'[["s","e",{}]]', b'[["s","e",[1]],1]', b'[{"a":1,"b":2,"c":3}]'],
)  # fmt: skip
def test_runs_of_another_shape_are_refused(body):
    for is_own in (True, False):
        with pytest.raises(ProtocolError, match="something other than runs of events"):
            decode_runs(memoryview(body), 1, is_own=is_own)


def test_the_source_eventsh_is_the_broker_s_alone():
    body = memoryview(b'[["s","e",[1]],["eventsh","gap",[2]]]')
    assert len(decode_runs(body, 2, is_own=True)) == 2
    with pytest.raises(ProtocolError, match="not the broker posted from the source 'eventsh'"):
        decode_runs(body, 2)


def test_a_delivery_is_over_when_every_run_was_called_and_every_share_has_returned():
    delivery = Delivery(1, 2, None, [1, 2])
    delivery.end_share("never begun")
    seen = []
    for delivery.at in range(3):
        seen.append(delivery.is_over)
    delivery.add_share("a")
    delivery.add_share("b")
    for share in "ab":
        seen.append(delivery.is_over)
        delivery.end_share(share)
    assert [*seen, delivery.is_over] == [False, False, True, False, False, True]


def test_acks_of_own_events_and_gaps_go_with_the_others():
    session = attached()
    session.receive([own_event(1, "worker_joined", {"worker_id": 1}), batch(2, "a")])
    assert handle(session) == [{"worker_id": 1}, "a"]
    assert ack_of(session) == (2, 2)
