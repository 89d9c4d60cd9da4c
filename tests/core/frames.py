"""A session, and the frames that a broker would send it."""

from __future__ import annotations

import orjson

from eventsh.core.outbox import Outbox
from eventsh.core.registry import Registry
from eventsh.core.session import Session
from eventsh.protocol.frame import Flag, Kind, decode_header, encode_frame
from eventsh.protocol.messages import Hello, Welcome

NOW = 50.0


def make(*, handles=True, **options):
    registry = Registry()
    if handles:
        registry.register(print)
    outbox = Outbox(origin=5, pid=42, max_queue_len=100, max_payload_len=65536)
    return Session(outbox, registry, identity="me", clock=lambda: NOW, **options)


FEATURE_NAMES = ["all-know", "byte-window", "kept-unique", "unreadable-gap", "workers-joined"]


def welcome(*, epoch=1, resumed=False, seq=0, worker_id=0, slots=(), **changes):
    values = {"pid": 9, "timeout": 5.0, "max_queue_len": 50, "max_payload_len": 1000, **changes}
    values.setdefault("features", FEATURE_NAMES)
    return Welcome(epoch=epoch, resumed=resumed, seq=seq, worker_id=worker_id, slots=list(slots), **values).encode()


def gap_of(delivery):
    """What a gap says, without its reason."""
    ((source, event, (data,)),) = delivery.runs
    assert (source, event) == ("eventsh", "gap")
    assert data["reason"]
    return {name: value for name, value in data.items() if name != "reason"}


def attach(session, **facts):
    hello = Hello.decode(session.connected())
    session.receive([welcome(**facts)])
    return hello


def attached(**options):
    session = make(**options)
    attach(session)
    return session


def batch(seq, *data, origin=8, number=None, flags=0, count=None, source="s"):
    body = orjson.dumps([[source, "e", list(data)]])
    if flags & Flag.UNIQUE:
        body = b"\x01\x00k" + body
    return encode_frame(
        Kind.EVENTS, body, flags=flags, count=len(data) if count is None else count, pid=77, origin=origin,
        origin_seq=seq if number is None else number, seq=seq, time_ns=1,
    )  # fmt: skip


def take(session, now=NOW):
    deliveries = []
    while (delivery := session.inbox.next_delivery(now)) is not None:
        deliveries.append(delivery)
        session.inbox.set_aside(delivery)
    return deliveries


def take_one(session):
    """Have the next delivery dispatched to handlers that are still at work."""
    delivery = session.inbox.next_delivery(NOW)
    session.inbox.set_aside(delivery)
    return delivery


def data_of(deliveries):
    return [data for delivery in deliveries for _, _, several in delivery.runs for data in several]


def handle(session, now=NOW):
    deliveries = take(session, now)
    for delivery in deliveries:
        session.inbox.complete(delivery)
    return data_of(deliveries)


def ack_of(session):
    frame = session.take_ack()
    if frame is None:
        return None
    header = decode_header(frame)
    assert header.kind == Kind.ACK
    return header.seq, header.origin_seq


def own_event(seq, event, data):
    body = orjson.dumps([["eventsh", event, [data]]])
    return encode_frame(Kind.EVENTS, body, count=1, pid=9, origin_seq=seq, seq=seq)
