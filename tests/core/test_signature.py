"""Which callables are refused as handlers, and which are not."""

from __future__ import annotations

import contextlib
import functools
import operator
import types
from collections.abc import Callable
from typing import Any, Self
from unittest import mock

import pytest

from eventsh.core.registry import Registry


def four(data: Any, event: str, source: str, pid: int | None) -> None: ...
def five(tag: Any, data: Any, event: str, source: str, pid: int | None) -> None: ...
def three(data: Any, event: str, source: str) -> None: ...
def none() -> None: ...
def any_number(*arguments: Any) -> None: ...
def defaults(data: Any, event: str = "", source: str = "", pid: int | None = None, more: int = 0) -> None: ...
def one_and_rest(data: Any, *rest: Any, flag: bool = False, **more: Any) -> None: ...
def positional_only(a: Any, b: Any, c: Any, d: Any, /) -> None: ...
def named_only(*, data: Any, event: str, source: str, pid: int | None) -> None: ...
def needs_a_flag(data: Any, event: str, source: str, pid: int | None, *, flag: bool) -> None: ...
def named(**names: Any) -> None: ...


async def four_async(data: Any, event: str, source: str, pid: int | None) -> None: ...
async def three_async(data: Any, event: str, source: str) -> None: ...


class Handlers:
    def four(self, data: Any, event: str, source: str, pid: int | None) -> None: ...
    def three(self, data: Any, event: str, source: str) -> None: ...
    def without_self(data: Any, event: str, source: str, pid: int | None) -> None: ...  # noqa: N805

    @classmethod
    def four_of_class(cls, data: Any, event: str, source: str, pid: int | None) -> None: ...
    @classmethod
    def three_of_class(cls, data: Any, event: str, source: str) -> None: ...
    @staticmethod
    def four_static(data: Any, event: str, source: str, pid: int | None) -> None: ...
    @staticmethod
    def three_static(data: Any, event: str, source: str) -> None: ...


class Four:
    def __call__(self, data: Any, event: str, source: str, pid: int | None) -> None: ...


class Three:
    def __call__(self, data: Any, event: str, source: str) -> None: ...


class StaticFour:
    __call__ = staticmethod(four)


class StaticThree:
    __call__ = staticmethod(three)


class MadeOfFour:
    def __init__(self, data: Any, event: str, source: str, pid: int | None) -> None: ...


class MadeOfThree:
    def __init__(self, data: Any, event: str, source: str) -> None: ...


class NewOfFour:
    def __new__(cls, data: Any, event: str, source: str, pid: int | None) -> Self:
        return super().__new__(cls)


class NewOfNone:
    def __new__(cls) -> Self:
        return super().__new__(cls)


class Singletons(type):
    def __call__(cls, *arguments: Any) -> Any:
        return None


class Singleton(metaclass=Singletons): ...


class Bare: ...


def wrap_any(function: Any) -> Any:
    @functools.wraps(function)
    def wrapper(*arguments: Any) -> Any:
        return function(*arguments[:3])

    return wrapper


def wrap_three(function: Any) -> Any:
    @functools.wraps(function)
    def wrapper(data: Any, event: str, source: str) -> Any:
        return function(data, event, source, None)

    return wrapper


def claiming(function: Any, claim: Any) -> Any:
    """A copy that says of itself to have the signature of another one."""
    copy = types.FunctionType(function.__code__, {}, function.__name__)
    copy.__signature__ = __import__("inspect").signature(claim)  # type: ignore[attr-defined]
    return copy


def annotated_with_nonsense(data: Nonsense, event: Nonsense, source: Nonsense, pid: Nonsense) -> Nonsense: ...  # type: ignore[name-defined] # noqa: F821


class Proxy:
    """As those of web frameworks: claims to be of the class of what it stands for, when that is there at all."""

    @property
    def __class__(self) -> Any:
        return types.FunctionType

    @__class__.setter
    def __class__(self, _: Any) -> None: ...

    def __call__(self, *arguments: Any) -> None: ...


