"""The transport over unix sockets. Decides who may stand at either end: the same user, or root.

Imports asyncio only where it listens or connects: `dial` serves programs that live for one post.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import struct
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from eventsh.address import Address, default_address
from eventsh.errors import ConfigureError, TransportError
from eventsh.transport import Capabilities, Connection, Listener, Peer, Receiver, Transport
from eventsh.transports.descriptors import forget_descriptor, note_descriptor
from eventsh.transports.files import Identity, keep_file, unlink_if_same

if TYPE_CHECKING:
    from eventsh.transports.stream import StreamConnection

__all__ = [
    "MAX_PATH_BYTES",
    "UnixTransport",
    "check_directory",
    "check_path",
    "connect_socket",
    "dial_socket",
    "open_socket",
    "peer_of",
    "unlink_if_same",
]

# sun_path of sockaddr_un, less the zero at its end.
MAX_PATH_BYTES = 107 if sys.platform == "linux" else 103
# How long `connect` waits for room in a full backlog, and how often it and `dial` look: the kernel does not tell.
CONNECT_TIMEOUT_S = 5.0
CONNECT_RETRY_S = 0.01

UCRED = struct.Struct("iII")
WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


class UnixTransport(Transport):
    """`unix:/path/of/a.sock`."""

    scheme: ClassVar[str] = "unix"
    capabilities: ClassVar[Capabilities] = Capabilities(peer_credentials=True)

    def check_address(self, address: Address) -> None:
        check_path(address)

    def lock_path(self, address: Address) -> str | None:
        return f"{address.path}.lock"

    def prepare(self, address: Address) -> None:
        self.check_address(address)
        check_directory(address)

    async def listen(self, address: Address, on_connection: Callable[[Connection], Receiver]) -> Listener:
        self.prepare(address)
        sock, identity = open_socket(address)

        def removed() -> None:
            unlink_if_same(address.path, identity)

        def kept() -> bool:
            return keep_file(address.path, identity)

        try:
            return self._serve(sock, str(address), on_connection, removed, kept)
        except BaseException:
            sock.close()
            removed()
            raise

    def _serve(
        self,
        sock: socket.socket,
        address: str,
        on_connection: Callable[[Connection], Receiver],
        removed: Callable[[], None],
        kept: Callable[[], bool],
    ) -> Listener:
        from eventsh.transports.listening import StreamListener
        from eventsh.transports.stream import StreamConnection

        def accepted(peer: socket.socket) -> StreamConnection:
            return StreamConnection(_admit(peer), on_connection)

        return StreamListener(sock, address, accepted, removed, kept=kept)

    async def connect(self, address: Address, on_connection: Callable[[Connection], Receiver]) -> Connection:
        import asyncio

        self.check_address(address)
        sock = await connect_socket(address)
        descriptor = sock.fileno()
        try:
            connection = await self._join(sock, on_connection)
            # Not create_unix_connection: if the receiver ends the connection at once, uvloop has closed the descriptor while
            # the socket object still holds its number, and would close whatever has that number later.
            await asyncio.get_running_loop().connect_accepted_socket(lambda: connection, sock)
        except BaseException as error:
            forget_descriptor(descriptor)
            sock.close()
            if isinstance(error, OSError):
                raise _unreachable(address, error) from error
            raise
        if connection.failure is not None:
            raise connection.failure
        return connection

    async def _join(self, sock: socket.socket, on_connection: Callable[[Connection], Receiver]) -> StreamConnection:
        """What a connected socket serves, once both sides have said what must be said before the first frame."""
        from eventsh.transports.stream import StreamConnection

        return StreamConnection(peer_of(sock), on_connection)

    def dial(self, address: Address, timeout_s: float) -> socket.socket | None:
        self.check_address(address)
        return dial_socket(address, timeout_s)


def check_path(address: Address) -> None:
    """Raise ConfigureError unless `address` is SCHEME:/path, with a path that the system takes for a socket."""
    path = address.path
    if address.host is not None:
        raise ConfigureError(f"address: {address} names a host; write {address.scheme}:/path", option="address")
    if address.query:
        raise ConfigureError(
            f"address: {address} asks for {', '.join(address.query)}, and {address.scheme} knows nothing of the kind;"
            f" write {address.scheme}:{path}",
            option="address",
        )
    if not os.path.basename(path) or "\0" in path:
        raise ConfigureError(f"address: {path!r} is no path of a socket", option="address")
    try:
        size = len(os.fsencode(path))
    except UnicodeEncodeError as error:
        raise ConfigureError(f"address: {path!r} can't be a path: {error.reason}", option="address") from error
    if size > MAX_PATH_BYTES:
        raise ConfigureError(
            f"address: the path {path!r} is {size} bytes long, and the system takes at most {MAX_PATH_BYTES} for a"
            " socket: use a shorter one, for example below /run or /tmp",
            option="address",
        )


async def connect_socket(address: Address) -> socket.socket:
    """A socket that is connected to the path of `address`, does not block, and is noted for forks. Raises TransportError."""
    import asyncio

    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    note_descriptor(sock.fileno())
    try:
        sock.setblocking(False)
        # The loops' own connect takes a full backlog, which is EAGAIN here, for a connection under way.
        for _ in range(int(CONNECT_TIMEOUT_S / CONNECT_RETRY_S)):
            try:
                sock.connect(address.path)
                break
            except BlockingIOError:
                await asyncio.sleep(CONNECT_RETRY_S)
        else:
            sock.connect(address.path)
    except BaseException as error:
        forget_descriptor(sock.fileno())
        sock.close()
        if isinstance(error, OSError):
            raise _unreachable(address, error) from error
        raise
    return sock


def dial_socket(address: Address, timeout_s: float) -> socket.socket:
    """A blocking socket that is connected to the path of `address`, where the same user or root listens. Connecting, and
    then each call, takes at most `timeout_s`. Raises TransportError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Not a blocking connect with SO_SNDTIMEO: a signal during its wait makes Python take it for connected.
        sock.setblocking(False)
        deadline_s = time.monotonic() + timeout_s
        while True:
            try:
                sock.connect(address.path)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline_s:
                    raise
                time.sleep(CONNECT_RETRY_S)
        peer_of(sock)
        sock.settimeout(timeout_s)
    except OSError as error:
        sock.close()
        raise _unreachable(address, error) from error
    except BaseException:
        sock.close()
        raise
    return sock


