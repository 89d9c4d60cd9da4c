"""Which features of the wire all receivers know, and what the broker makes of a batch that some of them can't read."""

from __future__ import annotations

import pytest

from eventsh.protocol.features import FEATURES
from eventsh.protocol.frame import Flag
from eventsh.protocol.messages import Features, Hello
from tests.core.net import (
    TIMEOUT_S,
    Net,
    Process,
    ack,
    confirmed,
    error_codes,
    headers,
    observer,
    post,
    poster,
    slot_of,
    worker,
    workers,
)

KNOWN = sorted(FEATURES)
NEWER = FEATURES | {"metadata"}
# As the first version: its hello names no features.
FIRST: frozenset[str] = frozenset()


def newer(net, process, count=1, flags=64, body=b'[["app","e",[1]]]', key=b"k"):
    """Post a batch with flags of a later version."""
    process.outbox.post_body(body, count, pid=process.outbox.pid, flags=flags, key=key)
    net.flush(process, ack=False)
    net.up(process.channel)


def known(process):
    return sorted(process.session.all_know)


def all_know(net):
    return net.router.status(net.now)["broker"]["all_know"]


def missed(*processes):
    return [sum(gap["missed"] for gap in process.gaps) for process in processes]


# --- the agreement ---


def test_what_all_know_follows_who_reads_events():
    net = Net(features=NEWER)
    posting = poster(net, features=NEWER)
    assert known(posting) == sorted(NEWER)
    first = worker(net, 1, 0, features=NEWER)
    net.run()
    assert known(posting) == known(first) == sorted(NEWER)
    second = worker(net, 2, 1, features=FIRST)
    net.run()
    assert known(posting) == known(first) == []
    second.session.leave()
    net.run()
    assert known(posting) == known(first) == sorted(NEWER)


def test_a_poster_that_knows_less_takes_nothing_away_from_the_others():
    net = Net()
    first = worker(net, 1, 0)
    poster(net, features=FIRST)
    net.run()
    assert known(first) == KNOWN


def test_what_the_broker_does_not_know_all_do_not_know():
    net = Net()
    first = worker(net, 1, 0, features=NEWER | {"of a later version"})
    net.run()
    assert known(first) == KNOWN


def test_an_observer_counts_until_its_process_has_ended():
    net = Net()
    first, watching = worker(net, 1, 0), observer(net, features=FIRST)
    net.run()
    assert known(first) == []
    slot = net.kill(watching)
    net.run()
    assert known(first) == []
    net.router.end_process(slot, net.now)
    net.collect()
    net.run()
    assert known(first) == KNOWN


def test_a_slot_counts_as_its_last_process_until_it_is_taken():
    net = Net()
    first, old = worker(net, 1, 0), worker(net, 2, 1, features=FIRST)
    old.session.leave(leave=False)
    net.run()
    net.disconnect(old)
    net.run()
    assert known(first) == []
    worker(net, 3, 1)
    net.run()
    assert known(first) == KNOWN


def test_a_slot_counts_as_its_last_process_until_it_is_given_up():
    net = Net(timeout=TIMEOUT_S)
    first, old = worker(net, 1, 0), worker(net, 2, 1, features=FIRST)
    net.router.end_process(net.kill(old), net.now)
    net.run()
    net.advance(TIMEOUT_S - 1)
    net.run()
    assert known(first) == []
    net.advance(2)
    net.run()
    assert known(first) == KNOWN


def test_a_slot_that_nobody_took_yet_counts_as_knowing_nothing():
    net = Net(slots=2)
    first = worker(net, 1, 0)
    net.run()
    assert (known(first), all_know(net)) == ([], [])
    worker(net, 2, 1)
    net.run()
    assert (known(first), all_know(net)) == (KNOWN, KNOWN)


def test_workers_of_an_earlier_broker_count_as_knowing_nothing_until_they_are_back():
    net = Net(timeout=TIMEOUT_S)
    first, second = workers(net, 2)
    net.replace_broker()
    net.attach(first)
    net.run()
    assert known(first) == []
    net.attach(second)
    net.run()
    assert known(first) == known(second) == KNOWN


