"""What waits for peers that do not read, and when that ends their connection."""

from __future__ import annotations

from eventsh.core.queue import Entry
from eventsh.protocol.frame import Kind, encode_frame
from eventsh.protocol.messages import Error
from tests.core.net import TIMEOUT_S, Net, error_codes, poster, worker, workers

MIB = 1024 * 1024


def unread(process, size_bytes):
    """So much of what was sent to this process has not left."""
    process.channel.link.unsent = lambda: size_bytes


def test_who_asks_for_too_much_in_one_read_is_told_so_and_closed():
    net = Net()
    first = worker(net, 1)
    posting = poster(net)
    link = posting.channel.link
    net.router.receive(link, [encode_frame(Kind.PING)] * 400_000, net.now)
    assert link.is_closing
    # Nothing of what was asked for is kept.
    (told,) = link.output
    assert Error.decode(told).code == "unread"
    net.collect()
    assert net.notices == [
        "a client reads nothing of what it asks for, and more than 32 MiB wait: its connection is ended"
    ]
    assert first.is_attached


def test_answers_that_wait_in_the_connection_count_too():
    net = Net()
    posting = poster(net)
    unread(posting, 32 * MIB)
    net.advance(1.0)
    assert posting.is_attached
    unread(posting, 32 * MIB + 1)
    net.advance(1.0)
    assert error_codes(posting) == ["unread"]


def test_events_that_wait_for_a_slow_worker_are_its_queues_business_until_it_says_that_it_has_them():
    net = Net(max_payload_len=MIB, max_queue_bytes=1024 * MIB)
    first, second = workers(net, 2)
    for number in range(1, 41):
        large = encode_frame(Kind.EVENTS, bytes(MIB), count=1, origin_seq=number)
        net.router.receive(first.channel.link, [large], net.now)
    net.collect()
    unread(second, 40 * MIB)
    net.advance(1.0)
    assert second.is_attached
    # It can't have what has not left.
    seq = net.router.seq
    second.channel.up.append(bytes(encode_frame(Kind.ACK, origin_seq=0, seq=seq)))
    net.up(second.channel)
    net.advance(1.0)
    assert error_codes(second) == ["unread"]
    assert net.notices[-1].startswith("worker 1 reads nothing")


def test_many_small_events_that_wait_for_a_slow_worker_are_its_queues_business_too():
    net = Net(max_queue_len=1_000_000)
    first = worker(net, 1)
    link, slot = first.channel.link, first.channel.link.slot
    # Each takes more beside what it holds than that itself is.
    small = encode_frame(Kind.EVENTS, b'[["a","b",[1]]]', count=1)
    for number in range(700_000):
        slot.queue.append(Entry(slot.received + number + 1, 1, small))
    link.output += [small] * 700_000
    net.router.tick(net.now)
    assert not link.is_closing


def test_a_closing_connection_whose_end_is_not_read_is_aborted_after_the_timeout():
    net = Net()
    link = net.router.connect("x", None, net.now)
    net.router.receive(link, [encode_frame(Kind.ACK)], net.now)
    assert link.is_closing
    net.router.take_changed()
    gone = []
    for later in (0.0, TIMEOUT_S, TIMEOUT_S + 0.1):
        net.router.tick(net.now + later)
        gone.append(link.is_gone)
    assert gone == [False, False, True]
    assert net.router.take_changed() == [link]
