"""The shell's verbs: one typed function each, from which its parsing, help, completion and checks derive.

A verb is a function with typer's parameters, as on the command line; every verb of the command line that makes sense
here is one of the shell too, by itself. What a parameter is called in the help (its metavar) says what it is completed
with: SOURCE, EVENT, WORKER, FILE. Knows nothing of a terminal.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from typing import Any

import typer
from typer.main import get_command

from eventsh.cli.command import Command, UsageException, build_plugged
from eventsh.cli.verbs import VERBS as COMMAND_LINE
from eventsh.cli.verbs import load_verb
from eventsh.errors import UsageError
from eventsh.plugins import plugins
from eventsh.shell.line import Line, Word

__all__ = ["CODE", "FILES", "Verb", "Verbs", "takes_text"]

# Where a verb that takes code finds it: in the `meta` of its context, as the text and its place in the line.
CODE = "eventsh.code"
# A verb of the command line that the shell is, or whose output never ends.
_NOT_HERE = frozenset({"serve", "shell", "tail"})
# It has a pager of its own.
_PAGES_ITSELF = frozenset({"log"})
# What may be longer than the screen, and is shown when it is complete.
_ALIASES = {"quit": "exit", "q": "exit", "?": "help"}
_PAGED = frozenset({"status", "handlers", "workers", "help", "history"})

# What a parameter is called that is the name of a file.
FILES = frozenset({"FILE", "FILE_OR_MODULE"})

_Loaded = tuple[Callable[..., int | None], str]

_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class Verb:
    """One verb. `function` has typer's parameters; the shell itself is the `obj` of a `typer.Context`."""

    def __init__(self, name: str, load: Callable[[], _Loaded]) -> None:
        self.name = name
        self._load = load

    @cached_property
    def _loaded(self) -> _Loaded:
        return self._load()

    @property
    def function(self) -> Callable[..., int | None]:
        return self._loaded[0]

    @property
    def examples(self) -> str:
        return self._loaded[1]

    @property
    def summary(self) -> str:
        """The first line of its help."""
        return (self.function.__doc__ or "").strip().partition("\n")[0]

    @property
    def is_paged(self) -> bool:
        return self.name in _PAGED

    @property
    def pages_itself(self) -> bool:
        return self.name in _PAGES_ITSELF

    @cached_property
    def command(self) -> Any:
        """typer's command, made when it is first needed: making all of them takes longer than opening the shell may."""
        app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)
        app.command(self.name, cls=Command, epilog=self.examples, context_settings=_SETTINGS)(self.function)
        return get_command(app)

    def run(self, line: Line, shell: Any) -> int:
        """Run it; gives the exit status that it has as a command. Raises EventError, UsageError for a wrong line."""
        try:
            context = self.command.make_context(self.name, self.arguments(line), obj=shell)
            context.meta[CODE] = (line.code, line.code_start)
            with context:
                return self.command.invoke(context) or 0
        except typer.Exit as end:
            return end.exit_code
        except UsageException as error:
            text = error.format_message().removesuffix(".")  # type: ignore[attr-defined]
            raise UsageError(f"{text} (see help {self.name})") from None

    def arguments(self, line: Line) -> list[str]:
        """The words behind the verb, each as its parameter wants it: data keeps the quotes that make it a string, unless it
        is a plain text, and `~` is the home in the name of a file."""
        words = line.words[1:]
        kinds = self.kinds(words)
        is_text = takes_text(words, kinds)
        arguments = []
        for word, kind in zip(words, kinds, strict=True):
            if kind in FILES:
                arguments.append(os.path.expanduser(word.text))
            elif kind == "DATA" and word.text.startswith("@~"):
                arguments.append("@" + os.path.expanduser(word.text[1:]))
            else:
                arguments.append(word.data if kind == "DATA" and not is_text else word.text)
        return arguments

    def kinds(self, words: tuple[Word, ...]) -> list[str]:
        """What each of these words is: the metavar of its parameter without brackets, "OPTION" for a name of one, and
        "" for what is too much."""
        options, arguments = self._parameters()
        kinds: list[str] = []
        place = 0
        value_of: str | None = None
        only_arguments = False
        for word in words:
            if value_of is not None:
                kinds.append(value_of)
                value_of = None
            elif word.text == "--" and not only_arguments:
                kinds.append("OPTION")
                only_arguments = True
            elif word.text.startswith("-") and len(word.text) > 1 and not only_arguments:
                kinds.append("OPTION")
                if "=" not in word.text:
                    value_of = options.get(word.text)
            else:
                kinds.append(arguments[place][0] if place < len(arguments) else "")
                place += place < len(arguments) and not arguments[place][1]
        return kinds

    def expected(self, words: tuple[Word, ...]) -> str:
        """What the word behind these would be."""
        behind = Word(0, 0, "", "")
        return self.kinds((*words, behind))[-1]

    def option_names(self) -> list[tuple[str, str]]:
        """Every option's longest name and its help."""
        return [
            (max(param.opts, key=len), (param.help or "").partition("  [")[0])
            for param in self.command.params
            if param.param_type_name == "option" and not param.is_eager
        ]

    def _parameters(self) -> tuple[dict[str, str | None], list[tuple[str, bool]]]:
        """The kind of each option's value (None: it is a flag), and of each argument, with whether it takes many."""
        options: dict[str, str | None] = {}
        arguments: list[tuple[str, bool]] = []
        for param in self.command.params:
            kind = (param.metavar or param.name).strip("[].")
            if param.param_type_name == "argument":
                arguments.append((kind, param.nargs == -1))
            else:
                options |= dict.fromkeys(param.opts, None if param.is_flag else kind)
        return options, arguments


