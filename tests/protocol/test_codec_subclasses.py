"""Subclasses as the data of events: encoded as their base, by one rule at every depth."""

from __future__ import annotations

import enum
import uuid
import weakref
from collections import Counter, OrderedDict, defaultdict
from typing import Any, TypedDict
from unittest import mock

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventsh.errors import NotSerializable
from eventsh.protocol import codec
from eventsh.protocol.codec import MAX_DEPTH, decode, encode_data, encode_name
from tests.protocol.dresses import Items, Markup, Number, Pair, Real, Row, Sorted, Table, Text, dress

NAN = float("nan")


class Apart(str):
    """A string that differs from every other one."""

    __slots__ = ()
    __eq__ = object.__eq__
    __hash__ = object.__hash__


class Typed(TypedDict):
    a: int


class Loud(enum.EnumMeta):
    """Enums with a metaclass of their own, as those of Django, are unknown to orjson."""


class Choice(enum.StrEnum, metaclass=Loud):
    A = "a"
    B = "b"


class Word(enum.StrEnum):
    A = "a"


class Digit(enum.IntEnum):
    ONE = 1


class Bits(enum.IntFlag):
    ONE = 1
    TWO = 2


class Part(enum.Enum):
    PAIR = Pair(1, 2)
    TEXT = Markup("x")
    OTHER = Digit.ONE


class Own(uuid.UUID):
    pass


def same(value: Any, other: Any) -> bool:
    """Equal, with equal types at every depth, and keys in equal order."""
    if type(value) is not type(other):
        return False
    if isinstance(value, dict):
        return list(value) == list(other) and all(same(value[key], other[key]) for key in value)
    if isinstance(value, list):
        return len(value) == len(other) and all(map(same, value, other))
    return bool(value == other)


TEXT = st.text(st.characters(exclude_categories=["Cs"]))
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT
)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner), max_leaves=20)


DRAWS = st.randoms(use_true_random=False)


@given(VALUES, DRAWS)
def test_subclasses_arrive_as_their_bases_at_any_place(value, draw):
    encoded = encode_data(dress(value, draw))
    assert encoded == orjson.dumps(value)
    assert same(decode(encoded), value)


@given(VALUES, DRAWS, st.sampled_from([NAN, float("inf"), 2**64, "\ud800", {1: 2}, b"x", {"\udfff": 1}]))
def test_a_fault_between_subclasses_is_named_as_between_plain_values(value, draw, fault):
    with pytest.raises(NotSerializable) as plain:
        encode_data([value, {"a": (fault,)}])
    with pytest.raises(NotSerializable) as own:
        encode_data(Items([dress(value, draw), Table({Markup("a"): Row((fault,))})]))
    assert str(own.value) == str(plain.value)
    assert str(own.value).startswith('data[1]["a"][0] ')


@pytest.mark.parametrize(
    ("build", "plain"),
    [
        (lambda: OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
        (lambda: Counter("aab"), {"a": 2, "b": 1}),
        (lambda: defaultdict(None, {"a": (1, None)}), {"a": [1, None]}),
        (lambda: Pair(1, Pair("x", None)), [1, ["x", None]]),
        (lambda: Typed(a=1), {"a": 1}),
        (lambda: Markup("<b>"), "<b>"),
        (lambda: {Markup("k"): 1}, {"k": 1}),
        (lambda: {Word.A: 1, Choice.B: Choice.A}, {"a": 1, "b": "a"}),
        (lambda: [Digit.ONE, Bits.ONE | Bits.TWO, Bits(0), Word.A, Choice.A], [1, 3, 0, "a", "a"]),
        (lambda: [Part.PAIR, Part.TEXT, Part.OTHER], [[1, 2], "x", 1]),
        (lambda: Own(int=1), str(uuid.UUID(int=1))),
        (lambda: [Pair(1, uuid.UUID(int=2))], [[1, str(uuid.UUID(int=2))]]),
        (lambda: [Pair(orjson.Fragment(b'{"a":null}'), 1)], [[{"a": None}, 1]]),
        (lambda: [True, Number(1), Real(1.0), Number(2**64 - 1)], [True, 1, 1.0, 2**64 - 1]),
        (lambda: Pair("NaN null", None), ["NaN null", None]),
    ],
)
def test_known_subclasses(build, plain):
    assert same(decode(encode_data(build())), plain)


def test_an_ordered_dict_keeps_its_own_order():
    data: OrderedDict[str, Any] = OrderedDict(a=1, b=2, c=3)
    data.move_to_end("a")
    data.move_to_end("c", last=False)
    assert encode_data(data) == b'{"c":3,"b":2,"a":1}'
    assert encode_data(Sorted(data)) == encode_data(data)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Real(NAN), "data is NaN, which JSON does not have"),
        (lambda: {"a": Row((1, Real("-inf")))}, 'data["a"][1] is infinity, which JSON does not have'),
        (lambda: [Number(2**64)], "data[0] is an integer beyond 64 bits (-2^63 to 2^64-1): post it as a string"),
        (
            lambda: Pair(0, Number(-(2**63) - 1)),
            "data[1] is an integer beyond 64 bits (-2^63 to 2^64-1): post it as a string",
        ),
        (lambda: Text("\ud800"), "data is a string with a lone surrogate, which UTF-8 can't express"),
        (lambda: {Markup("\ud800"): 1}, r"data has a key '\ud800' with a lone surrogate, which UTF-8 can't express"),
        (lambda: Counter([1, 1]), "data has a key 1 of type int: keys must be strings"),
        (lambda: Table({Digit.ONE: 2}), f"data has a key of type {__name__}.Digit: keys must be strings"),
        (lambda: {"a": 1, Apart("a"): 2}, 'data has the key "a" twice, as different types: one would be lost'),
        (
            lambda: [OrderedDict({Apart("a"): 1, Word.A: 2})],
            'data[0] has the key "a" twice, as different types: one would be lost',
        ),
        (lambda: Pair(orjson.Fragment(b"{"), 1), "data[0] is an orjson.Fragment that is not JSON"),
    ],
)
def test_a_refusal_says_what_is_wrong_and_where(build, message):
    # Built within, because pytest shows parameters by the code of their classes.
    with pytest.raises(NotSerializable) as caught:
        encode_data(build())
    assert str(caught.value) == message


