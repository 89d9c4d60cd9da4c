"""The token of an address: read from its file, and made into the proofs of each connection. It is never shown."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from eventsh.errors import ConfigureError
from eventsh.protocol.handshake import MIN_TOKEN_BYTES, NONCE_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

    from eventsh.core.proof import BrokerProof, ClientProof

__all__ = ["broker_proofs", "client_proofs", "read_token"]

# Far more than any token has: a file that is longer is another one, given by mistake.
_MAX_BYTES = 4096


def read_token(path: str) -> bytes:
    """The token in a file that nobody but its owner, this user or root, can read. A line's end behind it is none of it.
    Raises ConfigureError, which tells nothing of what is in the file."""
    try:
        # Not waiting, should it be a pipe.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise _refusal(path, f"can't be read: {error.strerror}") from error
    try:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode):
            raise _refusal(path, "is no file")
        if about.st_uid not in (os.geteuid(), 0):
            raise _refusal(path, f"belongs to user {about.st_uid}, neither to this user nor to root")
        if about.st_mode & 0o077:
            raise _refusal(path, f"can be used by others (mode {stat.S_IMODE(about.st_mode):04o}): chmod 600 it")
        text = os.read(descriptor, _MAX_BYTES + 1)
    except OSError as error:
        raise _refusal(path, f"can't be read: {error.strerror}") from error
    finally:
        os.close(descriptor)
    token = text.strip()
    if not MIN_TOKEN_BYTES <= len(token) <= _MAX_BYTES:
        size = "more than 4096" if len(text) > _MAX_BYTES else str(len(token))
        raise _refusal(
            path,
            f"holds {size} bytes, and a token has from {MIN_TOKEN_BYTES} to {_MAX_BYTES}: make one with"
            " 'openssl rand -hex 32'",
        )
    return token


def _refusal(path: str, why: str) -> ConfigureError:
    return ConfigureError(f"token_file: {path} {why}", option="token_file")


def client_proofs(path: str | None) -> Callable[[], ClientProof] | None:
    """Makes a client's side of the handshake for each connection; None without a token. Raises ConfigureError."""
    if path is None:
        return None
    from eventsh.core.proof import ClientProof

    token = read_token(path)
    return lambda: ClientProof(token, os.urandom(NONCE_BYTES))


def broker_proofs(path: str | None) -> Callable[[], BrokerProof] | None:
    """As `client_proofs`, the broker's side."""
    if path is None:
        return None
    from eventsh.core.proof import BrokerProof

    token = read_token(path)
    return lambda: BrokerProof(token, os.urandom(NONCE_BYTES))
