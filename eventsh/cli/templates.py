"""Templates for lines of output: `{source} {event} {data[user][0]}`. Compiled once, filled for every event.

Python's own str.format is not used: it reaches attributes, and through them whatever the process holds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import orjson

from eventsh.cli.terminal import escape, render_data
from eventsh.errors import UsageError

__all__ = ["FIELDS", "Template"]

FIELDS = ("source", "event", "data", "pid", "time", "seq")

# What stands where a value has none: the pid of a local event, a key that this event's data does not have.
_NOTHING = "-"
_MISSING = object()

_PIECE = re.compile(
    r"""
    (?P<text>[^{}\\]+)
    | (?P<brace>\{\{|\}\})
    | \\(?P<escape>.)
    | \{(?P<field>[^\[\]{}]*)(?P<lookups>(?:\["(?:[^"\\]|\\.)*"\]|\[[^\[\]"{}]+\])*)\}
    """,
    re.VERBOSE | re.DOTALL,
)
_LOOKUP = re.compile(r'\[("(?:[^"\\]|\\.)*"|[^\[\]"{}]+)\]', re.DOTALL)
# Longer ones are no index of any list that an event can carry.
_INDEX = re.compile(r"-?[0-9]{1,9}")
_ESCAPES = {"n": "\n", "t": "\t", "\\": "\\"}

_Part = str | tuple[str, tuple[str, ...]]


class Template:
    r"""A template with fields in braces; `{{` and `}}` are braces, `\n`, `\t` and `\\` what they are in Python.

    `{data}` is compact JSON. `{data[key]}`, `{data[0]}` and `{data["any key"]}` look inside, to any depth; a string
    found there is shown without quotes. What an event does not have is shown as "-".
    UsageError for what is no template, when it is compiled.
    """

    __slots__ = ("_parts", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self._parts = tuple(_compile(text))

    def render(self, fields: Mapping[str, Any]) -> str:
        """Fill in the values of FIELDS; one that is left out counts as None. Never raises for what an event holds.

        What comes from an event is escaped; the template's own text is the operator's, and stays as it is.
        """
        return "".join(part if isinstance(part, str) else _fill(fields, *part) for part in self._parts)


def _compile(text: str) -> list[_Part]:
    parts: list[_Part] = []
    position = 0
    while position < len(text):
        match = _PIECE.match(text, position)
        if match is None:
            raise UsageError(f"the template is wrong at character {position + 1}: {_explain(text, position)}")
        if (field := match["field"]) is not None:
            parts.append(_compile_field(field, match["lookups"]))
        elif (character := match["escape"]) is not None:
            if character not in _ESCAPES:
                raise UsageError(f"the template has \\{escape(character)}: there are only \\n, \\t and \\\\")
            parts.append(_ESCAPES[character])
        else:
            parts.append(match["text"] or match["brace"][0])
        position = match.end()
    return parts


def _compile_field(field: str, lookups: str) -> _Part:
    if field not in FIELDS:
        raise UsageError(
            f"the template has no field {{{escape(field)}}}; fields: {', '.join(f'{{{name}}}' for name in FIELDS)},"
            " and {data[key]} to look inside of data"
        )
    if lookups and field != "data":
        raise UsageError(f"{{{field}}} has nothing inside that could be looked up: only {{data}} has")
    return field, tuple(_parse_key(match[1]) for match in _LOOKUP.finditer(lookups))


def _parse_key(key: str) -> str:
    if not key.startswith('"'):
        return key
    try:
        return str(orjson.loads(key))
    except orjson.JSONDecodeError:
        raise UsageError(f"{escape(key)} is not a key: in quotes it is written as in JSON") from None


def _explain(text: str, position: int) -> str:
    if text[position] == "\\":
        return "a backslash at the end; write two of them"
    if text[position] == "}":
        return "a } without its {; write }} for the character"
    return "a { that does not open a field like {source} or {data[key]}; write {{ for the character"


def _fill(fields: Mapping[str, Any], field: str, keys: tuple[str, ...]) -> str:
    value = fields.get(field)
    if field != "data":
        return _NOTHING if value is None else escape(str(value))
    for key in keys:
        value = _look_up(value, key)
        if value is _MISSING:
            return _NOTHING
    return escape(value) if keys and type(value) is str else render_data(value)


def _look_up(value: Any, key: str) -> Any:
    # The types' own methods: a subclass in a local event could run code of its own, or make up what is not there.
    if isinstance(value, dict):
        return dict.get(value, key, _MISSING)
    if isinstance(value, list | tuple) and _INDEX.fullmatch(key):
        try:
            return list.__getitem__(value, int(key)) if isinstance(value, list) else tuple.__getitem__(value, int(key))
        except IndexError:
            return _MISSING
    return _MISSING
