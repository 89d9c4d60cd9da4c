"""What every transport must do, as a pytest class: subclass it as Test…, and say where to listen.

from eventsh.testing import TransportConformance

class TestMyTransport(TransportConformance):
    def make_address(self, directory):
        return f"mine:{directory}/endpoint"
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from eventsh.address import Address, parse_address
from eventsh.plugins import find_transport
from eventsh.runtime.endpoint import complete_options
from eventsh.testing.bench import Bench
from eventsh.testing.cases.buses import BusCases
from eventsh.testing.cases.endpoints import EndpointCases
from eventsh.testing.cases.ends import EndCases
from eventsh.testing.cases.flow import FlowCases
from eventsh.testing.cases.frames import FrameCases
from eventsh.testing.cases.leaks import LeakCases
from eventsh.testing.cases.processes import ProcessCases
from eventsh.testing.peer import register_plugin

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["TransportConformance"]

# eventsh runs on uvloop where there is one, and on asyncio's own loop in programs that use that.
LOOPS: dict[str, Callable[[], Any]] = {"asyncio": asyncio.new_event_loop}
if find_spec("uvloop") is not None:
    import uvloop

    LOOPS["uvloop"] = uvloop.new_event_loop


class TransportConformance(FrameCases, FlowCases, EndCases, EndpointCases, ProcessCases, LeakCases, BusCases):
    """Subclasses give `make_address`; all the rest has defaults. Each test has an address of its own, and a fresh loop."""

    plugin: ClassVar[str | None] = None
    """The module of the plugin, where no entry point names it: a plugin that is not installed."""

    def make_address(self, directory: Path) -> str | Address:
        """An address at which nobody listens and that stays good when a listener there has closed: a port that is free, not
        port 0. `directory` is empty, and its path is short enough for a socket. Options that the transport needs, such as
        files of certificates, are set in the environment, by a fixture of the subclass."""
        raise NotImplementedError(f"{type(self).__name__} must give an address: define make_address(self, directory)")

    @pytest.fixture
    def directory(self) -> Iterator[Path]:
        # Not tmp_path, which is too long for a socket on some systems.
        with tempfile.TemporaryDirectory(prefix="evsh-", dir="/tmp") as path:
            yield Path(path)

    @pytest.fixture(params=list(LOOPS))
    def bench(self, request: pytest.FixtureRequest, directory: Path) -> Iterator[Bench]:
        register_plugin(self.plugin)
        given = self.make_address(directory)
        address = parse_address(given) if isinstance(given, str) else given
        with ExitStack() as ended:
            transport = find_transport(address.scheme).with_options(complete_options())
            yield Bench(transport, address, LOOPS[request.param], self.plugin, ended)
