"""The two sides of the handshake by which client and broker prove a token to each other, each for one connection.

What is sent and when is drawn in protocol/handshake.py. Nonces come from the owner. A proof object is good for one
handshake: whatever comes out of turn is a ProtocolError.
"""

from __future__ import annotations

from eventsh.errors import AuthenticationError, ProtocolError
from eventsh.protocol.handshake import NONCE_BYTES, is_proof, make_proof
from eventsh.protocol.messages import Challenge, Proof

__all__ = ["BrokerProof", "ClientProof"]


class _Side:
    """What both sides keep. Neither shows the token in its repr, nor in an error."""

    __slots__ = ("_nonce", "_peer_nonce", "_token")

    def __init__(self, token: bytes, nonce: bytes) -> None:
        if len(nonce) != NONCE_BYTES:
            raise ValueError(f"a nonce has {NONCE_BYTES} bytes")
        self._token = token
        self._nonce = nonce
        self._peer_nonce: bytes | None = None

    def _take_challenge(self, challenge: Challenge) -> None:
        if self._peer_nonce is not None:
            raise ProtocolError("a second challenge")
        self._peer_nonce = challenge.nonce_bytes()

    def _challenged(self) -> bytes:
        if self._peer_nonce is None:
            raise ProtocolError("a proof before the challenge")
        return self._peer_nonce


class ClientProof(_Side):
    """The client's side: `begin`, `answer` the broker's challenge, `check` the broker's proof."""

    def begin(self) -> Challenge:
        """What to send first."""
        return Challenge.of(self._nonce)

    def answer(self, challenge: Challenge) -> Proof:
        """What to send when the broker's challenge came. Raises ProtocolError."""
        self._take_challenge(challenge)
        return Proof.of(make_proof(self._token, "client", self._nonce, self._challenged()))

    def check(self, proof: Proof) -> None:
        """Raise AuthenticationError unless the broker has the token too; ProtocolError out of turn."""
        if not is_proof(proof.mac_bytes(), self._token, "broker", self._nonce, self._challenged()):
            raise AuthenticationError(
                "the broker could not prove that it has the token: another one may have its place"
            )


class BrokerProof(_Side):
    """The broker's side: `answer` the client's challenge, then its proof with `prove`."""

    __slots__ = ("is_proven",)

    def __init__(self, token: bytes, nonce: bytes) -> None:
        super().__init__(token, nonce)
        self.is_proven = False

    def answer(self, challenge: Challenge) -> Challenge:
        """What to send when the client's challenge came. Raises ProtocolError."""
        self._take_challenge(challenge)
        return Challenge.of(self._nonce)

    def prove(self, proof: Proof) -> Proof:
        """What to send when the client's proof came. Raises AuthenticationError if it is wrong, ProtocolError out of turn."""
        nonce = self._challenged()
        if self.is_proven:
            raise ProtocolError("a second proof")
        if not is_proof(proof.mac_bytes(), self._token, "client", nonce, self._nonce):
            raise AuthenticationError("the token is not this broker's")
        self.is_proven = True
        return Proof.of(make_proof(self._token, "broker", nonce, self._nonce))
