"""Batches that a client can't read, and the features that keep them from being posted."""

from __future__ import annotations

import pytest

from eventsh.errors import ProtocolError
from eventsh.protocol.features import FEATURES
from eventsh.protocol.frame import Flag, Kind, decode_header, encode_frame
from eventsh.protocol.messages import Error, Features, Handled, Hello, Report
from tests.core.frames import (
    FEATURE_NAMES,
    attach,
    attached,
    batch,
    data_of,
    gap_of,
    make,
    own_event,
    take,
    take_one,
    welcome,
)
from tests.core.net import Net, Process, observer, post, poster, ran, slot_of, workers

UNREADABLE = {
    "a flag of a later version": (64, 3, b'[["s","e",[1,2,3]]]'),
    "another one": (128, 3, b'[["s","e",[1,2,3]]]'),
    "both": (192, 2, b""),
    "a unique event with such a flag": (64 | Flag.UNIQUE, 1, b"\x02\x00{}\x01\x00k[]"),
    "a unique event with such a flag and no key": (128 | Flag.UNIQUE | Flag.TRACE | Flag.RECEIPT, 1, b""),
    "a unique event that is shorter than its key": (Flag.UNIQUE, 1, b"\xff\xff[]"),
    "a unique event without a key": (Flag.UNIQUE, 1, b"\x00\x00[]"),
    "a unique event that its poster waits for, without a body": (
        Flag.UNIQUE | Flag.TRACE | Flag.RECEIPT,
        1,
        b"\x01\x00k",
    ),
    "an event that its poster waits for, without JSON": (Flag.TRACE | Flag.RECEIPT, 1, b"[[nothing"),
    "a unique event with a key that reaches into its body": (Flag.UNIQUE, 1, b'\x03\x00k[["s","e",[1]]]'),
    "a batch that its poster withdrew": (Flag.REPLAYED, 3, b"[]"),
    "no JSON": (0, 2, b"\x00\xff"),
    "no UTF-8": (0, 1, b'[["s","e",["\xff"]]]'),
    "a lone surrogate": (0, 1, b'[["s","e",["\\ud800"]]]'),
    "an infinite number": (0, 1, b'[["s","e",[1e999]]]'),
    "no list": (0, 1, b'{"s":"e"}'),
    "no runs": (0, 1, b"[1]"),
    "a run of four": (0, 1, b'[["s","e",[1],2]]'),
    "a run without a list of data": (0, 1, b'[["s","e",{"a":1}]]'),
    "a source that is no string": (0, 1, b'[[1,"e",[1]]]'),
    "an empty source": (0, 1, b'[["","e",[1]]]'),
    "an event without a name": (0, 1, b'[["s","",[1]]]'),
    "bytes behind the JSON": (0, 1, b'[["s","e",[1]]] x'),
    "JSON that is cut off": (0, 1, b'[["s","e",[1'),
    "100,000 levels": (0, 1, b"[" * 100_000),
    "closed after 1,100 levels": (0, 1, b'[["s","e",[' + b"[" * 1100 + b"]" * 1100 + b"]]]"),
    "a metadata block that is longer than its frame": (64, 1, b'\xff\xff{"retain":true}[["s","e",[1]]]'),
    "more events than it said": (0, 1, b'[["s","e",[1,2]]]'),
    "an escaped source of eventsh's own": (0, 1, b'[["\\u0065vents\\u0068","gap",[{"missed":9}]]]'),
    "a forged event of eventsh's own": (0, 2, b'[["s","e",[1]],["eventsh","gap",[{"missed":1}]]]'),
    "fewer events than it said": (Flag.REPLAYED, 70, b'[["s","e",[1,2]]]'),
}


