"""What a terminal can show. What is shown there of events goes through `escape` and `render_data`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TextIO

from eventsh.escape import escape, render_data

__all__ = ["escape", "render_data", "wants_color"]


def wants_color(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Whether colour is wanted: a terminal that can show it, and nobody who asked for none (no-color.org)."""
    if environ.get("NO_COLOR") or environ.get("TERM") == "dumb":
        return False
    try:
        return stream.isatty()
    except ValueError:  # the stream is closed
        return False
