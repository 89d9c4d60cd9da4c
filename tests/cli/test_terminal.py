from __future__ import annotations

import io

import pytest

from eventsh.cli.terminal import wants_color


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [
        ({}, True),
        ({"TERM": "xterm"}, True),
        ({"NO_COLOR": ""}, True),
        ({"NO_COLOR": "0"}, False),
        ({"TERM": "dumb"}, False),
    ],
)
def test_colour_is_wanted_on_a_terminal_unless_the_environment_says_no(environ, wanted):
    assert wants_color(Terminal(), environ) is wanted
    assert wants_color(io.StringIO(), environ) is False


def test_a_closed_stream_wants_no_colour():
    stream = io.StringIO()
    stream.close()
    assert wants_color(stream, {}) is False
