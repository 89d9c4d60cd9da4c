"""How people write the length of a time, a size, a number, and yes or no.

Every `parse_` raises ValueError, whose text says what is wrong and what to write instead.
"""

from __future__ import annotations

import re

__all__ = ["parse_bytes", "parse_count", "parse_flag", "parse_seconds", "show_value"]

# Texts, which `re` compiles when one of them is first needed: a post from the command line reads none.
_SECONDS = r"([+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:e[+-]?[0-9]+)?) ?(ms|s|m|h)?"
# Twenty digits are more than any limit; int() refuses thousands of them with an error of its own.
_COUNT = r"[+-]?[0-9]{1,20}"
_BYTES = rf"({_COUNT}) ?(B|KB|MB|GB|KiB|MiB|GiB)?"
_SECONDS_UNITS = {"s": 1, "m": 60, "h": 3600}
_BYTES_UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_FLAGS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def parse_seconds(text: str) -> float:
    """The seconds in "5", "0.5", "500ms", "2s", "1m" or "1h"."""
    found = re.fullmatch(_SECONDS, text.strip(), re.IGNORECASE)
    if found is None:
        raise ValueError(f"{show_value(text)} is no length of time: write for example 5, 0.5, 500ms, 2s or 1m")
    number, unit = float(found[1]), (found[2] or "s").lower()
    # Divided, as 9 * 0.001 is not 0.009.
    return number / 1000 if unit == "ms" else number * _SECONDS_UNITS[unit]


def parse_bytes(text: str) -> int:
    """The bytes in "65536", "64KiB", "1MB" or "2MiB"."""
    found = re.fullmatch(_BYTES, text.strip(), re.IGNORECASE)
    if found is None:
        raise ValueError(f"{show_value(text)} is no size: write for example 65536, 64KiB or 2MiB")
    return int(found[1]) * _BYTES_UNITS[(found[2] or "B").lower()]


def parse_count(text: str) -> int:
    """A whole number."""
    if not re.fullmatch(_COUNT, text.strip()):
        raise ValueError(f"{show_value(text)} is no whole number: write for example 1024")
    return int(text)


def parse_flag(text: str) -> bool:
    """Yes or no, in one of the words that are usual for it."""
    flag = _FLAGS.get(text.strip().lower())
    if flag is None:
        raise ValueError(f"{show_value(text)} is neither yes nor no: write true or false")
    return flag


def show_value(value: object) -> str:
    """A wrong value, for the message about it. It can be anything: a whole document passed by mistake must not become
    the message."""
    try:
        text = repr(value)
    except ValueError:  # Python prints no integer of more than 4,300 digits
        return f"a very long {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:60]}… ({type(value).__name__})"
