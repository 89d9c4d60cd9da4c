"""What the broker refuses, and that it does so to one connection alone."""

from __future__ import annotations

from typing import Any

import pytest

from eventsh.protocol.frame import Flag, Kind, encode_frame
from eventsh.protocol.messages import Error, Hello, Welcome
from tests.core.net import (
    TIMEOUT_S,
    Net,
    Process,
    error_codes,
    observer,
    post,
    poster,
    ran,
    slot_of,
    worker,
    workers,
)


def hello(**changes):
    values: dict[str, Any] = {
        "identity": "x", "origin": 5, "pid": 1, "role": "worker", "worker_id": None, "take_unique": True,
        "epoch": 0, "received": 0, "handled": 0, "slots": [], "tells": False,
    }  # fmt: skip
    return Hello(**(values | changes)).encode()


def raw(net, *frames, pid=None):
    """A connection that sends just these frames; give what it is told."""
    channel = net.connect(Process(99), pid=pid)
    channel.up.clear()
    channel.up.extend(map(bytes, frames))
    net.up(channel)
    net.down(channel) if channel.process.channel is channel else None
    return channel.process.messages


def refusal(net, *frames):
    bystander = worker(net, 50)
    errors = [message for message in raw(net, *frames) if isinstance(message, Error)]
    post(net, bystander, 1)
    net.run()
    assert bystander.is_attached
    assert ran(bystander) == [[1]]
    (error,) = errors
    assert len(net.router.connections) == 1
    return error


def test_a_hello_of_another_version_is_refused_with_both_versions():
    error = refusal(Net(), hello(version=2))
    assert error.code == "version"
    assert "1" in error.message
    assert "2" in error.message


@pytest.mark.parametrize(
    "changes",
    [
        {"role": "boss"},
        {"origin": 0},
        {"origin": 1 << 32},
        {"origin": -1},
        {"worker_id": -1},
        {"worker_id": 65536},
        {"received": 1, "handled": 2},
        {"received": -1, "handled": -1},
    ],
)
def test_a_hello_with_impossible_members_is_refused(changes):
    assert refusal(Net(), hello(**changes)).code == "protocol"


@pytest.mark.parametrize(
    "frames",
    [
        pytest.param([hello(), hello()], id="a second hello"),
        pytest.param([encode_frame(Kind.EVENTS, b"[]", count=1, origin_seq=1)], id="events before hello"),
        pytest.param([encode_frame(Kind.ACK)], id="an ack before hello"),
        pytest.param([encode_frame(Kind.REQUEST, b'{"id":1,"what":"status","arguments":{}}')], id="request first"),
        pytest.param([encode_frame(Kind.GOODBYE, b'{"leave":true}')], id="goodbye first"),
        pytest.param([encode_frame(Kind.REPORT, b'{"failed":1,"last":{}}')], id="report first"),
        pytest.param([encode_frame(Kind.HELLO, b"{}")], id="an empty hello"),
        pytest.param([encode_frame(Kind.WELCOME, b"{}")], id="a welcome from a client"),
        pytest.param([encode_frame(Kind.CONFIRM)], id="a confirmation from a client"),
        pytest.param([hello(), encode_frame(Kind.EVENTS, b"[]", count=0, origin_seq=1)], id="a batch of nothing"),
        pytest.param([hello(), encode_frame(Kind.EVENTS, b"[]", count=1)], id="a batch without a number"),
        pytest.param([hello(), encode_frame(Kind.EVENTS, b"[]", count=2, origin_seq=2**64 - 1)], id="numbers run over"),
        pytest.param([hello(), encode_frame(Kind.REPORT, b'{"failed":18446744073709551615,"last":{}}')], id="failures"),
        pytest.param(
            [hello(), encode_frame(Kind.EVENTS, b"\1\0k[]", count=2, origin_seq=1, flags=Flag.UNIQUE)],
            id="two unique events in one",
        ),
        pytest.param(
            [hello(), encode_frame(Kind.EVENTS, b"\xff\0k[]", count=1, origin_seq=1, flags=Flag.UNIQUE)],
            id="a key that is cut",
        ),
        pytest.param(
            [hello(), encode_frame(Kind.EVENTS, b"", count=1, origin_seq=1, flags=Flag.UNIQUE)], id="no key at all"
        ),
        pytest.param([hello(), encode_frame(Kind.ACK, seq=1000, origin_seq=0)], id="an ack beyond what was sent"),
        pytest.param([hello(), encode_frame(Kind.ACK, seq=0, origin_seq=1)], id="handled before received"),
        pytest.param([hello(role="poster"), encode_frame(Kind.ACK)], id="an ack from a poster"),
        pytest.param(
            [hello(), encode_frame(Kind.REPORT, b'{"failed":1,"last":{"x":' + b"[" * 300 + b"]" * 300 + b"}}")],
            id="a report that is nested too deeply",
        ),
        pytest.param([hello(), encode_frame(Kind.REPORT, b"[" * 100_000)], id="a report that is no JSON"),
    ],
)  # fmt: skip
def test_who_breaks_the_protocol_is_told_and_closed_and_nobody_else_is_touched(frames):
    assert refusal(Net(), *frames).code == "protocol"