@pytest.mark.parametrize(("flags", "count", "body"), UNREADABLE.values(), ids=UNREADABLE)
@pytest.mark.parametrize("as_view", [False, True])
def test_whatever_can_t_be_read_of_a_poster_is_a_gap_and_told_to_the_broker(flags, count, body, as_view):
    session = attached()
    bad = encode_frame(Kind.EVENTS, body, flags=flags, count=count, pid=1, origin=8, origin_seq=1, seq=1)
    session.receive([memoryview(bad) if as_view else bad, batch(1 + count, "behind")])
    gap, behind = take(session)
    assert gap_of(gap) == {"missed": count, "first_seq": 1, "last_seq": count, "epoch": 1, "exact": True}
    assert (gap.pid, gap.is_replayed, gap.first_seq, gap.count) == (None, False, 0, 0)
    assert data_of([behind]) == ["behind"]
    assert (session.gaps, session.missed) == (1, count)
    # The broker ends the connection of a poster that broke the rules, and of no other one.
    is_at_fault = not flags & ~63 and body != b"[]"
    reported = [[8, 1, session.new_gaps[0].data["reason"]]] if is_at_fault else []
    (report,) = session.take_output()
    assert Report.decode(report) == Report(0, {}, count, reported)
    assert session.take_output() == []


@pytest.mark.parametrize("flags", [Flag.TRACE, Flag.TRACE | Flag.UNIQUE, Flag.TRACE | 64], ids=str)
def test_the_poster_of_a_traced_event_that_can_t_be_read_gets_an_answer(flags):
    session = attached()
    session.receive([batch(1, "x", number=7, flags=flags | Flag.RECEIPT, count=1, source="")])
    delivery = take_one(session)
    assert delivery.is_unique == bool(flags & Flag.UNIQUE)
    session.inbox.complete(delivery)
    handled = [Handled.decode(frame) for frame in session.take_output() if frame[4] == Kind.HANDLED]
    (run,) = handled[0].handlers
    assert (handled[0].origin, handled[0].number, run["name"]) == (8, 7, "(not read)")
    assert run["error"].startswith("the event can't be read: ")
    assert session.inbox.handled == 1


def test_unreadable_batches_are_logged_once_for_each_poster_and_the_last_one_of_each_is_reported():
    session = attached()
    session.receive([batch(seq, "x", origin=origin, source="") for seq, origin in enumerate([8, 9, 8, 9, 8], 1)])
    take(session)
    notices = [gap.notice for gap in session.new_gaps]
    assert notices == [
        f"missed 1 events: a batch holds an event without a source or a name; the process with pid 77 (origin {origin})"
        " posted them, and its next such batches are not logged"
        for origin in (8, 9)
    ] + ["", "", ""]
    (report,) = map(Report.decode, session.take_output())
    assert [(origin, number) for origin, number, _ in report.bad] == [(8, 5), (9, 4)]
    assert (report.unread, session.gaps, session.missed) == (5, 5, 5)


def test_a_report_of_unread_events_is_repeated_on_the_next_connection_to_the_same_broker():
    session = attached()
    session.receive([batch(1, "x", count=2)])
    take(session)
    assert Report.decode(*session.take_output()).unread == 2
    session.disconnected()
    attach(session, resumed=True, seq=2)
    assert Report.decode(*session.take_output()) == Report(0, {}, 2)
    session.receive([batch(3, "x", count=2)])
    take(session)
    assert Report.decode(*session.take_output()).unread == 4
    session.disconnected()
    attach(session, epoch=2)
    assert session.take_output() == []


# --- the broker's side ---


def post_bytes(net, process, *bodies, count=1, flags=0):
    """Post bodies that no post would make, each as a batch of so many events, and have them arrive at the broker."""
    for body in bodies:
        process.outbox.post_body(body, count, pid=1, flags=flags, key=b"k")
    net.flush(process, ack=False)
    net.up(process.channel)


def is_connected(process):
    return process.channel is not None


FORGED = b'[["\\u0065ventsh","gap",[{"missed":9}]]]'


def test_the_poster_of_a_batch_that_can_t_be_read_is_disconnected_and_nobody_else():
    net = Net()
    first, second = workers(net, 2)
    watching, sender = observer(net), net.attach(Process(80, role="poster"), pid=4711)
    sender.outbox.post_body(b"nonsense", 3, pid=1)
    post(net, sender, "good")
    net.run()
    assert sender.channel is None
    (error,) = [message for message in sender.messages if isinstance(message, Error)]
    assert (error.code, error.message[:47]) == ("protocol", "bad batch, number 1: worker 0 can't read it: th")
    assert all(process.channel is not None for process in (first, second, watching))
    assert [gap["missed"] for process in (first, second, watching) for gap in process.gaps] == [3, 3, 3]
    assert ran(first, second, watching) == [["good"]] * 3
    rows = net.router.status(net.now)["workers"]
    assert [(row["unread"], row["queued"]) for row in rows] == [(3, 0), (3, 0)]
    (notice,) = [notice for notice in net.notices if "bad batch" in notice]
    assert notice.startswith("a client with pid 4711 posted a bad batch, number 1: worker 0 can't read it: ")


