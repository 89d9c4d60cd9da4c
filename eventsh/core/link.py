"""One connection as the broker's rules see it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from eventsh.protocol.frame import FIRST_FLAGS

if TYPE_CHECKING:
    from eventsh.core.heartbeat import Heartbeat
    from eventsh.core.poster import Poster
    from eventsh.core.proof import BrokerProof
    from eventsh.core.slot import Slot

__all__ = ["Link"]


class Link:
    """A connection: what is to be sent on it, and what it is attached as. The owner empties `output` and, when
    `is_closing` is set, closes the connection after that, or aborts it when `is_gone`."""

    __slots__ = (
        "close_by",
        "features",
        "greeting_bytes",
        "heartbeat",
        "hello_by",
        "host",
        "is_closing",
        "is_gone",
        "is_greeted",
        "is_trusted",
        "key",
        "output",
        "pid",
        "poster",
        "proof",
        "readable",
        "slot",
        "told_bytes",
        "unsent",
        "warned_unreadable",
    )

    def __init__(
        self, key: Any, pid: int | None, hello_by: float, unsent: Callable[[], int], *, is_trusted: bool = False
    ) -> None:
        # Whatever the owner finds the connection by.
        self.key = key
        # As the transport vouches for it; a hello can't change that. 0: it has none where the broker is.
        self.pid = pid
        # Of the process, as its hello says it.
        self.host = ""
        # The features of the wire that its hello names, and the flags of a frame that it and the broker can read.
        self.features: frozenset[str] = frozenset()
        self.readable = FIRST_FLAGS
        # Whether a notice was logged that this client gets gaps for frames that it cannot read.
        self.warned_unreadable = False
        # The kernel vouches that it is a process of this user or of root: only such may bring code.
        self.is_trusted = is_trusted
        self.hello_by = hello_by
        self.is_greeted = False
        # What it has sent until its hello was taken.
        self.greeting_bytes = 0
        # Under way once it has sent a challenge.
        self.proof: BrokerProof | None = None
        # How many bytes of what was sent have not left.
        self.unsent = unsent
        # Sent since that was looked at, beside events.
        self.told_bytes = 0
        self.is_closing = False
        # When it is aborted if what was sent has not left by then; known at the first tick after `is_closing`.
        self.close_by: float | None = None
        # Nothing that is sent to it will arrive: the owner aborts the connection.
        self.is_gone = False
        self.heartbeat: Heartbeat | None = None
        self.output: list[bytearray] = []
        self.slot: Slot | None = None
        self.poster: Poster | None = None

    @property
    def peer(self) -> str:
        """The client with its pid, for the log."""
        if self.slot is not None and not self.slot.is_observer:
            return f"{self.slot.label} (pid {self.slot.pid})"
        return self.label

    @property
    def label(self) -> str:
        """Who it is, for people."""
        if self.slot is not None:
            return self.slot.label
        return f"a client with pid {self.pid}" if self.pid else "a client"
