"""What can stand for a parameter, by its metavar: what the running broker knows, and files.

The broker is asked what the handlers are registered for, and who its workers are: events that nobody handles are unknown
to it, for it reads no event. It gets a moment; then the line goes on without it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from eventsh.errors import EventError, NotConnected
from eventsh.event import LIFECYCLE_SOURCE

__all__ = ["VALUES", "Candidate"]

# Whoever presses the key waits for it. A broker that runs answers in some milliseconds; one of its workers that is
# stopped makes it wait for a second.
_ASK_S = 0.4
_LIFECYCLE_EVENTS = (
    "dead_letter",
    "gap",
    "handler_error",
    "started",
    "stopping",
    "worker_joined",
    "worker_left",
    "workers_joined",
)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A word that can stand at the cursor. `about` is shown beside it, by shells that can."""

    value: str
    about: str = ""


def _ask(what: str, values: Mapping[str, str], member: str = "workers") -> list[dict[str, Any]]:
    """The rows of a broker's answer, of the broker at the address that the line names; none where there is no answer."""
    from eventsh.runtime.blocking import BlockingClient
    from eventsh.runtime.endpoint import SECURITY_OPTIONS, complete_options, find_endpoint

    def give_up(*_: object) -> NoReturn:
        raise NotConnected("the time is over")

    # One limit for all of it: connecting, hello and the answer have one each.
    previous = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, _ASK_S)
    try:
        secured = {name: values[name] for name in SECURITY_OPTIONS if name in values}
        transport, found = find_endpoint(values.get("address", values.get("to")), complete_options(secured))
        with BlockingClient(transport, found, timeout_s=_ASK_S) as client:
            rows: list[dict[str, Any]] = client.ask(what)[member]
        return rows
    except (EventError, OSError):
        return []
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def _handlers(values: Mapping[str, str]) -> list[tuple[str, str | None, str]]:
    """The source and the event of each handler that is for a source, and its name."""
    rows = [handler for worker in _ask("handlers", values) for handler in worker["data"] or ()]
    found = {(row["source"], row["event"], row["name"]) for row in rows if row["source"] is not None}
    return sorted(found, key=lambda one: (one[0], one[1] or "", one[2]))


def _sources(word: str, values: Mapping[str, str]) -> Iterator[Candidate]:
    for source, event, name in _handlers(values):
        yield Candidate(source, f"handled by {name}" if event is None else f"{event} is handled by {name}")
    if values.get("verb") != "post":
        yield Candidate(LIFECYCLE_SOURCE, "what eventsh itself tells")


def _events(word: str, values: Mapping[str, str]) -> Iterator[Candidate]:
    wanted = values.get("source")
    if wanted == LIFECYCLE_SOURCE:
        yield from map(Candidate, _LIFECYCLE_EVENTS)
    for source, event, name in _handlers(values):
        if event is not None and wanted in (source, None):
            yield Candidate(event, f"handled by {name}")


def _workers(word: str, values: Mapping[str, str]) -> Iterator[Candidate]:
    for row in _ask("status", values):
        yield Candidate(str(row["worker_id"]), f"pid {row['pid']}")


def _dead_letters(word: str, values: Mapping[str, str]) -> Iterator[Candidate]:
    for row in _ask("dead_list", values, "dead"):
        yield Candidate(str(row["id"]), f"{row['source']} {row['event']}")


def _actions(word: str, values: Mapping[str, str]) -> Iterator[Candidate]:
    from eventsh.cli.log import ACTIONS

    yield from map(Candidate, ACTIONS)


def _addresses(word: str, values: Mapping[str, str]) -> Iterator[Candidate]:
    from eventsh.transports import BUILTIN

    scheme, colon, path = word.partition(":")
    if colon and not path.startswith("//"):
        yield from (Candidate(f"{scheme}:{one.value}", one.about) for one in _files(path, (".sock",)))
    if address := os.environ.get("EVENTSH_ADDRESS"):
        yield Candidate(address, "$EVENTSH_ADDRESS")
    # What stays inside of a process is no address for a command.
    yield from (Candidate(f"{name}://" if name == "tcp" else f"{name}:") for name in BUILTIN if name != "inproc")


def _data(word: str, values: Mapping[str, str]) -> Iterator[Candidate]:
    if word.startswith("@"):
        yield from (Candidate(f"@{one.value}") for one in _files(word[1:], ("",)))


def _files(word: str, endings: tuple[str, ...]) -> Iterator[Candidate]:
    """The files that begin as `word` does and have one of the endings, and directories, with a slash."""
    directory, begun = os.path.split(word)
    with os.scandir(os.path.expanduser(directory) or ".") as entries:
        for entry in sorted(entries, key=lambda one: one.name):
            if entry.name.startswith(begun) and (begun.startswith(".") or not entry.name.startswith(".")):
                path = os.path.join(directory, entry.name)
                if entry.is_dir():
                    yield Candidate(f"{path}/")
                elif entry.name.endswith(endings):
                    yield Candidate(path)


VALUES: dict[str, Callable[[str, Mapping[str, str]], Iterator[Candidate]]] = {
    "SOURCE": _sources,
    "EVENT": _events,
    "WORKER": _workers,
    "ACTION": _actions,
    "ID": _dead_letters,
    "ADDRESS": _addresses,
    "DATA": _data,
    "RECORDING": lambda word, _: _files(word, (".evlog",)),
    "FILE": lambda word, _: _files(word, ("",)),
    "DIR": lambda word, _: _files(word, ()),
    "DIRECTORY": lambda word, _: _files(word, ()),
    "FILE_OR_MODULE": lambda word, _: _files(word, (".py",)),
}
