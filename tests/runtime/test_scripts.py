"""Scripts at work: compiled, registered, and what they print caught."""

from __future__ import annotations

import asyncio
import threading
import traceback

import pytest

from eventsh.core.questions import ADD_SCRIPT, REMOVE_SCRIPT
from eventsh.core.registry import Registry
from eventsh.runtime.code import CodeError
from eventsh.runtime.scripts import Scripts, compile_handler


def script(code, name="7.1", **changes):
    base = {"name": name, "code": code, "file": None, "function": None, "source": "a", "events": ["b"]}
    return base | {"workers": None, "keep": False, "weak": False} | changes


class Worker:
    def __init__(self):
        self.registry = Registry()
        self.written: list[tuple[str, str]] = []
        self.scripts = Scripts(self.registry, lambda name, text: self.written.append((name, text)))

    def add(self, code, **changes):
        return self.scripts.take(ADD_SCRIPT, script(code, **changes))

    def handle(self, data, source="a", event="b"):
        return [handler.call(data, event, source, 7) for handler in self.registry.match(source, event).handlers]


def test_an_expression_is_a_handler_with_everything_bound():
    assert compile_handler(" (data, event, source, pid)", "1")(1, "e", "s", 7) == (1, "e", "s", 7)


def test_statements_are_a_handler_and_may_return():
    handler = compile_handler("\n    if data:\n        return 'yes'\n    x = data\n", "1")
    assert (handler(1, "", "", 1), handler(0, "", "", 1)) == ("yes", None)


def test_with_await_it_is_async_and_without_it_is_not():
    handler = compile_handler(" await data", "1")

    async def value():
        return 5

    assert asyncio.run(handler(value(), "", "", 1)) == 5
    assert asyncio.iscoroutinefunction(handler)
    assert not asyncio.iscoroutinefunction(compile_handler("\n    async def f():\n        await x\n", "1"))


def test_globals_are_the_scripts_own():
    handler = compile_handler("\n    global n\n    n = globals().get('n', 0) + 1\n    return n\n", "1")
    assert [handler(None, "", "", 1) for _ in range(3)] == [1, 2, 3]
    assert compile_handler(" 'n' in globals()", "2")(None, "", "", 1) is False
    assert compile_handler(" eventsh.__name__", "3")(None, "", "", 1) == "eventsh"


@pytest.mark.parametrize("code", [" (", " yield 1", " nonlocal x", " break", "\n  await x\n  yield 1"])
def test_what_is_no_handler_is_refused(code):
    with pytest.raises(CodeError):
        compile_handler(code, "1")


def test_a_traceback_points_into_the_script():
    handler = compile_handler("\n    x = data\n    x.nothing\n", "7.1")
    with pytest.raises(AttributeError) as raised:
        handler(1, "", "", 1)
    text = "".join(traceback.format_exception(raised.value))
    assert 'File "<script 7.1>", line 2, in script\n    x.nothing' in text


def test_what_it_prints_is_caught_and_what_others_print_is_not(capsys):
    worker = Worker()
    assert worker.add("\n    print('one')\n    print('two', end='')\n") == {"error": None, "handlers": 1}
    worker.handle(1)
    assert worker.written == [("7.1", "one\n"), ("7.1", "two\n")]
    print("other")
    assert capsys.readouterr().out == "other\n"


def test_what_another_thread_prints_meanwhile_is_not_caught(capsys):
    worker = Worker()
    worker.add(" data()")

    def data():
        thread = threading.Thread(target=print, args=("thread",))
        thread.start()
        thread.join()
        print("handler")

    worker.handle(data)
    assert worker.written == [("7.1", "handler\n")]
    assert capsys.readouterr().out == "thread\n"


def test_an_async_handler_is_caught_too():
    worker = Worker()
    worker.add(" print(await data)")

    async def run():
        value = asyncio.get_running_loop().create_future()
        (call,) = worker.handle(value)
        task = asyncio.ensure_future(call)
        await asyncio.sleep(0)
        print("meanwhile")
        value.set_result(5)
        await task

    asyncio.run(run())
    assert worker.written == [("7.1", "5\n")]


def test_one_that_is_kept_prints_where_it_runs(capsys):
    worker = Worker()
    worker.add(" print(data)", keep=True)
    worker.handle(5)
    assert (worker.written, capsys.readouterr().out) == ([], "5\n")


def test_it_is_registered_where_it_was_asked_for_and_taken_back():
    worker = Worker()
    worker.add(" 1", source=None, events=[])
    worker.add(" 2", name="7.2", events=["x", "y"])
    assert [len(worker.handle(0, event=event)) for event in ("b", "x", "y")] == [1, 2, 2]
    assert worker.scripts.take(REMOVE_SCRIPT, {"name": "7.2"})["error"] is None
    assert [len(worker.handle(0, event=event)) for event in ("b", "x", "y")] == [1, 1, 1]
    worker.scripts.clear()
    assert worker.registry.handlers() == []


def test_given_again_it_takes_its_own_place():
    worker = Worker()
    worker.add(" 1")
    worker.add(" 2")
    assert worker.handle(0) == [2]


def test_a_function_of_a_file_alone_is_registered(tmp_path):
    worker = Worker()
    text = "import eventsh\ndef f(data, event, source, pid):\n    print('f')\n    return data\ng = 1\n"
    file = str(tmp_path / "h.py")
    assert worker.add(text, file=file, function="f") == {"error": None, "handlers": 1}
    assert worker.handle(5) == [5]
    assert worker.written == [("7.1", "f\n")]
    assert worker.registry.handlers()[0].location == f"{file}:2"
    assert worker.add(text, file=file, function="g", name="7.2")["error"] == f"{file} has no function g"
    assert worker.add("1 +", file=file, name="7.3")["error"].startswith(f"{file}:1: ")
    assert "ZeroDivisionError" in worker.add("1 / 0", file=file, name="7.4")["error"]
    assert "SystemExit" in worker.add("raise SystemExit(1)", file=file, name="7.5")["error"]
    assert worker.add("1", file=file, name="7.6")["error"] == "it registers no handler with this process's bus"
    assert len(worker.registry.handlers()) == 1


def test_a_weak_function_lives_as_long_as_its_script(tmp_path):
    worker = Worker()
    worker.add("def f(*event):\n    return 1\n", file=str(tmp_path / "h.py"), function="f", weak=True)
    assert worker.handle(0) == [1]
    assert worker.registry.handlers()[0].weak
    worker.scripts.clear()
    assert worker.handle(0) == []