def test_a_poster_that_comes_back_is_disconnected_once_for_each_batch_and_logged_once():
    net = Net()
    first, _ = workers(net, 2)
    sender = poster(net)
    post_bytes(net, sender, FORGED, FORGED)
    # The second worker is late: its report arrives after the poster is back.
    net.run(first, sender)
    assert not is_connected(sender)
    net.attach(sender)
    net.run()
    assert is_connected(sender)
    post_bytes(net, sender, FORGED)
    net.run()
    assert not is_connected(sender)
    assert len([notice for notice in net.notices if "bad batch" in notice]) == 1
    assert [slot_of(net, number).unread for number in (0, 1)] == [3, 3]


def test_a_worker_that_posts_what_it_can_t_read_itself_is_counted_whole():
    net = Net()
    first, second = workers(net, 2)
    post_bytes(net, first, FORGED, FORGED, FORGED)
    net.run(second)
    assert first.channel is None
    net.attach(first)
    net.run()
    assert [slot_of(net, number).unread for number in (0, 1)] == [3, 3]
    assert [len(process.gaps) for process in (first, second)] == [3, 3]


def test_a_unique_event_that_can_t_be_read_is_given_to_one_worker_once():
    net = Net()
    first, second = workers(net, 2)
    sender = poster(net)
    post_bytes(net, sender, b"[[", flags=Flag.UNIQUE)
    net.run()
    net.kill(first)
    net.router.end_process(slot_of(net, 0), net.now)
    net.run()
    assert [len(process.gaps) for process in (first, second)] == [1, 0]
    assert slot_of(net, 0).uniques == slot_of(net, 1).uniques == {}


def test_a_report_of_a_batch_that_was_never_posted_ends_no_connection():
    net = Net()
    (first,) = workers(net, 1)
    sender = poster(net)
    for origin, number in ((80, 1), (81, 1), (2**32 - 1, 2**64 - 1)):
        first.channel.up.append(bytes(Report(0, {}, 1, [[origin, number, "it says"]]).encode()))
        net.up(first.channel)
    assert sender.channel is not None
    assert first.channel is not None


def test_a_batch_in_a_form_that_a_worker_does_not_know_leaves_its_poster_connected():
    net = Net()
    (first,) = workers(net, 1)
    sender = poster(net)
    post_bytes(net, sender, b"[]", count=4)
    post_bytes(net, sender, b"{}", flags=64)
    net.run()
    assert sender.channel is not None
    assert [gap["missed"] for gap in first.gaps] == [4, 1]


def test_the_reason_of_a_gap_names_the_flags_that_are_not_known():
    session = attached()
    session.receive([encode_frame(Kind.EVENTS, flags=192, count=1, pid=1, origin=8, origin_seq=1, seq=1)])
    take(session)
    assert session.new_gaps[0].data["reason"] == (
        "flag 64 (metadata) and flag 128 (flat-names) not known here: a newer version of eventsh posted the batch"
    )


def test_what_could_not_be_read_waits_for_a_failure_where_the_broker_takes_no_report_without_one():
    session = make()
    attach(session, features=[])
    session.receive([batch(1, "bad", count=2)])
    take(session)
    assert session.take_output() == []
    session.report_failure({"handler": "h"})
    (frame,) = session.take_output()
    report = Report.decode(frame)
    assert (report.failed, report.last, report.unread) == (1, {"handler": "h"}, 2)


def test_an_event_of_the_broker_s_own_in_a_later_form_ends_no_connection():
    session = attached()
    own = encode_frame(Kind.EVENTS, b"a later form", flags=64, count=1, pid=9, origin_seq=1, seq=1)
    session.receive([own, own_event(2, "worker_joined", {"worker_id": 6, "pid": 43})])
    gap, _ = take(session)
    assert gap_of(gap)["missed"] == 1
    session.disconnected()
    assert 6 in Hello.decode(session.connected()).slots