def peer_of(sock: socket.socket) -> Peer:
    """Who the kernel says is at the other end. Raises TransportError unless that is the same user, or root."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is not None:
        pid, uid, _ = UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, option, UCRED.size))
    else:
        # macOS: LOCAL_PEERPID, and a struct xucred from LOCAL_PEERCRED; both of level SOL_LOCAL.
        pid = sock.getsockopt(0, 2)
        uid = struct.unpack_from("II", sock.getsockopt(0, 1, 76))[1]
    own = os.geteuid()
    if uid not in (own, 0):
        raise TransportError(
            f"process {pid} belongs to user {uid}, and only user {own} and root may be at the other end"
        )
    return Peer(f"pid {pid}", pid, uid)


def _admit(sock: socket.socket) -> Peer:
    """As `peer_of`, for who has come; whoever is turned away is told why, or it would try for as long as it may."""
    from eventsh.protocol.messages import Error

    try:
        return peer_of(sock)
    except TransportError as error:
        with contextlib.suppress(OSError):
            sock.send(Error("other_user", str(error)).encode(), socket.MSG_DONTWAIT)
        raise


def check_directory(address: Address) -> None:
    """Make the directory of `address` if only that is missing, mode 0700. Raises TransportError where somebody else could
    put a socket of theirs into it."""
    directory = os.path.dirname(address.path) or "."
    uid = os.geteuid()
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(directory, 0o700)
        link, info = os.lstat(directory), os.stat(directory)
    except OSError as error:
        # Without its cause: a path that is missing reads as a broker that is missing, which whoever listens is not told.
        raise TransportError(f"{address}: the directory {directory} can't be used or made: {error.strerror}") from None
    is_link = stat.S_ISLNK(link.st_mode)
    if is_link and (link.st_uid not in (uid, 0) or _is_default(address, uid)):
        why = f"is a symbolic link of user {link.st_uid}: remove it"
    elif not stat.S_ISDIR(info.st_mode):
        why = "is no directory"
    elif info.st_uid not in (uid, 0):
        why = f"belongs to user {info.st_uid}, neither to this user ({uid}) nor to root"
    elif info.st_mode & WRITABLE_BY_OTHERS and not info.st_mode & stat.S_ISVTX:
        why = f"can be written by others (mode {stat.S_IMODE(info.st_mode):04o}): chmod go-w it"
    elif _is_default(address, uid) and (info.st_uid != uid or info.st_mode & 0o077):
        why = f"must be this user's own, with mode 0700, and has mode {stat.S_IMODE(info.st_mode):04o} and user {info.st_uid}"
    else:
        return
    raise TransportError(f"{address}: the directory {directory} {why}, or choose another address")


def _is_default(address: Address, uid: int) -> bool:
    """Whether it is the address where none is given, whatever the temporary directory is."""
    parent = os.path.dirname(os.path.dirname(address.path))
    runtime_dir = {"XDG_RUNTIME_DIR": os.environ.get("XDG_RUNTIME_DIR", "")}
    return address.path in (default_address(runtime_dir, uid, parent).path, default_address({}, uid, parent).path)


def open_socket(address: Address) -> tuple[socket.socket, Identity]:
    """Open a listening socket at the path of `address`, mode 0600. To be called with the lock of the address.

    A socket file of this user that refuses connections is stale, and removed.

    Returns:
        The socket, and the identity of its file, which no other file gets while the socket is open.

    Raises:
        TransportError: The path can't be used, or another process listens there.
    """
    from eventsh.transports.listening import BACKLOG

    path = address.path
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    bound = False
    try:
        _remove_stale(address)
        # On Linux the file gets the mode of the socket, so that it is never open to others, and the umask, which is every
        # thread's, stays as it is.
        with contextlib.suppress(OSError):
            os.fchmod(sock.fileno(), 0o600)
        sock.bind(path)
        bound = True
        # For other systems, and a umask that takes from the owner. Nobody can connect before `listen`.
        os.chmod(path, 0o600)
        info = os.lstat(path)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        if bound:
            with contextlib.suppress(OSError):
                os.unlink(path)
        raise TransportError(f"can't listen at {address}: {error.strerror}") from error
    except BaseException:
        sock.close()
        raise
    return sock, (info.st_dev, info.st_ino)


def _remove_stale(address: Address) -> None:
    try:
        info = os.lstat(address.path)
    except FileNotFoundError:
        return
    if stat.S_ISDIR(info.st_mode):
        raise TransportError(
            f"can't listen at {address}: {address.path} is a directory: name a file in it, {address.path}/events.sock"
        )
    if stat.S_ISLNK(info.st_mode):
        why = "is a symbolic link"
    elif not stat.S_ISSOCK(info.st_mode):
        why = "is no socket"
    elif info.st_uid != os.geteuid():
        why = f"is a socket of user {info.st_uid}"
    elif _is_stale(address.path):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(address.path)
        return
    else:
        raise TransportError(
            f"can't listen at {address}: a broker is already running there: stop it, or choose another address"
        )
    raise TransportError(f"can't listen at {address}: {address.path} {why}: remove it, or choose another address")


def _is_stale(path: str) -> bool:
    """Connect to a socket's file, and return whether no process listens there. The lock does not prove it: its file can be
    removed while the broker lives. A backlog that is full belongs to a process that lives, too."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)
        try:
            sock.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return True
        except OSError:
            return False
    return False


def _unreachable(address: Address, error: OSError) -> TransportError:
    match error:
        case FileNotFoundError() | ConnectionRefusedError():
            return TransportError(f"nobody listens at {address}: {error.strerror}")
        case BlockingIOError():
            return TransportError(f"{address} takes no more connections for now: its backlog stayed full")
    return TransportError(f"can't connect to {address}: {error.strerror}")
