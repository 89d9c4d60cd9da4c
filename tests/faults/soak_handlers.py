"""Handlers for a long run: they count instead of writing each event down, and tell the count when they are asked to.

A poster's broadcasts are numbered from 1 and come in their order, so that the last number is all that has to be kept.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import eventsh

_directory = Path(os.environ["FAULTS_LEDGER"])
_last: dict[int, int] = defaultdict(int)
_count: dict[str, int] = defaultdict(int)


@eventsh.on("soak", "e")
def count(data: Any, event: str, source: str, pid: int | None) -> None:
    poster, number = data[:2]
    _count["out of order"] += number != _last[poster] + 1
    _last[poster] = number


@eventsh.on("soak", "unique")
def count_key(data: Any, event: str, source: str, pid: int | None) -> None:
    _count["keys"] += 1


@eventsh.on("eventsh", "gap")
def count_gap(data: Any, event: str, source: str, pid: int | None) -> None:
    _count["told"] += data["missed"]


@eventsh.on("soak", "tell")
def tell(data: Any, event: str, source: str, pid: int | None) -> None:
    path = _directory / f"{os.getpid()}.part"
    path.write_text(json.dumps({"last": _last, **_count}))
    path.rename(path.with_suffix(".counts"))
