"""Brokers that tests start, stop and kill: the broker program, or a thread where the transport stays in its process."""

from __future__ import annotations

import json
import os
import subprocess
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from eventsh.address import parse_address
from eventsh.commands.status import status
from eventsh.errors import TransportError
from eventsh.options import Options, broker_arguments
from eventsh.plugins import find_transport
from eventsh.runtime.broker import Broker
from eventsh.runtime.hosted import LoopThread
from eventsh.runtime.interpreter import python_command, python_environment
from eventsh.testing.recorder import DEADLINE_S
from eventsh.testing.remote import wait_ended

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["BrokerHandle", "BrokerProcess", "HostedBroker", "broker_status", "crosses_processes", "start_broker"]


def crosses_processes(address: str) -> bool:
    """Whether a broker at `address` can be another process."""
    return find_transport(parse_address(address).scheme).capabilities.crosses_processes


class BrokerHandle(ABC):
    """A broker that a test started."""

    address: str

    @abstractmethod
    def stop(self) -> None:
        """End it in good order and wait for that. No effect after its end. Raises TimeoutExpired, and kills it, when it
        takes too long."""

    @abstractmethod
    def kill(self) -> None:
        """End it without a chance to clean up."""

    @abstractmethod
    def complaints(self) -> str:
        """What it logged at WARNING or above, where that is known."""

    def status(self) -> dict[str, Any]:
        """Its own account of itself and its workers."""
        return broker_status(self.address)


class BrokerProcess(BrokerHandle):
    """The broker program. It dies with this process, for it reads a pipe that this process holds."""

    def __init__(self, address: str, options: Options, log: Path) -> None:
        report_read, report_write = os.pipe()
        control_read, self._control = os.pipe()
        self._log = log
        with log.open("ab") as stderr:
            self.process = subprocess.Popen(
                [
                    *(*python_command("eventsh.runtime.broker"), "--address", address),
                    *("--report-fd", str(report_write), "--control-fd", str(control_read)),
                    *broker_arguments(options),
                ],
                stdin=subprocess.DEVNULL,
                stderr=stderr,
                env=python_environment(),
                pass_fds=(report_write, control_read),
            )
        os.close(report_write)
        os.close(control_read)
        with os.fdopen(report_read) as reports:
            report = json.loads(reports.readline() or "{}")
        if report.get("state") != "ready":
            self.stop()
            raise TransportError(report.get("error") or f"the broker ended without a word: {log.read_text()}")
        self.address = str(report["address"])

    @property
    def pid(self) -> int:
        return self.process.pid

    def kill(self) -> None:
        self.process.kill()
        self.stop()

    def stop(self) -> None:
        if self._control >= 0:
            os.close(self._control)
            self._control = -1
        wait_ended(self.process)

    def complaints(self) -> str:
        return "".join(line for line in self._log.read_text().splitlines(keepends=True) if " INFO " not in line)


class HostedBroker(BrokerHandle):
    """A broker in a thread of this process."""

    def __init__(self, address: str, options: Options) -> None:
        self.address = address
        self._thread = LoopThread(f"eventsh broker {address}")
        self._stopped = False
        parts = parse_address(address)

        async def start() -> Broker:
            broker = Broker(find_transport(parts.scheme), parts, options)
            await broker.start()
            return broker

        try:
            self._broker = self._thread.run(start)
        except BaseException:
            self._thread.stop()
            raise
        _hosted[address] = self

    def status(self) -> dict[str, Any]:
        async def ask() -> dict[str, Any]:
            return self._broker.router.status(time.monotonic())

        return self._thread.run(ask)

    def stop(self) -> None:
        if not self._stopped:
            self._end()
            self._thread.run(self._broker.close)
            self._thread.stop()

    def kill(self) -> None:
        self._end()
        self._thread.stop()

    def _end(self) -> None:
        self._stopped = True
        # Unless a successor has the address.
        if _hosted.get(self.address) is self:
            del _hosted[self.address]

    def complaints(self) -> str:
        return ""


# Those of this process, which can't be asked from outside.
_hosted: dict[str, HostedBroker] = {}


def start_broker(address: str, log: Path, **options: Any) -> BrokerHandle:
    """Start a broker at `address` and wait until it listens. It goes on however long nobody is attached."""
    values = Options.from_values(**{"linger": None, **options})
    return BrokerProcess(address, values, log) if crosses_processes(address) else HostedBroker(address, values)


def broker_status(address: str) -> dict[str, Any]:
    """The account of the broker at `address`, as `eventsh status --json` gives it."""
    hosted = _hosted.get(address)
    return status(address, timeout_s=DEADLINE_S) if hosted is None else hosted.status()
