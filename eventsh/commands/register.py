"""`register`, `unregister` and `load`: handlers written in a shell, in this process and in the workers of a pool.

Decides their numbers and names, and what a file of handlers made of them looks like. The shell hands in how the broker
is asked and how something is done in this process; nothing is printed.
"""

from __future__ import annotations

import io
import os
import tokenize
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from inspect import iscoroutinefunction
from typing import Any

from eventsh.commands.arguments import check_utf8
from eventsh.core.questions import ADD_SCRIPT, REMOVE_SCRIPT
from eventsh.core.scripts import is_script_location, script_file
from eventsh.errors import EventError, UsageError
from eventsh.runtime.code import is_block, plain_code
from eventsh.runtime.scripts import compile_handler

__all__ = ["Book", "Outcome", "Registered"]

_MAX_FILE_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class Registered:
    """One registration. `workers` is None for this process alone, else the workers asked for; empty: all of them."""

    number: int
    workers: tuple[int, ...] | None
    source: str | None
    events: tuple[str, ...]
    code: str | None
    file: str | None
    function: str | None
    weak: bool
    keep: bool

    @property
    def where(self) -> str:
        """In words, for people."""
        if self.workers is None:
            return "here"
        return "workers" if not self.workers else f"worker {', '.join(map(str, self.workers))}"

    @property
    def what(self) -> str:
        """Its code, or where that is, in one line."""
        if self.file is not None:
            return f"@{self.file}" + (f":{self.function}" if self.function else "")
        rows = plain_code(self.code or "").strip().splitlines()
        return rows[0] + (" …" if len(rows) > 1 else "")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of it: how many workers have it, and what went wrong, by worker."""

    registered: Registered
    workers: int
    errors: dict[int, str]


class Book:
    """What a shell has registered, by number. `ask` asks the broker, `local` does it in this process; both may raise
    EventError. `owner` makes its scripts' names different from those of other shells."""

    def __init__(
        self,
        owner: int,
        ask: Callable[[str, dict[str, Any]], Any],
        local: Callable[[str, dict[str, Any]], dict[str, Any]],
    ) -> None:
        self._owner = owner
        self._ask = ask
        self._local = local
        self._last = 0
        self._registered: dict[int, Registered] = {}
        self._code: dict[int, str] = {}

    def name_of(self, number: int) -> str:
        """What the broker, and every other shell, calls the script of this number."""
        return f"{self._owner}.{number}"

    @property
    def all(self) -> list[Registered]:
        return list(self._registered.values())

    @property
    def is_in_workers(self) -> bool:
        """Whether anything may come back from workers."""
        return any(each.workers is not None for each in self.all)

    def register(
        self,
        words: Sequence[str],
        code: str | None,
        *,
        workers: tuple[int, ...] | None,
        weak: bool = False,
        keep: bool = False,
    ) -> Outcome:
        """Register what `words` say, a source, events, and `@FILE:FUNCTION` where there is no code. Raises EventError, and
        nothing has changed."""
        levels, file, function = _split(words, code)
        if weak and file is None:
            raise UsageError("register_weak needs @FILE:FUNCTION: nothing else would hold a handler that is typed")
        if code is not None:
            # A mistake is told before anybody else has it.
            compile_handler(code, "test")
        return self._add(levels, code, file, function, workers=workers, weak=weak, keep=keep)

    def load(self, file: str, *, workers: tuple[int, ...] | None, keep: bool = False) -> Outcome:
        """Run a file of handlers, which register themselves. Raises EventError, and nothing has changed."""
        return self._add([], None, file, None, workers=workers, weak=False, keep=keep)

    def unregister(self, number: int) -> dict[int, str]:
        """Take back what has this number; gives what went wrong, by worker. Raises EventError."""
        found = self._registered.get(number)
        if found is None:
            known = ", ".join(str(each.number) for each in self.all) or "none"
            raise UsageError(f"there is no registration {number} of this shell; there are {known}")
        errors: dict[int, str] = {}
        if found.workers is None:
            self._local(REMOVE_SCRIPT, {"name": self.name_of(number)})
        else:
            try:
                errors = self._withdraw(self.name_of(number), found.workers)
            except EventError as error:
                # Another shell took it back.
                if not _says(error, f"there is no script {self.name_of(number)}"):
                    raise
        del self._registered[number], self._code[number]
        return errors

    def unregister_name(self, name: str) -> dict[int, str]:
        """Take back the script of this name in all workers, whichever shell it is of; gives what went wrong, by worker.
        Raises EventError."""
        owner, _, number = name.partition(".")
        if owner == str(self._owner) and int(number) in self._registered:
            return self.unregister(int(number))
        return self._withdraw(name, ())

    def register_again(self) -> list[tuple[int, str]]:
        """After a broker's death, or a lost connection, which ended them: have the workers get theirs anew. Gives the
        numbers of those that could not be, with the reason."""
        failed = []
        for found in self.all:
            # Called in a thread of its own, while others are taken back.
            code = self._code.get(found.number)
            if found.workers is None or code is None:
                continue
            try:
                self._ask(ADD_SCRIPT, self._arguments(found, code))
            except EventError as error:
                if not (found.keep and _says(error, f"there is a script {self.name_of(found.number)} already")):
                    failed.append((found.number, str(error)))
                continue
            if found.number not in self._registered:
                # Taken back in between.
                with suppress(EventError):
                    self._withdraw(self.name_of(found.number), found.workers)
        return failed

    def find(self, location: str, handler: str) -> int | None:
        """The number of the registration that a handler of this name and location is of, where it runs in workers."""
        name = is_script_location(location)
        file = location.rpartition(":")[0]
        # Called in the connection's thread, while the prompt registers.
        for found in self.all:
            is_it = name == self.name_of(found.number) if name else file == found.file
            if found.workers is not None and is_it and (name or found.function in (None, handler)):
                return found.number
        return None

    def file_of(self, number: int | None) -> str:
        """What tracebacks call the file of a registration."""
        found = None if number is None else self._registered.get(number)
        return found.file if found is not None and found.file is not None else script_file(self.name_of(number or 0))

    def as_file(self) -> str:
        """A file of handlers with all of it, as `eventsh serve --handlers` takes it."""
        parts = ["import eventsh\n"]
        if any(found.file is not None for found in self.all):
            parts[0] = "import runpy\n\nimport eventsh\n"
        return "\n\n".join([*parts, *map(_as_source, self.all)])

    def _add(
        self,
        levels: list[str],
        code: str | None,
        file: str | None,
        function: str | None,
        *,
        workers: tuple[int, ...] | None,
        weak: bool,
        keep: bool,
    ) -> Outcome:
        for place, name in enumerate(levels):
            check_utf8(name, "event" if place else "source")
        text = _read(file) if file is not None else code or ""
        path = None if file is None else os.path.abspath(os.path.expanduser(file))
        if path is not None and workers is not None:
            # They are told of it, in JSON.
            check_utf8(path, "file name")
        source = levels[0] if levels else None
        while True:
            number = self._last + 1
            found = Registered(number, workers, source, tuple(levels[1:]), code, path, function, weak, keep)
            try:
                outcome = self._place(found, text)
            except EventError as error:
                # Of an earlier shell that had this one's pid, and kept it.
                if not _says(error, f"there is a script {self.name_of(number)} already"):
                    raise
                self._last = number
                continue
            self._last = number
            self._code[number] = text
            self._registered[number] = found
            return outcome

    def _place(self, found: Registered, code: str) -> Outcome:
        arguments = self._arguments(found, code)
        if found.workers is None:
            answer = self._local(ADD_SCRIPT, arguments)
            if answer["error"] is not None:
                raise UsageError(answer["error"])
            return Outcome(found, 0, {})
        outcome = Outcome(found, *_sorted(self._ask(ADD_SCRIPT, arguments), found.workers))
        if outcome.errors and not outcome.workers:
            # Nowhere: as if it had not been asked for.
            self._ask(REMOVE_SCRIPT, {"name": arguments["name"]})
            raise EventError("; ".join(f"worker {worker}: {error}" for worker, error in outcome.errors.items()))
        return outcome

    def _withdraw(self, name: str, workers: tuple[int, ...]) -> dict[int, str]:
        _, errors = _sorted(self._ask(REMOVE_SCRIPT, {"name": name}), workers)
        return errors

    def _arguments(self, found: Registered, code: str) -> dict[str, Any]:
        return {
            "name": self.name_of(found.number),
            "code": code,
            "file": found.file,
            "function": found.function,
            "source": found.source,
            "events": list(found.events),
            "workers": list(found.workers) if found.workers else None,
            "keep": found.keep,
            "weak": found.weak,
        }


