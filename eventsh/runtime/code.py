"""A handler's code as it is typed: whether it is Python, whether there may be more of it, and where it is wrong. Pure.

An expression or statements; `return`, `await` and `async for` are allowed, as in a function's body. What is typed is
what stands behind the colon: either it begins in that row, or the rows below it are a block, indented as they like.
Their blanks stay as they are, for they may be part of a string.
"""

from __future__ import annotations

import ast
import warnings
from codeop import PyCF_ALLOW_INCOMPLETE_INPUT  # type: ignore[attr-defined]

__all__ = ["CodeError", "is_block", "is_complete_code", "parse_code", "plain_code"]

_FLAGS = ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
# Stands before a block, so that its indentation is what Python expects; one row.
_BLOCK_HEAD = "if 1:\n"


class CodeError(Exception):
    """The code is no Python. `position` is the character of what was typed; `line` is the row of `plain_code`."""

    def __init__(self, message: str, position: int, line: int, *, is_incomplete: bool) -> None:
        super().__init__(message)
        self.message = message
        self.position = position
        self.line = line
        self.is_incomplete = is_incomplete


def is_block(code: str) -> bool:
    """Whether the code begins in the row below the colon."""
    return not code.partition("\n")[0].strip()


def plain_code(code: str) -> str:
    """The code with its rows as they are numbered in a traceback: an empty rest of the first row does not count."""
    return (code.partition("\n")[2] if is_block(code) else code.lstrip(" \t")).rstrip() + "\n"


def parse_code(code: str) -> list[ast.stmt]:
    """The statements of code as it was typed behind the colon. Raises CodeError."""
    plain = plain_code(code)
    if not plain.strip():
        raise CodeError("a handler needs code", len(code), 1, is_incomplete=True)
    head = _BLOCK_HEAD if is_block(code) else ""
    with warnings.catch_warnings():
        # What Python thinks of "is 1" is told when it is compiled for good, and not at every key.
        warnings.simplefilter("ignore")
        try:
            module = compile(head + plain, "<script>", "exec", _FLAGS)
        except SyntaxError as error:
            line, column = (error.lineno or 1) - bool(head), error.offset or 1
            position = _position(code, line, column)
            raise CodeError(error.msg, position, line, is_incomplete=_is_incomplete(head + plain)) from None
        except (ValueError, RecursionError, MemoryError) as error:
            raise CodeError(str(error) or type(error).__name__, 0, 1, is_incomplete=False) from None
    assert isinstance(module, ast.Module)
    if not head:
        return module.body
    block, *rest = module.body
    if rest:
        raise CodeError("the rows of a handler must be indented alike", 0, 1, is_incomplete=False)
    assert isinstance(block, ast.If)
    for statement in block.body:
        ast.increment_lineno(statement, -1)
    return block.body


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
            compile(plain, "<script>", "exec", _FLAGS | PyCF_ALLOW_INCOMPLETE_INPUT)
        except SyntaxError as error:
            return "incomplete input" in str(error.msg)
        except (ValueError, RecursionError, MemoryError):
            pass
    return False


def _position(code: str, line: int, column: int) -> int:
    """The place in what was typed, of a place in what was compiled."""
    typed = code.split("\n")
    row = min(max(line - 1 + is_block(code), 0), len(typed) - 1)
    if row == 0:
        # Its blanks at the left were not compiled.
        column += len(typed[0]) - len(typed[0].lstrip(" \t"))
    return sum(len(each) + 1 for each in typed[:row]) + min(max(column - 1, 0), len(typed[row]))