def takes_text(words: tuple[Word, ...], kinds: list[str]) -> bool:
    """Whether an option among these makes data a plain text."""
    return any(kind == "OPTION" and word.text == "--text" for word, kind in zip(words, kinds, strict=True))


class PluginVerb(Verb):
    """One of a plugin's."""

    @cached_property
    def command(self) -> Any:
        return build_plugged(self.name, self.function)


class Verbs:
    """All verbs of a shell, by name: its own, those of the command line, those of plugins."""

    def __init__(self, own: Mapping[str, tuple[Callable[..., int | None], str]], code_verbs: frozenset[str]) -> None:
        self.code_verbs = code_verbs
        self._verbs: dict[str, Verb] = {}
        for name in COMMAND_LINE:
            if name not in _NOT_HERE and name not in own:
                self._verbs[name] = Verb(name, partial(_from_command_line, name))
        for name, found in own.items():
            self._verbs[name] = Verb(name, partial(_identity, found))
        self._asked_plugins = False

    def find(self, name: str) -> Verb | None:
        """The verb of this name, or of another one that people try. Plugins are loaded for a name that is not built in."""
        name = _ALIASES.get(name, name)
        if name not in self._verbs:
            self._ask_plugins()
        return self._verbs.get(name)

    def all(self, *, with_plugins: bool) -> list[Verb]:
        """Every verb, by name. Loading plugins takes a moment."""
        if with_plugins:
            self._ask_plugins()
        return [verb for _, verb in sorted(self._verbs.items())]

    def plugged(self) -> list[Verb]:
        """Those of plugins, by name."""
        return [verb for verb in self.all(with_plugins=True) if isinstance(verb, PluginVerb)]

    def _ask_plugins(self) -> None:
        if self._asked_plugins:
            return
        self._asked_plugins = True
        manager = plugins()
        manager.load()
        for found in manager.call("eventsh_shell_commands"):
            if not isinstance(found, Mapping):
                continue
            for name, function in found.items():
                # A plugin can't take the place of what people know.
                if name not in self._verbs and name not in _ALIASES and callable(function):
                    self._verbs[name] = PluginVerb(name, partial(_identity, (function, "")))


def _identity(found: _Loaded) -> _Loaded:
    return found


def _from_command_line(name: str) -> _Loaded:
    """Its examples as they are typed here: without the program's name, and without what needs another shell around it."""
    function, examples = load_verb(name)
    lines = [line.removeprefix("eventsh ") for line in examples.splitlines() if line.startswith("eventsh ")]
    return function, "\n".join(lines)
