"""JSON codec: the rule for the data of events, encoding, decoding, and typed JSON.

Every path goes through here, so poster, worker, command line and recording return the same verdict on the same value,
and a worker never finds a fault that the poster could have raised. Knows nothing of frames.

Theory of operation: orjson encodes plain data in one pass. It refuses subclasses (or writes them in another order or
without a look at their keys), so the first pass passes them through to a `default` that does not exist. Only data that
fails the first pass is copied into plain types, in Python; the copy either finds the fault and its place, or is what
orjson encodes instead. Plain data never pays for subclasses.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Iterator
from enum import Enum
from math import isfinite, isnan
from typing import Any, NamedTuple
from uuid import UUID

import orjson
from orjson import Fragment

from eventsh.errors import NotSerializable, ProtocolError, UsageError

__all__ = [
    "MAX_DEPTH",
    "OPTIONS",
    "SURE_BYTES",
    "check_depth",
    "check_integers",
    "check_written",
    "decode",
    "encode_data",
    "encode_name",
    "parse_json",
    "to_plain",
    "write",
]

# orjson writes up to 254 levels and reads up to 1024: this leaves room for the envelope, and for what people wrap around.
MAX_DEPTH = 200
# A value that is nested deeper takes more bytes than this, one to open and one to close each level.
SURE_BYTES = 2 * MAX_DEPTH

# Dataclasses and dates would be written as something that a handler can't turn back: passed through to a default that
# does not exist, they are refused. Subclasses fail the same way, and then go through `to_plain`.
OPTIONS = orjson.OPT_PASSTHROUGH_SUBCLASS | orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME

_dumps = orjson.dumps
_loads = orjson.loads

_MIN_INT = -(2**63)
_MAX_INT = 2**64 - 1
_INT_LIMITS = "beyond 64 bits (-2^63 to 2^64-1): post it as a string"

_SURROGATE = "a lone surrogate, which UTF-8 can't express"

_SCALARS = frozenset({str, int, bool, type(None)})
_CONTAINERS = frozenset({dict, list, tuple})
_COMMON = _CONTAINERS | {float, UUID}
# Types that the copy leaves as they are.
_PLAIN = _SCALARS | {float, UUID}


def encode_data(data: Any) -> bytes:
    """Encode one event's data as JSON.

    Accepted: None, bool, int within 64 bits, finite float, str, list, tuple (handlers get a list), dict with string
    keys, nested at most MAX_DEPTH deep; a subclass of these as its base (the base's own content, whatever the subclass
    overrides), a UUID as its string, and an Enum member as its value. An orjson.Fragment is written as it is: its
    author vouches for the JSON.

    The result is a snapshot. `data` must not be changed by another thread during the call.

    Args:
        data: The value to encode.

    Returns:
        The JSON, in UTF-8.

    Raises:
        NotSerializable: The data is not a JSON value. The message names the first fault and its place.
    """
    try:
        encoded = write(data, None, OPTIONS)
    except TypeError:
        data = to_plain(data)
        encoded = write(data, None, OPTIONS)
    # replace() returns the same object when it finds nothing, at a third of the cost of `in` (which builds an exception)
    # and two thirds of that of find(); if ever it does not, only time is lost.
    if (117 in encoded and encoded.replace(b"null", b"") is not encoded) or len(encoded) > SURE_BYTES:
        check_written(encoded, data)
    return encoded


def check_written(encoded: bytes, data: Any) -> None:
    """Check what `write` accepts silently: NaN and infinity, which it writes as null, and deep nesting.

    Only needed where `encoded` contains "null" or is longer than SURE_BYTES. 117 is the "u" of null: a search for one
    byte costs a tenth of a search for four.

    Raises:
        NotSerializable: The data is not a JSON value. The message names the first fault and its place.
    """
    hides_null = b"null" in encoded and not _comes_back(encoded, data)
    is_suspect = hides_null or (len(encoded) > SURE_BYTES and _count_opened(encoded) > MAX_DEPTH and _is_deep(data))
    if is_suspect and not _is_sound(data):
        to_plain(data)


def check_depth(encoded: bytes | bytearray, value: Any) -> None:
    """Check JSON of a peer for nesting that `write` could not write again. orjson reads up to 1024 levels.

    Args:
        encoded: The bytes that hold the JSON.
        value: The decoded JSON.

    Raises:
        ProtocolError: It is nested deeper than MAX_DEPTH levels.
    """
    if len(encoded) > SURE_BYTES and _count_opened(encoded) > MAX_DEPTH and _is_deep(value):
        raise ProtocolError(f"the body of a frame is nested deeper than {MAX_DEPTH} levels")


def encode_name(text: str) -> bytes:
    """Give the JSON of a source or an event (which `check_name` has accepted). UsageError when it is not Unicode."""
    try:
        # A name may be a member of a str Enum, whose value orjson would write; the name is the string itself.
        return _dumps(str.__str__(text))
    except TypeError:
        raise UsageError(f"the name {text!a} has {_SURROGATE}") from None


def decode(body: bytes | bytearray | memoryview) -> Any:
    """Read JSON that came over the wire. Raises ProtocolError; the body is not quoted in it.

    All that encode_data writes is read back, also inside of an envelope. Of doubled keys the last one counts.
    """
    try:
        return _loads(body)
    except orjson.JSONDecodeError as error:
        raise ProtocolError(f"the body of a frame is not JSON: {error.msg} at character {error.pos}") from None


def parse_json(text: str | bytes) -> Any:
    """Read JSON that a person or a program typed, and refuse at once what encode_data would refuse.

    Raises UsageError where it is not JSON, NotSerializable where it is JSON or close to it, but nothing that can be
    posted (NaN, 2^64, a lone surrogate, deep nesting). The message is one line and gives line, column and an excerpt.
    """
    text = _check_unicode(text)
    try:
        value = _loads(text)
    except orjson.JSONDecodeError as error:
        raise _syntax_error(text, error.msg, error.pos) from None
    check_integers(text)
    if len(text) > SURE_BYTES:
        _check_depth(text, len(text))
    return value


def _comes_back(encoded: bytes, data: Any) -> bool:
    """Whether a worker reads what was posted: a NaN or an infinity was written as null, and does not come back."""
    if data is None:
        return True
    # Reading and comparing happens in C, 3 times faster than a walk. Tuples, UUIDs and Enums differ too, so data that
    # does not come back may still be sound. Catches no other exception: it could come from a signal handler.
    try:
        return _loads(encoded) == data  # type: ignore[no-any-return]
    except (RecursionError, orjson.JSONDecodeError):
        # The stack of the caller is nearly used up, or a Fragment broke the JSON.
        return False


def _count_opened(encoded: bytes | bytearray) -> int:
    # rfind() is many times faster than count(), and spares it the long string that makes most large data large.
    lists, dicts = encoded.rfind(b"["), encoded.rfind(b"{")
    return encoded.count(b"[", 0, lists + 1) + encoded.count(b"{", 0, dicts + 1)


def _is_deep(data: Any) -> bool:
    # Most data with many containers is flat. To be written once more, in so many lists that orjson's own limit falls
    # where ours is, costs a quarter of the walk; only a refusal is looked into, as orjson counts lists and dicts apart.
    wrapped = data
    for _ in range(_SPARE_LEVELS):
        wrapped = [wrapped]
    try:
        _dumps(wrapped, None, OPTIONS)
    except TypeError:
        return True
    return False


def _write_checked(data: Any, default: None, options: int) -> bytes:
    """Do as orjson.dumps, with a limit of depth of our own: each object of a level is walked through once only, or
    data that contains itself twice would make a level of it grow without end."""
    level: list[Any] = [data]
    for _ in range(MAX_DEPTH + 1):
        containers = {id(value): value for value in level if type(value) in _CONTAINERS}
        if not containers:
            return _dumps(data, default, options)
        level = [
            value
            for container in containers.values()
            for value in (list(container.values()) if type(container) is dict else container)
        ]
    raise TypeError("nested too deeply")


def _limits_tuples() -> bool:
    value: Any = ()
    for _ in range(300):
        value = (value,)
    try:
        _dumps(value)
    except TypeError:
        return True
    return False


# Some versions of orjson (3.13.0 is one) have no limit for tuples: a list that holds itself by way of a tuple would
# end the process by a segmentation fault. With them, and only with them, the walk comes first.
write: Callable[[Any, None, int], bytes] = _dumps if _limits_tuples() else _write_checked


def _find_spare_levels() -> int:
    """How many lists around data of MAX_DEPTH + 1 levels make orjson refuse it: 55 today, but no promise of its."""
    value: list[Any] = []
    for _ in range(MAX_DEPTH):
        value = [value]
    for spare in range(1000):
        try:
            _dumps(value)
        except TypeError:
            return spare
        value = [value]
    raise AssertionError("this orjson has no limit of depth that could be used")


_SPARE_LEVELS = _find_spare_levels()


def _is_sound(data: Any) -> bool:
    """Whether data that orjson has written has no type but the common ones, at most MAX_DEPTH levels and no NaN.

    Faster than `to_plain`, which has the last word. One level after the other rather than recursively: the caller's stack
    may be nearly used up.
    """
    level: list[Any] = [(data,)]
    for _ in range(MAX_DEPTH + 1):
        level = [
            value
            for container in level
            for value in (list(container.values()) if type(container) is dict else container)
            if type(value) not in _SCALARS
        ]
        kinds = set(map(type, level))
        if not kinds <= _CONTAINERS:
            if not kinds <= _COMMON or not all(map(isfinite, [value for value in level if type(value) is float])):
                return False
            level = [value for value in level if type(value) in _CONTAINERS]
        if not level:
            return True
    return False


class _Level(NamedTuple):
    """A container that is being copied."""

    key: Any
    container: Any
    copy: Any
    members: Iterator[tuple[Any, Any]]


def to_plain(data: Any) -> Any:
    """Copy data that `write` refused into types that it accepts, or raise the reason of the refusal.

    Takes several times as long as `json.dumps` from the standard library.

    Returns:
        A copy in None, bool, int, float, str, list, dict, UUID and Fragment, without subclasses.

    Raises:
        NotSerializable: The data is not a JSON value. The message names the first fault and its place.
    """
    # Calls the methods of the bases, never those of a subclass: an override could run its author's code within `post`,
    # or invent content. Depth first, so the first fault in the order of the data is the one that is named. Not
    # recursive, because the caller's stack may be nearly used up.
    result: list[Any] = []
    levels = [_Level(None, None, result, iter([(None, data)]))]
    while levels:
        copy = levels[-1].copy
        for key, value in levels[-1].members:
            if type(copy) is dict:
                key = _copy_key(levels, key)
            plain = value if type(value) in _PLAIN else _base(value)
            if members := _members(plain):
                value, plain = plain, {} if issubclass(type(plain), dict) else []
                fault = _nesting_fault(levels, value)
            else:
                fault = _value_fault(plain)
            if fault:
                raise NotSerializable(f"{_place(levels, key)} {fault}")
            if type(copy) is dict:
                copy[key] = plain
            else:
                copy.append(plain)
            if members:
                levels.append(_Level(key, value, plain, members))
                break
        else:
            levels.pop()
    return result[0]


def _base(value: Any) -> Any:
    """Return the value of an Enum member, and the base of a scalar subclass; anything else unchanged."""
    kind = type(value)
    # issubclass() and not isinstance(), which believes what a proxy or a mock calls its __class__.
    if issubclass(kind, Enum):
        return _unwrap(value)
    if issubclass(kind, str):
        return str.__str__(value)
    if issubclass(kind, int):
        return int.__int__(value)
    if issubclass(kind, float):
        return float.__float__(value)
    if issubclass(kind, UUID):
        return UUID.__str__(value)
    return value


def _unwrap(member: Enum) -> Any:
    """Return the value of an Enum member; the member itself if members are all that it leads to."""
    value: Any = member
    # The value of a member may be a member too, and even the same one.
    for _ in range(MAX_DEPTH):
        value = value.value
        if not issubclass(type(value), Enum):
            return value if type(value) in _PLAIN else _base(value)
    return member


def _members(value: Any) -> Iterator[tuple[Any, Any]] | None:
    """Return the keys and values of a container as they are now; None if it is not one."""
    kind = type(value)
    if kind in _PLAIN:
        return None
    if issubclass(kind, dict):
        # An OrderedDict has an order of its own, which move_to_end changes.
        if issubclass(kind, OrderedDict):
            return iter([(key, dict.__getitem__(value, key)) for key in OrderedDict.__iter__(value)])
        return iter(list(dict.items(value)))
    if issubclass(kind, list):
        return enumerate(list.copy(value))
    return enumerate(tuple.__iter__(value)) if issubclass(kind, tuple) else None


def _copy_key(levels: list[_Level], key: Any) -> str:
    name = key if type(key) is str or not issubclass(type(key), str) else _base(key)
    if type(name) is not str:
        # Only what is short and can't fail is shown: the repr of any other key is its author's code.
        shown = f"key {key!r}" if type(key) in (bool, float, type(None)) or _is_small(key) else "key"
        fault = f"a {shown} of type {_type_name(key)}: keys must be strings"
    elif _has_surrogate(name):
        fault = f"a key {_shorten(ascii(name))} with {_SURROGATE}"
    elif name in levels[-1].copy:
        # A subclass may define equality and hash of its own: keys that differ to dict are the same string to JSON.
        fault = f"the key {_shorten(_quoted(name))} twice, as different types: one would be lost"
    else:
        return name
    raise NotSerializable(f"{_place(levels)} has {fault}")


def _nesting_fault(levels: list[_Level], container: Any) -> str | None:
    for depth, level in enumerate(levels):
        if level.container is container:
            return f"is {_place(levels[: depth + 1])} again: data can't contain itself"
    return f"is nested deeper than {MAX_DEPTH} levels" if len(levels) > MAX_DEPTH else None


def _value_fault(value: Any) -> str | None:
    kind = type(value)
    if kind is str:
        return f"is a string with {_SURROGATE}" if _has_surrogate(value) else None
    if kind is int:
        return None if _is_small(value) else f"is an integer {_INT_LIMITS}"
    if kind is float:
        return None if isfinite(value) else f"is {'NaN' if isnan(value) else 'infinity'}, which JSON does not have"
    if kind in _PLAIN:
        return None
    if kind is Fragment:
        return None if _is_json(value) else "is an orjson.Fragment that is not JSON"
    if issubclass(kind, Enum):
        return f"is a member of {_type_name(value)} that has no value but members of an Enum"
    return f"is of type {_type_name(value)}, which is not JSON: convert it to a string, number, list or dict"


def _is_json(fragment: Fragment) -> bool:
    try:
        _loads(_dumps(fragment))
    except (TypeError, orjson.JSONDecodeError):
        return False
    return True


def _is_small(value: Any) -> bool:
    return type(value) is int and _MIN_INT <= value <= _MAX_INT


def _has_surrogate(text: str) -> bool:
    if text.isascii():
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _type_name(value: Any) -> str:
    kind = type(value)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return name if name.isprintable() else ascii(name)[1:-1]


def _place(levels: list[_Level], *key: Any) -> str:
    """Where a value is, as Python's own subscripts: data["a"][3]."""
    # The first level is around `data`, and the second one is `data` itself.
    path = [*(level.key for level in levels[1:]), *key][1:]
    steps = [f"[{_shorten(_quoted(step)) if isinstance(step, str) else step}]" for step in path]
    # A fault 200 levels down is found by the first steps and the last ones.
    if len(steps) > 12:
        steps[6:-6] = ["..."]
    return "data" + "".join(steps)