def _chain(depth: int, kinds: list[Any], inside: Any = None) -> Any:
    value = inside
    for number in range(depth):
        value = kinds[number % len(kinds)](value)
    return value


KINDS = [
    lambda value: Items([value]),
    lambda value: Row((value,)),
    lambda value: Table({"a": value}),
    lambda value: [value],
    lambda value: OrderedDict(a=value),
    lambda value: Pair(value, None),
    lambda value: {"a": value},
    lambda value: (value,),
]


@pytest.mark.parametrize("kinds", [[kind] for kind in KINDS] + [KINDS])
def test_the_limit_of_depth_counts_subclasses(kinds):
    inside = Number(1)
    encoded = encode_data(_chain(MAX_DEPTH, kinds, inside))
    assert encoded == encode_data(decode(encoded))
    for depth in (MAX_DEPTH + 1, 254, 255, 1024):
        with pytest.raises(NotSerializable, match="is nested deeper than 200 levels"):
            encode_data(_chain(depth, kinds, inside))


def test_the_depth_within_a_nearly_exhausted_stack_is_that_of_any_other():
    data = _chain(MAX_DEPTH, KINDS, Number(1))

    def call(depth: int) -> bytes:
        try:
            return call(depth + 1)
        except RecursionError:
            # A margin for the few calls of the codec itself, far from one for each level.
            if depth % 50:
                raise
            return encode_data(data)

    assert call(0) == encode_data(data)


@pytest.mark.parametrize("own", [Items, Table, OrderedDict, defaultdict])
def test_data_that_contains_itself_through_a_subclass_is_refused(own):
    data = own()
    inside = Row((Pair(0, data),))
    if own is Items:
        data.append(inside)
    else:
        data["a"] = inside
    place = "[0][0][1]" if own is Items else '["a"][0][1]'
    with pytest.raises(NotSerializable) as caught:
        encode_data(data)
    assert str(caught.value) == f"data{place} is data again: data can't contain itself"
    with pytest.raises(NotSerializable, match=r"is data\[1\] again"):
        encode_data([1, data])


def test_an_enum_member_whose_value_is_itself_is_refused():
    class Turning(enum.Enum, metaclass=Loud):
        A = 1

    Turning.A._value_ = Turning.A  # type: ignore[assignment]
    with pytest.raises(
        NotSerializable, match=r"data\[0\] is a member of .*Turning that has no value but members of an Enum"
    ):
        encode_data([Turning.A])
    Turning.A._value_ = [Turning.A]  # type: ignore[assignment]
    with pytest.raises(NotSerializable, match=r"data\[0\] is data again"):
        encode_data(Turning.A)


def test_an_exception_out_of_the_value_of_an_enum_is_not_swallowed():
    class Interrupt(Exception):
        pass

    class Closed(enum.Enum, metaclass=Loud):
        A = 1

        @property
        def value(self) -> Any:
            raise Interrupt

    with pytest.raises(Interrupt):
        encode_data([Closed.A])


def test_what_claims_another_class_is_judged_by_its_own():
    od = OrderedDict(a=1)
    for pretender in (mock.Mock(spec=dict), mock.MagicMock(spec=str), weakref.proxy(od)):
        with pytest.raises(NotSerializable, match=r"data\[0\] is of type .*, which is not JSON"):
            encode_data([pretender])
        with pytest.raises(NotSerializable, match=r"data\[0\]\[0\] is of type .*, which is not JSON"):
            encode_data([Pair(pretender, 1)])


def test_with_an_orjson_that_has_no_limit_for_tuples_subclasses_have_the_same_verdict(monkeypatch):
    monkeypatch.setattr(codec, "write", codec._write_checked)
    assert decode(encode_data(Pair(Row((1,)), Table(a=None)))) == [[1], {"a": None}]
    with pytest.raises(NotSerializable, match="is nested deeper than 200 levels"):
        encode_data(_chain(MAX_DEPTH + 1, KINDS))


def test_names_are_the_strings_themselves():
    assert encode_name(Text("x")) == b'"x"'
    assert encode_name(Choice.A) == b'"a"'
