"""From the text of an address, or from none, to the transport that serves it."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from eventsh.address import default_address, parse_address
from eventsh.errors import ConfigureError
from eventsh.options import Options
from eventsh.plugins import find_transport

if TYPE_CHECKING:
    from eventsh.address import Address
    from eventsh.transport import Transport

__all__ = ["find_endpoint"]


def find_endpoint(address: str | None, options: Options | None = None) -> tuple[Transport, Address]:
    """The transport and the parts of `address`; None is the default one. The transport is one for `options`, without
    them for the defaults. Raises ConfigureError."""
    if address is None:
        # Not tempfile.gettempdir: it costs more to import than all the rest of a post from the command line.
        found = default_address(os.environ, os.getuid(), os.environ.get("TMPDIR") or "/tmp")
    elif isinstance(address, str):
        found = parse_address(address)
    else:
        raise ConfigureError(f"address must be a string, not {address!r}", option="address")
    transport = find_transport(found.scheme).with_options(options or Options())
    if transport.capabilities.crosses_processes and found.host is None and not found.path.startswith("/"):
        # The broker that we may start, and whoever reads the address in a log, are in another directory.
        found = replace(found, path=os.path.abspath(found.path))
    transport.check_address(found)
    return transport, found
