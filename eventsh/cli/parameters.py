"""What several verbs of the command line have in common: options, and how their texts are read."""

from __future__ import annotations

from typing import Annotated

import typer

from eventsh.errors import UsageError

__all__ = ["Address", "Json", "Timeout", "read_content", "read_seconds", "read_whole"]

Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        "-a",
        metavar="ADDRESS",
        help="Where the broker is; by default $EVENTSH_ADDRESS, else a socket of your own.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Timeout = Annotated[
    str | None,
    typer.Option(
        "--timeout", metavar="SECONDS", help="How long to wait for the broker: 5, 500ms or 1m.  [default: 10]"
    ),
]


def read_seconds(text: str | None, flag: str = "--timeout", default: float | None = None) -> float:
    from eventsh.commands.post import DEFAULT_TIMEOUT_S
    from eventsh.options import parse_option

    if text is None:
        return DEFAULT_TIMEOUT_S if default is None else default
    seconds = parse_option("timeout", text, label=flag)
    assert isinstance(seconds, float)
    return seconds


def read_content(path: str) -> bytes:
    """The content of a file for one event, no further than is needed to see that it is too long. Raises OSError."""
    from eventsh.commands.arguments import MAX_CONTENT_BYTES

    with open(path, "rb") as file:
        return file.read(MAX_CONTENT_BYTES + 1)


def read_whole(flag: str, text: str | None, *, minimum: int = 1) -> int | None:
    """The number that `text` is; None when there is none."""
    if text is None:
        return None
    # More digits are more than anything can count, and int() refuses thousands of them with an error of its own.
    if not (text.isascii() and text.isdigit() and len(text) <= 18) or int(text) < minimum:
        raise UsageError(f"{flag} must be a whole number of at least {minimum}, not {text[:40]!r}")
    return int(text)
