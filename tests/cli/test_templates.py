from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventsh.cli.templates import FIELDS, Template
from eventsh.errors import UsageError

EVENT = {
    "source": "cache",
    "event": "purge",
    "data": {"user": ["ann", {"id": 7}], "0": "zero", "a]b": 1, 'q"': 2, "none": None, "evil": "\x1b[2J\n"},
    "pid": 4711,
    "time": "12:00:01.5",
    "seq": 9,
}


@pytest.mark.parametrize(
    ("template", "line"),
    [
        ("", ""),
        ("plain", "plain"),
        ("{source}/{event} {pid} {time} {seq}", "cache/purge 4711 12:00:01.5 9"),
        (r"{source}\t{event}\n\\n", "cache\tpurge\n\\n"),
        ("{{source}} {{{source}}}", "{source} {cache}"),
        ("{data[user]}", '["ann",{"id":7}]'),
        ("{data[user][0]}", "ann"),
        ("{data[user][-1][id]}", "7"),
        ('{data["user"][1]["id"]}', "7"),
        ("{data[0]}", "zero"),
        ('{data["a]b"]} {data["q\\""]}', "1 2"),
        ("{data[none]}", "null"),
        (
            "{data[nothing]} {data[user][2]} {data[user][-3]} {data[user][x]} {data[user][0][0]} {data[none][a]}",
            "- - - - - -",
        ),
        ("{data[user][99999999999999999999]} {data[user][\u0661]}", "- -"),
        ("{data[evil]}", r"\x1b[2J\n"),
        ("\x1b[1m{source}", "\x1b[1mcache"),
    ],
)
def test_fields_are_filled_in(template, line):
    assert Template(template).render(EVENT) == line


def test_data_is_compact_json():
    assert Template("{data}").render({"data": {"a": ["é", "\x1b"]}}) == r'{"a":["é","\u001b"]}'
    assert Template("{data}").render({"data": "text"}) == '"text"'
    assert Template("{data}").render({"data": None}) == "null"


def test_what_an_event_does_not_have_is_a_dash():
    assert Template("{source} {pid} {seq}").render({"source": "s", "pid": None}) == "s - -"


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_is_escaped(field):
    line = Template(f"{{{field}}}").render({field: "\x1b]0;x\x07\n\u202e"})
    assert line.isprintable()


@pytest.mark.parametrize(
    "template",
    [
        "{data.__class__}",
        "{data.user}",
        "{user}",
        "{}",
        "{0}",
        "{source!r}",
        "{source:>10}",
        "{ source }",
        "{Source}",
        "{x\x1b\n}",
    ],
)
def test_an_unknown_field_is_refused_with_the_list_of_fields(template):
    with pytest.raises(UsageError) as caught:
        Template(template)
    message = str(caught.value)
    assert message.isprintable()
    assert "fields: {source}, {event}, {data}, {pid}, {time}, {seq}, and {data[key]}" in message


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{source[0]}", "{source} has nothing inside that could be looked up: only {data} has"),
        ("ab{source", "the template is wrong at character 3: a { that does not open a field"),
        ("{data[a}", "the template is wrong at character 1: a { that does not open a field"),
        ("{data[]}", "the template is wrong at character 1: a { that does not open a field"),
        ("{data[a]b}", "the template is wrong at character 1: a { that does not open a field"),
        ("a}", "the template is wrong at character 2: a } without its {"),
        ("a\\", "the template is wrong at character 2: a backslash at the end"),
        (r"\x1b", r"the template has \x: there are only \n, \t and \\"),
        (r'{data["\x"]}', r'"\x" is not a key'),
    ],
)
def test_what_is_no_template_is_refused(template, message):
    with pytest.raises(UsageError) as caught:
        Template(template)
    assert message in str(caught.value)


def test_attributes_and_code_of_objects_are_out_of_reach():
    class Object:
        secret = "secret"

        def __getitem__(self, key: object) -> str:
            raise AssertionError("called")

    class Items(list[Any]):
        def __getitem__(self, key: object) -> str:  # type: ignore[override]
            raise AssertionError("called")

        def __len__(self) -> int:
            raise AssertionError("called")

    made: defaultdict[str, list[int]] = defaultdict(list)
    assert Template("{data[secret]} {data[__class__]}").render({"data": Object()}) == "- -"
    assert Template("{data[0]}").render({"data": Items(["a"])}) == "a"
    assert Template("{data[a]}").render({"data": made}) == "-"
    assert not made


def test_tuples_of_local_events_are_looked_into():
    assert Template("{data[1][0]}").render({"data": (1, ("x",))}) == "x"


@given(st.text(alphabet='{}[]"\\nt ab0data.source!:-'), st.recursive(st.none() | st.text(), st.lists))
def test_any_text_is_a_template_or_refused(text, data):
    try:
        template = Template(text)
    except UsageError as error:
        assert str(error).isprintable()
    else:
        assert isinstance(template.render({"data": data}), str)
