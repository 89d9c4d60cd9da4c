"""Bounds of the codec, from inside: what is checked at which size, what sound data never pays for, and how errors are cut."""

from __future__ import annotations

import enum
import uuid
from typing import Any

import orjson
import pytest

from eventsh.errors import NotSerializable, UsageError
from eventsh.protocol import codec
from eventsh.protocol.codec import MAX_DEPTH, SURE_BYTES, check_integers, check_written, decode, encode_data, parse_json

NAN = float("nan")


def lists(depth: int, inside: Any = None) -> Any:
    value: Any = [] if inside is None else [inside]
    for _ in range(depth - 1):
        value = [value]
    return value


def wrapped(value: Any, levels: int) -> Any:
    for _ in range(levels):
        value = [value]
    return value


def is_written(value: Any) -> bool:
    try:
        orjson.dumps(value)
    except TypeError:
        return False
    return True


def refusal(data: Any) -> str:
    with pytest.raises(NotSerializable) as caught:
        encode_data(data)
    return str(caught.value)


class Mark(enum.Enum):
    ONE = 1


# --- what orjson is relied on for ---


def test_levels_of_orjson_beyond_ours_are_known():
    assert is_written(wrapped(lists(MAX_DEPTH), codec._SPARE_LEVELS))
    assert not is_written(wrapped(lists(MAX_DEPTH + 1), codec._SPARE_LEVELS))
    assert (MAX_DEPTH, SURE_BYTES) == (200, 400)


def test_the_walk_before_writing_is_only_for_an_orjson_without_a_limit_for_tuples():
    value: Any = ()
    for _ in range(300):
        value = (value,)
    assert (codec.write is orjson.dumps) == (not is_written(value))
    assert codec._limits_tuples() == (not is_written(value))


@pytest.mark.parametrize("depth", [199, 200, 201])
def test_the_walk_has_the_limit_of_the_codec(depth):
    for value in (lists(depth), wrapped((), depth - 1), wrapped({}, depth - 1), wrapped({"a": 1}, depth - 1)):
        if depth <= MAX_DEPTH:
            assert codec._write_checked(value, None, codec.OPTIONS) == orjson.dumps(value)
        else:
            with pytest.raises(TypeError, match="nested too deeply"):
                codec._write_checked(value, None, codec.OPTIONS)


def test_the_walk_finds_containers_in_each_other():
    deep = lists(MAX_DEPTH)
    for value in ({"a": 1, "b": [deep]}, ([1], {"x": {"y": deep}}), [deep, 1]):
        with pytest.raises(TypeError, match="nested too deeply"):
            codec._write_checked(value, None, codec.OPTIONS)


# --- data that is sound is not copied ---


SOUND = [
    None,
    "null",
    [None, 1.5, "x", True, 2**63],
    (None, (1, 2.0), {"a": (None,)}),
    [None, uuid.UUID(int=1), [uuid.UUID(int=2), 0.0]],
    lists(MAX_DEPTH, None),
    lists(MAX_DEPTH - 1, (None,)),
    {"a": {"b": [None, {"c": -1e308}]}},
    [[None, number, {"a": [number]}] for number in range(1000)],
    "x" * 1000,
    [{"a": []}] * 500,
]


@pytest.mark.parametrize("data", SOUND, ids=range(len(SOUND)))
def test_sound_data_is_never_copied(monkeypatch, data):
    def refuse(data: Any) -> Any:
        raise AssertionError("sound data was copied")

    monkeypatch.setattr(codec, "to_plain", refuse)
    assert encode_data(data) == orjson.dumps(data)


def test_data_that_comes_back_is_not_walked_through(monkeypatch):
    def refuse(data: Any) -> bool:
        raise AssertionError("data that comes back was walked through")

    monkeypatch.setattr(codec, "_is_sound", refuse)
    several: list[Any] = [None, [None], {"a": None, "b": ["null", 1.5]}, [{"a": []}] * 500, "x" * 1000, lists(200)]
    for data in several:
        assert encode_data(data) == orjson.dumps(data)