def _split(words: Sequence[str], code: str | None) -> tuple[list[str], str | None, str | None]:
    """The levels, and the file and function, that were typed."""
    levels = list(words)
    if levels and levels[-1].startswith("@"):
        if code is not None:
            raise UsageError("a handler is code, or @FILE:FUNCTION, and not both")
        file, colon, function = levels.pop()[1:].rpartition(":")
        if not colon or not file or not function.isidentifier():
            raise UsageError("write @FILE:FUNCTION, as in @handlers.py:purge")
        return levels, file, function
    if code is None:
        raise UsageError("code is missing: write it behind a colon, as in register cache purge: print(data)")
    return levels, None, None


def _read(file: str) -> str:
    try:
        with open(os.path.expanduser(file), encoding="utf-8") as stream:
            text = stream.read(_MAX_FILE_BYTES + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"can't read {file}: {getattr(error, 'strerror', None) or error}") from None
    if len(text) > _MAX_FILE_BYTES:
        raise UsageError(f"{file} is longer than {_MAX_FILE_BYTES} characters")
    return text


def _says(error: EventError, text: str) -> bool:
    return text in str(error)


def _sorted(answer: dict[str, Any], workers: tuple[int, ...]) -> tuple[int, dict[int, str]]:
    """How many of those that it is for have done it, and what went wrong in the others."""
    errors: dict[int, str] = {}
    done = 0
    for row in answer["workers"]:
        data = row["data"] or {}
        error = row["error"] or data.get("error")
        if error is None:
            done += 1
        elif not workers or row["worker_id"] in workers:
            errors[row["worker_id"]] = error
    return done, errors


def _as_source(found: Registered) -> str:
    levels = [repr(word) for word in (found.source, *found.events) if word is not None]
    if found.file is not None:
        if found.function is None:
            return f"runpy.run_path({found.file!r})\n"
        place = f"runpy.run_path({found.file!r})[{found.function!r}]"
        return (
            f"handler_{found.number} = {place}\neventsh.register({', '.join([f'handler_{found.number}', *levels])})\n"
        )
    code = found.code or ""
    kind = "async def" if iscoroutinefunction(compile_handler(code, "test")) else "def"
    head = f"@eventsh.on({', '.join(levels)})\n{kind} handler_{found.number}(data, event, source, pid):\n"
    return head + (plain_code(code) if is_block(code) else _indent(plain_code(code)))


def _indent(code: str) -> str:
    """Further to the right, but for the rows that a string goes on in: their blanks are part of it."""
    inside: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        if token.type == tokenize.STRING or tokenize.tok_name[token.type].startswith("FSTRING"):
            inside.update(range(token.start[0] + 1, token.end[0] + 1))
    rows = code.splitlines()
    return "\n".join(row if number in inside or not row else "    " + row for number, row in enumerate(rows, 1)) + "\n"
