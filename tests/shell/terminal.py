"""The real shell in a pseudo-terminal, as a person has it: what is looked at is the screen, and what scrolled off it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pexpect  # type: ignore[import-untyped, unused-ignore]
import pyte  # type: ignore[import-untyped, unused-ignore]

from tests.cli.pool import environment

DEADLINE_S = 40.0
PROMPT = "eventsh> "
_HISTORY_ROWS = 10_000


class Terminal:
    """A shell at a terminal of 80 columns. `wait` looks at what stands behind what the last `wait` found."""

    def __init__(self, directory: Path, *arguments: str, **variables: str) -> None:
        self.directory = directory
        env = environment(f"unix:{directory}/run/e.sock")
        env |= {"TERM": "xterm-256color", "XDG_STATE_HOME": str(directory / "state")}
        env = {name: value for name, value in env.items() if name not in ("NO_COLOR", "PAGER", "COLUMNS")} | variables
        self.child: Any = pexpect.spawn(
            sys.executable,
            ["-m", "eventsh", *arguments],
            env=env,
            cwd=str(directory),
            dimensions=(24, 80),
            encoding="utf-8",
            codec_errors="replace",
        )
        self.child.delaybeforesend = None
        self.raw = ""
        self._screen = pyte.HistoryScreen(80, 24, history=_HISTORY_ROWS, ratio=0.5)
        # A terminal answers where its cursor is.
        self._screen.write_process_input = self.child.send  # type: ignore[method-assign, unused-ignore]
        self._stream = pyte.Stream(self._screen)
        self._at = 0

    @property
    def rows(self) -> list[str]:
        """What scrolled off the screen, and what is on it."""
        columns = range(self._screen.columns)
        gone = ["".join(row[column].data for column in columns).rstrip() for row in self._screen.history.top]
        return gone + [row.rstrip() for row in self._screen.display]

    @property
    def text(self) -> str:
        # A prompt is one also without the blank behind it, which is no more than no character.
        return "\n".join(f"{row} " for row in self.rows)

    def wait(self, *wanted: str) -> str:
        """Wait until each of these stands there, in this order; gives the text up to there."""
        begin = self._at
        for text in wanted:
            self.wait_until(lambda text=text: self.text.find(text, self._at) >= 0, repr(text))  # type: ignore[misc]
            self._at = self.text.find(text, self._at) + len(text)
        return self.text[begin : self._at]

    def wait_shown(self, wanted: str) -> None:
        """Wait until this stands somewhere, and may go again: what is below the line that is typed, and beside it."""
        self.wait_until(lambda: wanted in self.text, repr(wanted))

    def wait_row(self, wanted: str) -> None:
        """Wait until there is a row of just this, wherever."""
        self.wait_until(lambda: wanted in self.rows, f"a row {wanted!r}")

    def wait_bar(self, wanted: str) -> None:
        """Wait until the last row of the screen says this."""
        self.wait_until(lambda: wanted in self.rows[-1], f"{wanted!r} in the bar")

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < end, f"{what} did not come; there is:\n{self.text}"
            try:
                self._read(0.5)
            except pexpect.EOF:
                assert condition(), f"{what} did not come before the end; there is:\n{self.text}"

    def _read(self, timeout_s: float) -> None:
        try:
            data = self.child.read_nonblocking(65536, timeout=timeout_s)
        except pexpect.TIMEOUT:
            return
        self.raw += data
        self._stream.feed(data)

    def type(self, text: str) -> None:
        self.child.send(text)

    def enter(self, line: str, *wanted: str) -> str:
        """Type a line, and wait for what comes."""
        self.type(line)
        # As typed and not as pasted: what is shown is shown before Enter.
        self.wait_until(lambda: line in self.text[self._at :].replace(" \n", ""), f"{line!r}, as it was typed,")
        self.type("\r")
        return self.wait(*wanted)

    def leave(self) -> None:
        """Ctrl-D at an empty prompt. Not before it is there: until then the terminal itself takes it."""

        def is_at_prompt() -> bool:
            above = [row for row in self.rows[:-1] if row]
            return bool(self.rows[-1]) and bool(above) and above[-1] == PROMPT.rstrip()

        self.wait_until(is_at_prompt, "an empty prompt")
        self.type("\x04")

    def resize(self, rows: int, columns: int) -> None:
        self.child.setwinsize(rows, columns)
        self._screen.resize(rows, columns)
        # What stands where is another.
        self._at = 0

    def end(self) -> int:
        """Wait until it has ended by itself; gives its exit status."""
        end = time.monotonic() + DEADLINE_S
        try:
            while True:
                assert time.monotonic() < end, f"it did not end; there is:\n{self.text}"
                self._read(0.5)
        except pexpect.EOF:
            pass
        self.child.wait()
        return int(self.child.exitstatus if self.child.exitstatus is not None else 128 + self.child.signalstatus)

    def kill(self) -> None:
        """Whatever becomes of the test, nothing of it stays."""
        self.child.close(force=True)
