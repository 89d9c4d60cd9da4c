"""An address for a test, where only the scheme is known."""

from __future__ import annotations

import socket

from eventsh.address import Address, parse_address
from eventsh.errors import ConfigureError
from eventsh.plugins import find_transport

__all__ = ["free_port", "spare_address"]


def free_port(host: str = "127.0.0.1") -> int:
    """A port of an address of this host that nobody listens at."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
        sock.bind((host, 0))
        port: int = sock.getsockname()[1]
        return port


def spare_address(target: str, directory: str) -> Address:
    """`target` itself if it is an address, else an address of that scheme: a path in `directory`, or a free port of this
    host. Raises ConfigureError where its transport takes neither."""
    if ":" in target:
        return parse_address(target)
    transport = find_transport(target)
    address = Address(target, f"{directory}/s")
    try:
        transport.check_address(address)
    except ConfigureError:
        address = Address(target, host="127.0.0.1", port=free_port())
        transport.check_address(address)
    return address
