"""Handlers that an operator brings: who may, who gets them, when they end, and where their output goes."""

from __future__ import annotations

import pytest

from eventsh.core.questions import ADD_SCRIPT, REMOVE_SCRIPT
from eventsh.core.scripts import is_script_location, script_file
from eventsh.protocol.messages import Ask, Output, Reply
from tests.core.net import Net, error_codes, observer, poster, worker, workers


def script(name="7.1", **changes):
    return {
        "name": name,
        "code": "print(data)",
        "file": None,
        "function": None,
        "source": "app",
        "events": [],
        "workers": None,
        "keep": False,
        "weak": False,
    } | changes


def request(net, process, what, arguments):
    process.session.request(what, arguments)
    net.flush(process)
    net.up(process.channel)


def shell(net, number=90):
    """An operator's shell, whose process the kernel vouches for."""
    process = observer(net, number)
    process.channel.link.is_trusted = True
    return process


def reply(net, process):
    net.down(process.channel)
    (last,) = [message for message in process.messages if isinstance(message, Reply)][-1:]
    return last


def asked(net, process):
    """What this worker was asked about scripts, as what and name; its answers are sent."""
    net.down(process.channel)
    asks = [message for message in process.messages if isinstance(message, Ask)]
    process.messages.clear()
    for ask in asks:
        process.session.answer(ask.id, {"error": None, "handlers": 1})
    net.flush(process)
    net.up(process.channel)
    return [(ask.what, ask.arguments["name"]) for ask in asks]


def test_every_worker_is_given_the_script_and_the_shell_their_answers():
    net = Net()
    first, second = workers(net, 2)
    operator = shell(net)
    request(net, operator, ADD_SCRIPT, script())
    assert asked(net, first) == asked(net, second) == [(ADD_SCRIPT, "7.1")]
    answer = reply(net, operator)
    assert answer.error is None
    assert [(row["worker_id"], row["data"]["error"]) for row in answer.data["workers"]] == [(0, None), (1, None)]


def test_code_is_taken_from_trusted_connections_alone():
    net = Net()
    (first,) = workers(net, 1)
    stranger = observer(net)
    for what in (ADD_SCRIPT, REMOVE_SCRIPT):
        request(net, stranger, what, script())
        assert "only over a unix socket, from a process of the same user" in reply(net, stranger).error
    assert asked(net, first) == []


def test_a_broker_can_be_told_to_take_no_code():
    net = Net(allow_scripts=False)
    (first,) = workers(net, 1)
    operator = shell(net)
    request(net, operator, ADD_SCRIPT, script())
    assert "allow_scripts is off" in reply(net, operator).error
    assert asked(net, first) == []


def test_only_the_workers_that_were_named_get_it():
    net = Net()
    first, second = workers(net, 2)
    operator = shell(net)
    request(net, operator, ADD_SCRIPT, script(workers=[1]))
    assert (asked(net, first), asked(net, second)) == ([], [(ADD_SCRIPT, "7.1")])


def test_a_worker_that_attaches_later_gets_it_before_any_event():
    net = Net()
    operator = shell(net)
    request(net, operator, ADD_SCRIPT, script())
    request(net, operator, ADD_SCRIPT, script("7.2"))
    late = worker(net, 5)
    assert asked(net, late) == [(ADD_SCRIPT, "7.1"), (ADD_SCRIPT, "7.2")]
    assert not [error for error in error_codes(late) if error]


@pytest.mark.parametrize("keep", [False, True])
def test_a_script_ends_with_its_shell_unless_it_is_kept(keep):
    net = Net()
    (first,) = workers(net, 1)
    operator = shell(net)
    request(net, operator, ADD_SCRIPT, script(keep=keep))
    assert asked(net, first) == [(ADD_SCRIPT, "7.1")]
    net.disconnect(operator)
    assert asked(net, first) == ([] if keep else [(REMOVE_SCRIPT, "7.1")])
    late = worker(net, 5)
    assert asked(net, late) == ([(ADD_SCRIPT, "7.1")] if keep else [])
    # Any shell may end what is kept.
    request(net, shell(net, 91), REMOVE_SCRIPT, {"name": "7.1"})
    assert asked(net, first) == asked(net, late) == ([(REMOVE_SCRIPT, "7.1")] if keep else [])


