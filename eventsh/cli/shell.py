"""The verb `shell` of the command line: its options and its help. The shell itself is in shell/, imported when used."""

from __future__ import annotations

from typing import Annotated

import typer

from eventsh.cli.parameters import Address, read_whole

__all__ = ["EXAMPLES", "shell"]

EXAMPLES = """\
eventsh shell
eventsh shell --workers 4 --handlers handlers.py
eventsh shell -c 'post cache purge {"key": "k1"}' -c 'handlers'
eventsh shell < script.eventsh"""


def shell(
    command: Annotated[
        list[str] | None,
        typer.Option("--command", "-c", metavar="LINE", help="Run this line and end; may be given again."),
    ] = None,
    workers: Annotated[
        str | None,
        typer.Option("--workers", "-w", metavar="N", help="Start a pool of N workers, which ends with the shell."),
    ] = None,
    handlers: Annotated[
        list[str] | None,
        typer.Option("--handlers", metavar="FILE_OR_MODULE", help="Handlers for the workers of --workers."),
    ] = None,
    address: Address = None,
) -> int:
    """Open a shell: post, watch, and write handlers in a live pool. This is also what eventsh alone does on a terminal.

    Without a terminal it runs the lines of standard input. Help, in the shell, tells its commands.

    Exit status: 0 when left; of lines from -c or standard input the first that is not 0, as the command has it;
    2 refused, 3 no broker there, 4 no answer in time.
    """
    from eventsh.errors import UsageError
    from eventsh.shell.app import run_shell

    if handlers and workers is None:
        raise UsageError("--handlers is for the pool of --workers: say how many")
    count = read_whole("--workers", workers, minimum=0)
    return run_shell(address, workers=count, handlers=handlers or [], commands=command)
