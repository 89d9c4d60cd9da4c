"""Registering by the functions of the package, by Events and by AsyncEvents: warnings, replacing, interruptions."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import importlib
import itertools
import logging
import runpy
import sys
import tempfile
import threading
import time
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import eventsh
from eventsh import api
from eventsh.core.registry import Registry
from eventsh.runtime.bus import default_bus
from tests.core.test_registry_interrupts import interrupted_at_each_opcode, together

Face = Any


def registry_of(face: Face) -> Registry:
    bus = default_bus() if face is eventsh else face._bus
    registry: Registry = bus.registry
    return registry


@pytest.fixture(params=["eventsh", "Events", "AsyncEvents"])
def face(request: pytest.FixtureRequest) -> Iterator[Face]:
    chosen = eventsh if request.param == "eventsh" else getattr(eventsh, request.param)()
    before = set(registry_of(chosen).handlers())
    yield chosen
    registry_of(chosen).remove([handler for handler in registry_of(chosen).handlers() if handler not in before])


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., types.ModuleType]]:
    """Writes a module and imports it, or reloads it. It finds the face as `events`."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    name = f"handlers_{tmp_path.name}"

    def load(events: Face, text: str) -> types.ModuleType:
        (tmp_path / f"{name}.py").write_text(text)
        importlib.invalidate_caches()
        monkeypatch.setattr("builtins.events", events, raising=False)
        return importlib.reload(sys.modules[name]) if name in sys.modules else importlib.import_module(name)

    yield load
    sys.modules.pop(name, None)


def post(registry: Registry, event: str = "purge") -> list[Any]:
    return [handler.call("data", event, "cache", 1) for handler in registry.match("cache", event).handlers]


def handle(data: Any, event: str, source: str, pid: int | None) -> None: ...


def tagged(tag: Any, data: Any, event: str, source: str, pid: int | None) -> None: ...


class Handlers:
    def take(self, data: Any, event: str, source: str, pid: int | None) -> None: ...

    def __call__(self, data: Any, event: str, source: str, pid: int | None) -> None: ...


class Made:
    def __init__(self, data: Any, event: str, source: str, pid: int | None) -> None: ...


def line_of(caught: pytest.WarningsRecorder) -> int:
    [warning] = caught.list
    assert warning.filename == __file__
    return warning.lineno


# --- weak registrations of what nothing else holds ---


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: functools.partial(handle), "handle"),
        (lambda: functools.partial(tagged, 1), "tagged"),
        (lambda: Handlers().take, "Handlers.take"),
        (Handlers, "Handlers"),
        (lambda: lambda data, event, source, pid: None, "<lambda>"),
        (lambda: types.MethodType(lambda *_: None, handle), "<lambda>"),
        (lambda: functools.wraps(handle)(lambda *_: None), "handle"),
        (lambda: [].append, "list.append"),
    ],
)
def test_a_weak_registration_of_what_nothing_else_holds_warns_where_it_is_made(
    face: Face, make: Callable[[], Any], name: str
) -> None:
    with pytest.warns(
        RuntimeWarning, match=rf"{name} .*nothing else holds it.*keep a reference.*register\(\)"
    ) as caught:
        # Not in an `assert`: pytest would hold the argument.
        face.register_weak(make(), "cache")
    assert line_of(caught) == sys._getframe().f_lineno - 1
    assert registry_of(face).match("cache", "purge").handlers == ()


def test_the_way_of_the_call_does_not_hide_that_nothing_else_holds_it(face: Face) -> None:
    with pytest.warns(RuntimeWarning, match="nothing else holds it"):
        face.register_weak(callback=Handlers().take, source="cache")
    with pytest.warns(RuntimeWarning, match="nothing else holds it"):
        face.register_weak(Handlers().take, "cache", "purge", "fill")


def test_a_weak_registration_of_what_something_holds_does_not_warn(face: Face) -> None:
    owner, instance, partial = Handlers(), Handlers(), functools.partial(tagged, 1)
    kept = [Handlers()]
    append = list[Any]().append
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(100):  # also once the interpreter has specialised the code
            for callback in (owner.take, instance, partial, handle, Made, append, kept[0], kept[0].take):
                face.register_weak(callback, "cache", "purge")
            face.register_weak(handle, "cache", "purge")
            face.register_weak(owner.take, "cache", "purge")
            face.register_weak(kept[0].take, "cache", "purge")
    assert len(registry_of(face).match("cache", "purge").handlers) == 8
    del owner, instance, partial, kept, append, callback
    gc.collect()
    assert [handler.name for handler in registry_of(face).match("cache", "purge").handlers] == ["handle", "Made"]


