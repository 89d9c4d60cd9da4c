from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventsh.core.broker.router import Router
from eventsh.core.heartbeat import Beat, Heartbeat
from eventsh.core.outbox import Outbox
from eventsh.core.registry import Registry
from eventsh.core.session import Session
from eventsh.errors import ProtocolError
from eventsh.options import Options
from eventsh.protocol.frame import KIND_OFFSET, Kind, encode_frame

INTERVAL_S = 4.0


class Peer:
    """A connection as a heartbeat sees it, looked at every `step_s`."""

    def __init__(self, step_s: float = 1.0) -> None:
        self.received = 0
        self.unsent = 0
        self.now = 100.0
        self.step_s = step_s
        self.heartbeat = Heartbeat(INTERVAL_S, lambda: (self.received, self.unsent), self.now)

    def look(self, times: int = 1) -> list[Beat]:
        beats = []
        for _ in range(times):
            self.now += self.step_s
            beats.append(self.heartbeat.check(self.now))
        return beats


def test_a_peer_that_is_heard_is_asked_nothing():
    peer = Peer()
    for _ in range(50):
        peer.received += 1
        assert peer.look() == [Beat.NOTHING]


def test_a_silent_peer_is_asked_once_and_then_given_up():
    beats = Peer().look(9)
    assert beats == [Beat.NOTHING] * 3 + [Beat.ASK] + [Beat.NOTHING] * 4 + [Beat.GIVE_UP]


def test_an_answer_begins_a_new_silence():
    peer = Peer()
    assert peer.look(4)[-1] is Beat.ASK
    peer.received += 40
    assert peer.look() == [Beat.NOTHING]
    assert peer.look(4) == [Beat.NOTHING] * 3 + [Beat.ASK]


def test_what_leaves_slowly_is_a_sign_of_life_too():
    peer = Peer()
    peer.unsent = 10**9
    peer.look()
    for _ in range(50):
        peer.unsent -= 1000
        assert peer.look() == [Beat.NOTHING]
    assert Beat.GIVE_UP in peer.look(9)


def test_what_is_added_to_what_waits_is_no_sign():
    peer = Peer()
    for _ in range(9):
        peer.unsent += 1000
        beats = peer.look()
    assert beats == [Beat.GIVE_UP]


def test_the_time_in_which_we_stood_still_does_not_count_against_the_peer():
    peer = Peer()
    peer.look(3)
    peer.now += 1000
    assert peer.look() == [Beat.ASK]
    assert peer.look(4) == [Beat.NOTHING] * 4
    assert peer.look() == [Beat.GIVE_UP]


@given(st.floats(0.01, 1.0), st.floats(0.0, 1.0))
def test_whenever_the_last_sign_came_the_end_is_told_within_three_intervals(step_s, after_s):
    """Looked at as often as it asks for, or more often, as the broker does."""
    peer = Peer(step_s)
    peer.look(10)
    last_sign = peer.now + after_s * step_s
    peer.received += 1
    while peer.look() != [Beat.GIVE_UP]:
        assert peer.now - last_sign < 3 * INTERVAL_S
    assert peer.now - last_sign <= 3 * INTERVAL_S


# In the rules of broker and client


def attached(interval_s: float = INTERVAL_S) -> tuple[Router, Session, Peer]:
    peer = Peer()
    router = Router(Options(heartbeat=interval_s), epoch=1, pid=2, wall_clock_ns=lambda: 0, now=peer.now)
    outbox = Outbox(origin=1, pid=1, max_queue_len=100, max_payload_len=65536)
    session = Session(outbox, Registry(), identity="x", clock=lambda: peer.now, role="poster", take_unique=False)
    link = router.connect("x", None, peer.now, peer.heartbeat)
    router.receive(link, [session.connected()], peer.now)
    session.receive([bytearray(frame) for frame in link.output])
    link.output.clear()
    return router, session, peer


def test_a_broker_asks_a_silent_client_and_hears_its_answer():
    router, session, peer = attached()
    (link,) = router.connections
    for _ in range(4):
        peer.now += 1
        router.tick(peer.now)
    assert [frame[KIND_OFFSET] for frame in link.output] == [Kind.PING]
    session.receive(list(link.output))
    link.output.clear()
    (pong,) = session.take_output()
    assert pong[KIND_OFFSET] == Kind.PONG
    router.receive(link, [pong], peer.now)
    assert not link.is_closing


def test_a_broker_gives_a_client_up_that_does_not_answer():
    router, _, peer = attached()
    (link,) = router.connections
    for _ in range(10):
        peer.now += 1
        router.tick(peer.now)
    assert link.is_closing
    assert link.is_gone
    assert router.take_warnings() == ["a client was silent for three heartbeats of 4 s: connection closed"]
    assert link in router.take_changed()


def test_a_client_that_asks_the_broker_gets_its_answer():
    router, _, peer = attached()
    (link,) = router.connections
    router.receive(link, [encode_frame(Kind.PING)], peer.now)
    assert [frame[KIND_OFFSET] for frame in link.output] == [Kind.PONG]


@pytest.mark.parametrize("kind", [Kind.PING, Kind.PONG])
def test_before_the_welcome_nobody_asks_for_a_sign_of_life(kind):
    router, session, peer = attached()
    link = router.connect("y", None, peer.now)
    router.receive(link, [encode_frame(kind)], peer.now)
    assert link.is_closing
    session.disconnected()
    session.connected()
    with pytest.raises(ProtocolError, match="before the welcome"):
        session.receive([encode_frame(kind)])


# At its bounds


def test_the_end_of_patience_is_at_two_intervals_and_a_quarter():
    for step_s, looks in ((INTERVAL_S / 4, 9), (INTERVAL_S / 8, 18)):
        peer = Peer(step_s)
        assert peer.heartbeat.check_s == INTERVAL_S / 4
        beats = peer.look(looks)
        assert beats.index(Beat.ASK) == INTERVAL_S / step_s - 1
        assert beats.index(Beat.GIVE_UP) == looks - 1


def test_a_look_twice_as_late_as_it_should_be_counts_and_a_later_one_does_not():
    # The interval is four looks: two looks late count in full.
    for late, expected in ((2.0, Beat.ASK), (2.125, Beat.NOTHING)):
        peer = Peer()
        peer.look(2)
        peer.now += late - peer.step_s
        assert peer.look() == [expected]


def test_a_standstill_costs_the_peer_one_look():
    peer = Peer()
    peer.look(4)
    for _ in range(3):
        peer.now += 100
        peer.look()
    # Four looks, and three that were late.
    assert peer.look(2) == [Beat.NOTHING, Beat.GIVE_UP]


def test_any_byte_in_either_direction_is_a_sign():
    for received, unsent, is_sign in ((1, 0, True), (0, -1, True), (0, 1, False), (0, 0, False), (1, 5, True)):
        peer = Peer()
        peer.unsent = 10
        peer.look(3)
        peer.received += received
        peer.unsent += unsent
        assert peer.look() == [Beat.NOTHING if is_sign else Beat.ASK]
        if is_sign:
            # It is asked anew in the next silence.
            assert peer.look(4)[-1] is Beat.ASK


def test_a_peer_that_answers_every_time_is_asked_every_time():
    peer = Peer()
    for _ in range(5):
        assert peer.look(4) == [Beat.NOTHING] * 3 + [Beat.ASK]
        peer.received += 40
        assert peer.look() == [Beat.NOTHING]