ACCEPTED = {
    "four arguments": four,
    "async": four_async,
    "*args": any_number,
    "defaults": defaults,
    "one and *rest, with named ones that have defaults": one_and_rest,
    "positional only": positional_only,
    "method": Handlers().four,
    "class method": Handlers.four_of_class,
    "static method": Handlers.four_static,
    "static method of an instance": Handlers().four_static,
    "static method object": staticmethod(four),
    "instance": Four(),
    "instance with a static __call__": StaticFour(),
    "class with __init__": MadeOfFour,
    "class with __new__": NewOfFour,
    "class whose metaclass is called": Singleton,
    "partial": functools.partial(four),
    "partial of five": functools.partial(five, "tag"),
    "partial of a partial": functools.partial(functools.partial(five, "tag")),
    "partial of a method": functools.partial(Handlers().four),
    "partial with a needed flag": functools.partial(needs_a_flag, flag=True),
    "partial of a default": functools.partial(defaults, more=1),
    "bound by hand": types.MethodType(five, "tag"),
    "decorator that takes any": wrap_any(three),
    "takes four, claims three": claiming(four, three),
    "annotations that name nothing": annotated_with_nonsense,
    "lambda": lambda data, event, source, pid: None,
    "Mock": mock.Mock(),
    "MagicMock": mock.MagicMock(),
    "AsyncMock": mock.AsyncMock(),
    "Mock of a spec": mock.Mock(spec=four),
    "Mock of a method": mock.Mock(spec=Handlers().four),
    "autospec": mock.create_autospec(four),
    "proxy": Proxy(),
    "builtin": print,
    "builtin method": [].append,
    "builtin class": dict,
    "in C": operator.itemgetter(1),
    "in C, cached": functools.lru_cache(four),
}

REFUSED = {
    "three arguments": (three, r"three\(data, event, source\)"),
    "three, async": (three_async, r"three_async\(data, event, source\)"),
    "five arguments": (five, r"five\(tag, data, event, source, pid\)"),
    "no arguments": (none, r"none\(\)"),
    "named ones only": (named_only, r"named_only\(\*, data"),
    "any named one": (named, r"named\(\*\*names\)"),
    "a flag that is needed": (needs_a_flag, "flag"),
    "method": (Handlers().three, r"Handlers.three\(self, data, event, source\)"),
    "method of a class, not of an object": (Handlers.four, r"Handlers.four\(self, data, event, source, pid\)"),
    "method without self": (Handlers().without_self, "without_self"),
    "class method": (Handlers.three_of_class, r"Handlers.three_of_class\(cls, data, event, source\)"),
    "static method": (Handlers().three_static, "three_static"),
    "static method object": (staticmethod(three), "three"),
    "instance": (Three(), r"Three.__call__\(self, data, event, source\)"),
    "instance with a static __call__": (StaticThree(), "three"),
    "class with __init__": (MadeOfThree, r"MadeOfThree.__init__\(self, data, event, source\)"),
    "class with __new__": (NewOfNone, r"NewOfNone.__new__\(cls\)"),
    "class without either": (Bare, r"object.__init__\(self\)"),
    "partial that fills one of four": (functools.partial(four, 1), "5 positional arguments"),
    "partial that names one of four": (functools.partial(four, pid=1), "multiple values for argument 'pid'"),
    "partial of a class without either": (functools.partial(Bare), r"object.__init__\(self\)"),
    "partial of three": (functools.partial(three), "three"),
    "partial that names what is not there": (functools.partial(four, other=1), "other"),  # type: ignore[call-arg]
    "bound by hand": (types.MethodType(four, "self"), "four"),
    "decorator that takes three, around four": (
        wrap_three(four),
        r"wrap_three.<locals>.wrapper\(data, event, source\)",
    ),
    "takes three, claims four": (claiming(three, four), r"three\(data, event, source\)"),
    "lambda": (lambda data: None, "lambda"),
}


@pytest.mark.parametrize("callback", ACCEPTED.values(), ids=ACCEPTED)
def test_what_can_take_four_arguments_is_accepted(callback: Callable[..., Any]) -> None:
    registry = Registry()
    assert registry.register(callback, "s", "e")
    assert len(registry.match("s", "e").handlers) == 1