def test_a_script_is_taken_back_once():
    net = Net()
    (first,) = workers(net, 1)
    operator = shell(net)
    request(net, operator, ADD_SCRIPT, script())
    request(net, operator, REMOVE_SCRIPT, {"name": "7.1"})
    assert asked(net, first) == [(ADD_SCRIPT, "7.1"), (REMOVE_SCRIPT, "7.1")]
    request(net, operator, REMOVE_SCRIPT, {"name": "7.1"})
    assert reply(net, operator).error == "there is no script 7.1"


def test_what_it_writes_goes_to_its_shell_alone():
    net = Net()
    first, second = workers(net, 2)
    operator, other = shell(net), shell(net, 91)
    request(net, operator, ADD_SCRIPT, script())
    asked(net, first)
    assert first.session.write_output("7.1", "one\n")
    assert not first.session.write_output("7.1", "two\n")
    net.flush(first)
    net.run(first, second, operator, other)
    (told,) = operator.data_of("eventsh")[-1:]
    assert told == {"script": "7.1", "text": "one\ntwo\n", "lost": 0, "worker_id": 0, "pid": 1001}
    assert [event for event in other.events + second.events if event[1] == "script_output"] == []


def test_what_a_worker_writes_at_once_has_a_limit():
    net = Net()
    (first,) = workers(net, 1)
    operator = shell(net)
    request(net, operator, ADD_SCRIPT, script())
    asked(net, first)
    for _ in range(10):
        first.session.write_output("7.1", "x" * 1000)
    net.flush(first)
    net.run(first, operator)
    told = operator.data_of("eventsh")[-1]
    assert (len(told["text"]), told["lost"]) == (4000, 6000)


def test_what_a_script_of_nobody_writes_is_dropped():
    net = Net()
    (first,) = workers(net, 1)
    operator = shell(net)
    first.session.write_output("8.1", "x")
    net.flush(first)
    net.run(first, operator)
    assert [event for event in operator.events if event[1] == "script_output"] == []
    assert first.is_attached


def test_a_poster_that_sends_output_breaks_the_protocol():
    net = Net()
    posting = poster(net)
    posting.channel.up.append(bytes(Output("7.1", "x", 0).encode()))
    net.up(posting.channel)
    assert error_codes(posting) == ["protocol"]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"name": 1}, "a script needs a name"),
        ({"code": None}, "a script needs a name, code"),
        ({"events": [1]}, "a script needs"),
        ({"name": ""}, "a script needs"),
        ({"name": "7" * 101}, "a script's name may have 100 characters, not 101"),
        ({"code": "x" * 300_000}, "may have 262144 characters"),
    ],
)
def test_what_is_no_script_is_refused(changes, why):
    net = Net()
    operator = shell(net)
    request(net, operator, ADD_SCRIPT, script(**changes))
    assert why in reply(net, operator).error


def test_scripts_have_names_of_their_own_and_a_limit():
    net = Net()
    operator = shell(net)
    for number in range(256):
        request(net, operator, ADD_SCRIPT, script(f"7.{number}"))
    request(net, operator, ADD_SCRIPT, script("7.3"))
    assert reply(net, operator).error == "there is a script 7.3 already"
    request(net, operator, ADD_SCRIPT, script("7.256"))
    assert reply(net, operator).error == "256 scripts are registered already: unregister some"


def test_all_scripts_together_have_a_limit():
    net = Net()
    operator = shell(net)
    for number in range(33):
        # As bytes, for so they wait for a worker that attaches.
        code = "x" * 256 * 1024 if number % 2 else "\U0001f600" * 64 * 1024
        request(net, operator, ADD_SCRIPT, script(f"7.{number}", code=code))
    assert reply(net, operator).error == "the scripts would have more than 8388608 bytes together: unregister some"


def test_the_location_of_a_handler_tells_its_script():
    assert is_script_location(f"{script_file('7.1')}:3") == "7.1"
    assert is_script_location("/app/handlers.py:3") is None
    assert is_script_location("<script 7.1") is None


def test_with_too_many_questions_open_a_script_is_neither_kept_nor_forgotten():
    net = Net()
    (first,) = workers(net, 1)
    operator = shell(net)
    request(net, operator, ADD_SCRIPT, script())
    assert asked(net, first) == [(ADD_SCRIPT, "7.1")]
    for _ in range(64):
        request(net, operator, "handlers", {})
    request(net, operator, ADD_SCRIPT, script("7.2"))
    assert "64 questions are open" in reply(net, operator).error
    request(net, operator, REMOVE_SCRIPT, {"name": "7.1"})
    assert "64 questions are open" in reply(net, operator).error
    late = worker(net, 5)
    assert asked(net, late) == [(ADD_SCRIPT, "7.1")]
