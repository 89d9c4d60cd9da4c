"""Events whose poster waits for the handlers: what workers answer, who is told, and when the wait is over."""

from __future__ import annotations

import pytest

from eventsh.core.registry import Registry
from eventsh.core.trace import Trace, Wait
from eventsh.errors import ProtocolError
from eventsh.protocol.frame import Flag, Kind, encode_frame
from eventsh.protocol.messages import Handled, Receipt
from tests.core.net import Net, Process, error_codes, poster, slot_of, worker, workers


def handler(name="handler", source="app", event=None):
    def call(data, event, source, pid):
        pass

    call.__qualname__ = name
    registry = Registry()
    registry.register(call, source, *[event] if event else [])
    return registry.handlers()[0]


def post_traced(net, process, *, unique=None):
    """Post an event and give what waits for it."""
    wait = Wait()
    if unique is None:
        process.outbox.post_receipt("app", "e", 1, trace=True, wait=wait)
    else:
        process.outbox.post_unique("app", "e", 1, unique, trace=True, wait=wait)
    net.flush(process, ack=False)
    net.up(process.channel)
    return wait


def take_traced(net, process):
    """Have it arrive and be given to the handlers, which do not return yet."""
    net.down(process.channel)
    while (delivery := net.take(process)) is not None:
        if delivery.trace is not None:
            net.flush(process)
            net.up(process.channel)
            return delivery
    raise AssertionError("no traced event came")


def test_every_worker_answers_once_its_handlers_have_returned():
    net = Net()
    first, second = workers(net, 2)
    posting = poster(net)
    wait = post_traced(net, posting)
    for process in (first, second):
        take_traced(net, process).trace.note(handler(), 0.25, None)
    net.run(posting)
    # Confirmed, for all have it, but no handler has returned.
    assert posting.outbox.queued == 0
    assert wait.having == Receipt(1, [0, 1], [], None)
    assert not wait.is_over
    net.run(first, posting)
    assert not wait.is_over
    partial = wait.receipt()
    assert [(one.worker_id, one.received, one.answered) for one in partial.workers] == [
        (0, True, True),
        (1, True, False),
    ]
    assert not partial.is_complete
    net.run(second, posting)
    assert wait.is_over
    receipt = wait.receipt()
    assert receipt.is_complete
    assert [(one.worker_id, one.pid) for one in receipt.workers] == [(0, 1001), (1, 1002)]
    (run,) = receipt.workers[0].handlers
    assert (run.name, run.source, run.event, run.seconds, run.error) == ("handler", "app", None, 0.25, None)


def test_a_worker_can_wait_for_its_own_post():
    net = Net()
    first, second = workers(net, 2)
    wait = post_traced(net, first)
    net.run()
    assert wait.is_over
    assert [one.handlers for one in wait.receipt().workers] == [(), ()]
    assert [message for message in second.messages if isinstance(message, Handled)] == []


def test_plain_events_and_mere_receipts_are_not_traced():
    net = Net()
    (first,) = workers(net, 1)
    posting = poster(net)
    posting.outbox.post_receipt("app", "e", 1)
    posting.outbox.post("app", "e", 2)
    net.run(posting, first)
    assert [delivery.trace for delivery in first.handled] == [None] * len(first.handled)
    assert [message for message in posting.messages if isinstance(message, Handled)] == []


@pytest.mark.parametrize("was", ["observer", "worker"])
def test_observers_do_not_answer(was):
    net = Net()
    workers(net, 1)
    observer = Process(90, role=was, take_unique=False)
    observer.session.become("observer")
    net.attach(observer)
    posting = poster(net)
    wait = post_traced(net, posting)
    net.run()
    assert [message.worker_id for message in posting.messages if isinstance(message, Handled)] == [0]
    assert wait.is_over


def test_a_unique_event_is_answered_by_the_one_that_has_it_or_by_its_successor():
    net = Net()
    first, second = workers(net, 2)
    posting = poster(net)
    wait = post_traced(net, posting, unique="key")
    holder, other = (first, second) if slot_of(net, 0).uniques else (second, first)
    take_traced(net, holder)
    net.run(posting)
    assert wait.having.unique == "given"
    assert not wait.is_over
    net.router.end_process(net.kill(holder), net.now)
    net.collect()
    net.run(other, posting)
    assert wait.is_over
    receipt = wait.receipt()
    assert [one.worker_id for one in receipt.workers] == [other.session.worker_id]
    assert (receipt.is_complete, receipt.unique) == (True, "given")


@pytest.mark.parametrize("prepared", ["repeat", "nobody"])
def test_nobody_is_waited_for_where_nobody_has_it(prepared):
    net = Net()
    posting = poster(net)
    if prepared == "repeat":
        workers(net, 1)
        post_traced(net, posting, unique="key")
    wait = post_traced(net, posting, unique="key")
    net.run()
    assert wait.is_over
    assert (wait.receipt().unique, wait.receipt().workers) == (prepared, ())


