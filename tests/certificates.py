"""Certificates and tokens for tests, made when they run."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import trustme

__all__ = ["Certificates"]

NAME = "events.test"


@dataclass
class Certificates:
    """Files in a directory of the test's own."""

    directory: Path

    def write(self, name: str, data: bytes, mode: int = 0o600) -> str:
        path = self.directory / name
        path.write_bytes(data)
        path.chmod(mode)
        return str(path)

    @cached_property
    def ca(self) -> str:
        return self._files["ca"]

    @cached_property
    def cert(self) -> str:
        """For 127.0.0.1 and events.test; its key is in the same file."""
        return self._files["cert"]

    @cached_property
    def other_ca(self) -> str:
        """Of somebody who has nothing to do with it."""
        return self.write("other-ca.pem", trustme.CA().cert_pem.bytes())

    @cached_property
    def token(self) -> str:
        return self.write("token", b"0123456789abcdef" * 4 + b"\n")

    @cached_property
    def other_token(self) -> str:
        return self.write("other-token", b"fedcba9876543210" * 4 + b"\n")

    @cached_property
    def _files(self) -> dict[str, str]:
        ca = trustme.CA()
        issued = ca.issue_cert("127.0.0.1", NAME)
        return {
            "ca": self.write("ca.pem", ca.cert_pem.bytes()),
            "cert": self.write("cert.pem", issued.private_key_and_cert_chain_pem.bytes()),
        }
