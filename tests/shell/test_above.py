"""What is shown above prompts that begin and end meanwhile, on the screen of a terminal."""

from __future__ import annotations

import io
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pyte  # type: ignore[import-untyped, unused-ignore]
import pytest
from prompt_toolkit import PromptSession
from prompt_toolkit.application import create_app_session
from prompt_toolkit.data_structures import Size
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output.vt100 import Vt100_Output

from eventsh.shell.above import Above

PROMPTS = 60
ROWS = 24


class Console:
    """A terminal whose keys are pressed by the test."""

    def __init__(self, keys: PipeInput, written: io.StringIO) -> None:
        self.keys = keys
        self._written = written

    @property
    def rows(self) -> list[str]:
        """What scrolled off the screen, and what is on it."""
        screen = pyte.HistoryScreen(80, ROWS, history=100_000, ratio=0.5)
        pyte.Stream(screen).feed(self._written.getvalue().replace("\r\n", "\n").replace("\n", "\r\n"))
        gone = ["".join(row[column].data for column in range(80)).rstrip() for row in screen.history.top]
        return gone + [row.rstrip() for row in screen.display]


@pytest.fixture
def console() -> Iterator[Console]:
    written = io.StringIO()
    output = Vt100_Output(written, lambda: Size(rows=ROWS, columns=80), term="xterm", enable_cpr=False)
    with create_pipe_input() as keys, create_app_session(input=keys, output=output):
        yield Console(keys, written)


@contextmanager
def writing(count: list[int]) -> Iterator[None]:
    """Another thread writes numbered lines, as fast as it can."""
    ended = threading.Event()

    def write() -> None:
        while not ended.wait(0.0002):
            sys.stdout.write(f"line {count[0]}\n")
            count[0] += 1

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def test_every_line_stands_by_itself_and_none_is_lost_while_prompts_begin_and_end(console: Console) -> None:
    above, count = Above(), [0]
    # So that there is something to show whenever a prompt begins or ends.
    above.sleep_between_writes = 0.0
    session: PromptSession[str] = PromptSession("> ")
    with above.shown(), writing(count):
        for number in range(PROMPTS):
            console.keys.send_text(f"typed {number}\r")
            with above.prompting():
                assert session.prompt() == f"typed {number}"
    rows = [row for row in console.rows if row]
    assert [row for row in rows if "line" in row] == [f"line {number}" for number in range(count[0])]
    assert [row for row in rows if "typed" in row] == [f"> typed {number}" for number in range(PROMPTS)]


def test_a_last_line_without_its_end_is_shown_too(console: Console) -> None:
    with Above().shown():
        sys.stdout.write("whole\nunfinished")
    assert [row for row in console.rows if row] == ["whole", "unfinished"]
