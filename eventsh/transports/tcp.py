"""The transport over TCP. Decides where it may listen, when it speaks TLS, and how a socket is made and connected.

Imports asyncio only where it listens or connects: `dial` serves programs that live for one post.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from eventsh.address import Address, default_address
from eventsh.errors import ConfigureError, TransportError
from eventsh.options import Options
from eventsh.transport import Capabilities, Connection, Listener, Peer, Receiver, Transport
from eventsh.transports.descriptors import forget_descriptor, note_descriptor

if TYPE_CHECKING:
    import asyncio
    import ssl

    from eventsh.transports.stream import StreamConnection

__all__ = ["TcpTransport", "is_loopback"]

# How long `connect` tries each address of a host: longer than a lost packet or two take to be sent again (1 s, then 2 s).
CONNECT_TIMEOUT_S = 5.0
# For firewalls on the way that forget idle connections, most of them after minutes. Heartbeats find a lost peer sooner.
KEEPALIVE_S = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 20, "TCP_KEEPCNT": 3}

# Where to: a family and an address as the socket module has it.
_Target = tuple[int, tuple[Any, ...]]


class TcpTransport(Transport):
    """`tcp://host:port`, `tcp://[::1]:port`. A listener at port 0 tells the port that the system chose."""

    scheme: ClassVar[str] = "tcp"
    capabilities: ClassVar[Capabilities] = Capabilities(crosses_hosts=True)

    def __init__(self, options: Options | None = None) -> None:
        self._options = options or Options()
        self._client_tls: ssl.SSLContext | None = None

    def with_options(self, options: Options) -> Transport:
        return TcpTransport(options)

    def check_address(self, address: Address) -> None:
        why = ""
        if not address.host:
            why = "has no host"
        elif address.port is None:
            why = "has no port"
        elif address.path or address.query:
            why = "has something behind the port"
        if why:
            raise ConfigureError(f"address: {address} {why}; write tcp://127.0.0.1:7878", option="address")

    def lock_path(self, address: Address) -> str | None:
        # In a directory of this user's: other users' brokers are kept away by the port itself. At port 0 every listener
        # gets a port of its own, so each has a lock of its own.
        port = address.port or f"0-{os.getpid()}"
        return os.path.join(os.path.dirname(_runtime_socket().path), f"tcp-{address.host}-{port}.lock")

    def prepare(self, address: Address) -> None:
        from eventsh.transports.unix import check_directory

        self.check_address(address)
        self._check_exposure(address, _resolve(address)[0])
        self._server_context()
        try:
            check_directory(_runtime_socket())
        except TransportError as error:
            raise TransportError(f"{address}: there is no place for its lock: {error}") from error

    async def listen(self, address: Address, on_connection: Callable[[Connection], Receiver]) -> Listener:
        from eventsh.transports.listening import StreamListener
        from eventsh.transports.stream import StreamConnection

        self.check_address(address)
        target = (await _resolve_in_loop(address))[0]
        self._check_exposure(address, target)
        context = self._server_context()
        sock = _open_socket(address, target)

        def accepted(peer: socket.socket) -> StreamConnection:
            _tune(peer)
            return StreamConnection(_peer_of(peer), on_connection)

        return StreamListener(
            sock,
            str(replace(address, port=sock.getsockname()[1])),
            accepted,
            ssl=context,
            ssl_timeout_s=self._options.hello_timeout,
        )

    async def connect(self, address: Address, on_connection: Callable[[Connection], Receiver]) -> Connection:
        import asyncio

        from eventsh.transports.stream import StreamConnection

        self._check_connectable(address)
        loop = asyncio.get_running_loop()
        with _unreachable(address):
            targets = await _resolve_in_loop(address)
            sock, host = await _connect_first(targets, loop)
        descriptor = sock.fileno()
        try:
            needs_tls = self._needs_tls(host)
            connection = StreamConnection(_peer_of(sock), on_connection, begins_later=needs_tls)
            if needs_tls:
                await self._connect_tls(address, connection, sock)
            else:
                # Not create_connection, for the reason that the unix transport has.
                await loop.connect_accepted_socket(lambda: connection, sock)
        except BaseException:
            forget_descriptor(descriptor)
            sock.close()
            raise
        if isinstance(connection.failure, OSError):
            raise TransportError(
                f"{address} ended the connection: {connection.failure.strerror}"
            ) from connection.failure
        if connection.failure is not None:
            raise connection.failure
        return connection

    def dial(self, address: Address, timeout_s: float) -> socket.socket | None:
        self._check_connectable(address)
        deadline_s = time.monotonic() + timeout_s
        with _unreachable(address):
            sock, host = _dial_first(_resolve(address), deadline_s)
        if self._needs_tls(host):
            sock = self._wrap(address, sock)
        sock.settimeout(timeout_s)
        return sock

    def _needs_tls(self, host: str) -> bool:
        options = self._options
        wanted = (options.tls_ca, options.tls_cert, options.tls_name)
        return any(wanted) or not is_loopback(host)

    def _client_context(self) -> ssl.SSLContext:
        # Made once: reading the system's certificates takes longer than a handshake.
        if self._client_tls is None:
            from eventsh.transports.tls import client_context

            options = self._options
            self._client_tls = client_context(
                "tls_cert" if options.tls_ca is None else "tls_ca", options.tls_ca or options.tls_cert
            )
        return self._client_tls

    def _server_context(self) -> ssl.SSLContext | None:
        if self._options.tls_cert is None:
            return None
        from eventsh.transports.tls import server_context

        return server_context(self._options.tls_cert, self._options.tls_key)

    async def _connect_tls(self, address: Address, connection: StreamConnection, sock: socket.socket) -> None:
        import asyncio

        from eventsh.transports.stream import TLS_END_TIMEOUT_S
        from eventsh.transports.tls import connect_error

        try:
            await asyncio.get_running_loop().create_connection(
                lambda: connection,
                sock=sock,
                ssl=self._client_context(),
                server_hostname=self._options.tls_name or address.host,
                ssl_handshake_timeout=CONNECT_TIMEOUT_S,
                ssl_shutdown_timeout=TLS_END_TIMEOUT_S,
            )
        except OSError as error:
            raise connect_error(address, error) from error
        # uvloop sends the end of the handshake in the turn after this one.
        await asyncio.sleep(0)
        connection.begin()

    def _wrap(self, address: Address, sock: socket.socket) -> socket.socket:
        from eventsh.transports.tls import connect_error

        try:
            return self._client_context().wrap_socket(sock, server_hostname=self._options.tls_name or address.host)
        except OSError as error:
            sock.close()
            raise connect_error(address, error) from error
        except BaseException:
            sock.close()
            raise

    def _check_connectable(self, address: Address) -> None:
        self.check_address(address)
        if not address.port:
            raise ConfigureError(
                f"address: {address} is for listening: connect to the port that the broker tells", option="address"
            )

    def _check_exposure(self, address: Address, target: _Target) -> None:
        options = self._options
        if is_loopback(str(target[1][0])) or (options.token_file and options.tls_cert):
            return
        raise ConfigureError(
            f"{address} can be reached from other hosts, which takes a token and TLS: give token_file, tls_cert and tls_key"
            " (--token-file, --tls-cert, --tls-key), or listen at 127.0.0.1",
            option="token_file" if not options.token_file else "tls_cert",
        )


def is_loopback(host: str) -> bool:
    """Whether an IP address is one that only this host can reach."""
    if ":" in host:
        packed = socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
        return packed == bytes(15) + b"\1" or packed.startswith(bytes(10) + b"\xff\xff\x7f")
    return socket.inet_pton(socket.AF_INET, host)[0] == 127


def _runtime_socket() -> Address:
    """The default address of this user: locks stand beside it."""
    runtime_dir = {"XDG_RUNTIME_DIR": os.environ.get("XDG_RUNTIME_DIR", "")}
    return default_address(runtime_dir, os.getuid(), os.environ.get("TMPDIR") or "/tmp")


def _resolve(address: Address, flags: int = 0) -> list[_Target]:
    """What the host of `address` stands for, best first. Raises TransportError."""
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=flags)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise TransportError(f"{address}: the host {address.host!r} can't be found: {reason}") from error
    return [(family, sockaddr) for family, _, _, _, sockaddr in found]


async def _resolve_in_loop(address: Address) -> list[_Target]:
    """As `_resolve`. A name is looked up in a thread: that can take seconds."""
    import asyncio

    try:
        return _resolve(address, socket.AI_NUMERICHOST)
    except TransportError:
        return await asyncio.get_running_loop().run_in_executor(None, _resolve, address)


def _tune(sock: socket.socket) -> None:
    # Batches leave when they are whole: waiting for more would only delay acks and single events.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE_S.items():
        if option := getattr(socket, name, None):
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


def _peer_of(sock: socket.socket) -> Peer:
    try:
        host, port = sock.getpeername()[:2]
    except OSError:
        return Peer("a peer that has left")
    return Peer(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")


def _open_socket(address: Address, target: _Target) -> socket.socket:
    from eventsh.transports.listening import BACKLOG

    family, sockaddr = target
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        # Connections of a broker that has ended linger for a minute, and must not keep the next one away. A socket that
        # listens still does.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(sockaddr)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        why = error.strerror
        if error.errno == errno.EADDRINUSE:
            why = "another process listens there: stop it, or choose another port"
        raise TransportError(f"can't listen at {address}: {why}") from error
    return sock


async def _connect_first(targets: list[_Target], loop: asyncio.AbstractEventLoop) -> tuple[socket.socket, str]:
    """A socket that is connected to the first target that can be reached, its descriptor noted; and that host's number.
    Raises what the last one raised."""
    import asyncio

    for family, sockaddr in targets[:-1]:
        try:
            return await _connect_first([(family, sockaddr)], loop)
        except OSError:
            continue
    family, sockaddr = targets[-1]
    sock = socket.socket(family, socket.SOCK_STREAM)
    note_descriptor(sock.fileno())
    try:
        sock.setblocking(False)
        _tune(sock)
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            await loop.sock_connect(sock, sockaddr)
        return sock, _other_end(sock)
    except BaseException:
        forget_descriptor(sock.fileno())
        sock.close()
        raise


def _dial_first(targets: list[_Target], deadline_s: float) -> tuple[socket.socket, str]:
    """As `_connect_first`, blocking; all of it until `deadline_s` of the monotonic clock."""
    for target in targets[:-1]:
        try:
            return _dial_first([target], deadline_s)
        except OSError:
            continue
    family, sockaddr = targets[-1]
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.settimeout(max(deadline_s - time.monotonic(), 0.001))
        _tune(sock)
        sock.connect(sockaddr)
        return sock, _other_end(sock)
    except BaseException:
        sock.close()
        raise


def _other_end(sock: socket.socket) -> str:
    """The host at the other end. Raises OSError where there is nobody any more; and where it is this socket: a port that
    nobody listens at may be given to the very socket that connects to it, which would keep the broker from listening
    there again."""
    other = sock.getpeername()
    if sock.getsockname() == other:
        raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
    return str(other[0])


@contextmanager
def _unreachable(address: Address) -> Iterator[None]:
    """Have an OSError raise a TransportError that says what is wrong with `address`."""
    try:
        yield
    except ConnectionRefusedError as error:
        raise TransportError(f"nobody listens at {address}: {error.strerror}") from error
    except TimeoutError as error:
        raise TransportError(f"can't connect to {address}: no answer") from error
    except OSError as error:
        raise TransportError(f"can't connect to {address}: {error.strerror}") from error
