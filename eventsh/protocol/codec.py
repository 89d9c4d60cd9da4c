"""The one JSON codec: what may be the data of an event, and how it is written and read.

Every path goes through here, so that poster, worker, command line and recording give one verdict on the same value.
Knows nothing of frames. What is refused at the poster is never found out by a worker.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from enum import Enum
from math import isfinite, isnan
from typing import Any
from uuid import UUID

import orjson
from orjson import Fragment

from eventsh.errors import NotSerializable, ProtocolError, UsageError

__all__ = [
    "MAX_DEPTH",
    "OPTIONS",
    "SURE_BYTES",
    "check_written",
    "decode",
    "encode_data",
    "encode_name",
    "parse_json",
    "refusal",
    "write",
]

# orjson writes up to 254 levels and reads up to 1024: this leaves room for the envelope, and for what people wrap around.
MAX_DEPTH = 200
# A value that is nested deeper takes more bytes than this, one to open and one to close each level.
SURE_BYTES = 2 * MAX_DEPTH

# Subclasses, dataclasses and dates would be written as something that a handler can't turn back: passed through to a
# default that does not exist, they are refused.
OPTIONS = orjson.OPT_PASSTHROUGH_SUBCLASS | orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME

_dumps = orjson.dumps
_loads = orjson.loads

_MIN_INT = -(2**63)
_MAX_INT = 2**64 - 1
_INT_LIMITS = "beyond 64 bits (-2^63 to 2^64-1): post it as a string"

_SURROGATE = "a lone surrogate, which UTF-8 can't express"

_SCALARS = frozenset({str, int, bool, type(None)})
_CONTAINERS = frozenset({dict, list, tuple})
_COMMON = _CONTAINERS | {float}
_BASES = (str, bool, int, float, dict, list, tuple)


def encode_data(data: Any) -> bytes:
    """Give the JSON of one event's data, or raise NotSerializable, which says what is wrong and where.

    Accepted: None, bool, int within 64 bits, finite float, str, list, tuple (handlers get a list), dict with string
    keys, nested at most MAX_DEPTH deep. Their subclasses are refused, and everything else.
    Two types slip through orjson and can't be found without a walk through all data, 2 times the cost of encoding
    it: a UUID arrives as its string and a member of an Enum as its value. An orjson.Fragment is written as it is:
    who posts one vouches that it is JSON. `data` must not be changed by another thread during the call.
    """
    try:
        encoded = write(data, None, OPTIONS)
    except TypeError as error:
        raise refusal(data, error) from None
    # replace() gives the same object when it finds nothing, at a third of the cost of `in` (which builds an exception)
    # and two thirds of that of find(); if ever it does not, only time is lost.
    if (117 in encoded and encoded.replace(b"null", b"") is not encoded) or len(encoded) > SURE_BYTES:
        check_written(encoded, data)
    return encoded


def check_written(encoded: bytes, data: Any) -> None:
    """Look at what `write` has made of data without a word, where its bytes hold "null" or are many. Raises
    NotSerializable.

    NaN and infinity are written as null. 117 is its "u": one byte is looked for at a tenth of the cost.
    """
    if b"null" in encoded and _hides_fault(encoded, data):
        raise refusal(data, "it does not come back as it was")
    if len(encoded) > SURE_BYTES and _count_opened(encoded) > MAX_DEPTH and _is_deep(data):
        raise refusal(data, "it is nested too deeply")


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
    if _LONG_NUMBER.search(text):
        _check_integers(text)
    if len(text) > SURE_BYTES:
        _check_depth(text, len(text))
    return value


def _hides_fault(encoded: bytes, data: Any) -> bool:
    """Whether a NaN or an infinity was written as null, which orjson does without a word."""
    if data is None:
        return False
    # Reading and comparing happens in C, 3 times faster than a walk. Tuples, UUIDs and Enums differ too, hence the walk.
    try:
        if _loads(encoded) == data:
            return False
    except (RecursionError, orjson.JSONDecodeError):
        # The stack of the caller is nearly used up, or a Fragment broke the JSON: the walk can tell.
        pass
    return not _is_sound(data)


def _count_opened(encoded: bytes) -> int:
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
        return not _is_sound(data)
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
    """Whether data that orjson has written is nested at most MAX_DEPTH deep and its floats are finite.

    One level after the other rather than recursively: it is faster, and the caller's stack may be nearly used up.
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
            if not kinds <= _COMMON:
                level = [_unwrap(value) for value in level]
            if not all(map(isfinite, [value for value in level if isinstance(value, float)])) or Fragment in kinds:
                return False
            level = [value for value in level if type(value) in _CONTAINERS]
        if not level:
            return True
    return False


