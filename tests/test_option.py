from __future__ import annotations

import pytest

from eventsh.errors import ConfigureError
from eventsh.option import Option


def test_a_text_is_any_string_that_is_not_empty():
    option = Option("token_file", "text", None, "A file.", frozenset({"client"}), optional=True)
    assert option.check("/run/token") == "/run/token"
    assert option.check(None) is None
    wrong: tuple[object, ...] = ("", 1, b"x")
    for value in wrong:
        with pytest.raises(ConfigureError, match="token_file must be a string that is not empty, or None"):
            option.check(value)


def test_a_range_may_have_a_top_alone():
    option = Option("share", "count", 1, "A share.", frozenset({"client"}), maximum=3)
    with pytest.raises(ConfigureError, match="share must be a whole number of at most 3, not 4"):
        option.check(4)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 10**400])
def test_what_is_no_finite_number_is_refused_without_any_range_too(value):
    with pytest.raises(ConfigureError, match="pause must be a number of seconds, not"):
        Option("pause", "seconds", 1.0, "A pause.", frozenset({"client"})).check(value)