def test_a_client_that_does_not_know_the_message_is_sent_none():
    net = Net()
    old, new = worker(net, 1, 0, features=FIRST), worker(net, 2, 1)
    net.run()
    assert [type(message) for message in old.messages if isinstance(message, Features)] == []
    assert any(isinstance(message, Features) for message in new.messages)


def test_the_message_stands_in_its_place_among_the_events():
    net = Net()
    first, posting = worker(net, 1, 0), poster(net)
    net.run()
    post(net, posting, "before")
    worker(net, 2, 1, features=FIRST)
    post(net, posting, "behind")
    kinds = [header.kind for header in headers(first.channel.down)]
    # An event, what all know now, the second worker's arrival at the end of the broker's turn, an event.
    assert [kind for kind in kinds if kind in (3, 22)] == [3, 22, 3, 3]


@pytest.mark.parametrize("features", [["x"] * 257, ["x" * 65]])
def test_a_hello_with_features_over_the_limits_is_refused(features):
    net = Net()
    process = Process(1, features=features)
    net.up(net.connect(process))
    assert error_codes(process) == ["protocol"]


# --- batches that somebody can't read ---


@pytest.mark.parametrize("flags", [64, 128, 192, 64 | Flag.REPLAYED])
def test_a_batch_with_a_flag_that_the_broker_does_not_know_is_a_gap_for_everybody_and_is_confirmed(flags):
    net = Net()
    first, second = worker(net, 1, 0, features=NEWER), worker(net, 2, 1, features=FIRST)
    watching, posting = observer(net), poster(net)
    net.run()
    post(net, posting, "before")
    newer(net, posting, 1, flags)
    newer(net, posting, 2, flags)
    post(net, posting, "behind")
    net.run()
    assert confirmed(net, posting) == 5
    assert posting.is_attached
    for process in (first, second, watching):
        names = [data if event == "e" else event for _, event, data in process.events if event != "worker_joined"]
        assert names == ["before", "gap", "gap", "behind"]
    assert missed(first, second, watching) == [3, 3, 3]
    assert [row["dropped"] for row in net.router.status(net.now)["workers"]] == [3, 3]
    assert [notice for notice in net.notices if "gaps in the place" in notice] == [
        f"{label} gets gaps in the place of batches that it or this broker can't read: a process with a newer version of"
        " eventsh posts them; update all processes of the pool"
        for label in ("worker 0", "worker 1", "the observer with pid 1090")
    ]


def test_a_worker_that_does_not_know_a_form_gets_a_gap_where_the_others_get_the_events():
    net = Net(features=NEWER)
    first, second = worker(net, 1, 0, features=NEWER), worker(net, 2, 1, features=FIRST)
    posting = poster(net, features=NEWER)
    net.run()
    newer(net, posting)
    net.run()
    assert first.data_of("app") == [1]
    assert missed(first, second) == [0, 1]
    assert confirmed(net, posting) == 1


def test_what_waits_for_a_slot_is_a_gap_only_for_a_process_that_can_t_read_it():
    for features, expected in ((NEWER, ([0, 1, 2], 0)), (FIRST, ([0, 2], 1))):
        net = Net(features=NEWER)
        first, posting = worker(net, 1, 0, features=NEWER), poster(net, features=NEWER)
        net.run()
        net.router.end_process(net.kill(first), net.now)
        post(net, posting, 0)
        newer(net, posting)
        post(net, posting, 2)
        second = worker(net, 2, 0, features=features)
        net.run()
        assert (second.data_of("app"), missed(second)[0]) == expected
        # It was never sent what it can't read.
        assert (slot_of(net, 0).dropped, slot_of(net, 0).unread) == (expected[1], 0)
        assert slot_of(net, 0).posts_behind == 0
        # The next broker learns how many posts the process has, or was told of.
        net.disconnect(second)
        assert Hello.decode(second.session.connected()).places[0][1] == 3


