"""What `help` shows: all commands, grouped, on one screen of 24 rows."""

from __future__ import annotations

from collections.abc import Iterable
from textwrap import shorten

__all__ = ["GROUPS", "overview"]

GROUPS: dict[str, dict[tuple[str, ...], str]] = {
    "Events": {
        ("post", "post_local"): "to all workers, or to this shell's handlers alone",
        ("tail",): "show events as they come; tail off ends it",
    },
    "Handlers": {
        ("register", "load"): "one typed here, or a file; -w in the workers",
        ("register_weak",): "as register, while the file's module holds it",
        ("handlers",): "who handles what; --save writes a file",
        ("unregister",): "take one back by its number",
    },
    "Pool": {
        ("status", "workers"): "the broker and its workers",
        ("reload", "kill"): "load the handlers anew; end a worker",
        ("pause", "resume"): "stop workers for a while, and have them go on",
        ("dead",): "events that killed their processes",
    },
    "Recordings": {
        ("record", "replay"): "record events; post those of a recording again",
        ("log",): "look into recordings, and make others of them",
    },
    "Shell": {
        ("set", "history"): "how this shell shows things; what was typed",
        ("source",): "run the commands in a file",
        ("help", "exit"): "also ? and quit, q, Ctrl-D",
    },
    "More": {
        ("bench",): "measure how fast eventsh is on this machine",
        ("plugins",): "list them, check a transport, begin a new one",
    },
}

_ENDING = (
    "!PROGRAM runs a program of the system; COMMAND | PROGRAM pipes into one.",
    "help COMMAND tells more. Tab completes, Ctrl-R searches, Ctrl-D leaves.",
)


def overview(plugged: Iterable[tuple[str, str]], columns: int) -> list[str]:
    """Return the lines: those of GROUPS, and the verbs of plugins, which are given as name and summary."""
    rows = [
        (group if number == 0 else "", ", ".join(names), text)
        for group, commands in GROUPS.items()
        for number, (names, text) in enumerate(commands.items())
    ]
    rows += [("Plugins" if number == 0 else "", name, text) for number, (name, text) in enumerate(plugged)]
    width = max(columns - 31, 20)
    return [f"{group:12}{names:19}{shorten(text, width, placeholder=' …')}" for group, names, text in rows] + [*_ENDING]
