from __future__ import annotations

import hashlib
import hmac

from eventsh.protocol.handshake import MIN_TOKEN_BYTES, NONCE_BYTES, is_proof, make_proof

TOKEN, CLIENT, BROKER = b"t" * 16, b"c" * NONCE_BYTES, b"b" * NONCE_BYTES


def test_a_proof_is_an_hmac_of_purpose_side_and_both_nonces():
    for side in ("client", "broker"):
        message = b"eventsh handshake 1\0" + side.encode() + b"\0" + CLIENT + BROKER
        assert make_proof(TOKEN, side, CLIENT, BROKER) == hmac.new(TOKEN, message, hashlib.sha256).digest()


def test_a_proof_holds_for_one_token_one_side_and_one_pair_of_nonces():
    proof = make_proof(TOKEN, "client", CLIENT, BROKER)
    assert is_proof(proof, TOKEN, "client", CLIENT, BROKER)
    assert not is_proof(proof, b"x" * 16, "client", CLIENT, BROKER)
    assert not is_proof(proof, TOKEN, "broker", CLIENT, BROKER)
    assert not is_proof(proof, TOKEN, "client", BROKER, CLIENT)
    assert not is_proof(proof[:-1], TOKEN, "client", CLIENT, BROKER)
    assert not is_proof(b"", TOKEN, "client", CLIENT, BROKER)


def test_nonces_have_the_size_of_the_hash_and_tokens_128_bits():
    assert hashlib.sha256().digest_size == NONCE_BYTES
    assert MIN_TOKEN_BYTES * 8 == 128