@pytest.mark.parametrize(
    "data",
    [
        NAN,
        [NAN],
        [1.5, NAN],
        {"a": float("inf")},
        [[[-float("inf")]]],
        [Mark.ONE],
        [[], [Mark.ONE]],
        [object()],
        lists(MAX_DEPTH + 1),
        lists(MAX_DEPTH, [1]),
        [[1.5], [[NAN]]],
    ],
)
def test_a_fault_is_not_sound(data):
    assert codec._is_sound(data) is False


@pytest.mark.parametrize("data", SOUND, ids=range(len(SOUND)))
def test_the_walk_for_soundness_accepts_sound_data(data):
    assert codec._is_sound(data) is True


def test_a_value_is_checked_where_it_may_have_been_written_as_null():
    for data in (NAN, [NAN], {"a": NAN}, ["null", NAN], [None] * 200 + [NAN]):
        assert refusal(data).endswith("is NaN, which JSON does not have")
    # The caller says what was written.
    check_written(b"null", None)
    with pytest.raises(NotSerializable):
        check_written(b"null", NAN)


@pytest.mark.parametrize("opening", ["l", "d", "ld", "dl"])
def test_depth_is_counted_over_lists_and_dicts(opening):
    for depth in (MAX_DEPTH, MAX_DEPTH + 1):
        value: Any = 1
        for number in range(depth):
            value = [value] if opening[number % len(opening)] == "l" else {"": value}
        if depth == MAX_DEPTH:
            assert decode(encode_data(value)) == value
        else:
            assert refusal(value).endswith("is nested deeper than 200 levels")


def test_brackets_are_counted_to_the_last_one():
    assert codec._count_opened(b'[[1],{"a":[]}]') == 4
    assert codec._count_opened(b"1") == 0
    assert codec._count_opened(b"[") == codec._count_opened(b"{") == 1
    assert codec._count_opened(b'{"a":"x' + b"x" * 1000 + b'"}') == 1


# --- numbers ---


@pytest.mark.parametrize("number", [-(2**63), -(2**63) + 1, 2**64 - 1, 0, -1, 10**18, 10**19])
def test_integers_within_64_bits_are_typed_and_posted(number):
    assert parse_json(str(number)) == decode(encode_data(number)) == number
    check_integers(f"[{number}]")


@pytest.mark.parametrize("number", [-(2**63) - 1, 2**64, 10**20, -(10**19), 10**30])
def test_integers_beyond_64_bits_are_refused_typed_and_posted(number):
    assert "beyond 64 bits" in refusal(number)
    for text in (f"{number}", f"[1,{number}]", f'{{"a":"1",\n"b":{number}}}'):
        with pytest.raises(NotSerializable, match="an integer beyond 64 bits"):
            parse_json(text)
    # Behind a long number that is within them, and a string that is not a number.
    with pytest.raises(NotSerializable):
        check_integers(f'["{10**25}", {10**18}, {number}]')


def test_long_numbers_with_a_fraction_or_in_a_string_are_no_integers():
    check_integers(f'["{10**25}", {10**25}.5, {10**25}e1, 1e{10**19}, "\\"{10**25}"]')
    check_integers("9" * 18)


# --- errors ---


@pytest.mark.parametrize(
    ("key", "shown"),
    [
        ("k" * 57 + "X", '"' + "k" * 57 + 'X"'),
        ("k" * 58 + "X", '"' + "k" * 39 + "..." + "k" * 8 + 'X"'),
    ],
)
def test_a_key_in_a_place_is_shortened_above_60_characters(key, shown):
    assert refusal({key: NAN}) == f"data[{shown}] is NaN, which JSON does not have"


