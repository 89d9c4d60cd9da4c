from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventsh.core.broker.router import Router
from eventsh.core.broker.state import ClientConnection
from eventsh.core.outbox import Outbox
from eventsh.core.proof import BrokerProof, ClientProof
from eventsh.core.registry import Registry
from eventsh.core.session import Session, SessionState
from eventsh.errors import AuthenticationError, ProtocolError
from eventsh.options import Options
from eventsh.protocol.frame import KIND_OFFSET, PRE_HELLO_BODY_BYTES, Kind, encode_frame
from eventsh.protocol.handshake import NONCE_BYTES, is_proof, make_proof
from eventsh.protocol.messages import Challenge, Error, Proof

TOKEN = b"a token of the right length"
OTHER = b"some other token of such a length"


def nonce(number: int) -> bytes:
    return bytes([number]) * NONCE_BYTES


def client(token: bytes = TOKEN, number: int = 1) -> ClientProof:
    return ClientProof(token, nonce(number))


def broker(token: bytes = TOKEN, number: int = 2) -> BrokerProof:
    return BrokerProof(token, nonce(number))


# The two sides


def test_two_sides_with_one_token_prove_it_to_each_other():
    left, right = client(), broker()
    proof = left.answer(right.answer(left.begin()))
    assert not right.is_proven
    left.check(right.prove(proof))
    assert right.is_proven


def test_a_client_with_another_token_proves_nothing():
    left, right = client(OTHER), broker()
    proof = left.answer(right.answer(left.begin()))
    with pytest.raises(AuthenticationError, match="the token is not this broker's"):
        right.prove(proof)
    assert not right.is_proven


def test_a_broker_with_another_token_is_not_believed():
    left, right = client(), broker()
    left.answer(right.answer(left.begin()))
    fake = make_proof(OTHER, "broker", nonce(1), nonce(2))
    with pytest.raises(AuthenticationError, match="the broker could not prove"):
        left.check(Proof.of(fake))


def test_a_proof_sent_back_to_its_maker_is_none():
    # A peer without the token gives back what it gets: the challenge, and then the proof.
    left = client()
    with pytest.raises(AuthenticationError):
        left.check(left.answer(left.begin()))
    # And one that plays two connections of a broker against each other: what one proves is no client's proof.
    first, second = broker(number=2), broker(number=3)
    challenge = first.answer(Challenge.of(nonce(3)))
    second.answer(challenge)
    with pytest.raises(AuthenticationError):
        first.prove(Proof.of(make_proof(TOKEN, "broker", nonce(3), nonce(2))))


def test_what_was_heard_in_another_handshake_is_of_no_use():
    left, right = client(number=1), broker(number=2)
    heard = left.answer(right.answer(left.begin()))
    confirmed = right.prove(heard)
    later = broker(number=4)
    later.answer(Challenge.of(nonce(1)))
    with pytest.raises(AuthenticationError):
        later.prove(heard)
    again = client(number=5)
    again.answer(Challenge.of(nonce(2)))
    with pytest.raises(AuthenticationError):
        again.check(confirmed)


@pytest.mark.parametrize("change", ["token", "side", "client nonce", "broker nonce"])
def test_a_proof_depends_on_everything_that_it_is_made_of(change):
    proof = make_proof(TOKEN, "client", nonce(1), nonce(2))
    assert is_proof(proof, TOKEN, "client", nonce(1), nonce(2))
    assert not is_proof(
        proof,
        OTHER if change == "token" else TOKEN,
        "broker" if change == "side" else "client",
        nonce(9 if change == "client nonce" else 1),
        nonce(9 if change == "broker nonce" else 2),
    )


def test_what_comes_out_of_turn_is_refused():
    with pytest.raises(ProtocolError, match="a proof before the challenge"):
        broker().prove(Proof.of(nonce(7)))
    with pytest.raises(ProtocolError, match="a proof before the challenge"):
        client().check(Proof.of(nonce(7)))
    left, right = client(), broker()
    challenge = right.answer(left.begin())
    with pytest.raises(ProtocolError, match="a second challenge"):
        right.answer(left.begin())
    proof = left.answer(challenge)
    right.prove(proof)
    with pytest.raises(ProtocolError, match="a second proof"):
        right.prove(proof)


@pytest.mark.parametrize("text", ["", "00", "0" * 63, "0" * 65, "g" * 64, "A" * 64, "\u0660" * 64])
def test_what_is_no_nonce_and_no_mac_is_refused(text):
    with pytest.raises(ProtocolError, match="without a nonce"):
        broker().answer(Challenge(text))
    right = broker()
    right.answer(Challenge.of(nonce(1)))
    with pytest.raises(ProtocolError, match="without an HMAC"):
        right.prove(Proof(text))


def test_a_nonce_of_another_length_is_a_mistake_of_the_owner():
    with pytest.raises(ValueError, match="32 bytes"):
        ClientProof(TOKEN, b"short")


@given(st.binary(min_size=1, max_size=200))
def test_nothing_shows_the_token(token):
    for side in (ClientProof(token, nonce(1)), BrokerProof(token, nonce(2))):
        assert "object at 0x" in repr(side)


# A session and a router over links


def make_session(token: bytes | None) -> Session:
    outbox = Outbox(origin=1, pid=1, max_queue_len=100, max_payload_len=65536)
    session = Session(outbox, Registry(), identity="x", clock=lambda: 0.0, role="poster", take_unique=False)
    session.new_proof = None if token is None else lambda: client(token)
    return session


