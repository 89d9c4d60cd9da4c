"""What `eventsh plugins check` has pytest run: the conformance kit, at an address that the environment tells."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from eventsh.testing import TransportConformance
from eventsh.testing.addresses import spare_address
from eventsh.testing.check import TARGET_ENV

if TYPE_CHECKING:
    from pathlib import Path

    from eventsh.address import Address

__all__: list[str] = []


class TestTransport(TransportConformance):
    def make_address(self, directory: Path) -> Address:
        return spare_address(os.environ[TARGET_ENV], str(directory))
