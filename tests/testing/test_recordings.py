"""Recordings as test cases of a program."""

from __future__ import annotations

import asyncio
import shutil
import textwrap
import time
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import eventsh
from eventsh.errors import EventError, NotSerializable, RecordingError
from eventsh.recording.writer import Writer
from eventsh.testing import EventLog, read_recording, replay_events
from tests.recording.sample import EPOCH, SECOND, frame, write

pytest_plugins = ["pytester"]

SAMPLE = Path(__file__).parents[1] / "recording" / "version1.evlog"


@pytest.fixture
def path(tmp_path):
    """An hour between the events."""
    path = tmp_path / "a.evlog"
    frames = [frame(number, number, time_ns=EPOCH + number * 3600 * SECOND) for number in range(1, 5)]
    write(path, [frame(9, "own", source="eventsh", origin=0, time_ns=EPOCH), *frames])
    return path


def test_a_recording_is_a_list_of_events():
    events = read_recording(SAMPLE)
    assert [event.data for event in events] == [{"k": "v"}, [1, 2], None, "only one", "ä", 1.5, *range(20)]
    assert events[3].unique == "key-1"
    assert events[3].worker == 3
    assert [event.data for event in read_recording(SAMPLE, "eventsh")] == [True]
    assert len(read_recording(SAMPLE, "app", "e", begin="seq:5")) == 22


def test_half_of_an_incident_is_an_error(tmp_path):
    path = tmp_path / "half.evlog"
    path.write_bytes(SAMPLE.read_bytes()[:-100])
    with pytest.raises(RecordingError, match="cut off"):
        read_recording(path)


def test_handlers_are_called_in_order_at_recorded_times_in_no_time(path):
    log = EventLog(path)
    bus = eventsh.Events()
    seen: list[Any] = []

    @bus.on("app")
    def sync(data, event, source, pid):
        seen.append(("sync", data, log.clock() - EPOCH / 1e9, eventsh.replayed(), pid))

    @bus.on("app", "e")
    async def slow(data, event, source, pid):
        await asyncio.sleep(600)
        seen.append(("async", data, log.clock() - EPOCH / 1e9, eventsh.replayed(), pid))

    result = log.replay(bus)
    assert result.handled == 4
    assert not result.failures
    assert [(kind, data) for kind, data, *_ in seen] == [
        (kind, data) for data in range(1, 5) for kind in ("sync", "async")
    ]
    for kind, data, seconds, *told in seen:
        assert seconds == pytest.approx(data * 3600 + 600 * (kind == "async"))
        assert told == [True, 4711]


def test_failures_and_posts_of_handlers_are_told_and_go_nowhere(path):
    bus = eventsh.Events()

    @bus.on("app")
    def react(data, event, source, pid):
        bus.post("answer", "to", data)
        bus.post("answer", "once", data, unique=f"key-{data}")
        if data == 3:
            raise ValueError("three")

    for _ in range(2):
        result = EventLog(path).replay(bus)
        assert [(event.event, event.data) for event in result.posted] == [
            (name, data) for data in range(1, 5) for name in ("to", "once")
        ]
        assert [(failure.error_type, failure.error_text) for failure in result.failures] == [("ValueError", "three")]


def test_handlers_get_data_as_from_a_worker_at_every_replay(path):
    bus = eventsh.Events()
    seen: list[Any] = []

    @bus.on("app")
    def change(data, event, source, pid):
        seen.append((type(data), list(data)))
        data.append("changed")

    (first, *_) = read_recording(path, "app")
    own = [replace(first, data=(1, OrderedDict(a=2)))]
    assert replay_events(own, bus).handled == replay_events(own, bus).handled == 1
    assert seen == [(list, [1, {"a": 2}])] * 2
    with pytest.raises(NotSerializable, match=r"data\[0\] is NaN"):
        replay_events([replace(first, data=[float("nan")])], bus)


def test_as_one_of_the_workers_it_gets_the_unique_events_of_that_one(tmp_path):
    path = tmp_path / "u.evlog"
    writer = Writer(str(path), fsync="never")
    writer.start({"epoch": 5})
    writer.write([(frame(1, "all"), -1), (frame(2, "zero", key="a"), 0), (frame(3, "one", key="b"), 1)])
    writer.close()
    for worker, expected in ((None, ["all", "zero", "one"]), (0, ["all", "zero"]), (1, ["all", "one"])):
        bus = eventsh.Events()
        seen: list[Any] = []
        bus.register(lambda data, *_, seen=seen: seen.append(data), "app")
        EventLog(path).replay(bus, worker=worker)
        assert seen == expected


def test_a_handler_that_waits_for_what_never_comes_ends_the_replay_with_an_error(path):
    bus = eventsh.Events()

    @bus.on("app")
    async def hang(data, event, source, pid):
        await asyncio.Event().wait()

    began = time.monotonic()
    with pytest.raises(EventError, match="does not come in a replay"):
        EventLog(path).replay(bus)
    assert time.monotonic() - began < 60


def test_a_bus_that_is_configured_is_refused():
    with eventsh.Events("inproc:replay-refused", broker="never") as bus, pytest.raises(EventError, match="configured"):
        replay_events([], bus)


def test_a_production_incident_becomes_a_case_by_a_mark(pytester):
    pytester.makeconftest('pytest_plugins = ["eventsh.testing.plugin"]')
    shutil.copy(SAMPLE, pytester.path / "incident.evlog")
    pytester.makepyfile(
        textwrap.dedent("""
        import pytest
        import eventsh

        seen = []

        @eventsh.on("app")
        def note(data, event, source, pid):
            seen.append(data)

        @pytest.mark.eventlog("incident.evlog", source="app")
        def test_incident(eventlog):
            assert len(eventlog.events) == 26
            assert not eventlog.replay().failures
            assert seen[0] == {"k": "v"}
            assert len(seen) == 26

        def test_unmarked(eventlog):
            pass
        """)
    )
    done = pytester.runpytest_subprocess("--strict-markers", "-q", "-p", "no:cacheprovider")
    done.assert_outcomes(passed=1, errors=1)
    done.stdout.fnmatch_lines(["*needs @pytest.mark.eventlog*"])
