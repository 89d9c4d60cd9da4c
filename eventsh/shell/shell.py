"""One shell: what it is attached to, what it knows, and how it runs a line. Knows no prompt.

What a verb prints goes to the terminal, a pager or a pipe; what other threads show meanwhile goes above the prompt.
"""

from __future__ import annotations

import difflib
import io
import logging
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TextIO

from eventsh.commands.outcome import advice, exit_status
from eventsh.commands.register import Book
from eventsh.errors import EventError, UsageError
from eventsh.escape import escape
from eventsh.runtime.capture import redirect_output
from eventsh.runtime.code import CodeError
from eventsh.shell.line import Line, parse_line
from eventsh.shell.names import Names
from eventsh.shell.output import Unpaged, page, run_system
from eventsh.shell.registry import Verb, Verbs
from eventsh.shell.render import Paint, render_event, render_traceback
from eventsh.shell.settings import Settings
from eventsh.shell.watch import Sampler, Watcher, WorkerOutput

if TYPE_CHECKING:
    from eventsh.commands.tail import Seen
    from eventsh.shell.link import Link
    from eventsh.shell.pool import HostedPool

__all__ = ["Leave", "Shell"]

INTERRUPTED = 130
# A script that loads itself must not go on for ever.
_MAX_DEPTH = 20
# As a worker logs a handler that raised.
_FAILED = re.compile(r"handler (.*) \((.*:\d+)\) failed on event ")
# Completion asks at every key, and handlers seldom change.
_LEARN_EACH_S = 5.0
# What is shown while a program has the terminal waits for its end, so many texts of it.
_MAX_HELD = 1000

_log = logging.getLogger(__name__)


class Leave(Exception):
    """The person has had enough."""


