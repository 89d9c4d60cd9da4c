from __future__ import annotations

import collections
import dataclasses
import datetime
import enum
import subprocess
import sys
import uuid
from decimal import Decimal
from types import MappingProxyType
from typing import Any, cast

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventsh.errors import NotSerializable, ProtocolError, UsageError
from eventsh.protocol import codec
from eventsh.protocol.codec import MAX_DEPTH, decode, encode_data, encode_name, parse_json

NAN = float("nan")

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT
)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner), max_leaves=30)


def lists(depth: int, inside: Any = None) -> Any:
    """`depth` lists, one in the other."""
    value: Any = [] if inside is None else [inside]
    for _ in range(depth - 1):
        value = [value]
    return value


def dicts(depth: int) -> Any:
    value: Any = {}
    for _ in range(depth - 1):
        value = {"a": value}
    return value


def refusal(data: Any) -> str:
    with pytest.raises(NotSerializable) as caught:
        encode_data(data)
    message = str(caught.value)
    assert message.isprintable()
    return message


@given(VALUES)
def test_json_values_come_back_as_they_were(value):
    assert decode(encode_data(value)) == value


@given(VALUES)
def test_what_is_typed_as_json_can_be_posted(value):
    typed = encode_data(value)
    assert encode_data(parse_json(typed)) == typed
    assert encode_data(parse_json(typed.decode())) == typed


@given(VALUES, st.sampled_from([NAN, float("inf"), float("-inf")]), st.data())
def test_nan_is_found_anywhere(value, number, draw):
    while draw.draw(st.booleans()):
        value = draw.draw(st.sampled_from([[1, None, value], {"x": None, "y": value}, (value,)]))
    for data in ([value, number], {"a": number, "b": value}, (value, {"c": [number]})):
        message = refusal(data)
        assert message.endswith((" is NaN, which JSON does not have", " is infinity, which JSON does not have"))


@given(VALUES)
def test_null_and_nan_in_text_are_no_reason_to_refuse(value):
    assert decode(encode_data([None, "null", "NaN", value])) == [None, "null", "NaN", value]


def test_tuples_arrive_as_lists():
    assert decode(encode_data((1, (2, 3)))) == [1, [2, 3]]


@dataclasses.dataclass
class Data:
    a: int = 1


class Colour(enum.Enum):
    RED = "red"
    BROKEN = NAN
    NOTHING = None
    DEEP = lists(150)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (NAN, "data is NaN, which JSON does not have"),
        ({"a": [0, 1, 2, NAN]}, 'data["a"][3] is NaN, which JSON does not have'),
        ([float("-inf")], "data[0] is infinity, which JSON does not have"),
        ({"n": 2**64}, 'data["n"] is an integer beyond 64 bits (-2^63 to 2^64-1): post it as a string'),
        ([-(2**63) - 1], "data[0] is an integer beyond 64 bits (-2^63 to 2^64-1): post it as a string"),
        ([10**5000], "data[0] is an integer beyond 64 bits (-2^63 to 2^64-1): post it as a string"),
        ({"a": {1: 2}}, 'data["a"] has a key 1 of type int: keys must be strings'),
        ({None: 2}, "data has a key None of type NoneType: keys must be strings"),
        ({10**5000: 2}, "data has a key of type int: keys must be strings"),
        ({Colour.RED: 2}, "data has a key of type tests.protocol.test_codec.Colour: keys must be strings"),
        (["\ud800"], "data[0] is a string with a lone surrogate, which UTF-8 can't express"),
        ({"\udcff": 1}, r"data has a key '\udcff' with a lone surrogate, which UTF-8 can't express"),
        ([b"x"], "data[0] is of type bytes, which is not JSON: convert it to a string, number, list or dict"),
        ([{1}], "data[0] is of type set, which is not JSON: convert it to a string, number, list or dict"),
        (
            {"at": datetime.date(2020, 1, 1)},
            'data["at"] is of type datetime.date, which is not JSON: convert it to a string, number, list or dict',
        ),
        ([Colour.BROKEN], "data[0] is NaN, which JSON does not have"),
        ({"a\n\x1b": [NAN]}, r"data['a\n\x1b'][0] is NaN, which JSON does not have"),
        ({'q"': [NAN]}, r'data["q\""][0] is NaN, which JSON does not have'),
        ([[None, orjson.Fragment(b"{")], NAN], "data[0][1] is an orjson.Fragment that is not JSON"),
        ([None, orjson.Fragment(cast("bytes", 3))], "data[1] is an orjson.Fragment that is not JSON"),
        ([type("a\nb", (), {"__module__": "m"})()], None),
    ],
)
def test_a_refusal_says_what_is_wrong_and_where(data, message):
    told = refusal(data)
    if message is not None:
        assert told == message.replace("tests.protocol.test_codec", __name__)


