from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventsh.commands.patterns import Pattern
from eventsh.errors import UsageError


@pytest.mark.parametrize(
    ("glob", "name", "matches"),
    [
        (None, "cache", True),
        ("*", "cache", True),
        ("cache", "cache", True),
        ("cache", "Cache", False),
        ("cache", "cache2", False),
        ("cache", "cach", False),
        ("cache", "my cache", False),
        ("cache*", "cache", True),
        ("cache*", "cache.users", True),
        ("cache*", "my cache", False),
        ("*.users", "cache\n.users", True),
        ("C*", "cache", False),
        ("cach?", "cache", True),
        ("cach?", "cach", False),
        ("?", "\n", True),
        ("up[123]", "up2", True),
        ("up[!123]", "up2", False),
        ("up[1-3]", "up4", False),
        ("up[", "up[", True),
        ("a.b", "a.b", True),
        ("a.?", "axb", False),
        ("(a|b)*", "(a|b)c", True),
        ("cache?", "cache\n", True),
        ("cach[e]", "cache\n", False),
    ],
)
def test_a_glob_chooses_whole_names_by_case(glob, name, matches):
    assert Pattern(glob, None).matches(name, "any") is matches
    assert Pattern(None, glob).matches("any", name) is matches


def test_source_and_event_must_both_match():
    pattern = Pattern("cache*", "purge")
    assert pattern.matches("cache.users", "purge")
    assert not pattern.matches("cache.users", "fill")
    assert not pattern.matches("config", "purge")


@pytest.mark.parametrize("globs", [("", None), (None, "")])
def test_an_empty_glob_is_refused(globs):
    with pytest.raises(UsageError, match="is empty"):
        Pattern(*globs)


@given(st.text(min_size=1), st.text(min_size=1))
def test_any_glob_can_be_used(glob, name):
    assert Pattern(glob).matches(name, "x") in (True, False)
    assert Pattern(f"*{'?' * len(name)}").matches(name, "x")


def test_many_stars_take_no_time():
    assert not Pattern("*a" * 50 + "b").matches("a" * 5000, "x")


def test_it_shows_its_globs():
    assert repr(Pattern("a*", None)) == "Pattern('a*', None)"