def test_a_method_of_an_object_that_is_registered_strongly_too_does_not_warn(face: Face) -> None:
    face.register(Handlers().take, "cache")
    [handler] = registry_of(face).match("cache", "e").handlers
    callback = handler.callback
    assert callback is not None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        face.register_weak(callback, "cache", "fill")


def test_what_can_not_be_held_weakly_says_what_to_do(face: Face) -> None:
    class Narrow:
        __slots__ = ()

        def take(self, *_: Any) -> None: ...

    with pytest.raises(TypeError, match=r"Narrow.take can't be registered weakly.*use register\(\)"):
        face.register_weak(Narrow().take)


# --- definitions that run again ---

MODULE = """
def purge(data, event, source, pid):
    return {version}
events.{call}(purge, "cache", "purge"{replace})
"""
DECORATED = """
@events.on("cache", "purge"{replace})
def purge(data, event, source, pid):
    return {version}
"""
WRAPPED = """
import functools
def retried(function):
    @functools.wraps(function)
    def wrapper(*arguments):
        return function(*arguments)
    return wrapper
@events.on("cache", "purge"{replace})
@retried
def purge(data, event, source, pid):
    return {version}
"""
CLASS_METHOD = """
class Cache:
    @classmethod
    def purge(cls, data, event, source, pid):
        return {version}
events.register(Cache.purge, "cache", "purge"{replace})
"""
STATIC_METHOD = CLASS_METHOD.replace("@classmethod", "@staticmethod").replace("cls, ", "")
CLASS = """
class Purge:
    def __init__(self, data, event, source, pid): ...
    def __eq__(self, other): return other == {version}
    __hash__ = None
events.register(Purge, "cache", "purge"{replace})
"""
DEFINITIONS = {
    "function": MODULE.replace("{call}", "register"),
    "decorated": DECORATED,
    "async": DECORATED.replace("def", "async def"),
    "wrapped": WRAPPED,
    "class method": CLASS_METHOD,
    "static method": STATIC_METHOD,
    "class": CLASS,
}


@pytest.mark.parametrize("text", DEFINITIONS.values(), ids=DEFINITIONS)
def test_a_reloaded_module_warns_and_names_both(face: Face, module: Callable[..., types.ModuleType], text: str) -> None:
    loaded = module(face, text.format(version=1, replace=""))
    [former] = registry_of(face).match("cache", "purge").handlers
    with pytest.warns(RuntimeWarning, match="registered twice.*replace=True") as caught:
        module(face, "\n\n" + text.format(version=2, replace=""))
    handlers = registry_of(face).match("cache", "purge").handlers
    assert len(handlers) == 2
    [warning] = caught.list
    assert warning.filename == loaded.__file__
    message = str(warning.message)
    assert "purge" in message.lower()
    assert former.location in message
    assert handlers[1].location in message
    assert former.location != handlers[1].location


@pytest.mark.parametrize("text", DEFINITIONS.values(), ids=DEFINITIONS)
def test_a_reloaded_module_replaces_its_handlers_if_asked_to(
    face: Face, module: Callable[..., types.ModuleType], text: str
) -> None:
    face.register(handle, "cache")
    module(face, text.format(version=1, replace=", replace=True"))
    face.register(functools.partial(tagged, 1), "cache", "purge")
    before = registry_of(face).match("cache", "purge").handlers
    module(face, text.format(version=2, replace=", replace=True"))
    after = registry_of(face).match("cache", "purge").handlers
    # At its place in the order.
    assert [handler.name for handler in after] == [handler.name for handler in before]
    assert [one is other for one, other in zip(before, after, strict=True)] == [True, False, True]
    if "async" not in text:
        assert after[1].call("data", "purge", "cache", 1) == 2


def test_a_weakly_registered_function_of_a_reloaded_module_is_replaced_by_its_end(
    face: Face, module: Callable[..., types.ModuleType]
) -> None:
    text = MODULE.replace("{call}", "register_weak")
    for version in (1, 2):
        module(face, text.format(version=version, replace=""))
        assert post(registry_of(face)) == [version]