def test_a_gap_for_what_can_t_be_read_is_counted_once_by_the_next_broker_too():
    net = Net()
    first, second = workers(net, 2)
    posting = poster(net)
    net.run()
    post(net, posting, 0)
    newer(net, posting, 3)
    post(net, posting, 4)
    net.run()
    net.replace_broker()
    for process in (first, second, posting):
        net.attach(process)
    net.run()
    assert missed(first, second) == [3, 3]
    assert first.data_of("app") == second.data_of("app") == [0, 4]


@pytest.mark.parametrize("key", [b"", b"k"])
def test_a_unique_event_in_a_form_that_the_broker_does_not_know_is_one_worker_s_gap_and_takes_no_key(key):
    net = Net()
    first, second = workers(net, 2)
    posting = poster(net)
    net.run()
    for _ in range(2):
        newer(net, posting, 1, 64 | Flag.UNIQUE, key=key)
    posting.outbox.post_unique("app", "u", "x", "k")
    net.run()
    assert confirmed(net, posting) == 3
    assert sum(missed(first, second)) == 2
    assert sorted(first.data_of("app") + second.data_of("app")) == ["x"]


def test_a_unique_event_goes_to_a_worker_that_can_read_it():
    net = Net(features=NEWER)
    first, second = worker(net, 1, 0, features=FIRST), worker(net, 2, 1, features=NEWER)
    posting = poster(net, features=NEWER)
    net.run()
    for _ in range(3):
        post(net, second, "more to do")
    newer(net, posting, 1, 64 | Flag.UNIQUE)
    net.run()
    assert missed(first, second) == [0, 0]
    assert second.data_of("app")[-1] == 1


def test_the_receipt_of_a_batch_names_those_who_can_t_read_it_as_missing():
    net = Net(features=NEWER)
    worker(net, 1, 0, features=NEWER)
    worker(net, 2, 1, features=FIRST)
    posting = poster(net, features=NEWER)
    net.run()
    newer(net, posting, 1, 64 | Flag.RECEIPT)
    net.run()
    (receipt,) = [message for message in posting.messages if type(message).__name__ == "Receipt"]
    assert (receipt.workers, receipt.missing) == ([0], [1])


def test_gaps_for_what_can_t_be_read_fill_a_queue_as_events_do():
    net = Net(max_queue_len=4, timeout=TIMEOUT_S)
    stuck, posting = worker(net, 1, 0), poster(net)
    net.run()
    for _ in range(20):
        newer(net, posting)
        ack(net, stuck)
        net.down(posting.channel)
    assert posting.outbox.confirmed >= 4
    assert len(slot_of(net, 0).queue) == 5


def test_events_that_a_worker_could_not_read_are_counted_for_its_slot():
    net = Net()
    first, posting = worker(net, 1, 0), poster(net)
    net.run()
    posting.outbox.post_body(b"[]", 2, pid=1)
    post(net, posting, "good")
    net.run()
    assert missed(first) == [2]
    assert first.data_of("app") == ["good"]
    row = net.router.status(net.now)["workers"][0]
    assert (row["unread"], row["dropped"], row["failed"]) == (2, 0, 0)


def test_what_can_t_be_read_is_part_of_the_gap_of_a_worker_that_is_losing_events():
    net = Net()
    first, posting = worker(net, 1, 0), poster(net)
    net.run()
    post(net, posting, 0)
    slot_of(net, 0).start_dropping("too slow", net.now)
    newer(net, posting, 3)
    post(net, posting, 4)
    net.run()
    assert first.data_of("app") == [0]
    assert [(gap["missed"], gap["reason"]) for gap in first.gaps] == [(4, "too slow")]
    assert slot_of(net, 0).dropped == 4


def test_what_a_worker_that_leaves_can_t_read_waits_for_the_next_one_as_it_is():
    net = Net(features=NEWER)
    first, posting = worker(net, 1, 0, features=FIRST), poster(net, features=NEWER)
    net.run()
    first.session.leave(leave=False)
    net.flush(first)
    net.up(first.channel)
    newer(net, posting)
    net.run()
    net.disconnect(first)
    second = worker(net, 2, 0, features=NEWER)
    net.run()
    assert (second.data_of("app"), missed(first, second)) == ([1], [0, 0])
