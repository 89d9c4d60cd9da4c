"""Batches that a client can't read, and the features that keep them from being posted."""

from __future__ import annotations

import pytest

from eventsh.errors import ProtocolError
from eventsh.protocol.features import FEATURES
from eventsh.protocol.frame import Flag, Kind, decode_header, encode_frame
from eventsh.protocol.messages import Features, Hello, Report
from tests.core.frames import FEATURE_NAMES, attach, attached, batch, data_of, gap_of, make, own_event, take, welcome

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
    assert (gap.pid, gap.trace, gap.is_replayed, gap.first_seq, gap.count) == (None, None, False, 0, 0)
    assert data_of([behind]) == ["behind"]
    assert (session.gaps, session.missed) == (1, count)
    (report,) = session.take_output()
    assert Report.decode(report) == Report(0, {}, count)
    assert session.take_output() == []


def test_the_reason_of_a_gap_names_the_flags_that_are_not_known():
    session = attached()
    session.receive([encode_frame(Kind.EVENTS, flags=192, count=1, pid=1, origin=8, origin_seq=1, seq=1)])
    take(session)
    assert session.new_gaps[0]["reason"] == (
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
    assert Report.decode(frame) == Report(1, {"handler": "h"}, 2)


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