def test_a_long_place_keeps_its_first_and_last_six_steps():
    def place(depth: int) -> str:
        data: Any = NAN
        for number in reversed(range(depth)):
            data = [0] * number + [data]
        return refusal(data).removesuffix(" is NaN, which JSON does not have")

    assert place(12) == "data" + "".join(f"[{number}]" for number in range(12))
    first, last = ("".join(f"[{number}]" for number in numbers) for numbers in (range(6), range(7, 13)))
    assert place(13) == f"data{first}...{last}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        # 20 characters before the place and 20 from it on.
        ("[" + " " * 19 + "x", "(line 1 column 21: [" + " " * 19 + "x)"),
        ("[" + " " * 20 + "x", "(line 1 column 22: ..." + " " * 20 + "x)"),
        ("x" * 20, "(line 1 column 1: " + "x" * 20 + ")"),
        ("x" * 21, "(line 1 column 1: " + "x" * 20 + "...)"),
        ("[\n" + " " * 20 + "x", "(line 2 column 21: " + " " * 20 + "x)"),
        ("[\n" + " " * 21 + "x", "(line 2 column 22: ..." + " " * 20 + "x)"),
        ("[\n1,\n\nx\n]", "(line 4 column 1: x)"),
        ("[\tx]", r"(line 1 column 3: [\tx])"),
    ],
)
def test_an_excerpt_is_the_line_around_the_place(text, message):
    with pytest.raises(UsageError) as caught:
        parse_json(text)
    assert str(caught.value).endswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[+1]", "not JSON: "),
        ("[nan]", "nan is no JSON value (line 1 column 2: [nan])"),
        ("[-inf]", "-inf is no JSON value (line 1 column 2: [-inf])"),
        ("[+Infinity]", "+Infinity is no JSON value (line 1 column 2: [+Infinity])"),
        ("NaN", "NaN is no JSON value (line 1 column 1: NaN)"),
        ("-NaN", "-NaN is no JSON value (line 1 column 1: -NaN)"),
        ("[nano]", "not JSON: "),
        ("[infinit]", "not JSON: "),
        ("[-1e400]", "the number is beyond the range of a float (line 1 column 2: [-1e400])"),
        ('["infinity" x]', "not JSON: "),
        ("\t", "nothing there, where JSON was expected"),
        (b"", "nothing there, where JSON was expected"),
        (b'["\xff"]', "not UTF-8: byte 0xff at offset 2"),
        ("a\ud800b", "a lone surrogate, which UTF-8 can't express (line 1 column 2: "),
    ],
)
def test_the_cause_is_named_in_words_of_the_codec(text, message):
    with pytest.raises(UsageError) as caught:
        parse_json(text)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("opened", ["[", '{"a":'])
@pytest.mark.parametrize("depth", [200, 201])
def test_typed_depth_counts_what_is_open_at_a_place(opened, depth):
    closing = "]" if opened == "[" else "}"
    text = opened * depth + "1" + closing * depth
    # Closed ones don't count, and neither do brackets in a string.
    for value in (text, f"[1,{'[],' * 300}1]", f'["{"[" * 300}",{opened * (depth - 2)}1{closing * (depth - 2)}]'):
        if value is text and depth > MAX_DEPTH:
            with pytest.raises(NotSerializable) as caught:
                parse_json(value)
            column = len(opened) * 200 + 1
            assert f"nested deeper than 200 levels (line 1 column {column}: " in str(caught.value)
        else:
            assert parse_json(value) == orjson.loads(value)


def test_text_that_ends_too_early_says_so_before_its_depth_counts():
    for text in ("[" * 200, '{"a":' * 200, "[[1, 2"):
        with pytest.raises(UsageError, match="not JSON: unexpected end of data"):
            parse_json(text)


def test_a_key_that_is_no_string_is_shown_if_that_is_short_and_safe():
    for key, shown in (
        (1, "1 of type int"),
        (True, "True of type bool"),
        (None, "None of type NoneType"),
        (1.5, "1.5 of type float"),
    ):
        assert refusal({key: 1}) == f"data has a key {shown}: keys must be strings"
    for hidden in (2**64, -(2**63) - 1, (1,), b"x"):
        assert refusal([{hidden: 1}]).startswith("data[0] has a key of type ")
    for number in (2**64 - 1, -(2**63)):
        assert refusal({number: 1}) == f"data has a key {number} of type int: keys must be strings"


def test_types_are_named_with_their_module_and_printable():
    odd = type("a\nb", (), {"__module__": "m"})
    assert refusal(odd()).startswith(r"data is of type m.a\nb, which is not JSON")
    assert refusal(Ellipsis).startswith("data is of type ellipsis, which is not JSON")


def test_an_enum_member_is_its_value_however_often_that_is_a_member():
    def name(value: Any) -> Any:
        class Link(enum.Enum):
            ONE = value

        return Link.ONE

    member: Any = "end"
    for _ in range(150):
        member = name(member)
    assert encode_data([member]) == b'["end"]'
