"""A session at its bounds: numbers, memories, reports and output of one turn, and what each message changes."""

from __future__ import annotations

from typing import Any

import pytest

from eventsh.core import session as session_module
from eventsh.core.session import SessionState
from eventsh.errors import ProtocolError
from eventsh.protocol.frame import PROTOCOL_VERSION, Flag, Kind, decode_header, encode_frame
from eventsh.protocol.messages import (
    Answer,
    Ask,
    Error,
    Gap,
    Goodbye,
    Handled,
    Hello,
    Output,
    Receipt,
    Reply,
    Report,
    Taken,
)
from tests.core.frames import (
    ack_of,
    attach,
    attached,
    batch,
    data_of,
    handle,
    make,
    own_event,
    take,
    take_one,
    welcome,
)


def kinds(frames):
    return [decode_header(frame).kind for frame in frames]


def confirm(number, posts=0):
    return encode_frame(Kind.CONFIRM, origin_seq=number, seq=posts)


# --- before and after the welcome ---


def test_a_new_session_is_detached_and_knows_nothing():
    session = make()
    assert str(session.state) == str(SessionState.DETACHED)
    assert (session.received, session.gaps, session.missed, session.withdrawn, session.new_gaps) == (0, 0, 0, 0, [])
    assert (session.role, session.worker_id, session.take_unique) == ("worker", None, True)
    assert (session.inbox.epoch, session.inbox.handled, session.inbox.max_queue_len) == (0, 0, 10240)
    assert session.inbox.timeout_s == 5.0
    assert Hello.decode(session.connected()).version == PROTOCOL_VERSION
    assert session.state is SessionState.GREETING


@pytest.mark.parametrize("role", ["worker", "observer", "poster"])
def test_a_session_becomes_what_it_is_told_from_the_next_hello_on(role):
    session = make()
    session.become(role)
    assert Hello.decode(session.connected()).role == role
    assert session.inbox.is_worker == (role == "worker")


def test_a_host_and_slots_are_in_the_hello_up_to_their_limit(monkeypatch):
    session = make(host="here")
    attach(session, slots=range(8200, 0, -1))
    session.disconnected()
    hello = Hello.decode(session.connected())
    assert hello.host == "here"
    assert hello.slots == list(range(1, 4097))


@pytest.mark.parametrize("kind", [Kind.EVENTS, Kind.CONFIRM, Kind.PING, Kind.PONG, Kind.GAP, Kind.REPLY, Kind.ASK])
def test_before_the_welcome_a_broker_says_nothing_else(kind):
    session = make()
    with pytest.raises(ProtocolError, match=f"a frame of kind {int(kind)} came before the welcome"):
        session.receive([encode_frame(kind, b"{}")])
    session.connected()
    with pytest.raises(ProtocolError, match="came before the welcome"):
        session.receive([encode_frame(kind, b"{}")])


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"version": 0}, "the broker speaks version 0, not 1"),
        ({"version": 2}, "the broker speaks version 2, not 1"),
        ({"seq": -1}, "-1"),
        ({"features": ["x" * 65]}, "a welcome names a feature of 65 characters"),
    ],
)
def test_a_welcome_that_can_not_be_is_refused(facts, message):
    session = make()
    session.connected()
    with pytest.raises(ProtocolError, match=message):
        session.receive([welcome(**facts)])
    assert session.state is SessionState.GREETING


def test_the_highest_place_a_welcome_can_name():
    session = make()
    attach(session, seq=2**53 - 1)
    assert session.received == 2**53 - 1


def test_a_second_welcome_is_refused_in_every_state():
    session = attached()
    for _ in range(2):
        with pytest.raises(ProtocolError, match="a welcome came that nobody waited for"):
            session.receive([welcome()])
        session.leave()


def test_the_limits_of_a_welcome_hold_and_never_raise_ours():
    session = make()
    session.outbox.max_payload_len = 500
    attach(session, max_queue_len=7, max_payload_len=1000)
    assert (session.outbox.window, session.outbox.max_payload_len) == (7, 500)
    session.disconnected()
    attach(session, max_queue_len=8, max_payload_len=400)
    assert (session.outbox.window, session.outbox.max_payload_len) == (8, 400)


def test_every_message_is_handed_to_the_owner_and_headers_alone_are_not():
    session = attached()
    error = Error("protocol", "m")
    reply = Reply(1, {"a": 1}, None)
    found = session.receive([
        encode_frame(Kind.PING), batch(1, "a"), confirm(0), reply.encode(), encode_frame(Kind.PONG), error.encode(),
    ])  # fmt: skip
    assert found == [reply, error]
    assert kinds(session.take_output()) == [Kind.PONG]


