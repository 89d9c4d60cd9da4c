"""Make what comes from events safe and readable in one line, wherever people read it: a terminal, a log.

Decides nothing about layout.
"""

from __future__ import annotations

import re
from typing import Any
from unicodedata import category

from eventsh.errors import NotSerializable
from eventsh.protocol.codec import encode_data

__all__ = ["escape", "expressible", "render_data"]

# Controls (C0, C1, DEL), formats (bidi, zero width, tags), lone surrogates, and the separators of lines and paragraphs.
# Asked of Python's own tables, so that characters of later versions of Unicode are covered by later versions of Python.
_UNSAFE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_SUSPECT = re.compile(r"[^ -~]")
_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}


def escape(text: str) -> str:
    """Give `text` with everything escaped that could move the cursor, start a sequence, or reorder or hide text.

    Printable text stays as it is, a backslash too, so the result can't be turned back with certainty.
    """
    # Everything in _UNSAFE is unprintable to Python as well.
    return text if text.isprintable() else _SUSPECT.sub(_escape_character, text)


def expressible(text: str) -> str:
    """Give `text` as JSON can express it: bytes of a path that are no UTF-8, and what else quotes them, are written as
    \\udcff."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def render_data(data: Any, *, max_chars: int | None = None) -> str:
    """Give `data` as compact JSON in one line, or as its repr where it is not JSON (a local event carries any object).

    JSON stays JSON: what is unsafe is written with JSON's own escapes. Longer than `max_chars`, it ends with "…".
    """
    try:
        text, character = encode_data(data).decode(), _escape_json_character
    except NotSerializable:
        text, character = _represent(data), _escape_character
    if max_chars is not None and len(text) > max_chars:
        text = text[:max_chars] + "…"
    if not text.isprintable():
        text = _SUSPECT.sub(character, text)
    if max_chars is not None and len(text) > max_chars:
        text = text[: max(max_chars - 1, 0)] + "…"
    return text


def _escape_character(match: re.Match[str]) -> str:
    character = match[0]
    if category(character) not in _UNSAFE:
        return character
    if character in _SHORT:
        return _SHORT[character]
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _escape_json_character(match: re.Match[str]) -> str:
    character = match[0]
    if category(character) not in _UNSAFE:
        return character
    # JSON has no escape beyond 16 bits: a pair of surrogates stands for the character.
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))


def _represent(data: Any) -> str:
    try:
        return repr(data)
    except Exception as error:  # noqa: BLE001  the object's own code: nothing of it may stop the output
        return f"<{type(data).__name__} object whose repr raised {type(error).__name__}>"
