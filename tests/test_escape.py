from __future__ import annotations

import sys
from unicodedata import category

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventsh.escape import escape, render_data

UNSAFE = {"Cc", "Cf", "Cs", "Zl", "Zp"}

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
    max_leaves=20,
)


def is_safe(text: str) -> bool:
    return not any(category(character) in UNSAFE for character in text)


def test_no_unsafe_character_of_all_unicode_passes_and_all_others_stay():
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        escaped = escape(f"a{character}b")
        if category(character) in UNSAFE:
            assert escaped.isascii()
            assert escaped.isprintable()
            assert escaped.startswith("a\\")
            assert escaped.endswith("b")
        else:
            assert escaped == f"a{character}b"


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("plain", "plain"),
        ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
        ("a\nb\rc\td\0", r"a\nb\rc\td\x00"),
        ("\x7f\x9b2J", r"\x7f\x9b2J"),
        ("\u202eevil\u2066\u200f\u061c", r"\u202eevil\u2066\u200f\u061c"),
        ("\u200b\ufeff\u00ad\u2028\u2029", r"\u200b\ufeff\xad\u2028\u2029"),
        ("\ud800", r"\ud800"),
        ("\U000e0041", r"\U000e0041"),
        ("\u00e9\u4e2d\U0001f600\u00a0\ue000\u0378", "\u00e9\u4e2d\U0001f600\u00a0\ue000\u0378"),
        ("C:\\new", "C:\\new"),
    ],
)
def test_unsafe_characters_are_escaped(text, escaped):
    assert escape(text) == escaped


@given(st.text(st.characters()))
def test_nothing_unsafe_is_left_of_any_text(text):
    assert is_safe(escape(text))
    assert is_safe(render_data({text: text}))
    assert is_safe(render_data({text, "\ud800"}))


@given(JSON)
def test_json_stays_json(data):
    rendered = render_data(data)
    assert is_safe(rendered)
    assert orjson.loads(rendered) == data


def test_data_is_compact_json():
    assert render_data({"a": [1, None, "é\x1b\u202e\x9b\n"]}) == r'{"a":[1,null,"é\u001b\u202e\u009b\n"]}'
    assert render_data("\U000e0041") == r'"\udb40\udc41"'


def test_what_is_no_json_is_shown_by_its_repr():
    class Rude:
        def __repr__(self) -> str:
            raise RuntimeError("\x1b")

    class Escaping:
        def __repr__(self) -> str:
            return "\x1b[2J\n"

    circle: list[object] = []
    circle.append(circle)
    assert render_data({1: float("nan")}) == "{1: nan}"
    assert render_data(circle) == "[[...]]"
    assert render_data(Escaping()) == r"\x1b[2J\n"
    assert render_data(Rude()) == "<Rude object whose repr raised RuntimeError>"
    assert render_data(10**5000).startswith("<int object whose repr raised ValueError")


@given(st.text(), st.integers(1, 30))
def test_no_more_than_max_chars_are_shown(text, max_chars):
    whole = render_data(text)
    shown = render_data(text, max_chars=max_chars)
    assert len(shown) <= max_chars
    assert is_safe(shown)
    assert shown == whole if len(whole) <= max_chars else shown == whole[: max_chars - 1] + "…"
