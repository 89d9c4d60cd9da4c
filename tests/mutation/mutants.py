"""Mutants of a source file: one operator, constant, condition or statement changed, as text that replaces a span.

The finder skips code that tests should not pin: annotations, decorators, docstrings, `__all__`, `__slots__`, and texts
for people (a log line, an error message). It also skips mutants that any test kills, such as the removal of the only
assignment of a name: they raise the score and measure nothing.
"""

from __future__ import annotations

import ast
import copy
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

__all__ = ["Mutant", "find_mutants"]

_BINARY: dict[type[ast.operator], ast.operator] = {
    ast.Add: ast.Sub(),
    ast.Sub: ast.Add(),
    ast.Mult: ast.FloorDiv(),
    ast.Div: ast.Mult(),
    ast.FloorDiv: ast.Mult(),
    ast.Mod: ast.Mult(),
    ast.Pow: ast.Mult(),
    ast.LShift: ast.RShift(),
    ast.RShift: ast.LShift(),
    ast.BitAnd: ast.BitOr(),
    ast.BitOr: ast.BitAnd(),
    ast.BitXor: ast.BitOr(),
}
_COMPARISONS: dict[type[ast.cmpop], ast.cmpop] = {
    ast.Lt: ast.LtE(),
    ast.LtE: ast.Lt(),
    ast.Gt: ast.GtE(),
    ast.GtE: ast.Gt(),
    ast.Eq: ast.NotEq(),
    ast.NotEq: ast.Eq(),
    ast.Is: ast.IsNot(),
    ast.IsNot: ast.Is(),
    ast.In: ast.NotIn(),
    ast.NotIn: ast.In(),
}
# Changing the operator negates the comparison: one mutant is enough.
_SELF_NEGATING = (ast.Eq, ast.NotEq, ast.Is, ast.IsNot, ast.In, ast.NotIn)
_UNSEEN_NAMES = frozenset({"__all__", "__slots__"})
# Of an f-string, Python 3.11 does not know the places; most are texts for people. An assert is there for mypy.
_PASSED_BY = (ast.Import, ast.ImportFrom, ast.JoinedStr, ast.Assert)
_Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change of one file. `file` is relative to the root of the tree."""

    file: str
    where: str
    """The qualified name of the function or class around it; "<module>" where there is none."""
    line: int
    text: str
    """The source line, without its indentation."""
    before: str
    after: str
    start: int
    """With `end`, the bytes of the file that `code` replaces."""
    end: int
    code: str

    @property
    def key(self) -> dict[str, str]:
        """Identity of the mutant that survives edits elsewhere in the file."""
        return {name: getattr(self, name) for name in ("file", "where", "text", "before", "after")}

    def apply(self, source: bytes) -> bytes:
        return source[: self.start] + self.code.encode() + source[self.end :]

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.where}: {self.before} -> {self.after}"


def find_mutants(root: Path, file: str) -> list[Mutant]:
    """Return all mutants of `file`, in the order of their places."""
    source = (root / file).read_bytes()
    finder = _Finder(file, source)
    finder.visit(ast.parse(source))
    return sorted(finder.mutants, key=lambda mutant: (mutant.start, mutant.end, mutant.after))


class _Finder(ast.NodeVisitor):
    def __init__(self, file: str, source: bytes) -> None:
        self.mutants: list[Mutant] = []
        self._file = file
        self._lines = source.splitlines(keepends=True)
        self._starts = [0, *accumulate(map(len, self._lines))]
        self._names: list[str] = []
        self._functions: list[_Function] = []

    def _add(self, node: ast.expr | ast.stmt, after: ast.AST | str) -> None:
        text = after if isinstance(after, str) else ast.unparse(after)
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        self.mutants.append(
            Mutant(
                self._file,
                ".".join(self._names) or "<module>",
                node.lineno,
                self._lines[node.lineno - 1].decode().strip(),
                " ".join(ast.unparse(node).split()),
                " ".join(text.split()),
                self._starts[node.lineno - 1] + node.col_offset,
                self._starts[node.end_lineno - 1] + node.end_col_offset,
                f"({text})" if isinstance(node, ast.expr) else text,
            )
        )

    # --- skipped nodes ---

    def visit(self, node: ast.AST) -> None:
        if not isinstance(node, _PASSED_BY):
            super().visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None and ast.unparse(node.annotation) != "TypeAlias":
            self.visit(node.value)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        if not isinstance(node.value, ast.Name) or node.value.id != "Literal":
            self.generic_visit(node)

    def visit_Match(self, node: ast.Match) -> None:
        self.visit(node.subject)
        for case in node.cases:
            if case.guard is not None:
                self._condition(case.guard)
                self.visit(case.guard)
            self._all(case.body)

    # --- scopes ---

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._names.append(node.name)
        self._all(node.body)
        self._names.pop()

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._function(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self._function(node)

    def _function(self, node: _Function) -> None:
        self._names.append(node.name)
        self._functions.append(node)
        self._all([*node.args.defaults, *(default for default in node.args.kw_defaults if default)])
        self._all(node.body)
        self._functions.pop()
        self._names.pop()

    def _all(self, nodes: list[ast.stmt] | list[ast.expr]) -> None:
        for node in nodes:
            self.visit(node)

    # --- statements ---

    def visit_If(self, node: ast.If) -> None:
        if ast.unparse(node.test) != "TYPE_CHECKING":
            self._condition(node.test)
            self.generic_visit(node)

    def visit_While(self, node: ast.While) -> None:
        if not isinstance(node.test, ast.Constant):
            self._condition(node.test)
            self.visit(node.test)
        self._all(node.body)
        self._all(node.orelse)

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Constant):
            return
        if not isinstance(node.value, ast.Yield | ast.YieldFrom | ast.Await):
            self._add(node, "pass")
        if not ast.unparse(node.value).startswith("_log."):
            self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> None:
        self._add(node, "pass")

    def visit_Delete(self, node: ast.Delete) -> None:
        self._add(node, "pass")

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self._add(node, "pass")
        if type(node.op) in _BINARY:
            self._add(node, ast.AugAssign(node.target, _BINARY[type(node.op)], node.value))
        self.visit(node.value)

    def visit_Assign(self, node: ast.Assign) -> None:
        names = {target.id for target in node.targets if isinstance(target, ast.Name)}
        if names & _UNSEEN_NAMES or (not self._functions and _is_alias(node.value)):
            return
        if self._functions and self._names[-1] != "__init__" and all(map(self._is_set_elsewhere, node.targets)):
            self._add(node, "pass")
        self.visit(node.value)

    def _is_set_elsewhere(self, target: ast.expr) -> bool:
        if isinstance(target, ast.Attribute | ast.Subscript):
            return True
        stores = [
            each.id
            for each in ast.walk(self._functions[-1])
            if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)
        ]
        arguments = {each.arg for each in ast.walk(self._functions[-1].args) if isinstance(each, ast.arg)}
        return isinstance(target, ast.Name) and (target.id in arguments or stores.count(target.id) > 1)

    def visit_Return(self, node: ast.Return) -> None:
        if node.value is None:
            self._add(node, "pass")
            return
        if isinstance(node.value, ast.Constant) and isinstance(node.value.value, bool):
            self.visit(node.value)
            return
        returns = self._functions[-1].returns if self._functions else None
        if returns is not None and ast.unparse(returns) == "bool":
            self._condition(node.value)
        elif not (isinstance(node.value, ast.Constant) and node.value.value is None):
            self._add(node, "return None")
        self.visit(node.value)

    def visit_Continue(self, node: ast.Continue) -> None:
        self._add(node, "break")

    def visit_Break(self, node: ast.Break) -> None:
        self._add(node, "continue")

    # --- expressions ---

    def _condition(self, test: ast.expr) -> None:
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            return
        if isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], _SELF_NEGATING):
            return
        self._add(test, ast.UnaryOp(ast.Not(), test))

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self._condition(node.test)
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        for test in node.ifs:
            self._condition(test)
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.Not | ast.Invert):
            self._add(node, node.operand)
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        self._add(node, ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values))
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        if type(node.op) in _BINARY:
            self._add(node, ast.BinOp(node.left, _BINARY[type(node.op)], node.right))
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        for place, operator in enumerate(node.ops):
            changed = copy.copy(node)
            changed.ops = [*node.ops[:place], _COMPARISONS[type(operator)], *node.ops[place + 1 :]]
            self._add(node, changed)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        # An error that is built here and raised elsewhere: its argument is a text for people.
        if isinstance(node.func, ast.Name) and node.func.id.endswith("Error"):
            return
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        value = node.value
        if isinstance(value, bool):
            self._add(node, repr(not value))
        elif isinstance(value, int):
            self._add(node, repr(value + 1))
            self._add(node, repr(value - 1))
        elif isinstance(value, float):
            self._add(node, repr(value * 2 or 1.0))
        elif isinstance(value, str) and value and " " not in value:
            # Strings with a space are texts for people.
            self._add(node, repr("X" + value))
        elif isinstance(value, bytes) and value:
            self._add(node, repr(b"X" + value))


def _is_alias(value: ast.expr) -> bool:
    """Whether `value` is a union of types, used in annotations only."""
    is_union = isinstance(value, ast.BinOp) and isinstance(value.op, ast.BitOr)
    return is_union and not any(isinstance(each, ast.Constant | ast.Call | ast.Attribute) for each in ast.walk(value))