@pytest.mark.parametrize(
    "value",
    [
        Data(),
        collections.UserDict(),
        collections.UserString("x"),
        collections.deque(),
        MappingProxyType({}),
        range(3),
        Decimal(1),
        datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC),
        datetime.time(),
        bytearray(b"x"),
        memoryview(b"x"),
        frozenset(),
        1j,
        object(),
        len,
        int,
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_json_does_not_have_is_refused_at_any_place(value):
    assert "data is of type " in refusal(value)
    assert 'data["a"][0] is of type ' in refusal({"a": [value]})


def test_the_class_of_an_object_may_refuse_to_be_shown():
    class Rude:
        def __repr__(self) -> str:
            raise RuntimeError

        def __eq__(self, other: object) -> bool:
            raise RuntimeError

        def __hash__(self) -> int:
            return 1

    assert refusal([Rude()]).startswith("data[0] is of type ")
    assert refusal({Rude(): 1}).startswith("data has a key of type ")


def test_data_that_contains_itself_is_told_as_such():
    circle: list[Any] = [1]
    circle.append(circle)
    assert refusal(circle) == "data[1] is data again: data can't contain itself"
    knot: dict[str, Any] = {"b": {}}
    knot["b"]["c"] = [knot["b"]]
    assert refusal(knot) == 'data["b"]["c"][0] is data["b"] again: data can\'t contain itself'


def run(program: str) -> str:
    """Run what could end a whole process in one of its own."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done
    return done.stdout


@pytest.mark.parametrize(
    "build",
    [
        "data = []; data.append((data,))",
        "data = {}; data['a'] = (data,)",
        "data = []; data.append(((data, data), data))",
        "data = ()\nfor _ in range(50_000): data = (data,)",
        "data = ()\nfor _ in range(50_000): data = [(data,)]",
    ],
)
def test_tuples_neither_hide_a_circle_nor_depth(build):
    program = f"""{build}
from eventsh.errors import NotSerializable
from eventsh.protocol.codec import encode_data
try:
    encode_data(data)
except NotSerializable as error:
    print(error)
"""
    assert run(program).endswith(("contain itself\n", "deeper than 200 levels\n"))


def test_with_an_orjson_that_has_no_limit_for_tuples_the_verdict_is_the_same(monkeypatch):
    monkeypatch.setattr(codec, "write", codec._write_checked)
    shared = {"x": (None, 1)}
    assert decode(encode_data([shared, [shared]])) == [{"x": [None, 1]}, [{"x": [None, 1]}]]
    assert encode_data("x") == b'"x"'
    assert encode_data(lists(200)) == b"[" * 200 + b"]" * 200
    assert refusal(lists(201)).endswith("deeper than 200 levels")
    twice: list[Any] = []
    twice += [twice, twice]
    assert refusal(twice) == "data[0] is data again: data can't contain itself"


def test_one_object_may_stand_in_several_places():
    shared = {"x": None}
    assert decode(encode_data([shared, shared])) == [shared, shared]


@pytest.mark.parametrize("build", [lists, dicts, lambda depth: lists(depth - 1, {"a": None})])
def test_data_may_be_nested_200_deep_and_no_deeper(build):
    encoded = encode_data(build(MAX_DEPTH))
    assert parse_json(encoded) == build(MAX_DEPTH)
    assert decode(b'[["s","e",[' + encoded + b"]]]") == [["s", "e", [build(MAX_DEPTH)]]]
    assert refusal(build(MAX_DEPTH + 1)).endswith("is nested deeper than 200 levels")
    with pytest.raises(NotSerializable, match="nested deeper than 200 levels"):
        parse_json(orjson.dumps(build(MAX_DEPTH + 1)))


@pytest.mark.parametrize("build", [lists, dicts])
@pytest.mark.parametrize("depth", [253, 254, 255, 256, 1024, 100_000])
def test_what_is_too_deep_for_orjson_itself_gets_the_same_refusal(build, depth):
    value = build(depth)
    assert refusal(value).endswith("is nested deeper than 200 levels")
    # Taken apart by hand: not every version of Python frees as many levels without using up the stack.
    while value:
        value = value[0] if isinstance(value, list) else value["a"]


@given(
    st.lists(st.sampled_from("ldt"), min_size=199, max_size=202),
    st.sampled_from([[], {}, (), 1, None, "x"]),
    st.booleans(),
)
def test_the_limit_of_depth_is_the_same_for_lists_dicts_and_tuples(kinds, value, wide):
    depth = len(kinds) + isinstance(value, list | dict | tuple)
    for kind in kinds:
        value = {"l": [value], "d": {"a": value}, "t": (value,)}[kind]
    data = {"a": [[]] * 300, "b": value} if wide else [value]
    if depth + 1 <= MAX_DEPTH:
        assert parse_json(encode_data(data)) == decode(encode_data(data))
    else:
        assert refusal(data).endswith("is nested deeper than 200 levels")


def test_brackets_inside_of_strings_are_no_nesting():
    text = "[{" * 5000
    assert decode(encode_data([text])) == [text]
    assert parse_json(encode_data([text, '"', "\\"])) == [text, '"', "\\"]


def test_wide_data_is_no_deep_data():
    wide: list[Any] = [[{"a": [number]}] for number in range(1000)]
    assert decode(encode_data(wide)) == wide
    assert parse_json(encode_data(wide)) == wide


def test_the_place_of_a_deep_fault_is_shortened():
    told = refusal(lists(150, NAN))
    assert told == "data" + "[0]" * 6 + "..." + "[0]" * 6 + " is NaN, which JSON does not have"
    assert len(refusal({"k" * 10_000: NAN})) < 120


def test_uuids_and_enum_members_are_posted_as_what_they_stand_for():
    value = uuid.UUID(int=1)
    assert decode(encode_data([value, Colour.RED, Colour.NOTHING])) == [str(value), "red", None]
    assert decode(encode_data([None, value])) == [None, str(value)]


def test_a_fragment_is_written_as_it_is_with_a_null_too():
    fragment = orjson.Fragment(b'{"a":[1,null]}')
    assert encode_data(fragment) == b'{"a":[1,null]}'
    assert decode(encode_data([fragment, None, (1,)])) == [{"a": [1, None]}, None, [1]]


def test_the_depth_inside_of_an_enum_member_counts():
    assert encode_data(lists(50, Colour.DEEP)) == encode_data(lists(200))
    assert refusal(lists(51, Colour.DEEP)).endswith("is nested deeper than 200 levels")


def test_sixteen_mebibytes_of_string_are_carried():
    text = "é\0" * (16 * 1024 * 1024 // 8)
    encoded = encode_data(text)
    assert decode(encoded) == text
    assert parse_json(encoded) == text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b'{"a":1,"a":2}', {"a": 2}),
        (rb'"\u0000"', "\0"),
        (b"18446744073709551615", 2**64 - 1),
        (b"-9223372036854775808", -(2**63)),
        (rb'"\ud83d\ude00"', "\U0001f600"),
        (b"1.0000000000000000001", 1.0),
        (b"1e30", 1e30),
        (b"12345678901234567890123.5", 12345678901234567890123.5),
        (b'"12345678901234567890123"', "12345678901234567890123"),
        (
            b'{"12345678901234567890123":"a\\"12345678901234567890123"}',
            {"1234567890" * 2 + "123": 'a"' + "1234567890" * 2 + "123"},
        ),
    ],
)
def test_the_verdict_is_the_same_for_typed_text_and_for_the_wire(text, value):
    assert parse_json(text) == value == parse_json(text.decode())
    assert decode(text) == value == decode(encode_data(value))
    assert decode(memoryview(bytearray(text))) == decode(bytearray(text)) == value


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[",
        b"NaN",
        b"[1,]",
        b"1e400",
        rb'"\ud800"',
        b'"\xed\xa0\x80"',
        b"\xff",
        b"[1] 2",
        b"'a'",
        b"[" * 1_000_000,
        b"[" * 1_000_000 + b"]" * 1_000_000,
        b'{"a":' * 1_000_000,
    ],
    ids=range(13),
)
def test_bytes_that_are_not_json_break_the_rules_of_the_wire(text):
    with pytest.raises(ProtocolError, match="the body of a frame is not JSON"):
        decode(text)
    with pytest.raises(UsageError):
        parse_json(text)


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("", UsageError, "nothing there, where JSON was expected"),
        (" \n", UsageError, "nothing there, where JSON was expected"),
        ('{"a":1,}', UsageError, 'not JSON: trailing comma is not allowed (line 1 column 7: {"a":1,})'),
        ("[1,\n2,\n x]", UsageError, "not JSON: unexpected character (line 3 column 2:  x])"),
        (b"[1, \xff]", UsageError, "not UTF-8: byte 0xff at offset 4"),
        ("[1, NaN]", NotSerializable, "NaN is no JSON value (line 1 column 5: [1, NaN])"),
        ("[1, -Infinity]", NotSerializable, "-Infinity is no JSON value (line 1 column 5: [1, -Infinity])"),
        ("[1e400]", NotSerializable, "the number is beyond the range of a float (line 1 column 2: [1e400])"),
        (
            '["é",\n18446744073709551616]',
            NotSerializable,
            "an integer beyond 64 bits (-2^63 to 2^64-1): post it as a string (line 2 column 1: 18446744073709551616...)",
        ),
        ("-9223372036854775809", NotSerializable, None),
        ("9" * 10_000, NotSerializable, None),
        (
            '["\ud800"]',
            NotSerializable,
            r"""a lone surrogate, which UTF-8 can't express (line 1 column 3: ["\ud800"])""",
        ),
        (r'["\udc00"]', NotSerializable, None),
        ("[" * 201, NotSerializable, f"nested deeper than 200 levels (line 1 column 201: ...{'[' * 21})"),
        ("[" * 1_000_000, NotSerializable, f"nested deeper than 200 levels (line 1 column 201: ...{'[' * 40}...)"),
        ('{"a":' * 300 + "1" + "}" * 300, NotSerializable, None),
        (
            "x" * 100,
            UsageError,
            f"not JSON: unexpected character (line 1 column 1: {'x' * 20}...)",
        ),
        ('["\x1b[31m"]', UsageError, None),
    ],
)
def test_an_error_in_typed_json_names_its_place_in_one_line(text, kind, message):
    with pytest.raises(UsageError) as caught:
        parse_json(text)
    assert type(caught.value) is kind
    # Newer versions of orjson say more here.
    told = str(caught.value).replace(", expected a JSON value", "")
    assert told.isprintable()
    assert len(told) < 200
    if message is not None:
        assert told == message


@given(st.text(max_size=40))
@settings(max_examples=200)
def test_any_text_is_read_or_refused_with_a_printable_message(text):
    try:
        encode_data(parse_json(text))
    except UsageError as error:
        assert str(error).isprintable()


def test_names_are_written_as_json_strings():
    class Name(enum.StrEnum):
        PURGE = "purge"

    assert encode_name('a"é') == '"a\\"é"'.encode()
    assert encode_name(Name.PURGE) == b'"purge"'


def test_a_name_with_a_lone_surrogate_is_refused():
    with pytest.raises(UsageError, match=r"the name '\\udcff' has a lone surrogate"):
        encode_name("\udcff")
