"""What people and workers say to each other by way of the broker: see also test_questions.py and test_scripts.py."""

from __future__ import annotations

from eventsh.protocol.messages import Reply
from tests.core.net import Net, observer, slot_of, workers


def test_failed_handlers_are_counted_and_told_to_observers_alone():
    net = Net()
    first, second = workers(net, 2)
    watching = observer(net)
    first.session.report_failure({"handler": "h", "error": "boom"})
    first.session.report_failure({"handler": "h", "error": "bang"})
    net.run()
    told = [data for source, event, data in watching.events if event == "handler_error"]
    assert told == [{"handler": "h", "error": "bang", "worker_id": 0, "failed": 2}]
    assert slot_of(net, 0).failed == 2
    assert "handler_error" not in [event for _, event, _ in second.events]


def test_a_request_is_answered_with_its_number():
    net = Net()
    (first,) = workers(net, 1)
    numbers = [first.session.request("status", {}), first.session.request("nonsense", {})]
    net.run()
    replies = [message for message in first.messages if isinstance(message, Reply)]
    assert [reply.id for reply in replies] == numbers
    assert replies[0].data["broker"]["pid"] == 7
    assert "nonsense" in (replies[1].error or "")
