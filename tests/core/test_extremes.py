"""Absurd values in the messages of one peer: `status` still answers, and nothing but that peer's connection is affected."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventsh.errors import AuthenticationError, ProtocolError
from eventsh.protocol.frame import Kind, encode_frame
from eventsh.protocol.messages import MAX_COUNT, Gap, Hello, Message, Reply, Report, Request, Taken, Welcome
from tests.core.frames import attach, attached, make, take
from tests.core.net import Net, Process, post, post_unique, poster, slot_of, workers
from tests.protocol.test_messages import MESSAGES

NUMBERS = [-(2**63), -(2**31), -1, 0, 1, 2, 7, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53 - 1, 2**53]
NUMBERS += [2**63 - 1, 2**63, 2**64 - 2, 2**64 - 1]
numbers = st.sampled_from(NUMBERS)
texts = st.sampled_from(["", "x", "worker", "observer", "poster", "\u0000\u001b[31m", "é" * 600, "a" * 5000])
DEEP: Any = []
for _ in range(600):
    DEEP = [DEEP]
leaves = numbers | texts | st.booleans() | st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.just(DEEP)
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=6
)
rows = st.lists(st.lists(numbers | texts, max_size=4), max_size=3)


def extreme(kind: str) -> st.SearchStrategy[Any]:
    """Values of a member's type, at its limits and beyond, and now and then of another type."""
    by_kind: dict[str, st.SearchStrategy[Any]] = {
        "int": numbers,
        "int | None": numbers | st.none(),
        "float": numbers | st.floats(allow_nan=False, allow_infinity=False),
        "list[int]": st.lists(numbers, max_size=4),
        "list[list[int]]": rows,
        "list[list[Any]]": rows | st.lists(st.tuples(numbers, numbers, numbers, st.just("6b")).map(list), max_size=3),
        "dict[str, Any]": st.dictionaries(texts, leaves, min_size=1, max_size=2),
        "bool": st.booleans(),
        "str": texts,
    }
    # Mostly of its type, or the first check of all would refuse it.
    right = by_kind.get(kind, values)
    return right | right | right | values


@st.composite
def bodies(draw: st.DrawFn, templates: list[Message]) -> tuple[Kind, bytes]:
    """A message with one to three members replaced."""
    template = draw(st.sampled_from(templates))
    body = asdict(template)
    names = draw(
        st.lists(st.sampled_from(fields(template)), min_size=1, max_size=3, unique_by=lambda member: member.name)
    )
    for member in names:
        body[member.name] = draw(extreme(str(member.type)))
    return type(template).kind, dumps(body)


def dumps(body: Any) -> bytes:
    # orjson writes at most 254 levels.
    text = orjson.dumps(body, default=None) if not holds_deep(body) else None
    if text is not None:
        return text
    marked = orjson.dumps(replace_deep(body))
    return marked.replace(b'"<deep>"', b"[" * 600 + b"]" * 600)


def holds_deep(value: Any) -> bool:
    if value is DEEP:
        return True
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(holds_deep(each) for each in inner)


def replace_deep(value: Any) -> Any:
    if value is DEEP:
        return "<deep>"
    if isinstance(value, dict):
        return {name: replace_deep(each) for name, each in value.items()}
    return [replace_deep(each) for each in value] if isinstance(value, list) else value


def check_served(net: Net, first: Process, sender: Process) -> None:
    """The broker answers `status`, as JSON, and delivers: to clients that break no rule."""
    number = first.session.request("status", {})
    post(net, sender, "still there")
    net.run(first, sender)
    replies = [message for message in first.messages if isinstance(message, Reply) and message.id == number]
    assert [reply.error for reply in replies] == [None]
    assert "still there" in first.data_of("app")
    orjson.dumps(net.router.status(net.now))


# What a client sends; the others are a broker's.
HELLOS: list[Message] = [message for message in MESSAGES if isinstance(message, Hello)]
CLIENTS: list[Message] = [Request(1, "handlers", {}), Request(1, "status", {})]
CLIENTS += [message for message in MESSAGES if not isinstance(message, Welcome | Gap | Reply)]


@settings(max_examples=200, deadline=None)
@given(
    frames=st.lists(bodies(CLIENTS), min_size=1, max_size=3),
    hello=bodies(HELLOS),
    role=st.sampled_from(["extreme", "worker", "observer", "poster"]),
)
def test_whatever_a_client_says_of_itself_status_answers_and_others_are_served(frames, hello, role):
    net = Net()
    first, second = workers(net, 2)
    sender = poster(net)
    post_unique(net, sender, 1, "key")
    net.run()
    peer = Process(70, role="worker" if role == "extreme" else role)
    channel = net.connect(peer)
    if role == "extreme":
        channel.up.clear()
        channel.up.append(bytes(encode_frame(*hello)))
    net.up(channel)
    # Twice, for sums.
    for kind, body in frames + frames:
        channel.up.append(bytes(encode_frame(kind, body, seq=1)))
        net.up(channel)
    net.advance(1.0)
    check_served(net, first, sender)
    if channel.link is not None:
        net.cut(peer)
        slot = net.notice(channel)
        if slot is not None:
            # The owner asks the system of it: see `_has_ended` of the broker.
            assert 0 <= slot.pid < 2**31
    net.advance(6.0)
    check_served(net, first, sender)
    # What the broker has learned has to fit into what it tells the others.
    late = net.attach(Process(71))
    net.run(late, first, second, sender)
    assert late.is_attached


