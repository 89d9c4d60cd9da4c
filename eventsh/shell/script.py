"""Scripts of the shell: which rows of a text belong together as one line. Pure."""

from __future__ import annotations

from eventsh.shell.line import parse_line
from eventsh.shell.registry import Verbs

__all__ = ["read_script"]


def read_script(text: str, verbs: Verbs) -> list[tuple[int, str]]:
    """The lines of a script, each with the number of its first row.

    A line goes on in the next row while a quote or bracket is open, and a handler's code while rows are indented.
    """
    lines: list[tuple[int, str]] = []
    rows = text.splitlines()
    number = 0
    while number < len(rows):
        first = number
        parts = [rows[number]]
        number += 1
        while number < len(rows) and _goes_on("\n".join(parts), rows[number], verbs):
            parts.append(rows[number])
            number += 1
        line = "\n".join(parts).rstrip()
        if line.strip() and not line.lstrip().startswith("#"):
            lines.append((first + 1, line))
    return lines


def _goes_on(text: str, row: str, verbs: Verbs) -> bool:
    if text.lstrip().startswith(("#", "!")):
        return False
    line = parse_line(text, verbs.code_verbs)
    if line.is_open:
        return True
    # An empty row inside of a block belongs to it; behind it, it does no harm.
    return line.code is not None and (row.startswith((" ", "\t")) or not row.strip())
