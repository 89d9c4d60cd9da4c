"""The contract between eventsh and whatever moves its frames.

A transport opens connections and moves whole frames over them, in order, each exactly once or not at all. It holds no
rule of delivery: reconnecting, queues, order between connections and dropping of doubles are the core's.

Who calls what: the broker `listen`s once, its clients `connect` again and again, each in a task of theirs; nothing but
these two and `Listener.close` is awaited. All methods of a connection are called in that same loop and return at once; so
must those of a receiver, which the transport calls from callbacks of the loop (of the loop itself, or of a task of its
own) and never out of a call of the core's: a `send` that meets the end of the connection tells of it later. Two
exceptions, for what a call itself brings about: `on_connection`, within `connect`, and `writing_paused`, within `send`.
What a receiver raises is logged, and ends its connection alone. `check_address`, `lock_path`, `prepare` and `dial` are
called without a loop too, by processes that live for one post, and `prepare` and `dial` may block.

Sizes are in bytes, of whole frames unless they say "body"; times are in seconds. Errors are those of eventsh.errors.
Nothing may be started or opened at import; and after a fork, the child must hold open no connection of its parent's.
`eventsh.testing.TransportConformance` has a test for each of these sentences, and plugins/README.md shows the way.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

if TYPE_CHECKING:
    import socket

    from eventsh.address import Address
    from eventsh.errors import ProtocolError
    from eventsh.options import Options

__all__ = [
    "Buffer",
    "Capabilities",
    "Connection",
    "Frame",
    "Listener",
    "Peer",
    "Receiver",
    "Transport",
    "TransportWrapper",
    "ViewReceiver",
    "is_trusted_peer",
]

Buffer = bytes | bytearray | memoryview
# One that was received: a bytearray of the receiver's own, or a view of memory that is not its own (see ViewReceiver).
Frame = bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a transport can do, so that nobody has to know it by its scheme."""

    crosses_processes: bool = True
    """Else everything stays in one process: a broker is then a thread of it."""
    crosses_hosts: bool = False
    """The peer, or the way to it, can vanish without a word. Heartbeats find that out, and then abort the connection."""
    peer_credentials: bool = False
    """The kernel vouches for the pid and uid of the peer."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end, as far as the transport itself knows it (never as far as the peer says)."""

    label: str
    """For people: "pid 4711" or "127.0.0.1:40112"."""
    pid: int | None = None
    uid: int | None = None


class Receiver(Protocol):
    """The end that a connection tells what happens. The core's shells implement it, transports call it."""

    def frames_received(self, frames: list[bytearray]) -> None:
        """Take whole frames, in order. The receiver owns them and may write into them."""

    def frames_refused(self, error: ProtocolError) -> None:
        """The stream broke the rules of the wire; no frames come any more. The receiver closes the connection."""

    def writing_paused(self) -> None:
        """The peer takes frames more slowly than they are sent, some 256 KiB have gathered. `send` still works, and buffers.
        Told once until `writing_resumed`."""

    def writing_resumed(self) -> None:
        """What was buffered has left, or little of it is there still. Only after `writing_paused`."""

    def connection_lost(self, error: Exception | None) -> None:
        """The connection is gone; called exactly once, last. `error` is None after an orderly end by either side."""


class ViewReceiver(Receiver, Protocol):
    """A receiver that only reads its frames, so that a connection which has them in memory already need not copy them."""

    def views_received(self, frames: list[Frame]) -> None:
        """Take whole frames, in order; called in place of `frames_received` if the connection has views to show.

        A memoryview can only be read, and shows what it does for as long as this very object is referenced (a slice of it
        does not count), and at most until `connection_lost` returns: what is to be kept beyond that is copied there. Let go
        of it soon, as the peer can't use the memory again before."""