def test_register_weak_replaces_what_is_kept_elsewhere(face: Face, module: Callable[..., types.ModuleType]) -> None:
    text = MODULE.replace("{call}", "register_weak")
    kept = module(face, text.format(version=1, replace="")).purge
    module(face, text.format(version=2, replace=", replace=True"))
    assert post(registry_of(face)) == [2]
    assert kept("data", "purge", "cache", 1) == 1


def test_a_module_that_is_imported_anew_warns(face: Face, module: Callable[..., types.ModuleType]) -> None:
    text = DECORATED.format(version=1, replace="")
    loaded = module(face, text)
    del sys.modules[loaded.__name__]
    with pytest.warns(RuntimeWarning, match="registered twice"):
        module(face, text)


def test_a_file_that_is_run_again_warns(face: Face, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.events", face, raising=False)
    file = tmp_path / "handlers.py"
    file.write_text(DECORATED.format(version=1, replace=""))
    runpy.run_path(str(file))
    with pytest.warns(RuntimeWarning, match="registered twice"):
        runpy.run_path(str(file))


def run_cell(face: Face, number: int, text: str, namespace: dict[str, Any]) -> None:
    """As IPython runs a cell: in one namespace, each time with a file name of its own."""
    namespace |= {"__name__": "__main__", "events": face}
    exec(compile(text, f"/tmp/ipykernel_1/{number}.py", "exec"), namespace)


@pytest.mark.parametrize("replace", [False, True])
def test_a_cell_that_runs_again_warns_or_replaces(face: Face, replace: bool) -> None:
    namespace: dict[str, Any] = {}
    text = DECORATED.format(version="version", replace=", replace=True" if replace else "")
    expected = contextlib.nullcontext() if replace else pytest.warns(RuntimeWarning, match=r"1\.py:2 .*2\.py:2")
    run_cell(face, 1, text, namespace)
    with expected:
        run_cell(face, 2, text, namespace)
    namespace["version"] = 2
    assert post(registry_of(face)) == ([2] if replace else [2, 2])


def test_a_handler_that_is_defined_again_for_another_event_is_another_one(face: Face) -> None:
    namespace: dict[str, Any] = {}
    run_cell(face, 1, DECORATED.format(version=1, replace=""), namespace)
    run_cell(face, 2, DECORATED.format(version=2, replace=", replace=True").replace('"purge"', '"fill"'), namespace)
    assert (post(registry_of(face)), post(registry_of(face), "fill")) == ([1], [2])


def test_replacing_several_events_replaces_each_where_it_is(face: Face) -> None:
    namespace: dict[str, Any] = {}
    run_cell(face, 1, DECORATED.format(version=1, replace=""), namespace)
    run_cell(
        face, 2, DECORATED.format(version=2, replace=", replace=True").replace('"purge"', '"purge", "fill"'), namespace
    )
    assert (post(registry_of(face)), post(registry_of(face), "fill")) == ([2], [2])


def test_replacing_removes_all_that_earlier_runs_left(face: Face) -> None:
    namespace: dict[str, Any] = {}
    for version in (1, 2):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run_cell(face, version, DECORATED.format(version=version, replace=""), namespace)
    # Also where it is itself one of them.
    face.register(namespace["purge"], "cache", "purge", replace=True)
    assert post(registry_of(face)) == [2]
    run_cell(face, 3, DECORATED.format(version=3, replace=", replace=True"), namespace)
    assert post(registry_of(face)) == [3]


def make(tag: str) -> Callable[..., str]:
    def closure(data: Any, event: str, source: str, pid: int | None) -> str:
        return tag

    return closure


def decorate(tag: str, function: Any) -> Any:
    @functools.wraps(function)
    def wrapper(*arguments: Any) -> str:
        function(*arguments)
        return tag

    return wrapper


def test_what_a_program_makes_anew_all_the_time_does_not_warn(face: Face) -> None:
    for tag in "ab":
        face.register(make(tag), "cache", "purge")
        face.register(functools.partial(tagged, tag), "cache", "purge")
        face.register(Handlers().take, "cache", "purge")
        face.register(Handlers(), "cache", "purge")
        face.register(lambda data, event, source, pid: None, "cache", "purge")
        face.register(decorate(tag, handle), "cache", "purge")
    assert len(post(registry_of(face))) == 12


def test_functions_without_a_name_of_their_own_do_not_warn(face: Face) -> None:
    namespace: dict[str, Any] = {}
    for number in (1, 2):
        run_cell(face, number, DECORATED.format(version=number, replace="").replace("purge(", "_("), namespace)
    assert post(registry_of(face)) == [1, 2]


def test_plugins_that_are_run_by_exec_with_functions_of_one_name_do_not_warn(face: Face) -> None:
    for version in (1, 2):
        exec(DECORATED.format(version=version, replace=""), {"events": face})
    assert post(registry_of(face)) == [1, 2]


def test_two_modules_with_functions_of_one_name_do_not_replace_each_other(face: Face) -> None:
    for version in (1, 2):
        exec(DECORATED.format(version=version, replace=", replace=True"), {"events": face, "__name__": f"m{version}"})
    assert post(registry_of(face)) == [1, 2]


def test_a_lambda_has_no_name_to_replace_by(face: Face) -> None:
    with pytest.raises(eventsh.UsageError, match=r"replace=True.*lambda.*write a def"):
        face.register(lambda *_: None, "cache", replace=True)


def test_a_warning_that_is_an_error_registers_nothing(face: Face) -> None:
    namespace: dict[str, Any] = {}
    run_cell(face, 1, DECORATED.format(version=1, replace=""), namespace)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeWarning):
            run_cell(face, 2, DECORATED.format(version=2, replace="").replace('"purge"', '"purge", "fill"'), namespace)
    assert (post(registry_of(face)), post(registry_of(face), "fill")) == ([1], [])