@pytest.mark.parametrize("kind", [Kind.HELLO, Kind.ACK, Kind.REQUEST, Kind.REPORT, Kind.ANSWER, Kind.OUTPUT])
def test_a_kind_that_only_clients_send_is_refused(kind):
    with pytest.raises(ProtocolError, match=f"a broker does not send frames of kind {int(kind)}"):
        attached().receive([encode_frame(kind, b"{}")])


@pytest.mark.parametrize("message", ["challenge", "proof"])
def test_a_handshake_that_was_not_begun_is_refused(message):
    frame = encode_frame(Kind.CHALLENGE if message == "challenge" else Kind.PROOF, b'{"nonce":"","mac":""}')
    for session in (make(), attached()):
        with pytest.raises(ProtocolError, match="a handshake that nobody asked for"):
            session.receive([frame])


# --- places of events ---


@pytest.mark.parametrize(
    ("seq", "count", "is_good"),
    [
        (4, 1, True),
        (3, 1, False),
        (4, 0, False),
        (9, 2, True),
        (2**53 - 2, 1, True),
        (2**64 - 1, 1, False),
        (2**64 - 3, 3, False),
    ],
)
def test_events_come_after_those_before_and_below_the_largest_number(seq, count, is_good):
    session = attached()
    session.receive([batch(1, "a", "b", "c")])
    frame = batch(seq, *range(count))
    if is_good:
        session.receive([frame])
        assert session.received == seq + count - 1
    else:
        with pytest.raises(ProtocolError, match=rf"event {seq} \(of {count}\) came after event 3"):
            session.receive([frame])
        assert session.received == 3


def test_a_confirmation_beyond_the_last_post_is_refused():
    session = attached()
    session.outbox.post("s", "e", 1)
    with pytest.raises(ProtocolError, match="post 1 was confirmed, but the last one was 0"):
        session.receive([confirm(1)])
    session.take_output()
    session.receive([confirm(1)])
    assert session.outbox.queued == 0


def test_confirmed_posts_are_counted_up_and_never_down():
    session = attached()
    for posts in (5, 9, 7):
        session.receive([confirm(0, posts)])
    session.disconnected()
    assert Hello.decode(session.connected()).places == [[1, 0, 9]]


def test_posts_to_everybody_are_counted_and_no_others():
    session = make()
    attach(session, posts=100)
    session.receive([
        batch(1, "a", "b"),
        batch(3, "u", flags=Flag.UNIQUE),
        own_event(4, "worker_joined", {"worker_id": 3}),
        batch(5, "c", flags=Flag.RECEIPT),
        batch(6, "c", flags=Flag.RESENT, number=6),
    ])  # fmt: skip
    session.disconnected()
    assert Hello.decode(session.connected()).places == [[1, 104, 0]]


def test_the_last_posters_are_remembered_and_the_oldest_forgotten(monkeypatch):
    monkeypatch.setattr(session_module, "REMEMBERED", 3)
    session = attached()
    # The first one is heard again, so the second one is the oldest.
    for seq, origin in enumerate((1, 2, 3, 1, 4), 1):
        session.receive([batch(seq, seq, origin=origin, number=10 + seq)])
    handle(session)
    session.disconnected()
    attach(session, epoch=2)
    resent = [
        batch(seq, f"from {origin}", origin=origin, number=11, flags=Flag.RESENT)
        for seq, origin in enumerate((1, 3, 4, 2), 1)
    ]
    session.receive(resent)
    assert handle(session) == ["from 2"]
    assert ack_of(session) == (4, 4)


def test_the_last_event_of_a_batch_is_the_one_that_is_remembered():
    session = attached()
    session.receive([batch(1, "a", "b", "c", number=5)])
    handle(session)
    session.disconnected()
    attach(session, epoch=2)
    session.receive([batch(1, "c", number=7, flags=Flag.RESENT), batch(2, "d", number=8, flags=Flag.RESENT)])
    assert handle(session) == ["d"]


def test_repeats_are_acked_in_their_turn():
    session = attached()
    session.receive([batch(1, "a", number=1)])
    handle(session)
    session.disconnected()
    attach(session, epoch=2)
    session.receive([batch(1, "new", number=9, origin=3), batch(2, "a", number=1, flags=Flag.RESENT)])
    first = take_one(session)
    (repeat,) = take(session)
    assert (repeat.count, repeat.runs, repeat.last_seq) == (0, [], 2)
    session.inbox.complete(repeat)
    assert ack_of(session) == (2, 0)
    session.inbox.complete(first)
    assert ack_of(session) == (2, 2)