@settings(max_examples=200, deadline=None)
@given(frames=st.lists(bodies(MESSAGES), min_size=1, max_size=3), header=st.lists(numbers, min_size=4, max_size=4))
def test_whatever_a_broker_says_a_client_can_attach_to_the_next_one(frames, header):
    session = attached()
    count, origin, number, seq = (abs(value) for value in header)
    frames = [encode_frame(kind, body, seq=min(seq, 2**64 - 1)) for kind, body in frames]
    frames.append(
        encode_frame(
            Kind.EVENTS, b'[["s","e",[1]]]', count=count % 2**16, origin=origin % 2**32, origin_seq=number, seq=seq
        )
    )
    frames.append(encode_frame(Kind.CONFIRM, origin_seq=0, seq=seq))
    for frame in frames:
        try:
            session.receive([frame])
            take(session)
            session.take_output()
        except (ProtocolError, AuthenticationError):
            session.disconnected()
            session.connected()
    session.disconnected()
    session.new_proof = None
    Hello.decode(session.connected()).check()
    net = Net(epoch=99)
    process = Process(5)
    process.session = session
    session.disconnected()
    net.attach(process)
    assert process.is_attached


def test_sums_of_the_largest_counts_do_not_break_the_status():
    net = Net()
    (first,) = workers(net, 1)
    # Was in an epoch before, so that it is owed what others say was confirmed since.
    net.replace_broker()
    net.attach(first)
    sender = poster(net)
    for epoch in range(2**32, 2**32 + 2100):
        peer = net.connect(Process(70, role="poster"))
        hello = Hello("peer", 70, 1, "poster", None, False, 0, 0, 0, [], False, places=[[epoch, 0, MAX_COUNT]])
        peer.up.clear()
        peer.up.append(bytes(hello.encode()))
        net.up(peer)
        net.notice(net.cut(peer.process))
        first.channel.up.append(bytes(Report(MAX_COUNT, {}, MAX_COUNT).encode()))
        net.up(first.channel)
        net.run(first)
    assert min(slot_of(net, 0).dropped, slot_of(net, 0).failed) > 2**64
    row = net.router.status(net.now)["workers"][0]
    assert (row["failed"], row["dropped"], row["unread"]) == (MAX_COUNT, MAX_COUNT, MAX_COUNT)
    check_served(net, first, sender)


@pytest.mark.parametrize(
    ("message", "name", "value", "least", "most"),
    [
        (MESSAGES[0], "pid", 2**31, 0, 2**31 - 1),
        (MESSAGES[0], "pid", -1, 0, 2**31 - 1),
        (MESSAGES[0], "received", 2**53, 0, MAX_COUNT),
        (MESSAGES[0], "slots", 65536, 0, 65535),
        (MESSAGES[0], "worker_id", 65536, 0, 65535),
        (MESSAGES[0], "origin", 2**32, 0, 2**32 - 1),
        (MESSAGES[2], "seq", 2**53, 0, MAX_COUNT),
        (MESSAGES[2], "posts", 2**53, 0, MAX_COUNT),
        (Gap(1, 1, 1, "x"), "missed", 2**53, 0, MAX_COUNT),
        (Report(1, {}), "failed", 2**64 - 1, 0, MAX_COUNT),
        (Report(0, {}, 1), "unread", 2**53, 0, MAX_COUNT),
    ],
    ids=str,
)
def test_a_number_beyond_its_limit_is_refused_with_the_limit(message, name, value, least, most):
    body = asdict(message)
    body[name] = [value] if name == "slots" else value
    with pytest.raises(ProtocolError, match=f"'{name}' of a .* frame is {value}, not within {least} to {most}"):
        type(message).decode(encode_frame(type(message).kind, orjson.dumps(body)))


@pytest.mark.parametrize("row", [[1, -1, 1, "6b"], [1, 1, 2**64, "6b"], [2**32, 1, 1, "6b"], [True, 1, 1, "6b"]])
def test_a_unique_event_with_a_number_beyond_its_limit_is_refused(row):
    with pytest.raises(ProtocolError, match="taken frame"):
        Taken([row]).check()


def test_what_is_nested_deeper_than_a_post_allows_is_refused_where_it_can_t_be_passed_on():
    net = Net()
    first, _ = workers(net, 2)
    sender = poster(net)
    deep = b"[" * 600 + b"]" * 600
    for kind, body in [
        (Kind.REQUEST, b'{"id":1,"what":"handlers","arguments":{"a":' + deep + b"}}"),
        (Kind.ANSWER, b'{"id":1,"data":' + deep + b"}"),
        (Kind.REPORT, b'{"failed":1,"last":{"a":' + deep + b"}}"),
    ]:
        channel = net.attach(Process(70)).channel
        assert channel is not None
        channel.up.append(bytes(encode_frame(kind, body)))
        net.up(channel)
        assert channel.link is None
    check_served(net, first, sender)


def test_a_client_that_was_told_more_posts_than_a_hello_can_say_says_the_most():
    session = make()
    attach(session, posts=MAX_COUNT)
    session.receive([encode_frame(Kind.EVENTS, b'[["s","e",[1]]]', count=1, origin=8, origin_seq=1, seq=1)])
    session.disconnected()
    assert Hello.decode(session.connected()).places == [[1, MAX_COUNT, 0]]
