"""How a typed line is taken apart."""

from __future__ import annotations

import pytest

from eventsh.shell.line import parse_line

CODE = frozenset({"register"})


def texts(line: str) -> list[str]:
    return [word.text for word in parse_line(line).words]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", []),
        ("  post  a b ", ["post", "a", "b"]),
        ('post a b <"k":1>', ["post", "a", "b", '<"k":1>']),
        ('post a b {"k": [1, 2]} --wait', ["post", "a", "b", '{"k": [1, 2]}', "--wait"]),
        ('post a b {"k": "}"}', ["post", "a", "b", '{"k": "}"}']),
        ('post a b {"k": "\\"}"}', ["post", "a", "b", '{"k": "\\"}"}']),
        ("post a b [1, {}]", ["post", "a", "b", "[1, {}]"]),
        ("post 'my source' b", ["post", "my source", "b"]),
        ('post "my source" b', ["post", "my source", "b"]),
        ("post a b key='x y' n:={\"a\": 1}", ["post", "a", "b", "key=x y", 'n:={"a": 1}']),
        ("tail '*' a[bc]", ["tail", "*", "a[bc]"]),
    ],
)
def test_words(line, words):
    assert texts(line) == words


def test_data_keeps_the_quotes_that_make_it_a_string():
    words = parse_line('post a b "x y"').words
    assert (words[3].text, words[3].data) == ("x y", '"x y"')
    (_, pair, typed) = parse_line('post key="x y" k:="1"').words
    assert (pair.data, typed.data) == ("key=x y", 'k:="1"')


@pytest.mark.parametrize("line", ['post a b {"k": 1', "post a b [1, [2]", "post 'a", 'post a b "x', 'post a b <"k":1'])
def test_what_is_not_closed_is_marked(line):
    assert parse_line(line).is_open
    assert parse_line(line).words[-1].end == len(line)


@pytest.mark.parametrize(
    "line", ['post a b {"k": 1}', "post a b [1, [2]]", "post 'a'", 'post a b <"k":1>', "post a b }"]
)
def test_what_is_closed_is_not_marked(line):
    assert not parse_line(line).is_open


@pytest.mark.parametrize(
    ("line", "words", "code"),
    [
        ("register cache purge: print(data)", ["register", "cache", "purge"], " print(data)"),
        ("register: print(data)", ["register"], " print(data)"),
        ("register cache :\n  x = {1: 2}", ["register", "cache"], "\n  x = {1: 2}"),
        ("register cache purge --workers: print(1 | 2)", ["register", "cache", "purge", "--workers"], " print(1 | 2)"),
        ("register cache purge @a.py:f", ["register", "cache", "purge", "@a.py:f"], None),
        ("register cache:", ["register", "cache"], ""),
        ("register 'a:' b: x", ["register", "a:", "b"], " x"),
        ("post a: b", ["post", "a:", "b"], None),
    ],
)
def test_code_begins_behind_the_colon(line, words, code):
    found = parse_line(line, CODE)
    assert ([word.text for word in found.words], found.code) == (words, code)
    if code is not None:
        assert line[found.code_start :] == code


def test_a_bar_by_itself_begins_a_pipe():
    line = parse_line("status --json | jq . | head")
    assert (texts("status --json | jq ."), line.pipe) == (["status", "--json"], "jq . | head")
    assert parse_line("post a b '|'").pipe is None
    assert parse_line('post a b {"k": "|"}').pipe is None


def test_every_prefix_of_a_line_can_be_taken_apart():
    line = 'register \'a b\' "c\\"" {"k": [<1>]} <"k":1> k:="x" | y: print(\'x\')\n  z'
    for end in range(len(line) + 1):
        for verbs in (frozenset(), CODE):
            found = parse_line(line[:end], verbs)
            assert all(word.start < word.end <= end for word in found.words)
