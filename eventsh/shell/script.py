"""Scripts of the shell: which rows of a text belong together as one line. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from eventsh.shell.line import parse_line
from eventsh.shell.registry import Verbs

__all__ = ["read_script"]


def read_script(rows: Iterable[str], verbs: Verbs) -> Iterator[tuple[int, str]]:
    """Yield the lines of a script, each with the number of its first row.

    A line goes on in the next row while a quote or bracket is open, and a handler's code while rows are indented.
    The next row is read only where the line can go on, so that a program that waits for an answer gets it.
    """
    numbered = ((number, row.rstrip("\r\n")) for number, row in enumerate(rows, 1))
    following = next(numbered, None)
    while following is not None:
        first, text = following
        following = None
        while _can_go_on(text, verbs) and (following := next(numbered, None)) is not None:
            if not _goes_on(text, following[1], verbs):
                break
            text, following = f"{text}\n{following[1]}", None
        line = text.rstrip()
        if line.strip() and not line.lstrip().startswith("#"):
            yield first, line
        if following is None:
            following = next(numbered, None)


def _can_go_on(text: str, verbs: Verbs) -> bool:
    if text.lstrip().startswith(("#", "!")):
        return False
    line = parse_line(text, verbs.code_verbs)
    return line.is_open or line.code is not None


def _goes_on(text: str, row: str, verbs: Verbs) -> bool:
    line = parse_line(text, verbs.code_verbs)
    if line.is_open:
        return True
    # An empty row inside of a block belongs to it; behind it, it does no harm.
    return line.code is not None and (row.startswith((" ", "\t")) or not row.strip())
