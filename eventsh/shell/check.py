"""Look at a line while it is typed: what is wrong with it and where, and whether it goes on in the next row. Pure.

What is only not finished yet is no mistake.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from eventsh.runtime.code import CodeError, is_complete_code, parse_code
from eventsh.shell.line import Line, Word, parse_line
from eventsh.shell.registry import Verbs, takes_text

__all__ = ["Fault", "find_fault", "goes_on"]


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong, and at which character of the line."""

    position: int
    message: str


def goes_on(text: str, verbs: Verbs) -> bool:
    """Whether Enter begins another row: something is open, or a handler's code may have more."""
    if text.lstrip().startswith(("!", "#")):
        return False
    line = parse_line(text, verbs.code_verbs)
    if line.is_open:
        return True
    return line.code is not None and not is_complete_code(line.code)


def find_fault(text: str, verbs: Verbs) -> Fault | None:
    """The first mistake that nothing typed behind it can mend; None if there is none."""
    if text.lstrip().startswith(("!", "#")):
        return None
    line = parse_line(text, verbs.code_verbs)
    if line.code is not None:
        return _find_code_fault(line)
    if not line.words:
        return None
    # A name that is not built in may be a plugin's: whether it is, Enter tells.
    verb = next((verb for verb in verbs.all(with_plugins=False) if verb.name == line.verb), None)
    if verb is None:
        return None
    words = line.words[1:]
    kinds = verb.kinds(words)
    if takes_text(words, kinds):
        return None
    for word, kind in zip(words, kinds, strict=True):
        if kind == "DATA" and (fault := _find_json_fault(word)) is not None:
            return fault
    return None


def _find_code_fault(line: Line) -> Fault | None:
    assert line.code is not None
    try:
        parse_code(line.code)
    except CodeError as error:
        if error.is_incomplete:
            return None
        return Fault(line.code_start + error.position, error.message)
    return None


def _find_json_fault(word: Word) -> Fault | None:
    """In `{...}`, `[...]`, `<...>`, a string, or the value of a `key:=` pair."""
    data, start = word.data, word.start
    if not data.startswith(("{", "[", "<", '"')):
        key, _, data = data.partition("=")
        if not key.endswith(":"):
            return None
        start += len(key) + 1
        if not data.strip():
            return None
    if data.startswith("<"):
        closed = data.endswith(">") and not word.is_open
        data = "{" + (data[1:-1] + "}" if closed else data[1:])
    try:
        json.loads(data)
    except json.JSONDecodeError as error:
        if word.is_open and _is_end(error, data):
            return None
        return Fault(start + min(error.pos, len(data)), f"JSON: {_plain(error.msg)}")
    except (ValueError, RecursionError):
        # A number of more digits, or more brackets, than Python reads: the command has the words for it.
        return None
    return None


def _is_end(error: json.JSONDecodeError, data: str) -> bool:
    """Whether what is wrong is only that there is no more."""
    if error.pos >= len(data.rstrip()) or error.msg.startswith("Unterminated"):
        return True
    # The beginning of true, false, null or of a number, which is complete with its next characters.
    rest = data[error.pos :].strip()
    return any(word.startswith(rest) for word in ("true", "false", "null", "-"))


def _plain(message: str) -> str:
    return message[:1].lower() + message[1:]
