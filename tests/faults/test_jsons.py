"""Row 8 of FAULTS.md. The long form is `python -m tests.faults --row 8 --kills 20000`."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from eventsh.api import Events
from eventsh.errors import NotSerializable
from tests.faults.campaign import directory
from tests.faults.jsons import TEXTS, abuse_json, draw_text

SEED = 7


def test_poster_and_workers_have_one_verdict_on_every_text_and_nobody_dies() -> None:
    draw = random.Random(SEED)
    with directory() as path:
        report = abuse_json([*TEXTS, *(draw_text(draw) for _ in range(300))], SEED, path)
    assert not report.faults, str(report)
    assert report.accepted > 50
    assert report.refused > 50
    assert 50 < report.read < report.texts - 50


def circular() -> list[Any]:
    data: list[Any] = []
    data.append(data)
    return data


def deep(levels: int) -> list[Any]:
    data: list[Any] = []
    for _ in range(levels):
        data = [data]
    return data


@pytest.mark.parametrize(
    "data",
    [float("nan"), [float("-inf")], 2**64, -(2**63) - 1, "\ud800", {"\udfff": 1}, {1: 2}, b"x", circular(), deep(200), deep(100_000)],
    ids=range(11),
)  # fmt: skip
def test_what_is_refused_at_the_poster_leaves_nothing_behind(data: Any, tmp_path: Path) -> None:
    got: list[Any] = []
    with Events(f"inproc:{tmp_path.name}") as events:
        events.register(lambda data, *_: got.append(data), "json")
        events.wait_ready(10.0)
        with pytest.raises(NotSerializable):
            events.post("json", "refused", data)
        events.post("json", "next", 1)
        events.post_and_wait("json", "last", 2, timeout=10.0)
    assert got == [1, 2]
