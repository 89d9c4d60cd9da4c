"""Whoever records: what it is told, what waits for it, and what a replay asks of the router."""

from __future__ import annotations

from typing import Any

import pytest

from eventsh.errors import EventError
from eventsh.protocol.frame import HEADER_BYTES, Flag, decode_header
from tests.core.net import Net, confirmed, observer, post, post_unique, poster, ran, worker, workers


class Recorder:
    def __init__(self, synced: int | None = None) -> None:
        self.synced = synced
        self.taken: list[tuple[int, int, bytes, list[int | None] | None]] = []

    def take(self, entry, slots):
        to = None if slots is None else [slot.worker_id for slot in slots]
        header = decode_header(entry.frame)
        assert header.seq + header.count - 1 == entry.last
        self.taken.append((header.seq, header.count, bytes(entry.frame[HEADER_BYTES:]), to))

    def status(self) -> dict[str, Any]:
        return {"state": "recording"}

    def answer(self, what: str, arguments: dict[str, Any]) -> Any:
        if what == "fail":
            raise EventError("it can't")
        return {"done": arguments} if what == "dump" else None


def taped(net, synced=None):
    net.router.sink = recorder = Recorder(synced)
    return recorder


def test_everything_that_gets_a_place_is_told_whole_and_in_order():
    net = Net()
    first, second = workers(net, 2)
    recorder = taped(net)
    post(net, first, 1, 2)
    post_unique(net, second, 3, "key")
    net.run()
    batch, unique = recorder.taken
    assert batch[1:] == (2, b'[["app","e",[1,2]]]', None)
    assert (unique[0], unique[1]) == (batch[0] + 2, 1)
    assert unique[2].endswith(b'key[["app","u",[3]]]')
    assert len(unique[3]) == 1


def test_the_brokers_own_events_are_told_too():
    net = Net()
    recorder = taped(net)
    worker(net, 1)
    assert b'"worker_joined"' in recorder.taken[0][2]


@pytest.mark.parametrize("unique", [False, True])
def test_a_post_is_confirmed_only_once_it_is_on_disk(unique):
    net = Net()
    (first,) = workers(net, 1)
    posting = poster(net)
    recorder = taped(net, synced=net.router.seq)
    if unique:
        post_unique(net, posting, 1, "key")
    else:
        post(net, posting, 1)
    net.run()
    assert ran(first) == [[1]]
    assert confirmed(net, posting) == 0
    recorder.synced = net.router.seq
    net.router.settle(net.now)
    net.collect()
    assert confirmed(net, posting) == 1


def test_nobody_waits_for_a_recorder_that_can_not_write():
    net = Net()
    workers(net, 1)
    posting = poster(net)
    recorder = taped(net, synced=0)
    post(net, posting, 1)
    net.run()
    assert confirmed(net, posting) == 0
    recorder.synced = None
    net.router.settle(net.now)
    net.collect()
    assert confirmed(net, posting) == 1


def test_a_unique_event_that_came_back_with_its_worker_waits_for_the_disk_too():
    net = Net()
    (first,) = workers(net, 1)
    posting = poster(net)
    recorder = taped(net, synced=net.router.seq)
    post_unique(net, posting, 1, "key")
    net.down(first.channel)
    net.disconnect(first)
    net.attach(first)
    net.run()
    assert ran(first) == [[1]]
    assert confirmed(net, posting) == 0
    recorder.synced = net.router.seq
    net.router.settle(net.now)
    net.collect()
    assert confirmed(net, posting) == 1


def test_clients_can_ask_it():
    net = Net()
    watching = observer(net)
    taped(net)
    for what in ("dump", "fail", "else", "status"):
        watching.session.request(what, {"x": 1})
    net.run()
    answers = [message for message in watching.messages if type(message).__name__ == "Reply"]
    assert answers[0].data == {"done": {"x": 1}}
    assert answers[1].error == "it can't"
    assert answers[2].error == "this broker can't answer 'else'"
    assert answers[3].data["recording"] == {"state": "recording"}


def test_without_one_status_says_so():
    assert Net().router.status(1000.0)["recording"] is None


def replay(net, posting, worker_id):
    posting.outbox.post_body(
        b'[["app","u",[1]]]', 1, pid=4711, flags=Flag.UNIQUE | Flag.REPLAYED, key=b"key", worker=worker_id
    )
    net.run()


def test_a_replayed_unique_event_goes_to_the_worker_that_is_asked_for():
    for wanted in range(3):
        net = Net()
        everybody = workers(net, 3)
        replay(net, poster(net), wanted)
        assert ran(*everybody) == [[1] if number == wanted else [] for number in range(3)]
        (delivery,) = [each for each in everybody[wanted].handled if each.is_unique]
        assert delivery.is_replayed
        assert delivery.pid == 4711


def test_it_goes_to_another_one_where_that_is_not_attached():
    net = Net()
    (first,) = workers(net, 1)
    replay(net, poster(net), 17)
    assert ran(first) == [[1]]


def test_a_batch_as_it_was_once_encoded_follows_what_was_posted_before_and_counts_for_the_queue():
    net = Net()
    (first,) = workers(net, 1)
    posting = poster(net, max_queue_len=4)
    posting.outbox.post("app", "e", 0)
    posting.outbox.post_body(b'[["app","e",[1,2]]]', 2, pid=5)
    with pytest.raises(EventError):
        posting.outbox.post_body(b'[["app","e",[1,2]]]', 2, pid=5)
    posting.outbox.post("app", "e", 3)
    net.run()
    assert ran(first) == [[0, 1, 2, 3]]
    assert posting.outbox.queued == 0
    assert [each.is_replayed for each in first.handled] == [False] * len(first.handled)


def test_a_session_that_reads_frames_whole_gives_them_as_they_came():
    net = Net()
    (first,) = workers(net, 1)
    watching = observer(net, reads_whole=True)
    post(net, first, {"k": [1]}, 2)
    net.run()
    frames = [delivery.frame for delivery in watching.handled if delivery.frame is not None]
    assert frames[-1][HEADER_BYTES:] == b'[["app","e",[{"k":[1]},2]]]'
    assert decode_header(frames[-1]).seq == net.router.seq - 1
    assert watching.outbox.queued == 0