def _quoted(key: str) -> str:
    return orjson.dumps(key).decode() if key.isprintable() else ascii(key)


def _shorten(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:40]}...{text[-10:]}"


# A string, a bracket or a number: what has to be told apart to find the one or the other outside of strings.
_TOKEN = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[\]{}]|-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?', re.DOTALL)
_NUMBER = re.compile(r"-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_NO_NUMBER = re.compile(r"[+-]?(?:nan|inf(?:inity)?)\b", re.IGNORECASE)
# 2^63 has 19 digits: shorter integers are within 64 bits.
_LONG_NUMBER = re.compile(r"[0-9]{19}")


def _check_unicode(text: str | bytes) -> str:
    if isinstance(text, str):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise _error_at(text, error.start, _SURROGATE, NotSerializable) from None
        return text
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"not UTF-8: byte 0x{text[error.start]:02x} at offset {error.start}") from None


def _syntax_error(text: str, message: str, position: int) -> UsageError:
    """Say it in our words where the cause is a value that encode_data would refuse too."""
    # orjson plans its memory by the length of the text. Only what opens more than it closes can use that up: the
    # message would be true, and a riddle.
    if "memory" in message:
        message, position = "unexpected end of data", len(text)
    _check_depth(text, position)
    # orjson points at a sign or behind it.
    start = position - 1 if position and text[position - 1 : position] in ("+", "-") else position
    if match := _NO_NUMBER.match(text, start):
        return _error_at(text, start, f"{match[0]} is no JSON value", NotSerializable)
    if _NUMBER.match(text, position) and "infinity" in message:
        return _error_at(text, position, "the number is beyond the range of a float", NotSerializable)
    if "surrogate" in message:
        return _error_at(text, position, _SURROGATE, NotSerializable)
    if not text or text.isspace():
        return UsageError("nothing there, where JSON was expected")
    return _error_at(text, position, f"not JSON: {message}", UsageError)


