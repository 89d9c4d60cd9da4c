"""Two brokers that served one address side by side: what the workers of each missed of the other, once one of them ends."""

from __future__ import annotations

from typing import Any

import pytest

from eventsh.core.broker.control import HAND_OVER
from eventsh.core.broker.router import Router
from eventsh.errors import UsageError
from eventsh.protocol.messages import Reply
from tests.core.net import BROKER_PID, Net, Process, confirmed, feed, post, poster, ran, slow_pool, worker, workers

RIVAL = 5


def missed(process: Any) -> list[int]:
    return [gap["missed"] for gap in process.gaps]


def beside() -> tuple[Net, Net]:
    """The broker that stays, and the rival."""
    return Net(), Net(epoch=RIVAL)


def move(process: Any, rival: Net, net: Net) -> None:
    """The rival has ended: its client attaches to the other broker."""
    rival.cut(process)
    # Its number is that of another worker here. The client asks for any after the first refusal.
    process.session.worker_id = None
    net.attach(process)
    net.run()


def test_workers_are_told_once_of_what_a_rival_confirmed():
    net, rival = beside()
    first, second = workers(net, 2)
    theirs = worker(rival, 11)
    post(rival, theirs, 1, 2)
    rival.run()
    assert net.router.meet_rival(RIVAL, 0.5, 2, net.now)
    net.run()
    post(rival, theirs, 3)
    rival.run()
    # What it says last, and what its clients say after that.
    assert not net.router.meet_rival(RIVAL, 1.0, 3, net.now)
    move(theirs, rival, net)
    assert (missed(first), missed(second)) == ([2, 1], [2, 1])
    assert first.gaps[0]["epoch"] == RIVAL
    assert "beside this one" in first.gaps[0]["reason"]
    assert missed(theirs) == []
    assert ran(theirs) == [[1, 2, 3]]


def test_what_a_client_of_the_rival_knows_is_told_if_the_rival_did_not_say_it():
    net, rival = beside()
    (first,) = workers(net, 1)
    theirs = worker(rival, 11)
    assert net.router.meet_rival(RIVAL, 0.5, 0, net.now)
    post(rival, theirs, 1, 2)
    rival.run()
    move(theirs, rival, net)
    assert missed(first) == [2]


def test_what_was_not_confirmed_there_is_sent_again_and_not_counted():
    net, rival = beside()
    (first,) = workers(net, 1)
    theirs = worker(rival, 11)
    post(rival, theirs, 1)
    rival.run()
    rival.router.stop_accepting()
    post(rival, theirs, 2)
    rival.run()
    assert rival.router.is_settled
    assert rival.router.confirmed_posts == 1
    assert confirmed(rival, theirs) == 1
    net.router.meet_rival(RIVAL, 0.5, rival.router.confirmed_posts, net.now)
    move(theirs, rival, net)
    assert (ran(first, theirs), missed(first)) == ([[2], [1, 2]], [1])


def test_a_worker_of_the_rival_is_told_of_what_passed_here_since_the_rival_began():
    net, rival = beside()
    first, posting = workers(net, 1)[0], poster(net)
    post(net, posting, *range(10))
    net.run()
    net.advance(6.0)
    began = net.now
    theirs = worker(rival, 11)
    net.advance(3.0)
    post(net, posting, "a", "b", "c")
    net.run()
    net.router.meet_rival(RIVAL, net.now - began, 0, net.now)
    move(theirs, rival, net)
    assert missed(theirs) == [3]
    post(net, posting, "end")
    net.run()
    assert ran(theirs) == [["end"]]
    assert ran(first)[0][-1] == "end"
    # The next broker hears that it was told.
    net.replace_broker()
    for process in (first, posting, theirs):
        net.attach(process)
    net.run()
    assert (missed(first), missed(theirs)) == ([], [3])


def test_of_a_rival_older_than_what_is_remembered_all_is_told():
    net, rival = beside()
    posting = poster(net)
    workers(net, 1)
    post(net, posting, 1, 2)
    net.run()
    theirs = worker(rival, 11)
    for _ in range(80):
        net.advance(2.0)
        net.run()
    net.router.meet_rival(RIVAL, 1e6, 0, net.now)
    move(theirs, rival, net)
    assert missed(theirs) == [2]


def test_a_worker_that_came_after_both_is_told_of_neither():
    net, rival = beside()
    workers(net, 1)
    theirs = worker(rival, 11)
    post(rival, theirs, 1, 2)
    rival.run()
    net.router.meet_rival(RIVAL, 0.5, 2, net.now)
    move(theirs, rival, net)
    late = net.attach(Process(9))
    net.run()
    assert missed(late) == []


class _Answering(Net):
    """A net whose broker answers rivals."""

    def _new_router(self, epoch: int) -> Router:
        def answer(facts: dict[str, Any]) -> dict[str, Any]:
            if "pid" not in facts:
                raise UsageError("no pid")
            return {"pid": BROKER_PID}

        return Router(self.options, epoch=epoch, pid=BROKER_PID, wall_clock_ns=lambda: 1, now=self.now, on_rival=answer)


@pytest.mark.parametrize("is_trusted", [True, False])
def test_only_a_process_of_the_same_user_may_ask_a_broker_to_hand_over(is_trusted):
    net = _Answering()
    (first,) = workers(net, 1)
    first.channel.link.is_trusted = is_trusted
    for facts in ({"pid": 1}, {}):
        first.session.request(HAND_OVER, facts)
    net.run()
    asked, malformed = (message for message in first.messages if isinstance(message, Reply))
    if is_trusted:
        assert (asked.data, asked.error, malformed.error) == ({"pid": BROKER_PID}, None, "no pid")
    else:
        assert asked.data is None
        assert "of this user alone" in str(asked.error)


def test_of_two_rivals_a_worker_is_told_of_those_that_began_while_it_was_here():
    net = Net()
    (first,) = workers(net, 1)
    net.router.meet_rival(7, 0.5, 2, net.now)
    late = net.attach(Process(9))
    net.router.meet_rival(RIVAL, 0.5, 3, net.now)
    net.run()
    assert (missed(first), missed(late)) == ([2, 3], [3])


def test_a_worker_that_has_had_an_earlier_broker_is_told_of_a_rival_too():
    net = Net(epoch=10)
    (first,) = workers(net, 1)
    post(net, first, 1)
    net.run()
    net.replace_broker()
    net.attach(first)
    net.router.meet_rival(RIVAL, 0.5, 2, net.now)
    net.run()
    assert missed(first) == [2]


def test_a_minute_later_it_is_still_known_what_passed_before_a_rival():
    net, rival = beside()
    workers(net, 1)
    posting = poster(net)
    post(net, posting, 1, 2)
    net.run()
    theirs = worker(rival, 11)
    for _ in range(30):
        net.advance(2.0)
        net.run()
    post(net, posting, 3)
    net.run()
    net.router.meet_rival(RIVAL, 50.0, 0, net.now)
    move(theirs, rival, net)
    assert missed(theirs) == [1]


def test_what_waits_for_room_when_a_rival_ends_is_left_to_the_other_broker():
    net, fast, slow, posting = slow_pool(4)
    feed(net, posting, fast, slow, 8)
    assert net.router.status(net.now)["broker"]["held"]
    received = confirmed(net, posting)
    net.router.stop_accepting()
    # Now there is room.
    net.run()
    assert net.router.is_settled
    assert ran(fast, slow) == [[1, 2, 3, 4], [1, 2, 3, 4]]
    assert confirmed(net, posting) == received == 4
