"""Row 8 of FAULTS.md. The long form is `python -m tests.faults --row 8 --kills 20000`."""

from __future__ import annotations

import asyncio
import enum
import json
import random
import subprocess
import sys
import uuid
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from eventsh.api import AsyncEvents, Events
from eventsh.commands.post import post_and_wait, post_data
from eventsh.errors import NotSerializable
from eventsh.testing.bus import recording_bus
from tests.faults.campaign import directory
from tests.faults.jsons import HANDLERS, TEXTS, abuse_json, digest, draw_text
from tests.faults.processes import DEADLINE_S, Served, wait_until
from tests.protocol.dresses import Items, Markup, Number, Pair, Real, Row, Table, Text

SEED = 7


def test_poster_and_workers_have_one_verdict_on_every_text_and_nobody_dies() -> None:
    draw = random.Random(SEED)
    with directory() as path:
        report = abuse_json([*TEXTS, *(draw_text(draw) for _ in range(300))], SEED, path)
    assert not report.faults, str(report)
    assert report.accepted > 50
    assert report.refused > 50
    assert 50 < report.read < report.texts - 50


class Choice(enum.StrEnum):
    A = "a"


# Data, and what a handler gets.
EQUALS: list[tuple[Any, Any]] = [
    (OrderedDict(b=(1, None), a=2), {"b": [1, None], "a": 2}),
    (Counter("aab"), {"a": 2, "b": 1}),
    (defaultdict(list, {"a": [Real(1.0)]}), {"a": [1.0]}),
    (Pair(Number(1), Pair(Text("x"), None)), [1, ["x", None]]),
    ({Markup("k"): Markup("<b>"), Choice.A: Choice.A}, {"k": "<b>", "a": "a"}),
    ([uuid.UUID(int=1), None], ["00000000-0000-0000-0000-000000000001", None]),
    (Items([Row((Table(a="x" * 500),))]), [[{"a": "x" * 500}]]),
]
REFUSED: list[tuple[Any, str]] = [
    (Pair(1, Real("nan")), "data[1] is NaN, which JSON does not have"),
    (OrderedDict(a=[b"x"]), 'data["a"][0] is of type bytes'),
    (Counter([1]), "data has a key 1 of type int: keys must be strings"),
    ([Number(2**64)], "data[0] is an integer beyond 64 bits"),
]


def ways(address: str, events: Events) -> Iterator[tuple[str, Callable[[Any], object]]]:
    """All ways to post one value, each with a name."""
    keys = (f"key-{number}" for number in count())

    async def post_async(data: Any, *, wait: bool) -> None:
        async with AsyncEvents(address, broker="never", role="observer") as bus:
            if wait:
                await bus.post_and_wait("json", "async wait", data, timeout=DEADLINE_S)
            else:
                bus.post("json", "async", data)
                await bus.flush(DEADLINE_S)

    yield "post", lambda data: events.post("json", "post", data)
    yield "unique", lambda data: events.post("json", "unique", data, unique=next(keys))
    yield "wait", lambda data: events.post_and_wait("json", "wait", data, timeout=DEADLINE_S)
    yield "async", lambda data: asyncio.run(post_async(data, wait=False))
    yield "async wait", lambda data: asyncio.run(post_async(data, wait=True))
    yield "blocking", lambda data: post_data(address, "json", "blocking", data)
    yield "blocking unique", lambda data: post_data(address, "json", "blocking unique", data, unique=next(keys))
    yield "blocking wait", lambda data: post_and_wait(address, "json", "blocking wait", data)


def handled(path: Path, event: str) -> list[str]:
    """The digests of this event's data, in the one worker of the pool."""
    lines = [json.loads(line) for file in path.glob("*.digests") for line in file.read_bytes().splitlines()]
    return [digest for name, digest in lines if name == event]


def test_every_way_to_post_has_the_same_verdict_and_delivers_the_same_value() -> None:
    with directory() as path:
        recording = path / "r.evlog"
        pool = Served(path, f"unix:{path}/run/e.sock", 1, "--record", str(recording), handlers=HANDLERS)
        try:
            with Events(pool.address, broker="never", role="observer") as events:
                events.wait_ready(DEADLINE_S)
                expected = [digest(plain) for _, plain in EQUALS]
                names = []
                for name, post in ways(pool.address, events):
                    names.append(name)
                    for data, _ in EQUALS:
                        post(data)
                    for data, message in REFUSED:
                        with pytest.raises(NotSerializable) as caught:
                            post(data)
                        assert str(caught.value).startswith(message)
                events.post_and_wait("json", "last", timeout=DEADLINE_S)
            assert {name: handled(path, name) for name in names} == dict.fromkeys(names, expected)
            copy = path / "copy.evlog"
            run_cli("log", "filter", str(recording), str(copy), "--source", "json")
            run_cli("replay", str(copy), "--to", pool.address, "--speed", "max", "--yes")
            wait_until(lambda: len(handled(path, "last")) == 2, "the recording was replayed")
            assert {name: handled(path, name) for name in names} == dict.fromkeys(names, expected * 2)
        finally:
            assert pool.stop() == 0


def run_cli(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", "eventsh", *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done


def test_the_bus_of_a_test_delivers_what_a_worker_gets() -> None:
    with recording_bus("inproc:codec") as events:
        for data, _ in EQUALS:
            events.post("json", "e", data)
        events.settle()
        assert [digest(one.data) for one in events.handled("json")] == [digest(plain) for _, plain in EQUALS]


def test_what_is_changed_after_the_post_is_delivered_as_it_was(tmp_path: Path) -> None:
    got: list[Any] = []
    with Events(f"inproc:{tmp_path.name}") as events:
        events.register(lambda data, *_: got.append(data), "json")
        events.wait_ready(10.0)
        data = OrderedDict(a=Items([1]))
        events.post("json", "e", data)
        data["a"].append(2)
        data["b"] = 1
        local = Pair(1, 2)
        events.post_local("json", "local", local)
        events.post_and_wait("json", "last", timeout=10.0)
    assert {"a": [1]} in got
    # A local event is not encoded: the very object is passed on.
    assert any(value is local for value in got)


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
