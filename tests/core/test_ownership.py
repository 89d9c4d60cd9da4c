"""Each object of the core writes its own fields: no part writes another's, and the syntax tree shows it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import eventsh.core

CORE = Path(eventsh.core.__path__[0])
FILES = sorted(path.relative_to(CORE).as_posix() for path in CORE.rglob("*.py"))


def targets(node: ast.AST) -> list[ast.expr]:
    match node:
        case ast.Assign(targets=found) | ast.Delete(targets=found):
            return found
        case ast.AugAssign(target=target) | ast.AnnAssign(target=target) | ast.For(target=target):
            return [target]
        case ast.NamedExpr(target=target):
            return [target]
        case ast.withitem(optional_vars=ast.expr() as target):
            return [target]
    return []


def written_fields(target: ast.expr) -> Iterator[ast.Attribute]:
    """The fields that an assignment to `target` changes: `a.b = ...`, `a.b[c] = ...`, and those within a tuple."""
    match target:
        case ast.Tuple(elts=parts) | ast.List(elts=parts):
            for part in parts:
                yield from written_fields(part)
        case ast.Starred(value=value) | ast.Subscript(value=value):
            yield from written_fields(value)
        case ast.Attribute():
            yield target


def writes_from_outside(source: str) -> list[str]:
    return [
        f"line {field.lineno}: {ast.unparse(field)}"
        for node in ast.walk(ast.parse(source))
        for target in targets(node)
        for field in written_fields(target)
        if not (isinstance(field.value, ast.Name) and field.value.id in ("self", "cls"))
        # Python's own, such as a function's defaults.
        if not field.attr.startswith("__")
    ]


@pytest.mark.parametrize("file", FILES)
def test_no_object_of_the_core_writes_a_field_of_another(file):
    assert writes_from_outside((CORE / file).read_text()) == []


@pytest.mark.parametrize(
    "statement",
    [
        "slot.state = 1",
        "slot.missed += 1",
        "slot.missed: int = 1",
        "self.slot.state = 1",
        "slot.uniques[1] = post",
        "del slot.uniques[1]",
        "a, slot.state = 1, 2",
        "a, *slot.state = 1, 2",
        "for slot.state in (): pass",
    ],
)
def test_a_write_from_outside_is_found(statement):
    assert len(writes_from_outside(f"def f(self, slot):\n    {statement}")) == 1


@pytest.mark.parametrize("statement", ["self.state = 1", "self.uniques[1] = post", "state = 1", "rows[1] = 2"])
def test_a_write_of_its_own_is_none(statement):
    assert writes_from_outside(f"def f(self, slot):\n    {statement}") == []
