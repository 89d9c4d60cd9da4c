"""A handler's code as it is typed: whether it is Python, whether there may be more of it, and where it is wrong. Pure.

An expression or statements; `return`, `await` and `async for` are allowed, as in a function's body.
"""

from __future__ import annotations

import ast
import textwrap
import warnings
from codeop import PyCF_ALLOW_INCOMPLETE_INPUT, PyCF_DONT_IMPLY_DEDENT  # type: ignore[attr-defined]

__all__ = ["CodeError", "dedent", "is_complete_code", "parse_code"]

_FLAGS = ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
_PARTIAL = _FLAGS | PyCF_ALLOW_INCOMPLETE_INPUT | PyCF_DONT_IMPLY_DEDENT


class CodeError(Exception):
    """The code is no Python. `position` is the character, `line` and `column` the same for people."""

    def __init__(self, message: str, position: int, line: int, column: int, *, is_incomplete: bool) -> None:
        super().__init__(message)
        self.message = message
        self.position = position
        self.line = line
        self.column = column
        self.is_incomplete = is_incomplete


def dedent(code: str) -> str:
    """The code at the left margin, with its rows as they are numbered in a traceback: what stands behind the colon is
    row 1; an empty rest there does not count."""
    first, newline, rest = code.partition("\n")
    if not first.strip():
        return textwrap.dedent(rest).rstrip() + "\n"
    return first.strip() + newline + textwrap.dedent(rest).rstrip() + "\n"


def parse_code(code: str) -> ast.Module:
    """Read code as it was typed behind the colon. Raises CodeError."""
    plain = dedent(code)
    if not plain.strip():
        raise CodeError("a handler needs code", len(code), 1, 1, is_incomplete=True)
    with warnings.catch_warnings():
        # What Python thinks of "is 1" is told when it is compiled for good, and not at every key.
        warnings.simplefilter("ignore")
        try:
            found = compile(plain, "<script>", "exec", _FLAGS)
            assert isinstance(found, ast.Module)
            return found
        except SyntaxError as error:
            is_incomplete = _is_incomplete(plain)
            line, column = error.lineno or 1, max(error.offset or 1, 1)
            raise CodeError(
                error.msg, _position(code, plain, line, column), line, column, is_incomplete=is_incomplete
            ) from None
        except (ValueError, RecursionError, MemoryError) as error:
            raise CodeError(str(error) or type(error).__name__, 0, 1, 1, is_incomplete=False) from None


def is_complete_code(code: str) -> bool:
    """Whether Enter ends it: one row that is a statement by itself, or rows of which the last is empty."""
    first, _, rest = code.partition("\n")
    if first.strip() and not rest.strip() and not first.rstrip().endswith(":"):
        return not _is_incomplete(first.strip() + "\n")
    return code.endswith("\n") or (bool(rest) and not rest.rpartition("\n")[2].strip())


def _is_incomplete(plain: str) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            compile(plain, "<script>", "exec", _PARTIAL)
        except SyntaxError as error:
            return "incomplete input" in str(error.msg)
        except (ValueError, RecursionError, MemoryError):
            pass
    return False


def _position(code: str, plain: str, line: int, column: int) -> int:
    """The place in what was typed, of a place in what was compiled."""
    rows, typed = plain.split("\n"), code.split("\n")
    if not typed[0].strip():
        line += 1
    line = min(line, len(typed))
    shown = rows[min(line - (not typed[0].strip()), len(rows)) - 1]
    row = typed[line - 1]
    indent = len(row) - len(row.lstrip()) - (len(shown) - len(shown.lstrip()))
    return sum(len(each) + 1 for each in typed[: line - 1]) + min(max(indent, 0) + column - 1, len(row))
