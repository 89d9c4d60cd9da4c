"""Code as it is typed: what is wrong and where, and what is only not finished."""

from __future__ import annotations

import ast

import pytest

from eventsh.runtime.code import CodeError, is_complete_code, parse_code, plain_code


@pytest.mark.parametrize(
    "code", [" print(data)", " x = 1; print(x)", "\n  if data:\n    return 1\n", " await thing()", " 'é'", " pass\n"]
)
def test_code_is_read(code):
    parse_code(code)


@pytest.mark.parametrize(
    ("code", "position", "incomplete"),
    [
        (" print(data", None, True),
        (" x = [1,", None, True),
        ("", None, True),
        ("\n    if data:", None, True),
        ("\n    x = '''abc", None, True),
        (" x ==", None, False),
        (" 1 +* 2", 4, False),
        ("\n    x = 1\n    y = $\n", 19, False),
        (" if data: 1 +* 2", 13, False),
        ("\n    x = 1\n  y = 2\n", None, False),
        ("\nx = 1\n", None, False),
    ],
)
def test_a_mistake_has_its_place_in_what_was_typed(code, position, incomplete):
    with pytest.raises(CodeError) as raised:
        parse_code(code)
    assert raised.value.is_incomplete is incomplete
    assert 0 <= raised.value.position <= len(code)
    if position is not None:
        assert raised.value.position == position


@pytest.mark.parametrize(
    ("code", "complete"),
    [
        (" print(data)", True),
        (" print(", False),
        (" if data:", False),
        (" if data: print(1)", True),
        ("", False),
        ("\n    print(1)", False),
        ("\n    print(1)\n", True),
        ("\n    print(1)\n    ", True),
        (" x = 1\n    ", True),
    ],
)
def test_an_empty_row_ends_a_block(code, complete):
    assert is_complete_code(code) is complete


def test_rows_are_numbered_as_a_person_counts_them():
    assert plain_code(" print(1)") == "print(1)\n"
    assert plain_code("\n    x = 1\n    y\n") == "    x = 1\n    y\n"
    assert plain_code(" if x:\n    y\n") == "if x:\n    y\n"
    assert [node.lineno for node in parse_code("\n    x = '''\n  a'''\n    y\n")] == [1, 3]


def test_blanks_in_strings_stay_as_they_are():
    (statement,) = parse_code("\n    '''a\n  b'''\n")
    assert isinstance(statement, ast.Expr)
    assert ast.literal_eval(statement.value) == "a\n  b"
