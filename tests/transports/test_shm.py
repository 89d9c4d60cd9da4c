from __future__ import annotations

from pathlib import Path

from eventsh.testing import TransportConformance


class TestConformance(TransportConformance):
    def make_address(self, directory: Path) -> str:
        return f"shm:{directory}/s"