def make_router(token: bytes | None) -> Router:
    new_proof = None if token is None else lambda: broker(token)
    return Router(Options(), epoch=1, pid=2, wall_clock_ns=lambda: 0, now=0.0, new_proof=new_proof)


def talk(session: Session, router: Router) -> tuple[ClientConnection, list[bytearray]]:
    """Carry frames both ways until neither has more to say; gives all that the broker said."""
    link = router.connect("x", None, 0.0)
    said: list[bytearray] = []
    up = [session.connected()]
    while up:
        router.receive(link, up, 0.0)
        down, link.output = link.output, []
        said += down
        session.receive([bytearray(frame) for frame in down])
        up = session.take_output()
    return link, said


def refusal(said: list[bytearray]) -> str:
    assert said[-1][KIND_OFFSET] == Kind.ERROR
    return Error.decode(said[-1]).code


@pytest.mark.parametrize("token", [None, TOKEN])
def test_who_has_the_broker_s_token_or_needs_none_is_welcomed(token):
    session = make_session(token)
    link, said = talk(session, make_router(token))
    assert session.state is SessionState.ATTACHED
    assert not link.is_closing
    kinds = [frame[KIND_OFFSET] for frame in said]
    assert kinds == ([] if token is None else [Kind.CHALLENGE, Kind.PROOF]) + [Kind.WELCOME, Kind.FEATURES]


@pytest.mark.parametrize(
    ("mine", "theirs", "code"),
    [(OTHER, TOKEN, "token_wrong"), (None, TOKEN, "token_needed"), (TOKEN, None, "token_unknown")],
)
def test_who_has_not_is_told_so_and_closed(mine, theirs, code):
    session, router = make_session(mine), make_router(theirs)
    link, said = talk(session, router)
    assert refusal(said) == code
    assert link.is_closing
    assert not link.is_greeted
    assert session.state is not SessionState.ATTACHED


def test_clients_that_are_turned_away_are_told_of_once_a_second():
    router = make_router(TOKEN)
    for _ in range(5):
        talk(make_session(OTHER), router)
    assert router.take_warnings() == ["a client was rejected: the token is not this broker's"]


def test_a_client_says_nothing_of_itself_to_a_broker_that_has_proven_nothing():
    session = make_session(TOKEN)
    session.outbox.post("secret", "event", 1)
    assert session.connected()[KIND_OFFSET] == Kind.CHALLENGE
    assert session.take_output() == []
    assert session.take_ack() is None
    session.receive([broker().answer(client().begin()).encode()])
    (frame,) = session.take_output()
    assert frame[KIND_OFFSET] == Kind.PROOF
    with pytest.raises(AuthenticationError):
        session.receive([Proof.of(nonce(9)).encode()])
    assert session.take_output() == []


@pytest.mark.parametrize("token", [None, TOKEN])
def test_a_broker_that_welcomes_at_once_is_no_broker_for_a_client_with_a_token(token):
    greeted = make_session(None)
    welcome = talk(greeted, make_router(None))[1][0]
    session = make_session(token)
    session.connected()
    if token is None:
        session.receive([bytearray(welcome)])
        assert session.state is SessionState.ATTACHED
    else:
        with pytest.raises(ProtocolError, match="a welcome came that nobody waited for"):
            session.receive([bytearray(welcome)])


def test_a_handshake_that_nobody_began_is_refused():
    session = make_session(None)
    session.connected()
    with pytest.raises(ProtocolError, match="nobody asked for"):
        session.receive([Challenge.of(nonce(1)).encode()])


def test_each_connection_has_a_handshake_of_its_own():
    session, router = make_session(TOKEN), make_router(TOKEN)
    for _ in range(3):
        talk(session, router)
        assert session.state is SessionState.ATTACHED
        session.disconnected()
        assert session.take_output() == []


def test_the_handshake_s_time_is_that_of_the_hello():
    router = make_router(TOKEN)
    link = router.connect("x", None, 0.0)
    router.receive(link, [client().begin().encode()], 1.9)
    link.output.clear()
    router.tick(2.1)
    assert refusal(link.output) == "slow_hello"


@pytest.mark.parametrize(
    "kind", sorted(set(Kind) - {Kind.HELLO, Kind.CHALLENGE, Kind.PROOF}), ids=lambda kind: kind.name
)
def test_nothing_else_is_taken_before_the_token_is_proven(kind):
    router = make_router(TOKEN)
    link = router.connect("x", None, 0.0)
    router.receive(link, [client().begin().encode(), encode_frame(kind, b"{}", count=1, origin_seq=1)], 0.0)
    assert link.is_closing


# What may be sent before the hello


def test_all_that_comes_until_the_hello_is_bounded_together():
    filler = b" " * (PRE_HELLO_BODY_BYTES // 2)
    router = make_router(TOKEN)
    link = router.connect("x", None, 0.0)
    challenge = bytearray(client().begin().encode()[40:])
    router.receive(link, [encode_frame(Kind.CHALLENGE, challenge + filler)], 0.0)
    assert [frame[KIND_OFFSET] for frame in link.output] == [Kind.CHALLENGE]
    proof = Proof.of(make_proof(TOKEN, "client", nonce(1), nonce(2))).encode()[40:]
    router.receive(link, [encode_frame(Kind.PROOF, proof + filler)], 0.0)
    assert link.is_closing
    assert "bytes until the hello are over the limit of 65536" in Error.decode(link.output[-1]).message
