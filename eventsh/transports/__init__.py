"""The transports that come with eventsh, each a plugin with its scheme as its name.

Imports none of them, and no pluggy: the table is also the short way for programs that live for one post.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from eventsh.transport import Transport

__all__ = ["BUILTIN", "BuiltinTransport", "load_builtin"]

BUILTIN = {
    "unix": "eventsh.transports.unix:UnixTransport",
    "tcp": "eventsh.transports.tcp:TcpTransport",
    "shm": "eventsh.transports.shm:ShmTransport",
    "inproc": "eventsh.transports.inproc:InprocTransport",
}


def load_builtin(scheme: str) -> Transport:
    """Import and make the transport of `scheme`, which must be in BUILTIN."""
    module, _, name = BUILTIN[scheme].partition(":")
    return cast("Transport", getattr(import_module(module), name)())


class BuiltinTransport:
    """The plugin for one scheme. Whoever registers it marks its hook, because the mark needs pluggy."""

    def __init__(self, scheme: str) -> None:
        self.scheme = scheme

    def eventsh_transports(self) -> Sequence[Transport]:
        return [load_builtin(self.scheme)]
