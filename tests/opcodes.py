"""Raise an exception between any two opcodes of eventsh, as an exception out of a signal handler does."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import eventsh

PACKAGE = str(Path(eventsh.__file__).parent)


class InterruptedHere(Exception):
    """What the signal handler raises."""


def call_interrupted(function: Callable[[], Any], number: int, *, error: type[BaseException] = InterruptedHere) -> bool:
    """Call `function`, and raise `error` before the opcode with this number, counted from 0, that runs in eventsh's files.

    Returns:
        Whether it was raised. False: the call has fewer opcodes, and was left alone.
    """
    left = number

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal left
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            if not left:
                raise error
            left -= 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    except error:
        return True
    finally:
        sys.settrace(before)
    return False
