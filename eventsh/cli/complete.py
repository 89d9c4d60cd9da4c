"""What can stand at the cursor of a command line of `eventsh`, for the scripts in completions/.

The scripts hold no names: they run `eventsh __complete` at each press of the key, so that they are right for whichever
version and plugins are installed. What a parameter takes is told by its metavar (SOURCE, FILE, text|json). Whatever goes
wrong, the answer is empty: nobody wants an error in the middle of the line that is being typed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from eventsh.cli.line import Line
from eventsh.cli.live import VALUES, Candidate
from eventsh.escape import escape

__all__ = ["candidates", "complete"]

# A terminal's height several times over: nobody reads on, and the shells get slow.
_MAX_CANDIDATES = 500


def complete(arguments: list[str]) -> int:
    """Print what can stand at the cursor, one candidate a line. `arguments` are the shell, and what it knows of the
    line: bash gives its $COMP_WORDBREAKS and the text up to the cursor; zsh and fish the words after `eventsh`, the last
    being the one at the cursor."""
    shell, *rest = arguments or [""]
    if shell == "bash" and len(rest) == 2:
        line = Line(rest[1], rest[0])
        replies = [line.reply(found.value) for found in candidates(line.words[1:], line.word)] if line.words else []
        _print(reply for reply in replies if reply is not None)
    elif shell in ("zsh", "fish") and rest:
        _print(f"{found.value}\t{escape(found.about)}" for found in candidates(rest[:-1], rest[-1]))
    return 0


def _print(lines: Iterable[str]) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))


def candidates(words: list[str], word: str) -> list[Candidate]:
    """What can stand for `word`, of which the beginning is typed, after `words`, which follow the program's name."""
    from eventsh.errors import EventError

    try:
        found = list(_after(words, word))
    # What a plugin raises, or the answer of a broker of another version: there is nobody to tell.
    except (EventError, OSError, KeyError, TypeError, ValueError):
        return []
    # What can't be typed, or would move the cursor, is no help at a prompt.
    fitting = {one.value: one for one in found if one.value.startswith(word) and escape(one.value) == one.value}
    return list(fitting.values())[:_MAX_CANDIDATES]


def _after(words: list[str], word: str) -> Iterator[Candidate]:
    from eventsh.cli.verbs import VERBS, build_command, summarize

    if words and words[0].startswith("-"):
        # Options of eventsh itself, before the command.
        root = _Typed(_params(build_command(None)))
        while words and (root.pending is not None or words[0].startswith("-")):
            root.take(words[0])
            words = words[1:]
        if not words and (root.pending is not None or word.startswith("-")):
            yield from root.candidates(word)
            return
    if not words and not word.startswith("-"):
        yield from (Candidate(name, summarize(name)) for name in VERBS)
        return
    if words and words[0] not in VERBS:
        return
    # Which verb it is counts too: only eventsh posts events of its own.
    typed = _Typed(_params(build_command(words[0] if words else None)))
    typed.values["verb"] = words[0] if words else ""
    for one in words[1:]:
        typed.take(one)
    yield from typed.candidates(word)


def _params(command: Any) -> list[Any]:
    params: list[Any] = command.get_params(command.make_context("eventsh", [], resilient_parsing=True))
    return params


@dataclass
class _Typed:
    """What the words before the cursor have said already, as the parser would read them."""

    params: list[Any]
    values: dict[str, str] = field(default_factory=dict)
    arguments: int = 0
    pending: Any = None
    only_arguments: bool = False

    def take(self, word: str) -> None:
        if self.pending is not None:
            self.values[self.pending.name] = word
            self.pending = None
        elif word == "--" and not self.only_arguments:
            self.only_arguments = True
        elif word.startswith("-") and word != "-" and not self.only_arguments:
            self._take_option(word)
        else:
            param = self._argument()
            self.arguments += 1
            if param is not None:
                self.values[param.name] = word

    def _take_option(self, word: str) -> None:
        flag, equals, value = word.partition("=") if word.startswith("--") else (word[:2], word[2:], word[2:])
        param = self._option(flag)
        if param is None:
            return
        if param.is_flag or equals:
            self.values[param.name] = value
        else:
            self.pending = param

    def _option(self, flag: str) -> Any:
        return next((param for param in self.params if flag in (*param.opts, *param.secondary_opts)), None)

    def _argument(self) -> Any:
        params = [param for param in self.params if param.param_type_name == "argument"]
        if self.arguments < len(params):
            return params[self.arguments]
        # The last one may take all that is left.
        return params[-1] if params and params[-1].nargs == -1 else None

    def candidates(self, word: str) -> Iterator[Candidate]:
        if self.pending is not None:
            yield from self._values(self.pending, word)
        elif word.startswith("--") and "=" in word and not self.only_arguments:
            flag, _, begun = word.partition("=")
            for one in self._values(self._option(flag), begun):
                yield Candidate(f"{flag}={one.value}", one.about)
        elif word.startswith("-") and not self.only_arguments:
            yield from self._flags()
        else:
            yield from self._values(self._argument(), word)

    def _flags(self) -> Iterator[Candidate]:
        for param in self.params:
            is_done = param.name in self.values and not param.multiple
            if param.param_type_name == "option" and not param.hidden and not is_done:
                # The long ones first, which tell what they are.
                for flag in sorted((*param.opts, *param.secondary_opts), key=len, reverse=True):
                    yield Candidate(flag, (param.help or "").partition("  [")[0])

    def _values(self, param: Any, word: str) -> Iterator[Candidate]:
        kind = (getattr(param, "metavar", None) or "").strip("[].")
        if kind == "GLOB":
            # A pattern for what the option is called after.
            kind = param.name.upper()
        if kind == "FILE" and (param.param_type_name == "argument" or param.name == "record"):
            # The other files are secrets and certificates, by whatever name.
            is_text = (self.values.get("action"), self.arguments) in (("import", 1), ("export", 2))
            kind = "FILE" if is_text else "RECORDING"
        if "|" in kind:
            # Small letters are typed as they are; N|forever is a number too.
            yield from (Candidate(choice) for choice in kind.split("|") if choice.islower())
        elif kind in VALUES:
            yield from VALUES[kind](word, self.values)
