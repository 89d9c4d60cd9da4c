from __future__ import annotations

import socket
from pathlib import Path

from eventsh.testing import TransportConformance


def free_port(host: str = "127.0.0.1") -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
        sock.bind((host, 0))
        port: int = sock.getsockname()[1]
        return port


class TestConformance(TransportConformance):
    def make_address(self, directory: Path) -> str:
        return f"tcp://127.0.0.1:{free_port()}"
