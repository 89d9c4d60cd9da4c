"""What all tests have in common: none of them fails for what another one left behind, or because the machine was busy."""

from __future__ import annotations

import gc
import sys
import warnings
from collections.abc import Generator

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("eventsh", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("eventsh")


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
