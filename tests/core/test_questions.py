"""What a client asks all workers by way of the broker."""

from __future__ import annotations

import pytest

from eventsh.core.questions import ANSWER_TIMEOUT_S
from eventsh.core.registry import Registry
from eventsh.protocol.messages import Answer, Reply
from tests.core.net import Net, error_codes, poster, worker, workers


def ask(net, process, what="handlers"):
    number = process.session.request(what, {})
    net.flush(process)
    net.up(process.channel)
    return number


def replies(net, process):
    net.down(process.channel)
    return [message for message in process.messages if isinstance(message, Reply)]


def rows(net, process):
    (reply,) = replies(net, process)
    assert reply.error is None
    return [(row["worker_id"], row["pid"], row["error"]) for row in reply.data["workers"]]


def test_every_worker_tells_its_handlers():
    net = Net()
    _, second = workers(net, 2)

    async def later(data, event, source, pid):
        pass

    second.registry.register(later, "app", "e")
    asking = poster(net)
    number = ask(net, asking)
    net.run()
    (reply,) = replies(net, asking)
    assert reply.id == number
    assert [row["worker_id"] for row in reply.data["workers"]] == [0, 1]
    assert [[handler["name"] for handler in row["data"]] for row in reply.data["workers"]] == [
        ["print"],
        ["print", later.__qualname__],
    ]
    told = reply.data["workers"][1]["data"][1]
    assert told == {
        "source": "app",
        "event": "e",
        "name": later.__qualname__,
        "location": f"{__file__}:{later.__code__.co_firstlineno}",
        "script": None,
        "weak": False,
        "async": True,
        "calls": 0,
        "errors": 0,
        "p99_s": None,
    }


def test_a_worker_can_ask_and_answers_itself():
    net = Net()
    first, _ = workers(net, 2)
    ask(net, first)
    net.run()
    assert rows(net, first) == [(0, 1001, None), (1, 1002, None)]


def test_who_does_not_answer_in_time_is_listed_and_what_comes_later_is_ignored():
    net = Net()
    first, second = workers(net, 2)
    asking = poster(net)
    ask(net, asking)
    net.run(first)
    net.advance(ANSWER_TIMEOUT_S * 0.9, step=0.1)
    assert replies(net, asking) == []
    net.advance(ANSWER_TIMEOUT_S * 0.1, step=0.1)
    assert rows(net, asking) == [(0, 1001, None), (1, 1002, "no answer")]
    net.run()
    assert len(replies(net, asking)) == 1
    assert second.is_attached


def test_a_worker_that_dies_is_not_waited_for():
    net = Net()
    first, second = workers(net, 2)
    asking = poster(net)
    ask(net, asking)
    net.run(first)
    net.kill(second)
    assert rows(net, asking) == [(0, 1001, None), (1, 1002, "no answer")]


def test_without_workers_the_answer_is_empty_at_once():
    net = Net(slots=2)
    asking = poster(net)
    ask(net, asking)
    assert rows(net, asking) == []


def test_the_questions_of_one_who_leaves_are_forgotten():
    net = Net()
    (first,) = workers(net, 1)
    for number in range(100):
        asking = poster(net, 200 + number)
        ask(net, asking)
        net.disconnect(asking)
    asking = poster(net, 90)
    ask(net, asking)
    net.run(first, asking)
    assert rows(net, asking) == [(0, 1001, None)]


def test_there_is_a_limit_of_open_questions_until_they_are_answered():
    net = Net()
    (first,) = workers(net, 1)
    asking = poster(net)
    for _ in range(65):
        ask(net, asking)
    (refusal,) = replies(net, asking)
    assert (refusal.data, "64 questions are open" in refusal.error) == (None, True)
    net.run(first, asking)
    assert len(replies(net, asking)) == 65
    ask(net, asking)
    net.run(first, asking)
    assert replies(net, asking)[-1].error is None


def test_what_is_too_much_for_one_reply_is_left_out():
    net = Net()
    first, second = workers(net, 2)
    asking = poster(net)
    ask(net, asking)
    for process in (first, second):
        process.channel.up.append(bytes(Answer(1, "x" * 5_000_000).encode()))
        net.up(process.channel)
    assert rows(net, asking) == [(0, 1001, None), (1, 1002, "the answers together are too large")]


def test_a_question_that_nobody_knows_is_refused():
    net = Net()
    workers(net, 1)
    asking = poster(net)
    ask(net, asking, "weather")
    (reply,) = replies(net, asking)
    assert "can't answer 'weather'" in reply.error


def test_an_answer_that_was_not_asked_for_is_ignored():
    net = Net()
    first = worker(net, 1)
    first.channel.up.append(bytes(Answer(9, []).encode()))
    net.up(first.channel)
    assert first.is_attached


def test_a_poster_that_answers_breaks_the_protocol():
    net = Net()
    posting = poster(net)
    posting.channel.up.append(bytes(Answer(1, []).encode()))
    net.up(posting.channel)
    assert error_codes(posting) == ["protocol"]


@pytest.mark.parametrize(("count", "expected"), [(0, None), (1, 1), (100, 99), (101, 100), (256, 254), (1000, 998)])
def test_the_p99_is_of_the_last_calls_that_were_timed(count, expected):
    registry = Registry()
    registry.register(print)
    (handler,) = registry.handlers()
    for seconds in range(1, count + 1):
        handler.note_seconds(float(seconds))
    assert handler.p99_s == expected
