"""Events and data as a terminal shows them: coloured where it can, broken into lines where they are long, escaped.

Nothing of an event reaches the terminal but through `eventsh.escape`.
"""

from __future__ import annotations

import re
from typing import Any

from eventsh.cli.watch import clock
from eventsh.commands.tail import Seen
from eventsh.escape import escape, render_data
from eventsh.event import LIFECYCLE_SOURCE

__all__ = ["Paint", "render_event", "render_traceback"]

_CODES = {
    "dim": "2",
    "red": "31",
    "green": "32",
    "yellow": "33",
    "blue": "34",
    "magenta": "35",
    "cyan": "36",
    "bold": "1",
}
_TOKEN = re.compile(r'("(?:[^"\\]|\\.)*")(\s*:)?|(-?[0-9][0-9.eE+-]*|true|false|null)')
# Lists and objects deeper than this stay in one line: what is indented further is no easier to read.
_MAX_INDENT = 8


class Paint:
    """Colours, or none."""

    def __init__(self, wanted: bool) -> None:
        self.wanted = wanted

    def __call__(self, color: str, text: str) -> str:
        return f"\x1b[{_CODES[color]}m{text}\x1b[0m" if self.wanted else text

    def json(self, text: str) -> str:
        """JSON with its keys, strings and other values told apart."""
        return _TOKEN.sub(self._token, text) if self.wanted else text

    def _token(self, match: re.Match[str]) -> str:
        string, colon, other = match.groups()
        if other is not None:
            return self("magenta", other)
        return self("blue", string) + colon if colon else self("green", string)


def render_event(seen: Seen, paint: Paint, *, columns: int, pretty: bool) -> str:
    """One event, in one line if it fits into `columns` or is not to be broken."""
    who = "-" if seen.pid is None else str(seen.pid)
    tint = "yellow" if seen.source == LIFECYCLE_SOURCE else "cyan"
    source, event = escape(seen.source), escape(seen.event)
    data = render_data(seen.data)
    head = f"{paint('dim', f'{clock(seen)} {who}')} {paint(tint, source)} {paint('green', event)}"
    width = len(f"{clock(seen)} {who} {source} {event} ")
    if pretty and width + len(data) > columns and isinstance(seen.data, dict | list) and seen.data:
        return f"{head}\n{paint.json(_indented(seen.data, 1))}"
    return f"{head} {paint.json(data)}"


def _indented(data: Any, level: int) -> str:
    """Each member in a line of its own, those that are short in one."""
    pad = "  " * level
    text = render_data(data)
    if level > _MAX_INDENT or not isinstance(data, dict | list) or not data or (level > 1 and len(text) <= 60):
        return text if level > 1 else pad + text
    if isinstance(data, dict):
        rows = [f"{pad}  {render_data(key)}: {_indented(value, level + 1)}" for key, value in data.items()]
        opened, closed = "{", "}"
    else:
        rows = [f"{pad}  {_indented(value, level + 1)}" for value in data]
        opened, closed = "[", "]"
    first = opened if level > 1 else pad + opened
    return "\n".join([first, ",\n".join(rows), pad + closed])


def render_traceback(text: str, file: str) -> str:
    """A traceback from the first line of `file` on, each line escaped: the frames before it are eventsh's own."""
    lines = text.splitlines()
    start = next((number for number, line in enumerate(lines) if f'"{file}' in line), 0)
    return "\n".join(escape(line) for line in lines[start:])
