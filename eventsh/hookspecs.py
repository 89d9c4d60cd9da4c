"""Every hook that a plugin may implement.

A plugin is a module or object named by an entry point of the group "eventsh". It marks the hooks that it implements:

    from eventsh.hookspecs import hookimpl

    @hookimpl
    def eventsh_transports():
        return [MyTransport()]

An implementation takes the arguments that it needs, by name, and may leave out the others. What it raises is logged with
the plugin's name and disturbs nobody. `eventsh_event_posted` is called in the thread that posts, and one that blocks
delays that post; the other hooks about events in the thread of the bus, where it delays that process's events. Wrappers
are not supported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from eventsh.transport import Transport, TransportWrapper

__all__ = [
    "eventsh_backbones",
    "eventsh_broker_started",
    "eventsh_broker_stopping",
    "eventsh_cli_commands",
    "eventsh_event_posted",
    "eventsh_gap",
    "eventsh_handler_failed",
    "eventsh_shell_commands",
    "eventsh_transports",
    "eventsh_worker_started",
    "eventsh_worker_stopping",
    "hookimpl",
    "hookspec",
]

hookspec = pluggy.HookspecMarker("eventsh")
hookimpl = pluggy.HookimplMarker("eventsh")


@hookspec
def eventsh_transports() -> Sequence[Transport | TransportWrapper]:  # type: ignore[empty-body]
    """Give the transports that the plugin has, and the wrappers, which make further ones of any.

    Called at most once in a process, in any process that uses an address whose scheme is not built in. Each transport is
    found by its `scheme`; of two with one scheme, the one that was registered first is taken, a built-in one before all.
    """


@hookspec
def eventsh_backbones() -> Mapping[str, Callable[..., Any]]:  # type: ignore[empty-body]
    """Give the backbones that the plugin has, each by the scheme of its address.

    Called by nothing in this version: no broker joins a backbone yet.
    """


@hookspec
def eventsh_cli_commands() -> Mapping[str, Callable[..., Any]]:  # type: ignore[empty-body]
    """Give commands for the command line: functions by the name that is typed, with typer's parameters.

    Called in the process of the command line, when what was typed is no command of eventsh's own, and for its help.
    """


@hookspec
def eventsh_shell_commands() -> Mapping[str, Callable[..., Any]]:  # type: ignore[empty-body]
    """Give commands for the interactive shell: functions by the name that is typed, with typer's parameters.

    Called in the process of the shell, when what was typed is no command of eventsh's own, and for its help. A function
    returns an exit status or nothing, prints to standard output, and raises EventError for what the person can mend. A
    parameter's metavar (SOURCE, EVENT, WORKER, FILE) says what it is completed with.
    """


@hookspec
def eventsh_broker_started(address: str, pid: int, epoch: int) -> None:
    """The broker listens at `address` and its epoch has begun. Called in the broker's process. Return nothing."""


@hookspec
def eventsh_broker_stopping(address: str, pid: int, epoch: int) -> None:
    """The broker is about to close its connections. Called in the broker's process, not when it is killed. Return
    nothing."""


@hookspec
def eventsh_worker_started(worker_id: int | None, address: str) -> None:
    """This process is attached for the first time since `configure` or a fork. Called in the worker's process, before any
    event that a broker brought is handled; `started` and local events may come earlier. `worker_id` is None where it is no
    numbered worker. Return nothing."""


@hookspec
def eventsh_worker_stopping(worker_id: int | None, address: str) -> None:
    """This process is about to detach in an orderly way. Called in the worker's process, while posting still works. Return
    nothing."""


@hookspec
def eventsh_event_posted(source: str, event: str, data: Any, unique: str | None) -> None:
    """An event was accepted for delivery by `post`. Called in the poster's process and thread, before `post` returns: on the
    hot path, so be quick, and don't change `data`. Local events are not told, nor what was posted before the process began to
    attach. Return nothing."""


@hookspec
def eventsh_handler_failed(failure: Any) -> None:
    """A handler raised. Called in the process whose handler it was, after the traceback was logged. `failure` has the facts of
    the `handler_error` event. Return nothing."""


@hookspec
def eventsh_gap(gap: Any) -> None:
    """Events were missed. Called in the worker's process that missed them, before its handlers of the `gap` event. `gap` is
    that event's data. Return nothing."""
