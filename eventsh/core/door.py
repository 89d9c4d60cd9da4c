"""What the broker asks of a connection before its hello: little in size, and the token where there is one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from eventsh.errors import AuthenticationError, ProtocolError
from eventsh.protocol.frame import HEADER_BYTES, KIND_OFFSET, PRE_HELLO_BODY_BYTES, Kind
from eventsh.protocol.messages import Challenge, Proof

if TYPE_CHECKING:
    from eventsh.core.link import Link
    from eventsh.core.proof import BrokerProof

__all__ = ["Door", "Refusal"]


class Refusal(Exception):
    """A peer is not let in: `code` and text are for its Error frame."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Door:
    """`new_proof` makes the broker's side of a handshake; None: there is no token, and nobody has to prove anything."""

    def __init__(self, new_proof: Callable[[], BrokerProof] | None) -> None:
        self._new_proof = new_proof

    def answer(self, link: Link, frame: bytearray) -> bytearray:
        """The answer to a Challenge or a Proof. Raises Refusal and ProtocolError."""
        if link.is_greeted:
            raise ProtocolError("a handshake after the hello")
        self._count(link, frame)
        if self._new_proof is None:
            raise Refusal("token_unknown", "this broker has no token to prove: it was started without token_file")
        if frame[KIND_OFFSET] == Kind.CHALLENGE:
            link.proof = link.proof or self._new_proof()
            return link.proof.answer(Challenge.decode(frame)).encode()
        if link.proof is None:
            raise ProtocolError("a proof before the challenge")
        try:
            return link.proof.prove(Proof.decode(frame)).encode()
        except AuthenticationError as error:
            raise Refusal("token_wrong", str(error)) from None

    def check_hello(self, link: Link, frame: bytearray) -> None:
        """Raise Refusal unless whoever says hello may come in, and ProtocolError."""
        self._count(link, frame)
        if self._new_proof is not None and (link.proof is None or not link.proof.is_proven):
            raise Refusal("token_needed", "this broker asks for a token: give token_file (--token-file)")

    def _count(self, link: Link, frame: bytearray) -> None:
        link.greeting_bytes += len(frame) - HEADER_BYTES
        if link.greeting_bytes > PRE_HELLO_BODY_BYTES:
            raise ProtocolError(
                f"{link.greeting_bytes} bytes until the hello are over the limit of {PRE_HELLO_BODY_BYTES}"
            )
