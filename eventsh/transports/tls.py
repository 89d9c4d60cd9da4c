"""TLS for the transports over sockets: contexts from files, and what went wrong in the words of options."""

from __future__ import annotations

import errno
import os
import ssl
import stat
from typing import TYPE_CHECKING

from eventsh.errors import AuthenticationError, ConfigureError, TransportError

if TYPE_CHECKING:
    from eventsh.address import Address

__all__ = ["DialedSocket", "client_context", "connect_error", "is_plain", "server_context"]

# Of a record of the kind that begins a handshake: its type, and the first byte of every version.
_FIRST_BYTES = b"\x16\x03"


def server_context(cert: str, key: str | None) -> ssl.SSLContext:
    """What a listener shows: the chain in `cert`, with its key. Raises ConfigureError."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = max(context.minimum_version, ssl.TLSVersion.TLSv1_2)
    _check_private("tls_cert" if key is None else "tls_key", key or cert)
    try:
        # Without a password, for there may be nobody to ask.
        context.load_cert_chain(cert, key, password="")
    except ssl.SSLError as error:
        reason = (
            "the key is not that of the certificate, has a password, or is none" if key else "no certificate and key"
        )
        raise ConfigureError(
            f"tls_cert: {cert}{f' with {key}' if key else ''} can't be used: {error.reason or reason}",
            option="tls_cert",
        ) from error
    except OSError as error:
        raise ConfigureError(
            f"tls_cert: {cert} or its key can't be read: {error.strerror}", option="tls_cert"
        ) from error
    return context


def _check_private(option: str, path: str) -> None:
    try:
        about = os.stat(path)
    except OSError as error:
        raise ConfigureError(f"{option}: {path} can't be read: {error.strerror}", option=option) from error
    if about.st_mode & stat.S_IRWXO:
        raise ConfigureError(
            f"{option}: {path} holds a key and can be used by others (mode {stat.S_IMODE(about.st_mode):04o}):"
            " chmod o-rwx it",
            option=option,
        )


def client_context(option: str, trusted: str | None) -> ssl.SSLContext:
    """Trust the certificates in the file `trusted`, which `option` names, or else the system's. Raises ConfigureError."""
    try:
        context = ssl.create_default_context(cafile=trusted)
    except (OSError, ssl.SSLError) as error:
        reason = "no certificate in it" if isinstance(error, ssl.SSLError) else error.strerror
        raise ConfigureError(f"{option}: {trusted} can't be used: {reason}", option=option) from error
    context.minimum_version = max(context.minimum_version, ssl.TLSVersion.TLSv1_2)
    if trusted is not None:
        # What is given is trusted itself, also where it is the broker's own certificate or one in the middle of a chain.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.sslsocket_class = DialedSocket
    return context


class DialedSocket(ssl.SSLSocket):
    """A socket that says "not now" as plain ones do."""

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        try:
            return super().recv(buflen, flags)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as error:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from error

    def send(self, data: bytes | bytearray | memoryview, flags: int = 0) -> int:  # type: ignore[override]
        try:
            return super().send(data, flags)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as error:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from error


def is_plain(first: bytes) -> bool:
    """Whether what a peer has sent first is no TLS, as far as that can be told."""
    return not first.startswith(_FIRST_BYTES[: len(first)])


def connect_error(address: Address, error: OSError) -> TransportError | AuthenticationError:
    """What to raise when the handshake of a client failed."""
    if isinstance(error, ssl.SSLCertVerificationError):
        why = error.verify_message.removesuffix(".")
        hint = "give the certificate of its CA with tls_ca (--tls-ca)"
        if "ostname mismatch" in why or "IP address mismatch" in why:
            hint = "give the name that stands in it with tls_name (--tls-name)"
        return AuthenticationError(f"the certificate of the broker at {address} is not accepted: {why}; {hint}")
    if isinstance(error, ssl.SSLError) and error.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"):
        return TransportError(
            f"what listens at {address} speaks no TLS: if it is a broker without, leave out tls_ca and tls_cert"
        )
    reason = getattr(error, "reason", None) or error.strerror or str(error) or "no answer"
    return TransportError(f"TLS with {address} failed: {reason}")
