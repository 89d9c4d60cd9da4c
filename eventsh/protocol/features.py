"""Features of the wire: the names that a hello and a welcome carry, and the flags of a frame that need one to be read.

Theory of operation: each side names the features that it knows, and ignores names that it does not know. The broker
sends the intersection over itself and all receivers as a Features message whenever it changes, and a poster uses a newer
form of a batch only while that intersection holds its feature. The intersection can shrink while such a batch is under
way, or a poster can reconnect to an older broker, so every reader also checks the flags of each frame: a batch with a
flag that the reader does not know becomes a gap in its place, and is never parsed on a guess.
"""

from __future__ import annotations

from collections.abc import Iterable

from eventsh.errors import ProtocolError
from eventsh.protocol.frame import FIRST_FLAGS

__all__ = [
    "ALL_KNOW",
    "BYTE_WINDOW",
    "FEATURES",
    "FLAG_FEATURES",
    "KEPT_UNIQUE",
    "MAX_FEATURES",
    "MAX_FEATURE_CHARS",
    "UNREADABLE_GAP",
    "WORKERS_JOINED",
    "check_features",
    "name_flags",
    "readable_flags",
]

ALL_KNOW = "all-know"
"""A client reads the Features message. The broker sends that message to no other client: its kind is new."""
UNREADABLE_GAP = "unreadable-gap"
"""A receiver reports a batch that it cannot read as a gap. A broker does so for a batch that a receiver cannot read, and
accepts a Report of unread events."""
KEPT_UNIQUE = "kept-unique"
"""A poster keeps each unique event until a Settled frame names it, and sends it again to the next broker, also after its
confirmation. A broker sends Settled frames to no other client, and accepts kept events from no other."""

BYTE_WINDOW = "byte-window"
"""A poster keeps to the window in bytes that a welcome names. The broker lets any other poster have fewer events under
way."""

WORKERS_JOINED = "workers-joined"
"""A receiver follows the lifecycle event `workers_joined`, which stands for several `worker_joined`."""

FEATURES = frozenset({ALL_KNOW, BYTE_WINDOW, KEPT_UNIQUE, UNREADABLE_GAP, WORKERS_JOINED})
"""The features that this version knows."""

FLAG_FEATURES = {64: "metadata", 128: "flat-names"}
"""The feature that a reader needs for each flag bit above FIRST_FLAGS. This version knows neither."""

# A hello has to fit into 64 KiB with all else that it carries. Versions add a feature or two each.
MAX_FEATURES = 256
MAX_FEATURE_CHARS = 64


def readable_flags(features: Iterable[str]) -> int:
    """Return the flag bits of an EVENTS frame that a reader with these features knows."""
    known = frozenset(features)
    return FIRST_FLAGS | sum(bit for bit, feature in FLAG_FEATURES.items() if feature in known)


def name_flags(flags: int) -> str:
    """Name the bits of `flags` that the first version did not have, for a message to people."""
    return " and ".join(f"flag {bit} ({feature})" for bit, feature in FLAG_FEATURES.items() if flags & bit)


def check_features(features: list[str], sender: str) -> None:
    """Raise ProtocolError if a hello or a welcome carries too many features, or one with too long a name."""
    if len(features) > MAX_FEATURES:
        raise ProtocolError(f"a {sender} names {len(features)} features, over the limit of {MAX_FEATURES}")
    longest = max(map(len, features), default=0)
    if longest > MAX_FEATURE_CHARS:
        raise ProtocolError(
            f"a {sender} names a feature of {longest} characters, over the limit of {MAX_FEATURE_CHARS}"
        )
