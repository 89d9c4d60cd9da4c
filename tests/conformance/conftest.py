"""Pools, brokers and buses for the cases, on every transport and through both faces."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.harness import (
    FACES,
    TRANSPORTS,
    BrokerHandle,
    Bus,
    Pool,
    Worker,
    start_broker,
    start_worker,
    start_workers,
)

_numbers = itertools.count()
# The interfaces differ above the transports: over these one of them is enough, but for the long forms.
_ONE_FACE = {"inproc": "AsyncEvents", "tcp": "Events", "shm": "AsyncEvents"}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--long"):
        return
    left_out = [item for item in items if isinstance(item, pytest.Function) and _is_left_out(item)]
    config.hook.pytest_deselected(items=left_out)
    unwanted = set(left_out)
    items[:] = [item for item in items if item not in unwanted]


def _is_left_out(item: pytest.Function) -> bool:
    params: dict[str, Any] = item.callspec.params if hasattr(item, "callspec") else {}
    face, transport = params.get("face"), params.get("transport")
    return face is not None and transport in _ONE_FACE and _ONE_FACE[transport] != face


@pytest.fixture(scope="session")
def directory() -> Iterator[Path]:
    # Not tmp_path: a socket's path has to be short.
    path = Path(tempfile.mkdtemp(prefix="evsh-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module", params=list(TRANSPORTS))
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=FACES)
def face(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def address(transport: str, directory: Path) -> str:
    """An address where nobody listens."""
    return TRANSPORTS[transport](directory, next(_numbers))


@pytest.fixture
def source() -> str:
    """A source of this test's own. Good as a unique key too."""
    return f"source-{next(_numbers)}"


@pytest.fixture(scope="module")
def pool(transport: str, face: str, directory: Path) -> Iterator[Pool]:
    """Four workers, with limits that large events pass and a time for unique keys that no test outlasts."""
    number = next(_numbers)
    log = directory / f"{number}.log"
    broker = start_broker(
        TRANSPORTS[transport](directory, number), log, slots=4, unique_timeout=600, max_payload_len=2 * 1024 * 1024
    )
    pool = Pool(broker, start_workers(face, broker.address, log, 4, max_payload_len=2 * 1024 * 1024))
    yield pool
    pool.stop()


@pytest.fixture
def make_broker(address: str, directory: Path) -> Iterator[Callable[..., BrokerHandle]]:
    """Start a broker at `address` with these options."""
    brokers: list[BrokerHandle] = []

    def make(**options: Any) -> BrokerHandle:
        brokers.append(start_broker(address, directory / f"{next(_numbers)}.log", **options))
        return brokers[-1]

    yield make
    for broker in brokers:
        broker.stop()


@pytest.fixture
def make_worker(
    face: str, address: str, directory: Path, make_broker: Callable[..., BrokerHandle]
) -> Iterator[Callable[..., Worker]]:
    """Start a worker at `address` with these options. Ended before the broker is."""
    workers: list[Worker] = []

    def make(**options: Any) -> Worker:
        workers.append(start_worker(face, address, directory / f"{next(_numbers)}.log", **options))
        return workers[-1]

    yield make
    for worker in workers:
        worker.end()


@pytest.fixture(scope="module")
def quiet_broker(transport: str, directory: Path) -> Iterator[BrokerHandle]:
    """A broker for tests with one bus of their own, which has left when the next one comes."""
    number = next(_numbers)
    broker = start_broker(
        TRANSPORTS[transport](directory, number), directory / f"{number}.log", max_payload_len=2 * 1024 * 1024
    )
    yield broker
    broker.stop()


@pytest.fixture
def make_bus(face: str, address: str, make_broker: Callable[..., BrokerHandle]) -> Iterator[Callable[..., Bus]]:
    """A bus in this process for `address`, which is not configured yet. Ended before the broker is."""
    buses: list[Bus] = []

    def make(where: str | None = None, **options: Any) -> Bus:
        buses.append(Bus(face, where or address, **{"broker": "never", **options}))
        return buses[-1]

    yield make
    for bus in buses:
        bus.end()


@pytest.fixture
def bus(make_bus: Callable[..., Bus], quiet_broker: BrokerHandle) -> Bus:
    """A bus in this process that is attached, with no other worker beside it."""
    bus = make_bus(quiet_broker.address).configure()
    bus.wait_ready()
    return bus