def check_integers(text: str) -> None:
    """Check JSON for integers that `decode` would read as a float, and lose their last digits without an error.

    Raises:
        NotSerializable: An integer is beyond 64 bits. The message has its line, its column and an excerpt.
    """
    if not _LONG_NUMBER.search(text):
        return
    for token in _TOKEN.finditer(text):
        digits = token[0]
        if len(digits) < 19 or digits[0] == '"' or not digits.lstrip("-").isdecimal():
            continue
        # Longer ones are not converted: Python refuses to at some length, and they are beyond 64 bits anyway.
        if len(digits) > 20 or not _MIN_INT <= int(digits) <= _MAX_INT:
            raise _error_at(text, token.start(), f"an integer {_INT_LIMITS}", NotSerializable)


def _check_depth(text: str, end: int) -> None:
    if text.count("[", 0, end) + text.count("{", 0, end) <= MAX_DEPTH:
        return
    depth = 0
    for token in _TOKEN.finditer(text, 0, end):
        if token[0] in ("[", "{"):
            depth += 1
            if depth > MAX_DEPTH:
                raise _error_at(text, token.start(), f"nested deeper than {MAX_DEPTH} levels", NotSerializable)
        elif token[0] in ("]", "}"):
            depth -= 1


def _error_at(text: str, position: int, message: str, kind: type[UsageError]) -> UsageError:
    before = text[:position]
    line, column = before.count("\n") + 1, position - before.rfind("\n")
    start, end = max(position - 20, before.rfind("\n") + 1), position + 20
    excerpt = text[start:end].partition("\n")[0]
    if not excerpt.isprintable():
        excerpt = ascii(excerpt)[1:-1]
    head = "..." if start > before.rfind("\n") + 1 else ""
    tail = "..." if len(text) > end else ""
    return kind(f"{message} (line {line} column {column}: {head}{excerpt}{tail})")
