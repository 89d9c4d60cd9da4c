"""What both ends of a connection in a test are: frames that prove themselves, and receivers that keep what they are told.

Needs no pytest: the peers that tests start in processes of their own use it too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from eventsh.protocol.frame import HEADER_BYTES, Kind, decode_header, encode_frame

if TYPE_CHECKING:
    from eventsh.errors import ProtocolError
    from eventsh.transport import Connection, Listener

__all__ = ["DEADLINE_S", "LARGE_BYTES", "Pair", "Recorder", "event_frame", "numbers", "turns"]

# What must happen happens within this, however busy the machine is.
DEADLINE_S = 30.0
LARGE_BYTES = 1024 * 1024


def event_frame(number: int, size: int = 20) -> bytearray:
    """A frame of about `size` bytes whose body repeats its number."""
    return encode_frame(Kind.EVENTS, number.to_bytes(8, "little") * (size // 8 + 1), origin_seq=number)


def numbers(frames: Sequence[bytearray]) -> list[int]:
    """The numbers of frames made by `event_frame`, each of which is checked to be whole and unharmed."""
    for frame in frames:
        header = decode_header(frame)
        body = bytes(memoryview(frame)[HEADER_BYTES:])
        assert header.length == len(body), f"a frame of {header.length} bytes came with {len(body)}"
        assert body == header.origin_seq.to_bytes(8, "little") * (len(body) // 8), (
            f"frame {header.origin_seq} was harmed"
        )
    return [decode_header(frame).origin_seq for frame in frames]


@dataclass
class Recorder:
    """A receiver that keeps what it is told."""

    frames: list[bytearray] = field(default_factory=list)
    refused: list[ProtocolError] = field(default_factory=list)
    lost: list[Exception | None] = field(default_factory=list)
    pauses: list[str] = field(default_factory=list)
    told_after_end: list[str] = field(default_factory=list)
    connection: Connection | None = None
    on_frames: Callable[[list[bytearray]], None] = lambda frames: None
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def frames_received(self, frames: list[bytearray]) -> None:
        self._note("frames")
        assert frames, "told of no frames"
        self.frames += frames
        self.on_frames(frames)

    def frames_refused(self, error: ProtocolError) -> None:
        self._note("refused")
        self.refused.append(error)

    def writing_paused(self) -> None:
        self._note("paused")
        self.pauses.append("paused")

    def writing_resumed(self) -> None:
        self._note("resumed")
        self.pauses.append("resumed")

    def connection_lost(self, error: Exception | None) -> None:
        self._note("lost")
        self.lost.append(error)

    def _note(self, what: str) -> None:
        if self.lost:
            self.told_after_end.append(what)
        self._changed.set()

    async def until(self, condition: Callable[[Recorder], object]) -> None:
        """Wait until `condition` holds of this recorder. Raises TimeoutError, which says how far it came."""
        try:
            async with asyncio.timeout(DEADLINE_S):
                while not condition(self):
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise TimeoutError(
                f"not within {DEADLINE_S:g} s; so far: {len(self.frames)} frames, refused {self.refused},"
                f" writing {self.pauses[-4:]}, lost {self.lost}"
            ) from None

    async def until_frames(self, count: int) -> list[int]:
        """Wait until it has this many frames, or the connection is gone; give the numbers of all frames so far."""
        await self.until(lambda recorder: len(recorder.frames) >= count or recorder.lost)
        return numbers(self.frames)

    async def until_lost(self) -> None:
        """Wait for the end of the connection, and see that it is told once and last."""
        await self.until(lambda recorder: recorder.lost)
        await turns()
        assert len(self.lost) == 1, f"connection_lost was called {len(self.lost)} times"
        assert self.told_after_end == [], f"told after connection_lost: {self.told_after_end}"


@dataclass
class Pair:
    """Both ends of one connection, and who was told of it."""

    listener: Listener
    client: Connection
    server: Connection
    to_client: Recorder
    to_server: Recorder

    def raise_limits(self, max_body_bytes: int = 4 * LARGE_BYTES) -> None:
        """Let both ends take large frames."""
        for connection in (self.client, self.server):
            connection.limit_body(max_body_bytes)

    async def until_lost(self) -> None:
        """Wait for the end, at both ends."""
        for recorder in (self.to_client, self.to_server):
            await recorder.until(lambda recorder: recorder.lost)
        for recorder in (self.to_client, self.to_server):
            await recorder.until_lost()


async def turns(count: int = 20) -> None:
    """Let whatever is already under way in this loop happen."""
    for _ in range(count):
        await asyncio.sleep(0.001)
