"""Test runs against mutants, each in a forked child of one process that has loaded pytest.

Theory of operation: starting Python, pytest and its plugins takes half of a short run. The parent process imports them
once and imports nothing of eventsh, so each child imports the mutated package afresh. All runs use a copy of the tree;
the checkout is only read. The first failure ends a run, so the quickest tests run first, by the times of a run without
a mutant. That run also sets the time limit: a mutant that hangs counts as killed.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import hypothesis
import hypothesis.strategies
import orjson  # noqa: F401  loaded before the fork
import pytest

from tests.mutation.mutants import Mutant

__all__ = ["Campaign", "Outcome", "Stage", "copy_tree", "stages_of"]

# A loaded machine can be several times slower than it was when the tests were timed.
_TIMES_SLOWER = 3.0
# A mutant can grow a list without end.
_MEMORY_BYTES = 4 << 30
_NOT_COPIED = shutil.ignore_patterns(".git", ".venv", "__pycache__", ".*_cache", ".hypothesis", "node_modules")


Files: TypeAlias = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Stage:
    """Test files that run together. A mutant that survives a stage runs against the next one."""

    files: Files
    timed: Files
    """Files whose run without a mutant sets the time limit: these, or all of the package."""

    @property
    def times(self) -> str:
        """Name of the file that holds the time of each test."""
        return f"{hash(self.timed):x}.times"


@dataclass(slots=True)
class Outcome:
    """Result of a campaign."""

    killed: int = 0
    timeouts: int = 0
    survivors: list[Mutant] = field(default_factory=list)

    @property
    def share(self) -> float:
        """Share of killed mutants, including timeouts."""
        killed = self.killed + self.timeouts
        return killed / ((killed + len(self.survivors)) or 1)


def stages_of(root: Path, file: str) -> list[Stage]:
    """Return the tests beside `file`: first those named after it, then the others of its package.

    Args:
        root: The root of the tree.
        file: `eventsh/PACKAGE/NAME.py` has `tests/PACKAGE/test_NAME*.py` and `tests/PACKAGE/test_*.py`;
            `eventsh/NAME.py` has `tests/test_NAME.py` alone.
    """
    path = Path(file)
    directory = root / "tests" / path.parent.relative_to("eventsh")
    own = {*directory.glob(f"test_{path.stem}.py"), *directory.glob(f"test_{path.stem}_*.py")}
    beside = own if path.parent == Path("eventsh") else set(directory.glob("test_*.py"))
    first, others, package = (
        tuple(sorted(str(each.relative_to(root)) for each in files)) for files in (own, beside - own, beside)
    )
    return [Stage(files, timed) for files, timed in ((first, first), (others, package)) if files]


def copy_tree(root: Path, target: Path) -> None:
    """Copy the tree without version control, environments and caches."""
    shutil.copytree(root, target, ignore=_NOT_COPIED)


class Campaign:
    """Runs mutants against the tests beside them, in the copy `tree`.

    Args:
        tree: Copy of the tree; its files are changed and restored.
        note: Receives one line for each result.
        least_timeout_s: Time limit of a run whose tests take less.
        own: Run the first stage only. Quick, and stricter: a survivor may be killed by the other tests.
    """

    def __init__(self, tree: Path, note: Callable[[str], None], *, least_timeout_s: float, own: bool) -> None:
        self._tree = tree
        self._own = own
        self._note = note
        self._least_timeout_s = least_timeout_s
        self._limits_s: dict[Files, float] = {}
        self._runs = 0

    def run(self, mutants: Iterable[Mutant]) -> Outcome:
        """Run each mutant. Raises RuntimeError if tests fail without a mutant."""
        outcome = Outcome()
        for mutant in mutants:
            started = time.monotonic()
            ended = self._try(mutant)
            if ended == "survived":
                outcome.survivors.append(mutant)
            elif ended == "timeout":
                outcome.timeouts += 1
            else:
                outcome.killed += 1
            self._note(f"{ended:8} {time.monotonic() - started:5.1f} s  {mutant}")
        return outcome

    def _try(self, mutant: Mutant) -> str:
        path = self._tree / mutant.file
        source = path.read_bytes()
        stages = stages_of(self._tree, mutant.file)[: 1 if self._own else None]
        for stage in stages:
            self._time(stage)
        try:
            path.write_bytes(mutant.apply(source))
            for stage in stages:
                self._age(path)
                status = self._run(stage.files, stage.times, self._limits_s[stage.timed])
                if status != 0:
                    return "timeout" if status is None else "killed"
        finally:
            path.write_bytes(source)
            self._age(path)
        return "survived"

    def _age(self, path: Path) -> None:
        # Python compares the modification time in whole seconds, and the size, to find stale bytecode: two mutants of one
        # second and one size would be the same to it.
        self._runs += 1
        os.utime(path, (self._runs, self._runs))

    def _time(self, stage: Stage) -> None:
        """Time the tests on the tree as it is, once."""
        if stage.timed in self._limits_s:
            return
        started = time.monotonic()
        if self._run(stage.timed, stage.times, None) != 0:
            log = (self._tree / "mutation.log").read_text(errors="replace")
            raise RuntimeError(f"the tests fail without a mutant: {' '.join(stage.timed)}\n{log[-4000:]}")
        taken_s = time.monotonic() - started
        self._limits_s[stage.timed] = max(self._least_timeout_s, taken_s * _TIMES_SLOWER)
        self._note(f"unmutated {taken_s:5.1f} s  {' '.join(stage.timed)}")

    def _run(self, files: Files, times: str, limit_s: float | None) -> int | None:
        """Run tests in a child. Return its exit status, negative for a signal, or None after `limit_s`."""
        child = os.fork()
        if not child:
            status = 70
            try:
                status = _run_tests(self._tree, files, times, self._least_timeout_s)
            except BaseException:  # noqa: BLE001  a child must never return into the parent's code
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        try:
            return _wait(child, limit_s)
        finally:
            # The mutant may have left processes behind that the tests started.
            with suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)


def _wait(child: int, limit_s: float | None) -> int | None:
    end = None if limit_s is None else time.monotonic() + limit_s
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        if end is not None and time.monotonic() > end:
            with suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None
        time.sleep(0.01)


class _Plugin:
    """Runs the quickest tests first, and Hypothesis without shrinking its examples."""

    def __init__(self, times: Path) -> None:
        self._times = times
        self._taken_s: dict[str, float] = {}

    def known_s(self) -> dict[str, float]:
        """Return the time of each test in the run without a mutant; empty in that run."""
        return json.loads(self._times.read_text()) if self._times.exists() else {}

    def pytest_collection(self) -> None:
        found = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
        hypothesis.settings.register_profile("mutation", phases=found, database=None)
        hypothesis.settings.load_profile("mutation")

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        known = self.known_s()
        items.sort(key=lambda item: known.get(item.nodeid, 0.0))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._taken_s[report.nodeid] = self._taken_s.get(report.nodeid, 0.0) + report.duration

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        if exitstatus == 0 and not self._times.exists():
            self._times.write_text(json.dumps(self._taken_s))


def _run_tests(tree: Path, files: Files, times: str, least_timeout_s: float) -> int:
    os.setsid()
    log = os.open(tree / "mutation.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for number in (1, 2):
        os.dup2(log, number)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.chdir(tree)
    for name in list(_checkout_modules()):
        del sys.modules[name]
    sys.path[:] = [each for each in sys.path if each and not (Path(each) / "eventsh").is_dir()]
    sys.path.insert(0, str(tree))
    plugin = _Plugin(tree / times)
    # pytest warns that it can't rewrite the assertions of plugins that were imported before it.
    options = ["-q", "-x", "--tb=short", "--hypothesis-seed=0", "-p", "no:cacheprovider"]
    if known := plugin.known_s():
        # Ends a test that hangs, long before the limit of the whole run does.
        options.append(f"--timeout={max(least_timeout_s, max(known.values()) * _TIMES_SLOWER)}")
    options += ["-W", "ignore:Module already imported:pytest.PytestAssertRewriteWarning"]
    return int(pytest.main([*options, *files], plugins=[plugin]))


def _checkout_modules() -> Iterator[str]:
    for name in sys.modules:
        if name.partition(".")[0] in ("tests", "eventsh"):
            yield name