def _unwrap(value: Any) -> Any:
    while isinstance(value, Enum):
        value = value.value
    return value


def refusal(data: Any, reason: object) -> NotSerializable:
    """The error that says what in `data` is at fault, which orjson does not tell; `reason` if we can't tell either."""
    return NotSerializable(_find_fault(data) or f"data is not a JSON value: {reason}")


def _find_fault(data: Any) -> str | None:
    """Walk through `data` in its order, up to the first value that is refused."""
    path: list[Any] = []
    parents: list[Any] = []
    pending: list[Iterator[tuple[Any, Any]]] = [iter([(None, data)])]
    while pending:
        step = next(pending[-1], None)
        if step is None:
            pending.pop()
            if parents:
                parents.pop()
                path.pop()
            continue
        key, value = step[0], _unwrap(step[1])
        if parents and type(parents[-1]) is dict and (fault := _key_fault(key)):
            return f"{_place(path)} has {fault}"
        if fault := _value_fault(value):
            return f"{_place([*path, key])} {fault}"
        if type(value) not in _CONTAINERS:
            continue
        for depth, parent in enumerate(parents):
            if parent is value:
                again = f"{_place([*path, key])} is {_place(path[: depth + 1])} again"
                return f"{again}: data can't contain itself"
        if len(parents) >= MAX_DEPTH:
            return f"{_place([*path, key])} is nested deeper than {MAX_DEPTH} levels"
        parents.append(value)
        path.append(key)
        pending.append(iter(list(value.items())) if type(value) is dict else enumerate(value))
    return None


def _key_fault(key: Any) -> str | None:
    if type(key) is not str:
        # Only what is short and can't fail is shown: the repr of any other key is its author's code.
        shown = f"key {key!r}" if type(key) in (bool, float, type(None)) or _is_small(key) else "key"
        return f"a {shown} of type {_type_name(key)}: keys must be strings"
    if _has_surrogate(key):
        return f"a key {_shorten(ascii(key))} with {_SURROGATE}"
    return None


def _value_fault(value: Any) -> str | None:
    kind = type(value)
    if kind is int:
        return None if _is_small(value) else f"is an integer {_INT_LIMITS}"
    if kind is float:
        return None if isfinite(value) else f"is {'NaN' if isnan(value) else 'infinity'}, which JSON does not have"
    if kind is str:
        return f"is a string with {_SURROGATE}" if _has_surrogate(value) else None
    if kind in _SCALARS or kind in _CONTAINERS or kind is UUID:
        return None
    for base in _BASES:
        if isinstance(value, base):
            return f"is of type {_type_name(value)}: post a plain {base.__name__}, not a subclass"
    return f"is of type {_type_name(value)}, which is not JSON: convert it to a string, number, list or dict"


def _is_small(value: Any) -> bool:
    return type(value) is int and _MIN_INT <= value <= _MAX_INT


def _has_surrogate(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _type_name(value: Any) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _place(path: list[Any]) -> str:
    """Where a value is, as Python's own subscripts: data["a"][3]."""
    steps = [f"[{_shorten(_quoted(key)) if isinstance(key, str) else key}]" for key in path[1:]]
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


def _check_integers(text: str) -> None:
    # orjson reads an integer beyond 64 bits as a float, and loses its last digits without a word.
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