@pytest.mark.parametrize(("callback", "found"), REFUSED.values(), ids=REFUSED)
def test_what_can_not_take_four_arguments_is_refused_with_both_signatures(
    callback: Callable[..., Any], found: str
) -> None:
    registry = Registry()
    with pytest.raises(TypeError, match=r"handler\(data, event, source, pid\)") as caught:
        registry.register(callback, "s", "e")
    assert caught.match(found)
    assert "\n" not in str(caught.value)
    assert registry.handlers() == []
    assert registry.ever_registered is False
    # It is right that it must not be called.
    with pytest.raises(TypeError):
        callback(None, "e", "s", 1)


@pytest.mark.parametrize("callback", [four, defaults, Handlers().four, functools.partial(five, 1)])
def test_the_location_of_what_is_refused_is_told(callback: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match=rf"{__file__}:\d+"):
        Registry().register(functools.partial(callback, nothing=1))


def generator(data: Any, event: str, source: str, pid: int | None) -> Any:
    yield data


async def async_generator(data: Any, event: str, source: str, pid: int | None) -> Any:
    yield data


@types.coroutine
def generator_as_coroutine(data: Any, event: str, source: str, pid: int | None) -> Any:
    yield data


def tagged_generator(tag: Any, data: Any, event: str, source: str, pid: int | None) -> Any:
    yield data


class Generators:
    def __call__(self, data: Any, event: str, source: str, pid: int | None) -> Any:
        yield data

    def method(self, data: Any, event: str, source: str, pid: int | None) -> Any:
        yield data

    async def async_method(self, data: Any, event: str, source: str, pid: int | None) -> Any:
        yield data

    @staticmethod
    def static(data: Any, event: str, source: str, pid: int | None) -> Any:
        yield data

    @classmethod
    def of_class(cls, data: Any, event: str, source: str, pid: int | None) -> Any:
        yield data


context = contextlib.contextmanager(generator)


class Contexts:
    @contextlib.contextmanager
    def __call__(self, data: Any, event: str, source: str, pid: int | None) -> Any:
        yield data

    @contextlib.contextmanager
    def method(self, data: Any, event: str, source: str, pid: int | None) -> Any:
        yield data


@pytest.mark.parametrize(
    "callback",
    [
        generator,
        async_generator,
        generator_as_coroutine,
        Generators(),
        Generators().method,
        Generators().async_method,
        Generators.static,
        Generators.of_class,
        functools.partial(tagged_generator, 1),
        functools.partial(Generators().method),
        functools.partial(functools.partial(Generators())),
        lambda data, event, source, pid: (yield data),
        context,
        contextlib.asynccontextmanager(async_generator),
        contextlib.contextmanager(Generators().method),
        contextlib.contextmanager(functools.partial(tagged_generator, 1)),
        context(None, "", "", None)(generator),
        functools.partial(context),
        Contexts().method,
        Contexts(),
    ],
)
@pytest.mark.parametrize("weak", [False, True])
def test_generator_functions_are_refused(callback: Callable[..., Any], weak: bool) -> None:
    registry = Registry()
    with pytest.raises(TypeError, match=r"generator function.*without yield"):
        registry.register(callback, "s", "e", weak=weak)
    assert registry.handlers() == []


def drive(function: Any) -> Any:
    @functools.wraps(function)
    def wrapper(*arguments: Any) -> None:
        for _ in function(*arguments):
            pass

    return wrapper


def test_a_decorator_may_run_a_generator_function() -> None:
    assert Registry().register(drive(generator))
    # A context manager as a decorator runs what it decorates.
    assert Registry().register(context(None, "", "", None)(four))
    assert Registry().register(context(None, "", "", None)(drive(generator)))


@pytest.mark.parametrize("callback", [three, generator, Bare])
def test_unregistering_what_can_not_have_been_registered_is_false(callback: Callable[..., Any]) -> None:
    assert Registry().unregister(callback) is False
