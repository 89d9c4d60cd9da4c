"""The prompt: where lines are typed, with all that helps to type them, and the bar below.

Only looks; what a line does is the shell's to know.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
from prompt_toolkit.filters import Condition, has_completions, has_focus
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings
from prompt_toolkit.output import ColorDepth
from prompt_toolkit.styles import Style
from prompt_toolkit.validation import ValidationError, Validator

from eventsh.escape import escape
from eventsh.shell.above import Above
from eventsh.shell.check import find_fault, goes_on
from eventsh.shell.complete import ShellCompleter
from eventsh.shell.highlight import ShellLexer
from eventsh.shell.shell import Leave

if TYPE_CHECKING:
    from prompt_toolkit.document import Document
    from prompt_toolkit.input import Input
    from prompt_toolkit.key_binding import KeyPressEvent
    from prompt_toolkit.output import Output

    from eventsh.shell.shell import Shell

__all__ = ["make_session", "run_prompt"]

# So often is the bar drawn again while nothing is typed.
_REFRESH_S = 1.0
_INDENT = 4
_PROMPT = "eventsh> "

_STYLE = Style.from_dict(
    {
        "prompt": "bold",
        "verb": "bold",
        "option": "ansicyan",
        "key": "ansiblue",
        "string": "ansigreen",
        "number": "ansimagenta",
        "fault": "bg:ansired ansiwhite",
        "bottom-toolbar": "noreverse",
        "bar.bad": "ansired bold",
        "bar.good": "ansigreen",
    }
)


def run_prompt(shell: Shell, attach: Callable[[], dict[str, Any] | None]) -> int:
    """Attach, then read and run lines until the person leaves; gives the exit status. Raises EventError."""
    from eventsh.runtime.capture import redirect_output

    answer = attach()
    with redirect_output(shell.stdout):
        _welcome(shell, answer)
    session = make_session(shell, _history())
    shell.history = lambda: list(session.history.get_strings())
    shell.columns = lambda: _columns(shell)
    above = Above()
    with above.shown():
        while True:
            try:
                with above.prompting():
                    text = session.prompt()
            except KeyboardInterrupt:
                continue
            except EOFError:
                return 0
            try:
                shell.run(text)
            except Leave:
                return 0
            except KeyboardInterrupt:
                # In the moment between two commands.
                continue


def _columns(shell: Shell) -> int:
    """Of the terminal itself: what is printed may be kept for a pager meanwhile."""
    try:
        return os.get_terminal_size(shell.stdout.fileno()).columns
    except OSError:
        return 80


def _welcome(shell: Shell, answer: dict[str, Any] | None) -> None:
    from eventsh import __version__
    from eventsh.cli.report import say, show_status

    say(f"eventsh {__version__}; help lists the commands, Tab completes, Ctrl-D leaves")
    if answer is None:
        say("not attached: no broker runs there; tail, or whatever needs one, attaches when there is one")
        return
    answer["broker"]["address"] = shell.address
    show_status(answer, as_json=False)


def make_session(
    shell: Shell,
    history: History,
    *,
    input: Input | None = None,  # noqa: A002 - as prompt-toolkit has it
    output: Output | None = None,
) -> PromptSession[str]:
    """The prompt of a shell. Tests hand in an input and an output of their own."""
    is_open = Condition(lambda: goes_on(get_app().current_buffer.document.text, shell.verbs))
    return PromptSession(
        FormattedText([("class:prompt", _PROMPT)]),
        lexer=ShellLexer(shell.verbs),
        completer=ShellCompleter(shell),
        complete_in_thread=True,
        auto_suggest=AutoSuggestFromHistory(),
        validator=LineValidator(shell),
        validate_while_typing=True,
        history=history,
        multiline=is_open,
        prompt_continuation=lambda width, *_: "." * (width - 1) + " ",
        bottom_toolbar=lambda: _bar(shell),
        refresh_interval=_REFRESH_S,
        key_bindings=_keys(is_open),
        color_depth=None if shell.paint.wanted else ColorDepth.DEPTH_1_BIT,
        style=_STYLE if shell.paint.wanted else Style.from_dict({"bottom-toolbar": "noreverse"}),
        include_default_pygments_style=shell.paint.wanted,
        reserve_space_for_menu=6,
        input=input,
        output=output,
    )


class LineValidator(Validator):
    """Tells what is wrong with a line while it is typed, and does not let Enter send it."""

    def __init__(self, shell: Shell) -> None:
        self._shell = shell

    def validate(self, document: Document) -> None:
        fault = find_fault(document.text, self._shell.verbs)
        if fault is not None:
            row = document.text.count("\n", 0, fault.position) + 1
            column = fault.position - (document.text.rfind("\n", 0, fault.position) + 1) + 1
            where = f"column {column}" if row == 1 else f"row {row}, column {column}"
            # The place first: a long message is cut off at the edge.
            raise ValidationError(fault.position, f"{where}: {fault.message}")


def _keys(is_open: Condition) -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter", filter=is_open & has_focus("DEFAULT_BUFFER") & ~has_completions)
    def _(event: KeyPressEvent) -> None:
        """Begin another row, as far to the right as the last one, and further behind a colon."""
        buffer = event.current_buffer
        row = buffer.document.current_line_before_cursor
        indent = len(row) - len(row.lstrip())
        if row.rstrip().endswith(":"):
            indent += _INDENT
        buffer.insert_text("\n" + " " * indent)

    @keys.add("backspace", filter=Condition(_is_in_indentation) & has_focus("DEFAULT_BUFFER"))
    def _(event: KeyPressEvent) -> None:
        """A level of indentation, and not a blank."""
        event.current_buffer.delete_before_cursor(_INDENT)

    return keys


def _is_in_indentation() -> bool:
    row = get_app().current_buffer.document.current_line_before_cursor
    return len(row) >= _INDENT and not row.strip() and not len(row) % _INDENT


def _bar(shell: Shell) -> FormattedText:
    link = shell.link
    address = escape(shell.address)
    if link is None or not link.figures.is_attached:
        return FormattedText([("", f" {address}  "), ("class:bar.bad", "no broker")])
    figures = link.figures
    parts: list[tuple[str, str]] = [("", f" {_short(address, shell.columns() - 60)}  ")]
    all_there = figures.workers == figures.slots and figures.workers
    parts.append(("class:bar.good" if all_there else "class:bar.bad", f"workers {figures.workers}/{figures.slots}"))
    parts.append(("", f"  {figures.events_per_s:,.0f} events/s  "))
    parts.append(("class:bar.bad" if figures.dropped else "", f"gaps {figures.dropped:,}"))
    parts.append(("", "  "))
    parts.append(("class:bar.bad" if figures.failed else "", f"failed {figures.failed:,}"))
    if shell.watcher.pattern is not None:
        parts.append(("", "  tail"))
    return FormattedText(parts)


def _short(text: str, width: int) -> str:
    """Its end is what tells it from others."""
    width = max(width, 12)
    return text if len(text) <= width else "…" + text[1 - width :]


def _history() -> History:
    """The lines that were typed in earlier shells, in a file of the user's own."""
    state = os.environ.get("XDG_STATE_HOME", "")
    try:
        directory = Path(state if os.path.isabs(state) else Path.home() / ".local" / "state") / "eventsh"
        path = directory / "history"
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            if stat.S_IMODE(os.fstat(descriptor).st_mode) != 0o600:
                os.fchmod(descriptor, 0o600)
        finally:
            os.close(descriptor)
    except (OSError, RuntimeError):
        # A home that nobody knows, or that can't be written to, is no reason not to have a shell.
        return InMemoryHistory()
    return _QuietHistory(str(path))


class _QuietHistory(FileHistory):
    """Keeps no line that begins with a blank, as other shells do."""

    def append_string(self, string: str) -> None:
        if not string.startswith(" "):
            super().append_string(string)

    def store_string(self, string: str) -> None:
        with suppress(OSError):
            super().store_string(string)
