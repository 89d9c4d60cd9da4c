"""For tests: the conformance kit for authors of transports, and recordings as test cases. Needs pytest; nothing of eventsh
itself imports it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eventsh.testing.conformance import TransportConformance as TransportConformance
    from eventsh.testing.recordings import EventLog as EventLog
    from eventsh.testing.recordings import read_recording as read_recording
    from eventsh.testing.recordings import replay_events as replay_events

_RECORDINGS = ("EventLog", "read_recording", "replay_events")
__all__ = ["EventLog", "TransportConformance", "read_recording", "replay_events"]


# Looked up when first asked for: the programs that the kit starts are in this package too, and need no pytest.
def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in _RECORDINGS:
        from eventsh.testing import recordings

        globals()[name] = value = getattr(recordings, name)
        return value
    import pytest

    # Before they are imported: so that a case that fails shows values, in an installed package too.
    parts = ("eventsh.testing.cases", "eventsh.testing.recorder")
    pytest.register_assert_rewrite(*(part for part in parts if part not in sys.modules))
    from eventsh.testing import conformance

    globals()[name] = value = getattr(conformance, name)
    return value
