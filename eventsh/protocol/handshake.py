"""How two ends prove to each other that they have the same token, without showing it. Pure functions of bytes.

    client -> broker   Challenge: the client's nonce
    broker -> client   Challenge: the broker's nonce
    client -> broker   Proof: HMAC of (client, both nonces)
    broker -> client   Proof: HMAC of (broker, both nonces)

The nonces are fresh, so that nothing heard earlier is of use; who proves is part of it, so that neither side's proof can
be sent back to it as the other's. The client goes first: it has verified the broker's certificate where others could
listen, while anybody can call themselves a client and would have something to try guesses on.
"""

from __future__ import annotations

import hmac
from typing import Literal

__all__ = ["MIN_TOKEN_BYTES", "NONCE_BYTES", "Side", "is_proof", "make_proof"]

Side = Literal["client", "broker"]

# As many as SHA-256 gives: more would add nothing.
NONCE_BYTES = 32
# Whoever hears a handshake can try guesses without asking again: a token is random and of 128 bits or more.
MIN_TOKEN_BYTES = 16

_PURPOSE = b"eventsh handshake 1\0"


def make_proof(token: bytes, side: Side, client_nonce: bytes, broker_nonce: bytes) -> bytes:
    """What `side` sends to prove that it has `token`."""
    # The name of the side ends with a zero and the nonces have one length each, so that no two inputs are the same bytes.
    return hmac.digest(token, _PURPOSE + side.encode() + b"\0" + client_nonce + broker_nonce, "sha256")


def is_proof(proof: bytes, token: bytes, side: Side, client_nonce: bytes, broker_nonce: bytes) -> bool:
    """Whether `proof` is that of `side`. Takes as long for a wrong one as for the right one."""
    return hmac.compare_digest(proof, make_proof(token, side, client_nonce, broker_nonce))
