"""For tests: the conformance kit for authors of transports. Needs pytest; nothing of eventsh itself imports it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eventsh.testing.conformance import TransportConformance as TransportConformance

__all__ = ["TransportConformance"]


# Looked up when first asked for: the programs that the kit starts are in this package too, and need no pytest.
def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import pytest

    # Before they are imported: so that a case that fails shows values, in an installed package too.
    parts = ("eventsh.testing.cases", "eventsh.testing.recorder")
    pytest.register_assert_rewrite(*(part for part in parts if part not in sys.modules))
    from eventsh.testing import conformance

    globals()[name] = value = getattr(conformance, name)
    return value
