"""Addresses: where a broker is to be found, as text and in parts.

Decides what an address looks like and which one is the default. Knows no transport: whether a scheme exists, and what
its addresses need (a port, a short path), is decided by who serves it. Touches neither files nor the environment.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NoReturn

from eventsh.errors import ConfigureError

__all__ = ["ADDRESS_ENV", "EXAMPLES", "Address", "default_address", "parse_address"]

ADDRESS_ENV = "EVENTSH_ADDRESS"
EXAMPLES = "unix:/run/app/events.sock"

# A wrapping transport names what it wraps: chaos+unix. No dots: "example.org:80" is a host without its scheme.
SCHEME_PATTERN = re.compile(r"[a-z][a-z0-9-]*(?:\+[a-z][a-z0-9-]*)*")
HOST_PATTERN = re.compile(r"[^\s/?#@:\[\]]+|\[[0-9a-f:.]+(?:%[^\s/?#@\[\]]+)?\]")
# Control characters would reach terminals and logs, and no address needs them. Nor does any path of a file.
CONTROL_PATTERN = re.compile(r"[\x00-\x1f\x7f-\x9f]")


@dataclass(frozen=True, slots=True)
class Address:
    """One address. `str()` gives its canonical text, which `parse_address` reads back to an equal Address.

    Two forms: `scheme:path` without a host, and `scheme://host:port/path`. There is no escaping, so that a path can be
    copied as it is: it can't hold a "?". Raises ConfigureError for parts that no text could give.
    """

    scheme: str
    path: str = ""
    host: str | None = None
    """Without the brackets of an IPv6 address."""
    port: int | None = None
    query: Mapping[str, str] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not SCHEME_PATTERN.fullmatch(self.scheme):
            _refuse(f"{self.scheme!r} can't be a scheme")
        parts = [self.path, self.host or "", *self.query, *self.query.values()]
        if any(CONTROL_PATTERN.search(part) for part in parts):
            _refuse("it holds a control character")
        if "?" in self.path:
            _refuse(f"the path {self.path!r} holds a '?', which begins the query")
        if any(not key or re.search("[=&]", key) or "&" in value for key, value in self.query.items()):
            _refuse("its query is not of the form ?key=value&key=value")
        if self.host is None:
            self._check_path()
        else:
            self._check_authority(self.host)
        object.__setattr__(self, "query", MappingProxyType(dict(self.query)))

    def _check_path(self) -> None:
        if not self.path:
            _refuse(f"nothing follows '{self.scheme}:'")
        if self.port is not None:
            _refuse("it has a port and no host")
        # "unix://x" would be a host; to a file system, more slashes at the start are as good as one.
        if self.path.startswith("//"):
            object.__setattr__(self, "path", "/" + self.path.lstrip("/"))

    def _check_authority(self, host: str) -> None:
        _check_no_user(host + self.path)
        if not HOST_PATTERN.fullmatch(_bracketed(host.lower())):
            _refuse(f"{host!r} can't be a host")
        if self.port is not None and not 0 <= self.port <= 65535:
            _refuse(f"port {self.port} is not from 0 to 65535")
        if self.path and not self.path.startswith("/"):
            _refuse(f"the path {self.path!r} after a host must begin with '/'")
        object.__setattr__(self, "host", host.lower())
        object.__setattr__(self, "path", "" if self.path == "/" else self.path)

    def __str__(self) -> str:
        authority = "" if self.host is None else "//" + _bracketed(self.host)
        port = "" if self.port is None else f":{self.port}"
        query = "&".join(f"{key}={value}" for key, value in sorted(self.query.items()))
        return f"{self.scheme}:{authority}{port}{self.path}" + (f"?{query}" if query else "")


def _check_no_user(text: str) -> None:
    # A user or token in an address would be seen in process lists and logs: not even the message repeats it.
    if "@" in text:
        _refuse("it holds an '@', and no user or token belongs in an address")


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _refuse(why: str) -> NoReturn:
    raise ConfigureError(f"the address is wrong: {why}; an address looks like {EXAMPLES}", option="address")


def parse_address(text: object) -> Address:
    """The address that `text` is. Raises ConfigureError for all else, which says what an address looks like."""
    if not isinstance(text, str):
        _refuse("there is none" if text is None else f"it must be a string, not {type(text).__name__}")
    if not text:
        _refuse("it is empty")
    head, colon, rest = text.partition(":")
    scheme = head.lower()
    if not colon or not SCHEME_PATTERN.fullmatch(scheme):
        _refuse_without_scheme(text)
    if rest.startswith("//") and not rest.startswith("///"):
        return _parse_with_host(scheme, rest[2:])
    path, _, query = rest.partition("?")
    return Address(scheme, path, query=_parse_query(query))


def _parse_with_host(scheme: str, rest: str) -> Address:
    # Looked for in all of it and first: a password with a "/" or "?" in it looks like the end of the host.
    _check_no_user(rest)
    rest, _, query = rest.partition("?")
    authority, slash, path = rest.partition("/")
    host, port = _parse_authority(authority)
    return Address(scheme, slash + path, host, port, _parse_query(query))


def _refuse_without_scheme(text: str) -> NoReturn:
    if "@" in text or CONTROL_PATTERN.search(text):
        _refuse("it does not begin with a scheme")
    shown = text if len(text) <= 120 else f"{text[:120]}…"
    if "/" in text or text.endswith(".sock"):
        _refuse(f"{shown!r} has no scheme (did you mean {'unix:' + shown!r}?)")
    _refuse(f"{shown!r} does not begin with a scheme")


def _parse_authority(authority: str) -> tuple[str, int | None]:
    # The last colon outside of brackets begins the port.
    host, colon, port = authority.rpartition(":")
    if not colon or port.endswith("]"):
        host, colon = authority, ""
    elif not re.fullmatch("[0-9]{1,5}", port):
        _refuse(f"{port!r} can't be a port")
    bracketed = host.startswith("[") and host.endswith("]")
    if bracketed != (":" in host):
        _refuse(f"{host!r} can't be a host; an IPv6 address, and nothing else, stands in brackets: tcp://[::1]:7878")
    return host[1:-1] if bracketed else host, int(port) if colon else None


def _parse_query(text: str) -> dict[str, str]:
    query: dict[str, str] = {}
    for pair in text.split("&") if text else ():
        key, equals, value = pair.partition("=")
        if not equals or not key:
            _refuse("its query is not of the form ?key=value&key=value")
        if key in query:
            _refuse(f"its query has {key!r} twice")
        query[key] = value
    return query


def default_address(environ: Mapping[str, str], uid: int, temp_dir: str) -> Address:
    """The address where none is given: what the environment says, else a socket in a directory of the user's own."""
    if text := environ.get(ADDRESS_ENV):
        try:
            return parse_address(text)
        except ConfigureError as error:
            raise ConfigureError(f"${ADDRESS_ENV}: {error}", option="address") from None
    runtime_dir = environ.get("XDG_RUNTIME_DIR", "")
    # The XDG specification has relative paths ignored.
    if runtime_dir.startswith("/"):
        return Address("unix", f"{runtime_dir.rstrip('/')}/eventsh/events.sock")
    return Address("unix", f"{temp_dir.rstrip('/')}/eventsh-{uid}/events.sock")
