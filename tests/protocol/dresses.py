"""Subclasses of the JSON types, and values that are dressed in them.

None of their overrides may ever run within a post: each one fails the test.
"""

from __future__ import annotations

import random
from collections import Counter, OrderedDict, defaultdict
from typing import Any, NamedTuple

__all__ = ["Items", "Markup", "Number", "Pair", "Real", "Row", "Sorted", "Table", "Text", "dress"]


def _forbidden(*_: Any) -> Any:
    raise AssertionError("the code of a subclass ran")


# What a subclass may override and must never run. A dict calls the hash and the comparison of its keys by itself.
_OVERRIDES = dict.fromkeys(
    [
        "__iter__",
        "__len__",
        "__getitem__",
        "__contains__",
        "__str__",
        "__repr__",
        "__format__",
        "__bool__",
        "__int__",
        "__index__",
        "__float__",
        "__eq__",
        "__reversed__",
        "__copy__",
        "__deepcopy__",
        "__reduce_ex__",
        "__lt__",
        "items",
        "keys",
        "values",
        "get",
        "copy",
        "encode",
        "isascii",
        "hex",
    ],
    _forbidden,
) | {"__hash__": None, "__class__": property(_forbidden), "__dict__": property(_forbidden)}

Text, Number, Real, Items, Row, Table = (
    type(f"Own{base.__name__}", (base,), dict(_OVERRIDES)) for base in (str, int, float, list, tuple, dict)
)


class Markup(str):
    """As a framework's safe string."""

    __slots__ = ()

    __str__ = _forbidden


class Pair(NamedTuple):
    a: Any
    b: Any


class Sorted(OrderedDict[str, Any]):
    __getitem__ = _forbidden
    items = values = keys = __iter__ = _forbidden


# What a type may be posted as.
_DRESSES: dict[type, list[Any]] = {
    str: [str, Text, Markup],
    int: [int, Number],
    float: [float, Real],
    list: [list, tuple, Items, Row],
    dict: [dict, Table, Counter, Sorted, OrderedDict, lambda members: defaultdict(int, members)],
}


def dress(value: Any, draw: random.Random) -> Any:
    """Return `value` with subclasses in place of some of its types."""
    kind = type(value)
    if kind is list:
        value = [dress(member, draw) for member in value]
        if len(value) == 2 and draw.random() < 0.5:
            return Pair(*value)
    elif kind is dict:
        own = draw.choice([str, Markup])
        value = {own(key): dress(member, draw) for key, member in value.items()}
    return draw.choice(_DRESSES[kind])(value) if kind in _DRESSES else value
