"""`eventsh plugins`: which there are, and whether the transport of one keeps the contract."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import IO, Any

from eventsh import __version__
from eventsh.errors import ConfigureError, EventError, UsageError
from eventsh.plugins import plugins
from eventsh.runtime.election import is_locked
from eventsh.runtime.endpoint import find_endpoint
from eventsh.runtime.interpreter import python_command, python_environment

__all__ = ["Checked", "Failure", "check_transport", "list_plugins"]


def list_plugins() -> list[dict[str, Any]]:
    """Every plugin, built-in ones first: `name`, `version`, `module`, `hooks`, `schemes` and `errors`."""
    return [asdict(facts) for facts in plugins().describe(__version__)]


@dataclass(frozen=True, slots=True)
class Failure:
    """One test of the conformance kit that failed, with what pytest says about it."""

    test: str
    error: str


@dataclass(slots=True)
class Checked:
    """What came of a check."""

    target: str
    plugin: str
    passed: int = 0
    skipped: list[str] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def is_good(self) -> bool:
        return self.passed > 0 and not self.failed


def check_transport(target: str, on_test: Callable[[str, str], None] | None = None) -> Checked:
    """Run the conformance kit on a transport, in a process of its own, at an address or at ones of its scheme.

    `on_test` gets each test's name and outcome. Raises ConfigureError when there is no such transport, UsageError when
    pytest is not installed or a broker runs at the address.
    """
    where, plugin = _find(target)
    checked = Checked(target, plugin)
    if importlib.util.find_spec("pytest") is None:
        raise UsageError(f"plugins check needs pytest: {sys.executable} -m pip install pytest")
    started = time.monotonic()
    # Not what the user's own tests are run with.
    environment = {**python_environment(), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": ""}
    command = [*python_command("eventsh.testing.check"), where]
    with (
        # Not a pipe: read only in the end, it would hold up a process that says much.
        tempfile.TemporaryFile("w+", errors="replace") as said,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said, env=environment, text=True
        ) as process,
    ):
        try:
            _follow(process, said, checked, on_test)
        except BaseException:
            # Ctrl-C, or nobody reads any more.
            process.kill()
            raise
    checked.seconds = round(time.monotonic() - started, 3)
    return checked


def _find(target: str) -> tuple[str, str]:
    """What to check, with a path made absolute, and the name of the plugin that has its transport."""
    if ":" in target:
        transport, address = find_endpoint(target)
        if is_locked(transport, address):
            raise UsageError(f"a broker runs at {address}, and a check would take its place: choose another address")
        return str(address), plugins().owner_of(transport.scheme)
    if not target:
        raise ConfigureError("say which transport to check: a scheme, or an address", option="address")
    return target, plugins().owner_of(target)


def _follow(
    process: subprocess.Popen[str], stderr: IO[str], checked: Checked, on_test: Callable[[str, str], None] | None
) -> None:
    assert process.stdout is not None
    running = ""
    for line in process.stdout:
        facts = json.loads(line)
        test, outcome = facts["test"], facts["outcome"]
        if outcome == "started":
            running = test
            continue
        running = ""
        if outcome == "failed":
            checked.failed.append(Failure(test, facts["error"]))
        elif outcome == "skipped":
            checked.skipped.append(test)
        else:
            checked.passed += 1
        if on_test is not None:
            on_test(test, outcome)
    status = process.wait()
    stderr.seek(0)
    said = stderr.read().strip()
    if running:
        checked.failed.append(Failure(running, f"it hung, or ended the process (status {status}): {said}"))
    elif not checked.failed and not checked.is_good:
        raise EventError(f"the check could not be run (status {status}): {said or 'pytest found no tests'}")
