"""What all tests have in common: none of them fails for what another one left behind, or because the machine was busy."""

from __future__ import annotations

import gc
import sys
from collections.abc import Generator

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("eventsh", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("eventsh")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Once a test has failed, let go of what it left open, without a word: it has been told of already. Else pytest keeps
    it, by way of the traceback, until the next test runs, and that would be told that it leaves connections unclosed."""
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