# --- anywhere ---


@pytest.mark.parametrize("method", ["register", "register_weak", "unregister", "on"])
def test_an_exception_at_any_opcode_of_the_api_leaves_all_events_registered_or_none(face: Face, method: str) -> None:
    registry, events = registry_of(face), ("a", "b")
    function = getattr(face, method)

    def call() -> None:
        if method == "on":
            function("cache", *events, replace=True)(handle)
        else:
            function(handle, "cache", *events)

    def begin() -> tuple[None, Callable[[], Any]]:
        registry.unregister(handle, "cache", *events)
        if method == "unregister":
            registry.register(handle, "cache", *events)
        return None, call

    counts = set()
    for _ in interrupted_at_each_opcode(begin, api.__file__):
        found = [len(registry.match("cache", event).handlers) for event in events]
        assert found in ([0, 0], [1, 1])
        counts.add(found[0])
        together(call)
        assert len(registry.match("cache", "a").handlers) == (method != "unregister")
    assert counts == {0, 1}


def test_a_handler_of_logging_may_register_while_a_warning_is_logged(face: Face) -> None:
    class Registering(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            face.register(handle, "cache", "purge")

    logger, handler = logging.getLogger("py.warnings"), Registering()
    logger.addHandler(handler)
    logging.captureWarnings(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            # As catch_warnings has put it back.
            logging.captureWarnings(False)
            logging.captureWarnings(True)
            face.register_weak(functools.partial(handle), "cache")
    finally:
        logging.captureWarnings(False)
        logger.removeHandler(handler)
    assert [one.callback for one in registry_of(face).match("cache", "purge").handlers] == [handle]


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_each_event_that_is_handled_meanwhile_meets_the_replaced_handler_or_the_new_one(is_async: bool) -> None:
    handled: list[tuple[int, int]] = []
    versions = itertools.count()

    def make() -> Callable[..., Any]:
        version = next(versions)

        def handler(data: Any, event: str, source: str, pid: int | None) -> None:
            handled.append((data, version))

        async def async_handler(data: Any, event: str, source: str, pid: int | None) -> None:
            await asyncio.sleep(0)
            handled.append((data, version))

        return async_handler if is_async else handler

    # Not tmp_path: a socket's path has to be short.
    with tempfile.TemporaryDirectory(prefix="evsh-", dir="/tmp", ignore_cleanup_errors=True) as directory:
        events = eventsh.Events(f"unix:{directory}/a.sock", linger=0.2)
        events.register(make(), "cache", "purge")
        done = threading.Event()

        def replace() -> None:
            while not done.is_set():
                events.register(make(), "cache", "purge", replace=True)

        replacing = threading.Thread(target=replace)
        with events:
            replacing.start()
            for number in range(3000):
                events.post("cache", "purge", number)
                if number % 100 == 0:
                    events.flush(timeout=30)
            deadline = time.monotonic() + 30
            while len(handled) < 3000 and time.monotonic() < deadline:
                time.sleep(0.01)
            done.set()
            replacing.join(30)
    assert sorted(number for number, _ in handled) == list(range(3000))
    assert len({version for _, version in handled}) > 1