def test_unique_events_are_reported_to_a_new_broker_until_it_has_answered():
    session = attached()
    session.receive([batch(1, "u", number=3, flags=Flag.UNIQUE)])
    for _ in range(2):
        session.disconnected()
        hello = attach(session, epoch=2)
        assert (hello.tells, hello.told) == (True, 1)
        (frame,) = session.take_output()
        assert Taken.decode(frame).events == [[8, 3, 1, "6b"]]
    session.receive([Taken([]).encode()])
    session.disconnected()
    hello = attach(session, epoch=2)
    assert (hello.tells, hello.told) == (True, 2)
    assert session.take_output() == []


# --- gaps ---


def test_gaps_are_counted_and_kept_for_the_log():
    session = attached()
    session.receive([Gap(3, 1, 3, "slow").encode(seq=3), Gap(4, 1, 9, "dead", epoch=7, exact=False).encode(seq=4)])
    assert (session.gaps, session.missed, session.received, len(session.new_gaps)) == (2, 7, 9, 2)
    first, second = take(session)
    assert data_of([first, second]) == [
        {"missed": 3, "first_seq": 1, "last_seq": 3, "reason": "slow", "epoch": 1, "exact": True},
        {"missed": 4, "first_seq": 0, "last_seq": 0, "reason": "dead", "epoch": 7, "exact": False},
    ]
    assert (first.last_seq, first.count, first.pid, first.epoch) == (3, 0, None, 1)
    # A gap of long ago takes no place back.
    session.receive([Gap(1, 1, 2, "old", epoch=6).encode(seq=2)])
    assert session.received == 9


@pytest.mark.parametrize(
    ("role", "resumed", "seq", "missed"),
    [
        ("worker", False, 5, 3),
        ("worker", False, 2, 0),
        ("worker", True, 5, 0),
        ("observer", False, 3, 1),
        ("poster", False, 5, 0),
    ],
)
def test_what_passed_while_a_client_was_away_is_a_gap_unless_it_follows(role, resumed, seq, missed):
    session = make(role=role)
    attach(session)
    session.receive([batch(1, "a", "b")])
    handle(session)
    session.disconnected()
    attach(session, seq=seq, resumed=resumed, posts=40)
    found = data_of(take(session))
    assert len(found) == len(session.new_gaps) == bool(missed)
    if missed:
        reason = "the slot was given up while this process was away"
        assert found == [
            {"missed": missed, "first_seq": 3, "last_seq": seq, "reason": reason, "epoch": 1, "exact": True}
        ]
        session.disconnected()
        assert Hello.decode(session.connected()).places == [[1, 40, 0]]


def test_unreadable_batches_are_counted_over_a_turn():
    session = attached()
    session.receive([batch(1, "a", flags=64, count=3), batch(4, "b", flags=64, count=2)])
    assert len(take(session)) == 2
    assert (session.gaps, session.missed, len(session.new_gaps)) == (2, 5, 2)
    (frame,) = session.take_output()
    assert Report.decode(frame) == Report(0, {}, 5)


# --- acks ---


def test_an_ack_is_owed_for_everything_since_the_last_one():
    session = attached()
    session.receive([batch(1, "a"), batch(2, "b")])
    assert (session.unacked_received, session.unacked_handled) == (2, 0)
    assert ack_of(session) == (2, 0)
    handle(session)
    assert (session.unacked_received, session.unacked_handled) == (0, 2)
    assert ack_of(session) == (2, 2)
    assert ack_of(session) is None
    session.forget_ack()
    assert (session.unacked_received, session.unacked_handled) == (2, 2)
    assert ack_of(session) == (2, 2)
    session.forget_ack()
    session.disconnected()
    assert session.take_ack() is None
    attach(session, resumed=True, seq=2)
    assert ack_of(session) is None


def test_a_new_epoch_owes_no_ack_for_its_start():
    session = attached()
    session.disconnected()
    attach(session, epoch=2, seq=9)
    assert (session.unacked_received, session.unacked_handled, ack_of(session)) == (0, 0, None)


# --- what leaves in a turn ---


def test_posts_leave_before_what_was_said_after_them():
    session = attached()
    session.outbox.post("s", "e", 1)
    session.request("status", {})
    session.report_failure({"handler": "h"})
    session.write_output("1.1", "text")
    session.answer(4, "x")
    frames = session.take_output()
    assert kinds(frames) == [Kind.EVENTS, Kind.OUTPUT, Kind.REPORT, Kind.REQUEST, Kind.ANSWER]
    assert Answer.decode(frames[4]) == Answer(4, "x")
    assert session.take_output() == []