class Connection(ABC):
    """One open connection. The side that has it must call `close` or `abort` in the end."""

    peer: Peer
    opening_s: float = 0.0
    """How long the connection took to open on the listener's side before `on_connection` (a TLS handshake), in seconds.
    It counts in `hello_timeout`."""

    @abstractmethod
    def send(self, frames: Sequence[Buffer]) -> None:
        """Send whole frames in order. Never blocks: what the peer does not take is buffered without limit, so the
        caller bounds it (by the queues' limits). They may leave as late as at the end of this turn of the loop.
        The buffers must not be changed as long as the connection is open: where the same object is sent to several
        connections, a transport may know it again. After the end of the connection: no effect."""

    def send_now(self, frames: Sequence[Buffer]) -> None:
        """As `send`, but try to hand the frames to the kernel before returning."""
        self.send(frames)

    @abstractmethod
    def limit_body(self, max_body_bytes: int) -> None:
        """Refuse frames with a longer body from now on. A connection starts at PRE_HELLO_BODY_BYTES, and until the first
        call it may also refuse a peer that has so much under way at once, in several frames."""

    @property
    @abstractmethod
    def unsent_bytes(self) -> int:
        """How much is buffered here because the peer has not taken it."""

    @property
    def received_bytes(self) -> int:
        """How much has come from the peer so far, unfinished frames included; looked at now and then, as a sign of life.
        A transport that `crosses_hosts` must tell it; for others it may stay 0."""
        return 0

    def rescue(self) -> None:
        """Repeat what an exception in a callback interrupted, such as the call of `connection_lost`. Called about twice a second
        in clients: their loop may be that of the main thread, where a signal handler can raise between any two steps."""

    @abstractmethod
    def pause_reading(self) -> None:
        """Take no more frames from the peer. Idempotent."""

    @abstractmethod
    def resume_reading(self) -> None:
        """Undo `pause_reading`. Idempotent."""

    @abstractmethod
    def close(self) -> None:
        """Close once everything sent has left. Idempotent."""

    @abstractmethod
    def abort(self) -> None:
        """Close at once; what has not left is lost. Idempotent."""


class Listener(ABC):
    """An open endpoint of a broker."""

    address: str
    """The full address that clients can connect to, with what the system chose (a port) filled in."""

    def keep(self) -> bool:
        """Check that the address still leads here, and refresh the times of files that cleaners of temporary directories
        look at. Called every few seconds, so it must be cheap.

        Returns:
            False when a file of the endpoint was removed or replaced. The broker then calls `listen` of the transport
            again, and `close` of this listener, whose open connections stay.
        """
        return True

    @abstractmethod
    async def close(self) -> None:
        """Accept no more and remove what listening left behind (a socket file), but no file of another listener. Open
        connections stay."""


class Transport(ABC):
    """A way to move frames, chosen by the scheme of an address. One object serves any number of addresses."""

    scheme: ClassVar[str]
    capabilities: ClassVar[Capabilities] = Capabilities()

    def with_options(self, options: Options) -> Transport:
        """The transport for a process that was configured so: itself, or another one that keeps what it needs of
        `options` (files of certificates). Called before any other method, and without touching files. A transport that
        wraps another one must pass it on. Raises ConfigureError."""
        return self

    def check_address(self, address: Address) -> None:
        """Raise ConfigureError if `address` can't be one of this transport (a path that is too long, no port)."""

    def prepare(self, address: Address) -> None:
        """Make and check what `lock_path` and `listen` need: a directory, the options without which it is not safe to listen
        there. Call it before the lock is opened; `listen` does it again. Raises ConfigureError and TransportError."""
        self.check_address(address)

    @abstractmethod
    async def listen(self, address: Address, on_connection: Callable[[Connection], Receiver]) -> Listener:
        """Open the endpoint. For each peer that connects, call `on_connection` once and tell its Receiver from then
        on. The caller holds the lock of `lock_path`; a stale endpoint at the address is removed. An endpoint that still
        accepts connections is not stale: the lock's file may have been removed under a live broker.
        Raises ConfigureError and TransportError."""

    @abstractmethod
    async def connect(self, address: Address, on_connection: Callable[[Connection], Receiver]) -> Connection:
        """Connect to a listener. `on_connection` is called before the first frame can arrive.
        Raises TransportError; its cause is an OSError where there is one, so that "nobody listens" can be told apart.
        Raises AuthenticationError where the listener can't prove who it is (by a certificate)."""

    def lock_path(self, address: Address) -> str | None:
        """The file that a process locks before it listens at `address`, so that there is one broker there.
        None: the transport can't tell, and a broker is never started there automatically."""
        return None

    def dial(self, address: Address, timeout_s: float) -> socket.socket | None:
        """A plain blocking socket to the listener, for programs that live for one post; each of its calls takes at most
        `timeout_s`, which must be above 0. `setblocking(False)` must work on it, and `recv` and `send` then raise
        BlockingIOError, also where it encrypts. None: only `connect` works. Raises as `connect` does."""
        return None


class TransportWrapper(ABC):
    """What makes a further transport of any other one: with the scheme "chaos", it serves `chaos+unix:`, `chaos+tcp:` and
    so on. A plugin gives it among its transports."""

    scheme: ClassVar[str]

    @abstractmethod
    def wrap(self, inner: Transport) -> Transport:
        """A transport over `inner`, whose scheme is this one's, a plus sign, and that of `inner`. It gets addresses of that
        scheme, and gives `inner` addresses of its own. Called once for each `inner` in a process."""


def is_trusted_peer(transport: Transport, peer: Peer) -> bool:
    """Whether the kernel vouches that the peer is a process of this user or of root, so that it may bring code."""
    return transport.capabilities.peer_credentials and peer.uid in (0, os.geteuid())
