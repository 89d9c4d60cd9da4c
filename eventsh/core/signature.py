"""Callables as handlers: refuse those that can't handle an event, name and locate the others."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable
from functools import partial
from inspect import iscoroutinefunction, unwrap
from types import CodeType, FunctionType, MethodType
from typing import Any, NamedTuple

# In this file types are compared by type(), and not by isinstance(), which believes the `__class__` of a Mock or a proxy.

__all__ = ["check_signature", "find_definition", "is_async", "is_local", "is_redefinition", "locate", "qualified_name"]

_EXPECTED = "handler(data, event, source, pid)"
# Fills a place of a partial that its caller fills in turn. Python 3.14 has it.
_PLACEHOLDER = getattr(functools, "Placeholder", object())
# What `object.__init__` would be in Python.
_TAKES_NOTHING = FunctionType((lambda self: None).__code__.replace(co_qualname="object.__init__"), {})


class _Entry(NamedTuple):
    """A Python function that runs first when a handler is called, and the arguments that it then gets."""

    function: FunctionType
    positional: int
    keywords: dict[str, Any]


def check_signature(callback: Callable[..., Any]) -> None:
    """Raise TypeError if a call with (data, event, source, pid) can't run `callback`.

    Only Python code is judged, by its code object: `inspect.signature` of the callback itself would describe what a
    decorator wraps, or whatever `__signature__` claims. Callables written in C are accepted.
    """
    for function, positional, keywords in _entries(callback):
        code = function.__code__
        if _makes_generator(function):
            raise TypeError(
                f"{_describe(callback)} is a generator function, and a call of it runs no line of it:"
                " write the handler without yield"
            )
        # The same code without annotations, which may name what can't be evaluated.
        bare = FunctionType(code, {}, function.__name__, function.__defaults__, function.__closure__)
        bare.__kwdefaults__ = function.__kwdefaults__
        signature = inspect.signature(bare)
        try:
            signature.bind(*range(positional), **keywords)
        except TypeError as error:
            raise TypeError(
                f"a handler is called as {_EXPECTED}: {_describe(callback)} can't be, as {code.co_qualname}{signature}"
                f" gets {positional} positional arguments then: {error}"
            ) from None


def _makes_generator(function: FunctionType) -> bool:
    # The decorators of contextlib do not iterate over a generator that a handler returns. Others may.
    inner: Any = function
    while type(inner) is FunctionType and inner.__globals__ is vars(contextlib) and hasattr(inner, "__wrapped__"):
        inner = inner.__wrapped__
    return inspect.isgeneratorfunction(inner) or inspect.isasyncgenfunction(inner)


def _entries(callback: Any) -> list[_Entry]:
    positional, keywords = 4, dict[str, Any]()
    while True:
        kind = type(callback)
        if kind is FunctionType:
            return [_Entry(callback, positional, keywords)]
        if kind is MethodType:
            positional += 1
            callback = callback.__func__
        elif issubclass(kind, partial):
            positional += sum(argument is not _PLACEHOLDER for argument in callback.args)
            keywords = {**callback.keywords, **keywords}
            callback = callback.func
        elif issubclass(kind, staticmethod):
            callback = callback.__func__
        elif issubclass(kind, type):
            call = inspect.getattr_static(kind, "__call__")
            makers = [callback.__new__, callback.__init__] if call is type.__call__ else [call]
            if makers == [object.__new__, object.__init__]:
                makers = [_TAKES_NOTHING]
            return [_Entry(maker, positional + 1, keywords) for maker in makers if type(maker) is FunctionType]
        else:
            callback = inspect.getattr_static(kind, "__call__", None)
            if type(callback) is FunctionType:
                positional += 1
            elif type(callback) is not staticmethod:
                return []


def is_async(callback: Any) -> bool:
    """Whether a call gives a coroutine, as far as that can be known before the call."""
    callback = _innermost(callback)
    try:
        # `async def __call__` counts on the type alone, as calling looks it up there.
        return iscoroutinefunction(callback) or iscoroutinefunction(type(callback).__call__)
    except (AttributeError, TypeError):
        # A Mock or a proxy claims to be a function, and has no code.
        return False


def is_local(callback: Any) -> bool:
    """Whether this is a lambda or a function inside a function, which no module holds."""
    return type(callback) is FunctionType and (
        "<locals>" in callback.__qualname__ or "<lambda>" in callback.__qualname__
    )


def qualified_name(callback: Any) -> tuple[str | None, str]:
    """Module and qualified name of the definition that a call runs; of the class, for an instance."""
    callback = _innermost(callback)
    if type(callback) is MethodType and isinstance(owner := callback.__self__, type):
        # The class that the method was taken from, and not the one that it is inherited from.
        return owner.__module__, f"{owner.__qualname__}.{callback.__name__}"
    name = getattr(callback, "__qualname__", None)
    if isinstance(name, str):
        return getattr(callback, "__module__", None), name
    return type(callback).__module__, type(callback).__qualname__


def is_redefinition(latter: FunctionType, former: FunctionType) -> bool:
    """Whether the definition of `former` ran again and made `latter`: in a reloaded module, or in a notebook's cell.

    Both are from `find_definition`, for callbacks of one `qualified_name`. Two decorations of one function share their
    definition and are not a redefinition.
    """
    if latter is former:
        return False
    # Reloading a module and running a cell again keep the namespace. Importing it anew keeps the file; "<string>" and
    # the like are no file, so two plugins that were run by exec() stay two.
    file = latter.__code__.co_filename
    is_same_file = file == former.__code__.co_filename and not file.startswith("<")
    return latter.__globals__ is former.__globals__ or is_same_file


def find_definition(callback: Any) -> FunctionType | None:
    """Return the function that the source defines, if its name stands for it alone.

    None for callbacks that a program makes in any number: closures, lambdas, partials, methods of objects.
    """
    if not _is_lasting(qualified_name(callback)[1]):
        return None
    if type(callback) is MethodType and isinstance(callback.__self__, type):
        callback = callback.__func__
    elif issubclass(type(callback), type):
        callback = vars(callback).get("__init__")
    if type(callback) is not FunctionType:
        return None
    try:
        function = unwrap(callback)
    except ValueError:  # it wraps itself
        return None
    return function if type(function) is FunctionType and _is_lasting(function.__qualname__) else None


def _is_lasting(name: str) -> bool:
    # `def _(...)` under a decorator is a function without a name of its own, too.
    return "<locals>" not in name and name.rpartition(".")[2] not in ("<lambda>", "_")


def _describe(callback: Any) -> str:
    return f"{qualified_name(callback)[1]} ({locate(callback)})"


def _innermost(callback: Any) -> Any:
    """What a functools.partial calls in the end."""
    while issubclass(type(callback), partial):
        callback = callback.func
    return callback


def locate(callback: Any) -> str:
    """File and line where people find it: of what a decorator wraps, not of the decorator. Or "unknown"."""
    callback = _innermost(callback)
    if not hasattr(callback, "__code__") and type(callback) is not MethodType:
        is_class = issubclass(type(callback), type)
        callback = vars(callback).get("__init__") if is_class else type(callback).__call__
    try:
        code = unwrap(callback).__code__
    except (AttributeError, ValueError):
        return "unknown"
    return f"{code.co_filename}:{code.co_firstlineno}" if isinstance(code, CodeType) else "unknown"
