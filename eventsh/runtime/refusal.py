"""What a client raises when the broker says no."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eventsh.errors import AuthenticationError, NotConnected
from eventsh.protocol.messages import AUTHENTICATION_CODES

if TYPE_CHECKING:
    from eventsh.address import Address
    from eventsh.protocol.messages import Error

__all__ = ["refusal_error"]


def refusal_error(address: Address, refusal: Error) -> NotConnected | AuthenticationError:
    """The error for a connection that the broker ended with `refusal` before the welcome."""
    kind = AuthenticationError if refusal.code in AUTHENTICATION_CODES else NotConnected
    return kind(f"the broker at {address} refused: {refusal.message}")