def test_a_worker_that_is_gone_is_told_as_one_that_has_not_received_it():
    net = Net()
    first, second = workers(net, 2)
    net.router.end_process(net.disconnect(second), net.now)
    posting = poster(net)
    wait = post_traced(net, posting)
    net.run(first, posting)
    assert wait.is_over
    assert [(one.worker_id, one.received) for one in wait.receipt().workers] == [(0, True), (1, False)]
    assert not wait.receipt().is_complete


def test_an_answer_for_a_poster_that_is_gone_is_dropped():
    net = Net()
    (first,) = workers(net, 1)
    posting = poster(net)
    post_traced(net, posting)
    take_traced(net, first)
    net.disconnect(posting)
    net.run(first)
    assert first.is_attached


def test_handlers_that_return_after_the_brokers_death_answer_by_way_of_the_next_one():
    net = Net()
    (first,) = workers(net, 1)
    posting = poster(net)
    wait = post_traced(net, posting)
    take_traced(net, first)
    net.run(posting)
    net.replace_broker()
    net.attach(posting)
    net.attach(first)
    assert not wait.is_over
    net.run(first, posting)
    assert wait.is_over


def test_an_answer_lost_with_the_broker_is_waited_for_in_vain_and_nothing_else_is_harmed():
    net = Net()
    (first,) = workers(net, 1)
    posting = poster(net)
    wait = post_traced(net, posting)
    take_traced(net, first)
    net.run(posting)
    net.complete(first)
    net.replace_broker()
    net.attach(posting)
    net.attach(first)
    net.run()
    assert not wait.is_over
    assert [one.answered for one in wait.receipt().workers] == [False]
    assert post_traced(net, posting) is not wait
    net.run()
    assert posting.outbox.queued == 0


def test_a_trace_without_a_receipt_breaks_the_protocol():
    net = Net()
    posting = poster(net)
    frame = encode_frame(Kind.EVENTS, b'[["a","b",[1]]]', flags=Flag.TRACE, count=1, origin_seq=1)
    posting.channel.up.append(bytes(frame))
    net.up(posting.channel)
    assert error_codes(posting) == ["protocol"]


@pytest.mark.parametrize(
    "answer",
    [
        Handled(1, 1, [{"name": "h"}], None, None),
        Handled(1, 1, ["h"], None, None),  # type: ignore[list-item]
    ],
)
def test_an_answer_that_says_nonsense_breaks_the_protocol(answer):
    net = Net()
    (first,) = workers(net, 1)
    first.channel.up.append(bytes(answer.encode()))
    net.up(first.channel)
    assert error_codes(first) == ["protocol"]
    with pytest.raises(ProtocolError):
        answer.check()


def test_a_poster_that_answers_breaks_the_protocol():
    net = Net()
    posting = poster(net)
    posting.channel.up.append(bytes(Handled(1, 1, [], None, None).encode()))
    net.up(posting.channel)
    assert error_codes(posting) == ["protocol"]


def test_the_broker_says_who_answers_whatever_the_worker_says():
    net = Net()
    first = worker(net, 1, 3)
    posting = poster(net)
    first.channel.up.append(bytes(Handled(posting.outbox.origin, 9, [], 77, 88).encode()))
    net.up(first.channel)
    net.down(posting.channel)
    assert posting.messages[-1] == Handled(posting.outbox.origin, 9, [], 3, 1001)


def test_an_answer_has_a_limit_and_tells_first_what_failed():
    trace = Trace(1, 1)
    many = handler("é" * 2000)
    for _ in range(1500):
        trace.note(many, 0.0, None)
    trace.note(many, 0.0, ValueError("\udcff" * 2000))
    answer = trace.answer()
    assert len(answer.encode()) < 16 * 1024 * 1024
    assert len(answer.handlers) == 1000
    assert answer.handlers[0]["error"].startswith("ValueError: \\udcff")
    assert len(answer.handlers[1]["name"]) == 500
    answer.check()


def test_an_error_is_told_by_its_type_where_it_has_no_text():
    class Mute(Exception):
        def __str__(self):
            raise TypeError

    trace = Trace(1, 1)
    for error in (KeyError(), ValueError("no"), Mute()):
        trace.note(handler(), 0.0, error)
    texts = [str(run.error) for run in trace.runs]
    assert texts[:2] == ["KeyError", "ValueError: no"]
    assert texts[2].endswith("Mute: <its text could not be made>")


def test_what_a_process_without_a_handler_holds_is_answered_once_it_is_given_out():
    net = Net()
    silent = net.attach(Process(1, worker_id=0, handles=False))
    posting = poster(net)
    wait = post_traced(net, posting)
    net.run()
    assert not wait.is_over
    silent.session.inbox.release()
    net.run()
    assert wait.is_over