@pytest.mark.parametrize("what", ["nothing", "control", "report", "output"])
def test_short_batches_wait_only_where_nothing_follows_them(what):
    session = attached()
    for _ in range(16):
        session.outbox.post("s", "e", 1)
        session.take_output()
    session.outbox.post("s", "e", 1)
    if what == "control":
        session.request("status", {})
    elif what == "report":
        session.report_failure({})
    elif what == "output":
        session.write_output("1", "x")
    assert (Kind.EVENTS in kinds(session.take_output(linger=True))) == (what != "nothing")
    session.outbox.post("s", "e", 1)
    assert Kind.EVENTS in kinds(session.take_output())


def test_failures_of_a_turn_are_one_report_and_the_next_turn_begins_anew():
    session = attached()
    for number in range(3):
        session.report_failure({"handler": f"h{number}", "error": "\udcff"})
    (frame,) = session.take_output()
    report = Report.decode(frame)
    assert (report.failed, report.last["handler"], report.unread) == (3, "h2", 0)
    assert report.last["error"].isprintable()
    session.receive([batch(1, "a", flags=64, count=2)])
    take(session)
    (frame,) = session.take_output()
    assert Report.decode(frame) == Report(0, {}, 2)


def test_the_output_of_a_script_is_bounded_in_a_turn():
    session = attached()
    assert session.write_output("1.1", "x" * 3999)
    assert not session.write_output("1.1", "yz")
    assert not session.write_output("1.1", "more")
    assert not session.write_output("2.1", "z" * 4000)
    frames = session.take_output()
    assert [Output.decode(frame) for frame in frames] == [
        Output("1.1", "x" * 3999 + "y", 5),
        Output("2.1", "z" * 4000, 0),
    ]
    assert session.write_output("1.1", "again")
    (frame,) = session.take_output()
    assert Output.decode(frame) == Output("1.1", "again", 0)


def test_what_was_not_sent_dies_with_the_connection():
    session = attached()
    session.request("status", {})
    session.write_output("1", "x")
    session.disconnected()
    assert session.state is SessionState.DETACHED
    attach(session)
    assert session.take_output() == []
    assert session.write_output("1", "y")


def test_requests_are_counted_from_1():
    session = attached()
    assert [session.request("status", {}) for _ in range(3)] == [1, 2, 3]


# --- leaving ---


@pytest.mark.parametrize("leave", [True, False])
def test_a_goodbye_is_sent_once(leave):
    session = attached()
    session.leave(leave=leave)
    session.leave(leave=not leave)
    frames = session.take_output()
    assert [Goodbye.decode(frame) for frame in frames] == [Goodbye(leave)]
    session.receive([Goodbye(leave).encode()])
    session.leave()
    assert session.take_output() == []
    assert session.state is SessionState.DRAINED


# --- waits ---


class Wait:
    def __init__(self) -> None:
        self.taken: list[Any] = []
        self.is_abandoned = False

    def take(self, message: Any) -> None:
        self.taken.append(message)


def test_a_receipt_and_reports_of_handlers_go_to_the_one_who_waits():
    session = attached()
    waits = [Wait(), Wait()]
    for wait in waits:
        session.outbox.post_receipt("s", "e", 1, wait=wait)
    session.take_output()
    receipt = Receipt(2, [1], [], None)
    run = {"name": "h", "location": "f:1", "source": None, "event": None, "seconds": 0.5, "error": None}
    handled = Handled(5, 1, [run], 3, 42)
    session.receive([receipt.encode(), handled.encode(), Receipt(9, [], [], None).encode()])
    assert [wait.taken for wait in waits] == [[handled], [receipt]]
    with pytest.raises(ProtocolError, match="no call of a handler"):
        session.receive([Handled(5, 1, [{}], 3, 42).encode()])


def test_a_question_is_answered_with_its_number():
    session = attached()
    session.receive([Ask(7, "no such question", {}).encode()])
    (frame,) = session.take_output()
    assert Answer.decode(frame) == Answer(7, None)


def test_slots_are_followed_in_the_broker_s_own_events_alone():
    session = make()
    attach(session, slots=[1])
    session.receive([
        own_event(1, "worker_joined", {"worker_id": 5}),
        own_event(2, "worker_left", {"worker_id": 1, "kept": True}),
        own_event(3, "worker_left", {"worker_id": 9, "kept": False}),
        own_event(4, "worker_joined", {"worker_id": "7"}),
        own_event(5, "worker_stalled", {"worker_id": 8}),
    ])  # fmt: skip
    session.disconnected()
    assert Hello.decode(session.connected()).slots == [1, 5]
