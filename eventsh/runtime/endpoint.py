"""From the text of an address, or from none, to the transport that serves it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from eventsh.address import default_address, parse_address
from eventsh.errors import ConfigureError
from eventsh.options import OPTIONS, Options, parse_option
from eventsh.plugins import find_transport

if TYPE_CHECKING:
    from eventsh.address import Address
    from eventsh.transport import Transport

__all__ = ["SECURITY_OPTIONS", "absolute_paths", "check_reachable", "complete_options", "find_endpoint"]

# Options that belong to an address rather than to what is done there, and come from the environment as it does. All are
# paths but the name.
SECURITY_OPTIONS = ("token_file", "tls_cert", "tls_key", "tls_ca", "tls_name")


def absolute_paths(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same values, in which what secures a connection is found from any directory: a broker that we start is in
    another one."""
    paths = {name for name in SECURITY_OPTIONS if name != "tls_name" and isinstance(values.get(name), str)}
    return {name: os.path.abspath(value) if name in paths and value else value for name, value in values.items()}


def complete_options(values: Mapping[str, Any] | None = None, environ: Mapping[str, str] = os.environ) -> Options:
    """Options with these values; what secures a connection comes from the environment where it is not among them.
    Raises ConfigureError."""
    found: dict[str, Any] = {}
    for name in SECURITY_OPTIONS:
        if text := environ.get(OPTIONS[name].env):
            found[name] = parse_option(name, text, label=f"${OPTIONS[name].env}")
    return Options.from_values(**absolute_paths(found | dict(values or {})))


def find_endpoint(address: str | None, options: Options | None = None) -> tuple[Transport, Address]:
    """The transport and the parts of `address`; None is the default one. The transport is one for `options`, without
    them for what the environment says. Raises ConfigureError."""
    if address is None:
        # Not tempfile.gettempdir: it costs more to import than all the rest of a post from the command line.
        found = default_address(os.environ, os.getuid(), os.environ.get("TMPDIR") or "/tmp")
    elif isinstance(address, str):
        found = parse_address(address)
    else:
        raise ConfigureError(f"address must be a string, not {address!r}", option="address")
    transport = find_transport(found.scheme).with_options(options or complete_options())
    if transport.capabilities.crosses_processes and found.host is None and not found.path.startswith("/"):
        # The broker that we may start, and whoever reads the address in a log, are in another directory.
        found = replace(found, path=os.path.abspath(found.path))
    transport.check_address(found)
    return transport, found


def check_reachable(transport: Transport, address: Address) -> None:
    """For those who can only attach to another process's broker. Raises ConfigureError for an address inside of one."""
    if not transport.capabilities.crosses_processes:
        raise ConfigureError(f"address: no other process can be reached at {address}", option="address")
