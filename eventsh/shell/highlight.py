"""Colours for a line as it is typed: the verb, options, JSON, and a handler's code as Python."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from prompt_toolkit.formatted_text import split_lines
from prompt_toolkit.lexers import Lexer

from eventsh.shell.check import find_fault
from eventsh.shell.line import Line, parse_line

if TYPE_CHECKING:
    from prompt_toolkit.document import Document
    from prompt_toolkit.formatted_text import StyleAndTextTuples

    from eventsh.shell.registry import Verbs

__all__ = ["ShellLexer"]

_JSON = re.compile(
    r'(?P<key>"(?:[^"\\]|\\.)*"(?=\s*:))|(?P<string>"(?:[^"\\]|\\.)*"?)|(?P<number>-?\d[\d.eE+-]*|true|false|null)'
)


class ShellLexer(Lexer):
    """For prompt-toolkit."""

    def __init__(self, verbs: Verbs) -> None:
        self._verbs = verbs

    def lex_document(self, document: Document) -> Callable[[int], StyleAndTextTuples]:
        rows = list(split_lines(self._fragments(document.text)))
        return lambda number: list(rows[number]) if number < len(rows) else []

    def _fragments(self, text: str) -> StyleAndTextTuples:
        line = parse_line(text, self._verbs.code_verbs)
        fault = find_fault(text, self._verbs)
        found: StyleAndTextTuples = []
        at = 0
        for start, end, style in self._spans(text, line):
            if start > at:
                found.append(("", text[at:start]))
            if end > max(start, at):
                found.append((style, text[max(start, at) : end]))
            at = max(at, end)
        found.append(("", text[at:]))
        return found if fault is None else _mark(found, fault.position)

    def _spans(self, text: str, line: Line) -> Iterator[tuple[int, int, str]]:
        for number, word in enumerate(line.words):
            if not number:
                yield word.start, word.end, "class:verb"
            elif word.text.startswith("-"):
                yield word.start, word.end, "class:option"
            else:
                for match in _JSON.finditer(text, word.start, word.end):
                    if match.lastgroup != "number" or text[word.start] in "{[<" or match.start() == word.start:
                        yield match.start(), match.end(), f"class:{match.lastgroup}"
        if line.code:
            yield from _python_spans(line.code, line.code_start)


def _python_spans(code: str, start: int) -> Iterator[tuple[int, int, str]]:
    # Imported when the first handler is typed, and not for the prompt.
    from prompt_toolkit.styles.pygments import pygments_token_to_classname
    from pygments.lexers.python import PythonLexer  # type: ignore[import-untyped, unused-ignore]

    for position, token, value in PythonLexer().get_tokens_unprocessed(code):
        yield start + position, start + position + len(value), f"class:{pygments_token_to_classname(token)}"


def _mark(fragments: StyleAndTextTuples, position: int) -> StyleAndTextTuples:
    """The same with the character at the fault marked, or what stands before it at the end of a line."""
    size = sum(len(fragment[1]) for fragment in fragments)
    position = min(position, size - 1)
    marked: StyleAndTextTuples = []
    at = 0
    for style, text, *_ in fragments:
        if at <= position < at + len(text):
            cut = position - at
            marked += [(style, text[:cut]), ("class:fault", text[cut : cut + 1]), (style, text[cut + 1 :])]
        else:
            marked.append((style, text))
        at += len(text)
    return marked