def test_what_follows_a_refused_frame_is_not_looked_at():
    net = Net()
    watching = observer(net)
    good = encode_frame(Kind.EVENTS, b'[["app","e",[1]]]', count=1, origin_seq=1)
    raw(net, hello(role="poster"), encode_frame(Kind.ACK), good)
    net.run()
    assert ran(watching) == [[]]


def test_an_origin_that_another_poster_has_is_refused():
    net = Net()
    worker(net, 5)
    (error,) = raw(net, hello(origin=5))
    assert isinstance(error, Error)
    assert error.code == "origin_taken"


def test_the_origin_of_a_poster_that_has_left_may_be_used_again_and_starts_afresh():
    net = Net()
    watching = observer(net)
    left = poster(net, 5)
    post(net, left, 1, 2, 3)
    net.run()
    net.disconnect(left)
    other = net.attach(Process(5, role="poster", identity="another"))
    post(net, other, "a")
    net.run()
    assert ran(watching) == [[1, 2, 3, "a"]]
    assert other.outbox.queued == 0


def test_a_slot_that_another_process_holds_is_refused():
    net = Net()
    workers(net, 1)
    (error,) = raw(net, hello(worker_id=0))
    assert isinstance(error, Error)
    assert error.code == "slot_taken"


def test_more_workers_than_slots_allowed_are_refused_unless_a_dropped_one_can_go():
    net = Net(max_slots=2)
    first, second = workers(net, 2)
    (error,) = raw(net, hello(worker_id=7))
    assert isinstance(error, Error)
    assert error.code == "too_many"
    net.kill(second)
    net.advance(TIMEOUT_S + 0.5)
    assert isinstance(raw(net, hello(worker_id=7))[0], Welcome)
    assert first.is_attached


def test_more_connections_than_allowed_are_refused():
    net = Net(max_connections=2)
    workers(net, 2)
    third = Process(3)
    net.connect(third)
    assert error_codes(third) == ["too_many"]
    assert len(net.router.connections) == 2


def test_who_says_no_hello_in_time_is_closed():
    net = Net(hello_timeout=2.0)
    first = worker(net, 1)
    silent = Process(2)
    net.connect(silent).up.clear()
    net.advance(2.0)
    assert error_codes(silent) == []
    net.advance(0.5)
    assert error_codes(silent) == ["slow_hello"]
    assert first.is_attached


def test_a_client_that_reports_an_error_is_closed():
    net = Net()
    (first,) = workers(net, 1)
    first.channel.up.append(bytes(Error("protocol", "x").encode()))
    net.up(first.channel)
    assert net.channels == []


def test_a_hello_cannot_claim_another_pid_than_the_transport_vouches_for():
    net = Net()
    raw(net, hello(pid=1), pid=4242)
    assert slot_of(net, 0).pid == 4242
