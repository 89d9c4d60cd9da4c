"""What can stand at the cursor. `candidates` decides it from the verbs and from what the shell knows; the completer only
passes it on to prompt-toolkit."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prompt_toolkit.completion import Completer, Completion

from eventsh.escape import escape
from eventsh.shell.line import Line, Word, parse_line
from eventsh.shell.registry import FILES
from eventsh.shell.settings import SETTINGS

if TYPE_CHECKING:
    from prompt_toolkit.completion import CompleteEvent
    from prompt_toolkit.document import Document

    from eventsh.shell.registry import Verb
    from eventsh.shell.shell import Shell

__all__ = ["Candidate", "ShellCompleter", "candidates"]

_MAX_FILES = 200
_SIGNALS = ("TERM", "KILL", "INT", "STOP", "CONT", "HUP")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A word that can stand here, from `start` of the line on. `about` is shown beside it."""

    text: str
    start: int
    about: str = ""


def candidates(text: str, shell: Shell) -> list[Candidate]:
    """What can stand at the end of `text`, that begins as what stands there already."""
    if text.lstrip().startswith(("!", "#")):
        return []
    line = parse_line(text, shell.verbs.code_verbs)
    if line.code is not None or line.pipe is not None:
        return []
    is_behind = not line.words or (text[-1:] in (" ", "\t", "\n") and not line.words[-1].is_open)
    word = Word(len(text), len(text), "", "") if is_behind else line.words[-1]
    before = line.words if is_behind else line.words[:-1]
    if not before:
        verbs = shell.verbs.all(with_plugins=False)
        return [Candidate(verb.name, word.start, verb.summary) for verb in verbs if verb.name.startswith(word.text)]
    verb = shell.verbs.find(before[0].text)
    if verb is None:
        return []
    if word.text.startswith("-"):
        names = verb.option_names()
        return [Candidate(name, word.start, about) for name, about in names if name.startswith(word.text)]
    return list(_values(verb, Line(before), word, shell))


def _values(verb: Verb, line: Line, word: Word, shell: Shell) -> Iterator[Candidate]:
    words = line.words[1:]
    kind = verb.expected(words)
    if word.text.startswith("@"):
        yield from (Candidate("@" + path, word.start) for path in _files(word.text[1:]))
    elif kind == "DATA":
        yield from _keys(verb, words, word, shell)
    elif (source := _SOURCES.get(kind)) is not None:
        for text, about in source(shell, _named(verb, words)):
            if text.startswith(word.text):
                yield Candidate(_quoted(text), word.start, about)
    elif kind in FILES:
        yield from (Candidate(_quoted(path), word.start) for path in _files(word.text))


def _named(verb: Verb, words: tuple[Word, ...]) -> dict[str, str]:
    """The words that stand for parameters already, by what they are."""
    return {kind: word.text for word, kind in zip(words, verb.kinds(words), strict=True)}


def _keys(verb: Verb, words: tuple[Word, ...], word: Word, shell: Shell) -> Iterator[Candidate]:
    """Keys of the event's last data: as pairs, or in an object."""
    named = _named(verb, words)
    keys = shell.names.keys(named.get("SOURCE", ""), named.get("EVENT", ""))
    if word.data.startswith(("{", "<")):
        head, quote, typed = word.data.rpartition('"')
        # Behind an even number of quotes nothing is begun; inside of a value there is nothing to know.
        if not quote or head.count('"') % 2 or not head.rstrip().endswith(("{", "<", ",")):
            return
        start = word.start + len(head)
        yield from (Candidate(f'"{key}": ', start) for key in keys if key.startswith(typed))
        return
    used = {other.data.partition("=")[0].removesuffix(":") for other in words}
    yield from (
        Candidate(f"{key}=", word.start, "of the last event")
        for key in keys
        if key.startswith(word.text) and key not in used and _quoted(key) == key
    )


def _files(typed: str) -> list[str]:
    directory, prefix = os.path.split(typed)
    try:
        with os.scandir(os.path.expanduser(directory) or ".") as entries:
            found = [
                entry.name + ("/" if entry.is_dir() else "")
                for entry in entries
                if entry.name.startswith(prefix) and (prefix.startswith(".") or not entry.name.startswith("."))
            ]
    except OSError:
        return []
    return [os.path.join(directory, name) for name in sorted(found)[:_MAX_FILES]]


def _sources(shell: Shell, named: dict[str, str]) -> Iterable[tuple[str, str]]:
    shell.learn_names()
    return ((name, "") for name in shell.names.sources())


def _events(shell: Shell, named: dict[str, str]) -> Iterable[tuple[str, str]]:
    shell.learn_names()
    return ((name, "") for name in shell.names.events(named.get("SOURCE")))


def _workers(shell: Shell, named: dict[str, str]) -> Iterable[tuple[str, str]]:
    rows = shell.link.workers if shell.link is not None else []
    return ((str(row["worker_id"]), f"pid {row['pid']}, {row['state']}") for row in rows)


def _commands(shell: Shell, named: dict[str, str]) -> Iterable[tuple[str, str]]:
    return ((verb.name, verb.summary) for verb in shell.verbs.all(with_plugins=True))


def _settings(shell: Shell, named: dict[str, str]) -> Iterable[tuple[str, str]]:
    return SETTINGS.items()


def _setting_values(shell: Shell, named: dict[str, str]) -> Iterable[tuple[str, str]]:
    return () if named.get("SETTING") == "rate" else (("on", ""), ("off", ""))


def _signals(shell: Shell, named: dict[str, str]) -> Iterable[tuple[str, str]]:
    return ((name, "") for name in _SIGNALS)


def _numbers(shell: Shell, named: dict[str, str]) -> Iterable[tuple[str, str]]:
    return ((str(found.number), f"{found.where}: {found.what}") for found in shell.book.all)


# By what a parameter is called in the help.
_SOURCES: dict[str, Callable[[Shell, dict[str, str]], Iterable[tuple[str, str]]]] = {
    "SOURCE": _sources,
    "EVENT": _events,
    "WORKER": _workers,
    "COMMAND": _commands,
    "SETTING": _settings,
    "VALUE": _setting_values,
    "SIGNAL": _signals,
    "NUMBER": _numbers,
}


def _quoted(text: str) -> str:
    """As it must be typed."""
    plain = text and not any(character in " \t\r\n'\"|:" or not character.isprintable() for character in text)
    return text if plain and text[0] not in "-<{[#!@" else "'" + text.replace("'", "'\\''") + "'"


class ShellCompleter(Completer):
    """For prompt-toolkit. Called in a thread: it may ask the broker."""

    def __init__(self, shell: Shell) -> None:
        self._shell = shell

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        text = document.text_before_cursor
        for found in candidates(text, self._shell):
            if found.text.isprintable():
                yield Completion(
                    found.text,
                    start_position=found.start - len(text),
                    display=escape(found.text),
                    display_meta=escape(found.about),
                )
