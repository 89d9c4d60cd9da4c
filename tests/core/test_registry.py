from __future__ import annotations

import functools
import gc
import sys
import warnings
from enum import StrEnum
from typing import Any

import pytest

from eventsh.core import registry as registry_module
from eventsh.core import signature as signature_module
from eventsh.core.registry import Handler, Registry
from eventsh.errors import UsageError


class Log:
    """Callbacks that write down their own names."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def handler(self, name: str) -> Any:
        def handle(data: Any, event: str, source: str, pid: int | None) -> None:
            self.lines.append(name)

        return handle


class Box:
    """An object whose bound methods are handlers. Equal to others, so without a hash."""

    def __init__(self, lines: list[Any]) -> None:
        self.lines = lines

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Box)

    def take(self, data: Any, event: str, source: str, pid: int | None) -> None:
        self.lines.append((data, event, source, pid))

    async def take_async(self, data: Any, event: str, source: str, pid: int | None) -> None:
        self.lines.append(data)

    async def take_tagged(self, tag: Any, data: Any, event: str, source: str, pid: int | None) -> None:
        self.lines.append(tag)


def module_handler(data: Any, event: str, source: str, pid: int | None) -> None:
    """Held by its module."""


def tagged_handler(tag: Any, data: Any, event: str, source: str, pid: int | None) -> None:
    """For partials."""


async def async_tagged_handler(tag: Any, data: Any, event: str, source: str, pid: int | None) -> None:
    """For partials."""


async def async_module_handler(data: Any, event: str, source: str, pid: int | None) -> None:
    """Held by its module."""


def post(registry: Registry, source: str = "s", event: str = "e", data: Any = None) -> int:
    handlers = registry.match(source, event).handlers
    for handler in handlers:
        handler.call(data, event, source, 7)
    return len(handlers)


# --- order and levels ---


def test_h1_handlers_of_all_come_before_those_of_the_source_before_those_of_the_event():
    registry, log = Registry(), Log()
    registry.register(log.handler("event 1"), "s", "e")
    registry.register(log.handler("source 1"), "s")
    registry.register(log.handler("all 1"))
    registry.register(log.handler("event 2"), "s", "e")
    registry.register(log.handler("source 2"), "s")
    registry.register(log.handler("all 2"))
    post(registry)
    assert log.lines == ["all 1", "all 2", "source 1", "source 2", "event 1", "event 2"]


def test_handlers_of_other_sources_and_events_do_not_match():
    registry = Registry()
    registry.register(module_handler, "other")
    registry.register(module_handler, "s", "other")
    assert registry.match("s", "e").handlers == ()


def test_a_source_and_an_event_that_read_alike_do_not_meet():
    registry = Registry()
    registry.register(module_handler, "a", "b.c")
    assert registry.match("a.b", "c").handlers == ()


def test_h2_unregister_at_one_level_leaves_the_others_until_all_are_gone():
    registry, log = Registry(), Log()
    handler = log.handler("x")
    registry.register(handler)
    registry.register(handler, "s")
    registry.register(handler, "s", "e")
    for arguments, left in ((("s",), 2), ((), 1), (("s", "e"), 0)):
        assert registry.unregister(handler, *arguments)
        assert post(registry) == left
    assert log.lines == ["x"] * 3


def test_h3_unregister_naming_both_events_removes_both():
    registry = Registry()
    registry.register(module_handler, "s", "a", "b")
    assert (post(registry, "s", "a"), post(registry, "s", "b")) == (1, 1)
    assert registry.unregister(module_handler, "s", "a", "b")
    assert (post(registry, "s", "a"), post(registry, "s", "b")) == (0, 0)


def test_h3_unregister_naming_one_event_leaves_the_other():
    registry = Registry()
    registry.register(module_handler, "s", "a", "b")
    assert registry.unregister(module_handler, "s", "a")
    assert (post(registry, "s", "a"), post(registry, "s", "b")) == (0, 1)


def test_h4_unregister_tells_whether_there_was_something_to_remove():
    registry = Registry()
    assert registry.unregister(module_handler) is False
    registry.register(module_handler)
    assert registry.unregister(module_handler, "s") is False
    assert registry.unregister(module_handler, "s", "e") is False
    assert registry.unregister(module_handler) is True
    assert registry.unregister(module_handler) is False


def test_h4_unregister_is_true_when_one_of_the_events_was_there():
    registry = Registry()
    registry.register(module_handler, "s", "a")
    assert registry.unregister(module_handler, "s", "a", "b") is True


@pytest.mark.parametrize("method", ["register", "unregister"])
@pytest.mark.parametrize("value", [None, 1, "name", object()])
def test_h4_what_can_not_be_called_is_a_type_error(method, value):
    with pytest.raises(TypeError, match="callable"):
        getattr(Registry(), method)(value)


@pytest.mark.parametrize("method", ["register", "unregister"])
@pytest.mark.parametrize(
    "names",
    [(None, "event"), ("",), (1,), ("s", ""), ("s", "e", None), ("s", b"e")],
)
def test_names_that_can_not_be_are_a_usage_error(method, names):
    registry = Registry()
    with pytest.raises(UsageError):
        getattr(registry, method)(module_handler, *names)
    assert registry.handlers() == []


def test_members_of_a_string_enum_are_their_values():
    class Names(StrEnum):
        ORDERS = "orders"
        PAID = "paid"

    registry = Registry()
    registry.register(module_handler, Names.ORDERS, Names.PAID)
    assert len(registry.match("orders", "paid").handlers) == 1
    assert registry.unregister(module_handler, "orders", "paid")


# --- registering ---


def test_register_gives_true_and_notes_that_it_was_ever_called():
    registry = Registry()
    assert registry.ever_registered is False
    assert registry.register(module_handler) is True
    registry.unregister(module_handler)
    assert registry.ever_registered is True


def test_what_is_refused_does_not_count_as_registered():
    registry = Registry()
    with pytest.raises(UsageError):
        registry.register(module_handler, "")
    assert registry.ever_registered is False


def test_a_call_that_changes_nothing_publishes_nothing():
    registry = Registry()
    match = registry.match("s", "e")
    registry.register(module_handler)
    before = match.handlers
    registry.register(module_handler)
    registry.register(module_handler, weak=True)
    assert not registry.unregister(module_handler, "s")
    registry.match("s", "other")
    assert match.handlers is before
    registry.register(module_handler, "s")
    assert match.handlers is not before


def test_the_same_callback_at_the_same_level_is_called_once():
    registry = Registry()
    assert registry.register(module_handler, "s", "e", "e")
    assert registry.register(module_handler, "s", "e")
    assert post(registry) == 1


def test_the_same_callback_at_two_levels_is_called_twice():
    registry = Registry()
    registry.register(module_handler)
    registry.register(module_handler, "s")
    assert post(registry) == 2


def test_bound_methods_are_the_same_when_they_are_equal():
    lines: list[Any] = []
    one, other, registry = Box(lines), Box(lines), Registry()
    registry.register(one.take)
    registry.register(one.take)
    registry.register(other.take)
    post(registry, data=1)
    assert lines == [(1, "e", "s", 7)] * 2
    assert registry.unregister(one.take)
    assert registry.unregister(one.take) is False
    assert registry.unregister(other.take)


def test_methods_of_builtin_objects_can_be_unregistered():
    class Sink(list[Any]):
        pass

    sink: Any = Sink()
    registry = Registry()
    registry.register(sink.append)
    assert registry.unregister(sink.append)


def test_handlers_are_listed_in_the_order_of_registration_with_ascending_numbers():
    registry = Registry()
    registry.register(module_handler, "s", "b", "a")
    registry.register(module_handler)
    registry.unregister(module_handler, "s", "b")
    registry.register(module_handler, "s", "b")
    listed = registry.handlers()
    assert [(handler.source, handler.event) for handler in listed] == [("s", "a"), (None, None), ("s", "b")]
    assert [handler.number for handler in listed] == sorted({handler.number for handler in listed})


def test_an_unregistered_handler_is_no_longer_active():
    registry = Registry()
    registry.register(module_handler)
    [handler] = registry.handlers()
    assert handler.active
    registry.unregister(module_handler)
    assert not handler.active


# --- what a handler knows of itself ---


class Callable_:  # noqa: N801 - named as a user's class may be
    def __call__(self, data: Any, event: str, source: str, pid: int | None) -> None: ...


class AsyncCallable:
    def __init__(self, *arguments: Any) -> None: ...

    async def __call__(self, data: Any, event: str, source: str, pid: int | None) -> None: ...


def only(callback: Any) -> Handler:
    registry = Registry()
    registry.register(callback)
    [handler] = registry.handlers()
    return handler


@pytest.mark.parametrize(
    "callback",
    [
        async_module_handler,
        Box([]).take_async,
        functools.partial(async_tagged_handler, 1),
        functools.partial(functools.partial(Box([]).take_tagged), 1),
        AsyncCallable(),
        functools.partial(AsyncCallable()),
    ],
)
def test_async_callbacks_are_known_as_such(callback):
    registry = Registry()
    registry.register(callback)
    assert registry.handlers()[0].is_async
    assert registry.match("s", "e").single is None


@pytest.mark.parametrize(
    "callback",
    [module_handler, Box([]).take, functools.partial(tagged_handler, 1), Callable_(), AsyncCallable, print, [].append],
)
def test_other_callbacks_are_sync(callback):
    assert not only(callback).is_async


def test_a_match_names_its_handler_while_it_is_the_only_one_and_sync():
    registry = Registry()
    match = registry.match("s", "e")
    seen = [match.single]
    registry.register(module_handler)
    seen.append(match.single)
    registry.register(async_module_handler)
    seen.append(match.single)
    registry.unregister(module_handler)
    seen.append(match.single)
    registry.unregister(async_module_handler)
    registry.register(module_handler, "s")
    seen.append(match.single)
    first, second = match.handlers[0], seen[1]
    assert seen == [None, second, None, None, first]
    assert second is not None


@pytest.mark.parametrize(
    ("callback", "name"),
    [
        (module_handler, "module_handler"),
        (Box([]).take, "Box.take"),
        (functools.partial(tagged_handler, 1), "tagged_handler"),
        (Callable_(), "Callable_"),
        (print, "print"),
    ],
)
def test_the_name_is_the_qualified_one(callback, name):
    assert only(callback).name == name


def decorated(function: Any) -> Any:
    @functools.wraps(function)
    def wrapper(*arguments: Any) -> Any:
        return function(*arguments)

    return wrapper


@pytest.mark.parametrize(
    "callback",
    [module_handler, functools.partial(module_handler), decorated(module_handler)],
)
def test_the_location_is_where_the_user_wrote_it(callback):
    assert only(callback).location == f"{__file__}:{module_handler.__code__.co_firstlineno}"


def test_the_location_of_an_object_is_that_of_its_call():
    assert only(Callable_()).location == f"{__file__}:{Callable_.__call__.__code__.co_firstlineno}"


@pytest.mark.parametrize("callback", [print, [].append, AsyncCallable, functools.partial])
def test_a_location_that_is_not_known_is_no_error(callback):
    assert only(callback).location


# --- weak ---


def test_h5_a_weak_handler_at_three_levels_is_called_until_its_object_is_gone():
    lines: list[Any] = []
    box, registry = Box(lines), Registry()
    registry.register(box.take, weak=True)
    registry.register(box.take, "s", weak=True)
    registry.register(box.take, "s", "e", weak=True)
    for _ in range(3):
        post(registry)
    assert len(lines) == 9
    del box
    gc.collect()
    assert post(registry) == 0
    assert len(lines) == 9
    assert registry.handlers() == []


def test_a_dead_weak_handler_in_a_match_that_is_in_use_does_nothing():
    lines: list[Any] = []
    box, registry = Box(lines), Registry()
    registry.register(box.take, weak=True)
    [handler] = registry.match("s", "e").handlers
    del box
    gc.collect()
    assert handler.callback is None
    assert handler.call(1, "e", "s", None) is None
    assert lines == []


def test_dead_weak_handlers_do_not_pile_up():
    registry = Registry()
    for _ in range(100):
        box = Box([])
        registry.register(box.take, weak=True)
        del box
    gc.collect()
    assert registry.handlers() == []
    assert registry._dead == []


def test_a_dead_weak_handler_leaves_a_match_when_the_next_run_is_matched():
    box, registry = Box([]), Registry()
    registry.register(box.take, weak=True)
    match = registry.match("s", "e")
    del box
    gc.collect()
    registry.match("other", "other")
    assert match.handlers == ()


def test_weak_functions_and_objects_are_held_weakly_too():
    callback, registry = Callable_(), Registry()
    registry.register(callback, weak=True)
    registry.register(module_handler, weak=True)
    assert [handler.weak for handler in registry.handlers()] == [True, True]
    del callback
    gc.collect()
    assert [handler.name for handler in registry.handlers()] == ["module_handler"]


def test_a_weak_handler_can_be_unregistered():
    box, registry = Box([]), Registry()
    registry.register(box.take, weak=True)
    assert registry.unregister(box.take)
    assert post(registry) == 0


def test_registering_strongly_what_was_weak_holds_it():
    lines: list[Any] = []
    box, registry = Box(lines), Registry()
    registry.register(box.take, weak=True)
    registry.register(box.take)
    del box
    gc.collect()
    assert post(registry) == 1
    assert len(lines) == 1
    assert registry.handlers()[0].weak is False


def test_registering_weakly_what_was_strong_goes_on_holding_it():
    box, registry = Box([]), Registry()
    registry.register(box.take)
    registry.register(box.take, weak=True)
    del box
    gc.collect()
    assert post(registry) == 1


def test_what_can_not_be_held_weakly_is_a_type_error_and_is_not_registered():
    class Narrow:
        __slots__ = ()

        def take(self, *_: Any) -> None: ...

    registry = Registry()
    with pytest.raises(TypeError):
        registry.register(Narrow().take, "s", "a", "b", weak=True)
    assert registry.handlers() == []


def test_h5_a_weak_local_function_warns_where_the_user_called():
    def local(data: Any, event: str, source: str, pid: int | None) -> None: ...

    registry = Registry()
    with pytest.warns(RuntimeWarning, match="weakly") as caught:
        registry.register(local, weak=True)
    assert caught[0].filename == __file__
    assert post(registry) == 1


def test_h5_a_weak_lambda_warns():
    with pytest.warns(RuntimeWarning, match="<lambda>"):
        Registry().register(lambda *_: None, weak=True)


def test_stacklevel_blames_the_caller_of_the_caller():
    def register_weak(callback: Any) -> None:
        Registry().register(callback, weak=True, stacklevel=3)

    with pytest.warns(RuntimeWarning) as caught:
        register_weak(lambda *_: None)
    line = sys._getframe().f_lineno - 1
    assert (caught[0].filename, caught[0].lineno) == (__file__, line)


def test_weak_module_functions_and_methods_of_local_classes_do_not_warn():
    class Local:
        def take(self, *_: Any) -> None: ...

    owner, registry = Local(), Registry()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        registry.register(module_handler, weak=True)
        registry.register(owner.take, weak=True)
        registry.register(lambda *_: None)


# --- matches in use ---


def test_a_match_is_given_again_and_changes_in_place():
    registry = Registry()
    match = registry.match("s", "e")
    assert registry.match("s", "e") is match
    counts = []
    for level in (("s", "e"), ("s",), ()):
        registry.register(module_handler, *level)
        counts.append(len(match.handlers))
    assert counts == [1, 2, 3]
    registry.unregister(module_handler, "s", "e")
    assert [(handler.source, handler.event) for handler in match.handlers] == [(None, None), ("s", None)]


def test_h7_a_handler_that_unregisters_itself_skips_no_neighbour():
    registry, log = Registry(), Log()

    def leave(*_: Any) -> None:
        log.lines.append("leaves")
        registry.unregister(leave)

    registry.register(log.handler("before"))
    registry.register(leave)
    registry.register(log.handler("after"))
    post(registry)
    post(registry)
    assert log.lines == ["before", "leaves", "after", "before", "after"]


def test_h7_a_handler_that_registers_another_is_not_followed_by_it_for_the_same_event():
    registry, log = Registry(), Log()
    late = log.handler("late")

    def invite(*_: Any) -> None:
        log.lines.append("invites")
        registry.register(late)

    registry.register(invite)
    post(registry)
    assert log.lines == ["invites"]
    post(registry)
    assert log.lines == ["invites", "invites", "late"]


def test_a_match_in_use_is_kept_up_to_date_when_the_cache_is_started_anew(monkeypatch):
    monkeypatch.setattr(registry_module, "_HALF_CACHE", 10)
    registry = Registry()
    match = registry.match("s", "e")
    for number in range(19):
        registry.match("s", str(number))
    registry.register(module_handler)
    assert len(match.handlers) == 1
    assert registry.match("s", "e") is match


def test_the_cache_is_bounded():
    registry = Registry()
    for number in range(10_000):
        registry.match("s", str(number))
    assert len(registry.matches) + len(registry._old) <= 4096
    registry.register(module_handler)
    assert all(len(registry.match("s", str(number)).handlers) == 1 for number in range(10_000))


@pytest.mark.parametrize("kind", ["methods", "lambdas", "decorated"])
def test_a_registration_inspects_its_own_callback_and_not_those_of_its_name(kind: str) -> None:
    def make() -> Any:
        if kind == "methods":
            return Box([]).take
        return wrap(module_handler) if kind == "decorated" else lambda data, event, source, pid: None

    def wrap(function: Any) -> Any:
        @functools.wraps(function)
        def wrapper(*arguments: Any) -> None:
            function(*arguments)

        return wrapper

    def count_inspections() -> int:
        calls = 0

        def note(frame: Any, event: str, _: Any) -> None:
            nonlocal calls
            is_inspecting = frame.f_code.co_filename == signature_module.__file__
            calls += event == "call" and is_inspecting and frame.f_code is not signature_module.is_redefinition.__code__

        callback = make()
        sys.setprofile(note)
        try:
            registry.register(callback, "s", "e")
        finally:
            sys.setprofile(None)
        return calls

    registry = Registry()
    first = count_inspections()
    for _ in range(100):
        registry.register(make(), "s", "e")
    assert count_inspections() == first > 0
