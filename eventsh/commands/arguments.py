"""Turn what people type as the data of an event into a value. Pure: standard input and files are handed in.

One argument is a JSON value, `<"k":1>` (an object, its braces written as angle brackets), `@file`, `-` for standard
input, or a pair. Several arguments are pairs: `key=string` or `key:=json`.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from typing import Any

import orjson

from eventsh.errors import NotSerializable, UsageError
from eventsh.protocol.codec import parse_json
from eventsh.protocol.frame import MAX_PAYLOAD_BYTES

__all__ = ["MAX_CONTENT_BYTES", "check_utf8", "parse_data", "parse_line", "refuse_long"]

MAX_CONTENT_BYTES = 8 * MAX_PAYLOAD_BYTES
"""As much is read of a file, of standard input or of a line for one event: the largest event, each character of it written as
an escape of six, with room to spare."""


def parse_data(
    arguments: Sequence[str],
    *,
    text: bool = False,
    read_stdin: Callable[[], bytes],
    read_file: Callable[[str], bytes],
) -> Any:
    """Give the data that `arguments` stand for; None when there are none. `read_stdin` and `read_file` need not return more
    than a byte over MAX_CONTENT_BYTES.

    With `text` there is one argument, and it, the file or standard input is taken as a string, as it is (a newline at
    the end stays). All that is returned can be posted. Raises UsageError, in one line that says what to do instead.
    """
    for argument in arguments:
        check_utf8(argument)
    if len(arguments) > 1:
        if text:
            raise UsageError(f"--text takes one argument, not {len(arguments)}: put the whole text in quotes")
        return _parse_pairs(arguments)
    if not arguments:
        if text:
            raise UsageError("--text needs an argument: the text, @FILE, or - for standard input")
        return None
    argument = arguments[0]
    if argument in ("-", "@-"):
        return _parse_content(read_stdin(), "standard input", text)
    if argument.startswith("@"):
        return _parse_content(_read(argument[1:], read_file), argument[1:], text)
    if text:
        return argument
    return _parse_pairs(arguments) if _is_pair(argument) else _parse_value(argument)


def parse_line(line: bytes, number: int) -> Any:
    """Give the JSON value of one line of input; `number` is the line's, for the error. An empty line is one, too."""
    try:
        return parse_json(line.rstrip(b"\r\n"))
    except UsageError as error:
        raise type(error)(f"line {number}: {error}") from None


def _is_pair(argument: str) -> bool:
    # Numbers, true, false and null hold no "=", so only what opens a string, list or object can be JSON and hold one.
    return "=" in argument and not argument.lstrip().startswith(("{", "[", '"', "<"))


def _parse_pairs(arguments: Sequence[str]) -> dict[str, Any]:
    members: dict[str, Any] = {}
    for argument in arguments:
        if not _is_pair(argument):
            raise UsageError(
                f"{_shown(argument)} is neither KEY=STRING nor KEY:=JSON, and data of another kind is one argument:"
                " put JSON in single quotes"
            )
        key, _, value = argument.partition("=")
        typed = key.endswith(":")
        key = key.removesuffix(":")
        if not key:
            raise UsageError(f"{_shown(argument)} has no key before the {':=' if typed else '='}")
        if key in members:
            raise UsageError(f"the key {_shown(key)} is given twice")
        members[key] = _parse_member(key, value) if typed else value
    return members


def _parse_member(key: str, value: str) -> Any:
    try:
        return _parse_value(value, f"{key}={value}")
    except UsageError as error:
        raise type(error)(f"the value of {_shown(key)}: {error}") from None


def _parse_value(argument: str, as_string: str | None = None) -> Any:
    """Parse JSON, or an object in angle brackets. `as_string` is what to type to have a string instead."""
    json = stripped = argument.strip()
    if stripped.startswith("<"):
        if len(stripped) < 2 or not stripped.endswith(">"):
            raise UsageError(f"{_shown(argument)} begins with < and does not end with >")
        json = f"{{{stripped[1:-1]}}}"
    try:
        return parse_json(json)
    except NotSerializable:
        raise
    except UsageError as error:
        if stripped.startswith(("{", "[", "<")):
            raise UsageError(f"{error}; put JSON in single quotes, so that the shell leaves it as it is") from None
        if as_string is not None:
            advice = "for a string use " + (shlex.quote(as_string) if _is_short(as_string) else "= in place of :=")
        else:
            advice = "for a plain string use --text"
            if _is_short(argument):
                advice += f", or quote it: {shlex.quote(orjson.dumps(argument).decode())}"
        raise UsageError(f"{_shown(argument)} is not JSON; {advice}; {error}") from None


def refuse_long(size: int, name: str) -> None:
    """Raise UsageError if there are more bytes than are read for one event."""
    if size > MAX_CONTENT_BYTES:
        mib = 1024 * 1024
        raise UsageError(
            f"{name} is over {MAX_CONTENT_BYTES // mib} MiB long, and an event has {MAX_PAYLOAD_BYTES // mib} MiB at most"
            " (max_payload_len)"
        )


def _parse_content(content: bytes, name: str, text: bool) -> Any:
    refuse_long(len(content), _shown(name))
    if not text:
        try:
            return parse_json(content)
        except UsageError as error:
            raise type(error)(f"{_shown(name)}: {error}") from None
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        byte = f"byte 0x{content[error.start]:02x} at offset {error.start}"
        raise UsageError(f"{_shown(name)} is not UTF-8 text: {byte}") from None


def _read(path: str, read_file: Callable[[str], bytes]) -> bytes:
    if not path:
        raise UsageError("@ needs the name of a file, as in @data.json")
    try:
        return read_file(path)
    except OSError as error:
        raise UsageError(f"can't read {_shown(path)}: {error.strerror or type(error).__name__}") from None


def check_utf8(argument: str, word: str = "argument") -> None:
    """Raise UsageError for text with lone surrogates: as such the system hands over bytes that are no UTF-8."""
    try:
        argument.encode()
    except UnicodeEncodeError:
        raise UsageError(f"the {word} {_shown(argument)} is not UTF-8") from None


def _is_short(text: str) -> bool:
    return len(text) <= 40 and text.isprintable()


def _shown(text: str) -> str:
    """Words as they were typed; what is empty, long or unprintable, as something that can be read in one line."""
    if _is_short(text):
        return text or "''"
    cut = text[:40]
    return (cut if cut.isprintable() else ascii(cut)[1:-1]) + ("..." if len(text) > 40 else "")
