"""Isolation of the tests from their environment, from each other, and from a busy machine."""

from __future__ import annotations

import gc
import os
import re
import signal
import sys
import tempfile
import warnings
from collections.abc import Generator

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("eventsh", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("eventsh")

# Any other variable changes on some machine how output is written (PYTHONUNBUFFERED, NO_COLOR, COLUMNS, LANG), where
# files are (TMPDIR, XDG_RUNTIME_DIR), or what a program does (EVENTSH_TIMEOUT, GUNICORN_CMD_ARGS, PYTHONWARNINGS).
_KEPT_VARIABLES = re.compile(r"HOME|PATH|(LD|DYLD|PYTEST_XDIST|COV|COVERAGE)_.*")
# Python itself ignores these, and subprocess restores them in children.
_IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)


def pytest_addoption(parser: pytest.Parser) -> None:
    text = "run long forms too: what is marked so, new examples for the models, each interface over each transport"
    parser.addoption("--long", action="store_true", help=text)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--long"):
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("long")])
        items[:] = [item for item in items if not item.get_closest_marker("long")]


@pytest.hookimpl(trylast=True)  # pytest's own imports readline, which sets COLUMNS and LINES
def pytest_configure(config: pytest.Config) -> None:
    """Give this process, and all that tests start, the same environment on every machine.

    A job of a shell script starts with SIGINT ignored, one of nohup with SIGHUP, a service with any mask of modes. A long
    TMPDIR leaves no room for the path of a socket.
    """
    for name in [name for name in os.environ if not _KEPT_VARIABLES.fullmatch(name)]:
        del os.environ[name]
    for name in ("COLUMNS", "LINES"):
        os.unsetenv(name)  # set in C, past os.environ
    tempfile.tempdir = None  # found in TMPDIR before
    for number in signal.valid_signals().difference(_IGNORED_BY_PYTHON):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.umask(0o022)
    is_long = config.getoption("--long")
    settings.register_profile("models", max_examples=500 if is_long else 50, derandomize=not is_long)
    # The files with few and long tests come in their turn, not at the end, where no other file is left to run beside them.
    config.option.loadscopereorder = False


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """uvloop warns of what a loop leaves open as it closes it. That is no error there (see pyproject.toml), but here."""
    with warnings.catch_warnings(record=True) as seen:
        done = yield
    for warning in seen:
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    assert not [text for warning in seen if (text := str(warning.message)).startswith("unclosed resource")]
    return done


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Once a test has failed, let go of what it left open, without a word: that it failed is told already. Else pytest keeps
    it, by way of the traceback, until the next test runs, and that one would fail for it."""
    failed_before = item.session.testsfailed
    done = yield
    if item.session.testsfailed > failed_before or hasattr(sys, "last_value"):
        for name in ("last_exc", "last_type", "last_value", "last_traceback"):
            if hasattr(sys, name):
                delattr(sys, name)
        hook, sys.unraisablehook = sys.unraisablehook, lambda unraisable: None
        try:
            gc.collect()
        finally:
            sys.unraisablehook = hook
    return done