def test_a_batch_that_can_t_be_read_and_comes_again_is_one_gap():
    session = attached()
    session.receive([batch(1, "x", number=5, flags=64)])
    assert len(take(session)) == 1
    session.disconnected()
    attach(session, epoch=2)
    session.receive([batch(1, "x", number=5, flags=64 | Flag.RESENT), batch(2, "y", number=6)])
    assert data_of(take(session)) == ["y"]
    assert session.gaps == 1


def test_a_process_that_knows_a_later_form_reads_it():
    session = make(features=FEATURES | {"metadata"})
    attach(session)
    session.receive([batch(1, "x", flags=64), batch(2, "y", flags=128)])
    first, second = take(session)
    assert data_of([first]) == ["x"]
    assert gap_of(second)["missed"] == 1


def test_a_recorder_gets_a_gap_for_a_later_form_and_all_else_whole():
    session = attached(reads_whole=True)
    session.receive([batch(1, "x"), batch(2, "y", flags=64)])
    whole, gap = take(session)
    assert whole.frame == batch(1, "x")
    assert gap.frame is None
    assert gap_of(gap)["missed"] == 1


# --- features ---


def test_what_all_know_is_known_from_the_message_to_the_end_of_the_connection():
    session = attached()
    assert session.all_know == frozenset()
    for features in (["metadata", "all-know"], ["all-know"], ["of a later version"]):
        assert [type(message) for message in session.receive([Features(features).encode()])] == [Features]
        assert session.all_know == set(features)
    session.disconnected()
    assert session.all_know == frozenset()


@pytest.mark.parametrize("features", [["x"] * 257, ["x" * 65], ["a", "b" * 1000]])
def test_features_over_the_limits_are_refused(features):
    session = attached()
    with pytest.raises(ProtocolError, match=r"over the limit of (256|64)"):
        session.receive([Features(features).encode()])
    session = make()
    session.connected()
    with pytest.raises(ProtocolError, match=r"over the limit of (256|64)"):
        session.receive([welcome(features=features)])


def test_posts_in_a_form_that_a_later_broker_does_not_know_leave_as_empty_batches_in_their_places():
    session = make(features=FEATURES | {"metadata"})
    attach(session, features=[*FEATURE_NAMES, "metadata"])
    outbox = session.outbox
    outbox.post("s", "e", "first")
    session.take_output()
    outbox.post_body(b"{}[]", 3, pid=42, flags=64 | Flag.REPLAYED)
    outbox.post_body(b"{}[]", 1, pid=42, flags=64 | Flag.UNIQUE | Flag.RECEIPT | Flag.TRACE)
    outbox.post("s", "e", "last")
    assert [frame[5] for frame in session.take_output()] == [64 | 16, 64 | 1 | 4 | 8, 0]
    session.disconnected()
    attach(session, epoch=2)
    assert session.withdrawn == 4
    frames = session.take_output()
    numbers = [(header.origin_seq, header.count, header.flags) for header in map(decode_header, frames)]
    assert numbers == [(1, 1, 2), (2, 3, 2), (5, 1, 2 | 4 | 8), (6, 1, 2)]
    assert [bytes(frame[40:]) for frame in frames[1:3]] == [b"[]", b"[]"]
    session.receive([encode_frame(Kind.CONFIRM, origin_seq=6)])
    assert outbox.queued == 0
    # Who reads them again reports what is not there.
    reader = attached()
    for place, frame in enumerate(frames[1:3], 1):
        frame[24:32] = (place * 10).to_bytes(8, "little")
        reader.receive([frame])
    assert [gap_of(gap)["missed"] for gap in take(reader)] == [3, 1]


def test_a_broker_that_knows_the_form_of_a_post_gets_it_again_as_it_was():
    session = make(features=FEATURES | {"metadata"})
    attach(session, features=[*FEATURE_NAMES, "metadata"])
    session.outbox.post_body(b"{}[]", 1, pid=42, flags=64)
    session.take_output()
    session.disconnected()
    attach(session, epoch=2, features=[*FEATURE_NAMES, "metadata"])
    (frame,) = session.take_output()
    assert (frame[5], bytes(frame[40:]), session.withdrawn) == (64 | Flag.RESENT, b"{}[]", 0)
