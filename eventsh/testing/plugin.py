"""Fixtures for the tests of programs that use eventsh. Ask for them in the conftest.py at the root of your tests:

    pytest_plugins = ["eventsh.testing.plugin"]

Not an entry point of pytest's: that would load this at every start of every pytest where eventsh is installed. Here
nothing but pytest is imported before a fixture is used.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from eventsh.testing.broker import BrokerProcess
    from eventsh.testing.bus import RecordingEvents
    from eventsh.testing.pool import ServedPool
    from eventsh.testing.recordings import EventLog

__all__ = ["eventlog", "eventsh_broker", "eventsh_bus", "eventsh_pool", "pytest_configure"]

_numbers = itertools.count()


def pytest_configure(config: pytest.Config) -> None:
    """Make the mark known, also where marks are strict."""
    config.addinivalue_line("markers", "eventlog(path, source=None, event=None): the recording of the fixture eventlog")


@pytest.fixture
def eventlog(request: pytest.FixtureRequest) -> EventLog:
    """The recording that the test is marked with: `@pytest.mark.eventlog("incident.evlog")`, beside the test's file. It has
    `.events`, and `.replay()` calls the handlers of this process with them. See `EventLog`."""
    from eventsh.testing.recordings import EventLog

    mark = request.node.get_closest_marker("eventlog")
    if mark is None or not mark.args:
        raise pytest.UsageError('the fixture eventlog needs @pytest.mark.eventlog("incident.evlog") at the test')
    path, *names = mark.args
    return EventLog(request.path.parent / path, *names, **mark.kwargs)


@pytest.fixture
def _eventsh_directory() -> Iterator[Path]:
    # Not tmp_path, which is too long for a socket on some systems.
    with tempfile.TemporaryDirectory(prefix="evsh-", dir="/tmp") as path:
        yield Path(path)


@pytest.fixture
def eventsh_bus() -> Iterator[RecordingEvents]:
    """This process's default bus, attached to a broker inside this process: `eventsh.post` and the handlers of your program
    work, and nothing leaves the process. See `RecordingEvents` for what it can be asked. Handlers that are
    functions inside of the test, or methods, are gone after it; those of modules stay."""
    from eventsh.testing.bus import recording_bus

    with recording_bus(f"inproc:eventsh-testing-{next(_numbers)}") as events:
        yield events


@pytest.fixture
def eventsh_broker(_eventsh_directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[BrokerProcess]:
    """A broker in a process of its own, at `.address`, which is the default address while the test runs, here and in the
    processes that it starts. It can be asked for its `status()`, and killed with `kill()`."""
    from eventsh.address import ADDRESS_ENV
    from eventsh.options import Options
    from eventsh.testing.broker import BrokerProcess

    broker = BrokerProcess(
        f"unix:{_eventsh_directory}/events.sock", Options.from_values(linger=None), _eventsh_directory / "broker.log"
    )
    monkeypatch.setenv(ADDRESS_ENV, broker.address)
    yield broker
    broker.stop()


@pytest.fixture
def eventsh_pool(_eventsh_directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., ServedPool]]:
    """Start a pool as `eventsh serve` does: `pool = eventsh_pool("handlers.py", workers=2)`. The arguments are files or
    modules of handlers. Its `.address` is the default one while the test runs. See `ServedPool`."""
    from eventsh.address import ADDRESS_ENV
    from eventsh.testing.pool import ServedPool

    with ExitStack() as ended:

        def start(*handlers: str | Path, workers: int = 2) -> ServedPool:
            number = next(_numbers)
            address = f"unix:{_eventsh_directory}/{number}.sock"
            pool = ServedPool(address, handlers, workers, _eventsh_directory / f"{number}.log")
            ended.callback(pool.stop)
            pool.wait_ready()
            monkeypatch.setenv(ADDRESS_ENV, address)
            return pool

        yield start
