"""`eventsh plugins`: its arguments, and what it shows."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eventsh.cli.parameters import Json
from eventsh.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from eventsh.commands.plugins import Checked

__all__ = ["EXAMPLES", "plugins"]

EXAMPLES = """\
eventsh plugins list
eventsh plugins check unix
eventsh plugins check chaos+unix:/tmp/check/e.sock --json
eventsh plugins new mail"""


def plugins(
    action: Annotated[str, typer.Argument(metavar="list|check|new", help="What to do.")],
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="[TARGET]", help="For check: a scheme or an address. For new: the name, which is the scheme too."
        ),
    ] = None,
    directory: Annotated[
        str, typer.Option("--directory", metavar="DIR", help="For new: where to make the plugin's directory.")
    ] = ".",
    json: Json = False,
) -> int:
    """List the plugins, check a transport, or begin a plugin with a new one.

    list shows each plugin's version, hooks, schemes, and what is wrong with it. check runs the tests that every transport
    must pass, and needs pytest; with a scheme alone it chooses addresses, with an address it listens there, where nobody
    may do so meanwhile. new writes a package with a transport that works and its tests.

    Exit status: 0, 1 a check failed or the files can't be written, 2 refused, by SIGINT after Ctrl-C.
    """
    if action == "list":
        if target is not None:
            raise UsageError("plugins list takes no TARGET")
        return _list(as_json=json)
    if action not in ("check", "new"):
        raise UsageError(f"plugins can list, check or new, not {action[:40]!r} (see eventsh plugins --help)")
    if not target:
        wanted = "a scheme or an address: eventsh plugins check unix" if action == "check" else "a name"
        raise UsageError(f"plugins {action} needs {wanted}")
    return _check(target, as_json=json) if action == "check" else _new(target, directory, as_json=json)


def _list(*, as_json: bool) -> int:
    import logging

    from eventsh.cli.report import say, say_json
    from eventsh.commands.plugins import list_plugins

    # What is wrong with a plugin stands in the list.
    logging.getLogger("eventsh").addHandler(logging.NullHandler())
    found = list_plugins()
    if as_json:
        say_json(found)
    else:
        say("\n".join(line for plugin in found for line in _plugin_lines(plugin)))
    return 0


def _plugin_lines(plugin: dict[str, Any]) -> list[str]:
    from eventsh.cli.terminal import escape

    lines = [escape(f"{plugin['name']} {plugin['version'] or ''}".rstrip())]
    for label, values in (("schemes", plugin["schemes"]), ("hooks", plugin["hooks"])):
        if values:
            lines.append(escape(f"  {label:8} {' '.join(values)}"))
    return [*lines, *(escape(f"  error    {error}") for error in plugin["errors"])]


def _check(target: str, *, as_json: bool) -> int:
    from dataclasses import asdict

    from eventsh.cli.report import say_json
    from eventsh.commands.outcome import Exit
    from eventsh.commands.plugins import check_transport

    on_test = _progress() if sys.stderr.isatty() and not as_json else None
    checked = check_transport(target, on_test)
    if on_test is not None:
        sys.stderr.write("\r\x1b[K")
    if as_json:
        say_json(asdict(checked))
    else:
        _show_checked(checked)
    return int(Exit.OK if checked.is_good else Exit.FAILED)


def _progress() -> Callable[[str, str], None]:
    """Says on a terminal which test was the last one: each call writes over the one before."""
    count = 0

    def tell(test: str, outcome: str) -> None:
        nonlocal count
        count += 1
        sys.stderr.write(f"\r\x1b[K{count} {test[:70]}\r")
        sys.stderr.flush()

    return tell


def _show_checked(checked: Checked) -> None:
    from eventsh.cli.report import say
    from eventsh.cli.terminal import escape

    for failure in checked.failed:
        say(f"FAILED {escape(failure.test)}")
        say("\n".join(f"    {escape(line)}" for line in failure.error.splitlines()))
    skipped = f", {len(checked.skipped)} do not apply" if checked.skipped else ""
    verdict = "keeps the contract of transports" if checked.is_good else f"failed {len(checked.failed)} of them"
    say(
        escape(f"{checked.target} ({checked.plugin}): {checked.passed} tests passed{skipped}")
        + f" in {checked.seconds:.1f} s: {verdict}"
    )


def _new(name: str, directory: str, *, as_json: bool) -> int:
    from eventsh.cli.report import say, say_json
    from eventsh.cli.terminal import escape
    from eventsh.commands.skeleton import write_skeleton

    skeleton = write_skeleton(name, directory)
    if as_json:
        say_json({"directory": skeleton.directory, "scheme": skeleton.scheme, "files": skeleton.files})
        return 0
    for file in skeleton.files:
        say(escape(f"{skeleton.directory}/{file}"))
    say(f"a plugin with the transport {skeleton.scheme}: over a unix socket, until you make something of it. Try it:")
    say(escape(f"    pip install -e '{skeleton.directory}[test]' && pytest {skeleton.directory}"))
    say(f"    eventsh plugins check {skeleton.scheme}")
    return 0