class Shell:
    """A shell at one address. `stdout` is the terminal itself, or the file that stands for it."""

    def __init__(self, address: str, verbs: Verbs, paint: Paint, stdout: TextIO, *, is_interactive: bool) -> None:
        self.address = address
        self.verbs = verbs
        self.paint = paint
        self.is_interactive = is_interactive
        self.settings = Settings()
        self.names = Names()
        self.link: Link | None = None
        # Opens the link; the broker may have come after the shell.
        self.attach: Callable[[], None] | None = None
        self.pool: HostedPool | None = None
        self.paused: set[int] = set()
        self.history: Callable[[], list[str]] = list
        self.columns: Callable[[], int] = lambda: 80
        self.watcher = Watcher(
            self.names,
            Sampler(lambda: self.settings.rate),
            show_event=self._show_event,
            show_output=self._show_output,
            show_note=lambda text: self.show(self.paint("dim", text)),
            find_script=lambda location, handler: self.book.find(location, handler),
        )
        self.book = Book(os.getpid(), self._ask, self._do_here)
        self.stdout = stdout
        self.is_closing = False
        self._depth = 0
        # None while nobody else has the terminal; else what was to be shown, and how many texts more.
        self._held: list[str] | None = None
        self._held_back = 0
        self._holding = threading.Lock()
        self._learn_after = 0.0
        self._pool_lines = Sampler(lambda: 5 * self.settings.rate)
        # A command's line of progress may stand there, with the cursor at its beginning; it is soon shown again.
        self._erase = "\x1b[K" if is_interactive and os.environ.get("TERM") != "dumb" else ""

    # --- running ---

    def run(self, text: str, place: str = "") -> int:
        """Run one line; gives its exit status. Trouble is told, with `place` before it. Raises Leave."""
        try:
            status = self._execute(text)
            if self.link is not None and self.book.is_in_workers:
                # What it made handlers print is there before the next prompt, or before a script goes on.
                self.link.settle()
            return status
        except EventError as error:
            return self._complain(f"{place}{error}{advice(error)}", int(exit_status(error)))
        except OSError as error:
            return self._complain(f"{place}{error}", 1)
        except KeyboardInterrupt:
            self._complain(f"{place}interrupted", INTERRUPTED)
            if not self.is_interactive:
                raise
            return INTERRUPTED
        except Leave:
            raise
        # Whatever the code of a plugin does: the shell, its pool and its handlers go on.
        except Exception as error:  # noqa: BLE001 - whatever it is, it is told
            _log.debug("%r failed", text, exc_info=True)
            where = traceback.extract_tb(error.__traceback__)[-1]
            what = f"{type(error).__name__}: {error} ({where.filename}:{where.lineno})"
            return self._complain(place + what, 1)

    def run_lines(self, lines: Iterable[tuple[int, str]], name: str) -> int:
        """Run the lines of a script with their numbers, until one fails; gives its exit status."""
        if self._depth >= _MAX_DEPTH:
            raise UsageError(f"scripts call each other more than {_MAX_DEPTH} deep")
        self._depth += 1
        try:
            for number, text in lines:
                status = self.run(text, f"{name}:{number}: ")
                # A program may wait for the answer before it writes its next line.
                self.stdout.flush()
                if status:
                    return status
            return 0
        finally:
            self._depth -= 1

    @contextmanager
    def place_of_code(self, code: str, start: int) -> Iterator[None]:
        """Tell a mistake in a handler's code, which begins at `start` of the line, by its place in that."""
        try:
            yield
        except CodeError as error:
            row = code.count("\n", 0, error.position) + 1
            column = error.position - (code.rfind("\n", 0, error.position) + 1) + 1 + (start if row == 1 else 0)
            raise UsageError(f"the handler is no Python: {error.message} (row {row}, column {column})") from None

    def _ask(self, what: str, arguments: dict[str, Any]) -> Any:
        return self.working_link().ask(what, arguments)

    def _do_here(self, what: str, arguments: dict[str, Any]) -> dict[str, Any]:
        return self.working_link().take_script(what, arguments, self._show_local_output)

    def attached_again(self) -> None:
        """The connection was lost and is back; what ran in workers ended with it."""
        for number, reason in self.book.register_again():
            self.show_warning(f"{number} is no longer in the workers: {reason}")

    def working_link(self) -> Link:
        """The connection, opened where it is not. Raises EventError."""
        if self.link is None and self.attach is not None:
            self.attach()
        if self.link is None:
            raise EventError("not attached")
        return self.link

    def _execute(self, text: str) -> int:
        stripped = text.strip()
        if not stripped or stripped.startswith("#"):
            return 0
        if stripped.startswith("!"):
            with self._hold():
                return run_system(stripped[1:].strip())
        line = parse_line(text, self.verbs.code_verbs)
        verb = self._find(line)
        if line.pipe is not None:
            sink = _make_sink()
            with redirect_output(sink):
                status = verb.run(line, self)
            # Also what is not all well is worth to be looked at: a status of its own does not mean that there is nothing.
            with self._hold():
                end = run_system(line.pipe, _written(sink))
            return status or end
        if verb.is_paged and self.is_interactive:
            return self._page(verb, line)
        if verb.pages_itself:
            with redirect_output(self.stdout if self.settings.pager else Unpaged(self.stdout)), self._hold():
                return verb.run(line, self)
        with redirect_output(self.stdout):
            return verb.run(line, self)

    def _find(self, line: Line) -> Verb:
        if line.is_open:
            raise UsageError("a quote or bracket is not closed")
        verb = self.verbs.find(line.verb)
        if verb is None:
            known = [verb.name for verb in self.verbs.all(with_plugins=True)]
            near = difflib.get_close_matches(line.verb, known, 1)
            hint = f": did you mean {near[0]}?" if near else "; help lists all"
            raise UsageError(f"there is no command {line.verb!r}{hint}")
        return verb

    def _page(self, verb: Verb, line: Line) -> int:
        sink = _make_sink()
        try:
            with redirect_output(sink):
                return verb.run(line, self)
        finally:
            with self._hold():
                page(_written(sink).decode(), self.stdout, wanted=self.settings.pager)

    @contextmanager
    def _hold(self) -> Iterator[None]:
        """Another program has the terminal: what is shown meanwhile is shown when it has ended."""
        if not self.is_interactive:
            yield
            return
        with self._holding:
            self._held = []
        try:
            yield
        finally:
            with self._holding:
                held, self._held = self._held, None
                more, self._held_back = self._held_back, 0
            for text in held:
                self.show(text)
            if more:
                self.show(self.paint("dim", f"… {more:,} more, not shown: another program had the terminal"))

    def _complain(self, message: str, status: int) -> int:
        if self.is_interactive:
            self.stdout.write(self.paint("red", escape(message)) + "\n")
            self.stdout.flush()
        else:
            sys.stdout.flush()
            sys.stderr.write(f"eventsh: {escape(message)}\n")
            sys.stderr.flush()
        return status

    # --- showing; from any thread ---

    def show(self, text: str) -> None:
        """Show lines above the prompt. What comes from events is escaped by the caller."""
        with self._holding:
            if self._held is not None:
                if len(self._held) < _MAX_HELD:
                    self._held.append(text)
                else:
                    self._held_back += 1
                return
        # When the terminal is gone, so is who would read.
        with suppress(OSError, ValueError), redirect_output(None):
            sys.stdout.write(f"{self._erase}{text}\n")
            sys.stdout.flush()

    def show_pool_line(self, line: str) -> None:
        """What the shell's own pool prints, of much a sample."""
        if self._pool_lines.admit(1):
            self._tell_skipped_lines()
            self.show(escape(line))

    def tick(self) -> None:
        """A second has passed: tell what was not shown."""
        self.watcher.tick()
        self._tell_skipped_lines()

    def _tell_skipped_lines(self) -> None:
        if skipped := self._pool_lines.take_skipped():
            more = f"… {skipped:,} more line{'' if skipped == 1 else 's'} of the workers, not shown"
            self.show(self.paint("dim", more))

    def show_pool_log(self, message: str) -> None:
        """What the shell's own pool logs of trouble."""
        failed = _FAILED.match(message)
        # What this shell's handlers raise comes by way of the broker, with the traceback.
        if failed is None or self.book.find(failed[2], failed[1]) is None:
            self.show_warning(message)

    def show_warning(self, text: str) -> None:
        """Something that went wrong, on one line."""
        self.show(self.paint("yellow", escape(text)))

    def show_record(self, record: logging.LogRecord) -> None:
        """What eventsh logs in this process: above all, what handlers of this shell raise."""
        lines = [self.paint("yellow", escape(record.getMessage()))]
        if record.exc_info and record.exc_info[1] is not None:
            text = "".join(traceback.format_exception(record.exc_info[1]))
            lines.append(render_traceback(text, "<script "))
        self.show("\n".join(lines))

    def learn_names(self) -> None:
        """Ask the workers for the names that their handlers are registered for, now and then."""
        now = time.monotonic()
        if self.link is None or now < self._learn_after:
            return
        self._learn_after = now + _LEARN_EACH_S
        with suppress(EventError):
            for worker in self.link.ask("handlers")["workers"]:
                self.names.note_handlers(worker["data"] or [])

    def _show_event(self, seen: Seen) -> None:
        self.show(render_event(seen, self.paint, columns=self.columns(), pretty=self.settings.pretty))

    def _show_local_output(self, script: str, text: str) -> None:
        self._show_lines("[here]", text, None)

    def _show_output(self, output: WorkerOutput) -> None:
        name = f"[worker {output.worker_id}]"
        if not output.is_error:
            self._show_lines(name, output.text, None)
            return
        if output.script is not None:
            self.show(self.paint("red", f"{name} handler {output.script} failed:"))
        self._show_lines(name, render_traceback(output.text, self.book.file_of(output.script)), "red")

    def _show_lines(self, name: str, text: str, color: str | None) -> None:
        head = self.paint("dim", name)
        lines = [escape(line) for line in text.splitlines()]
        self.show("\n".join(f"{head} {self.paint(color, line) if color else line}" for line in lines))


def _make_sink() -> io.TextIOWrapper:
    """What a command prints is kept here; also the bytes that it writes below the text."""
    return io.TextIOWrapper(io.BytesIO(), "utf-8", errors="backslashreplace", write_through=True)


def _written(sink: io.TextIOWrapper) -> bytes:
    sink.flush()
    written: bytes = sink.buffer.getvalue()  # type: ignore[attr-defined]
    return written
