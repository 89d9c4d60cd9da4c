"""Cases H1 to H7: which handlers are called, in which order, and what they may do."""

from __future__ import annotations

import gc
import logging
import traceback
from typing import Any

import pytest

from tests.conformance.harness import Bus, Ledger


@pytest.fixture
def ledger(bus: Bus, source: str) -> Ledger:
    """Filled by the handlers of a test; what is handled before "marker" is in it."""
    ledger = Ledger()
    bus.register(ledger.record, source, "marker")
    return ledger


def handled(bus: Bus, ledger: Ledger, source: str) -> list[tuple[str, str]]:
    """(event, name of the handler) of all that was posted before, in the order of the calls."""
    before = ledger.count(source).get("marker", 0)
    bus.post(source, "marker")
    ledger.wait(source, "marker", before + 1)
    return [(seen.event, seen.data) for seen in ledger.of(source) if seen.event != "marker"]


def test_h1_handlers_of_all_events_come_first_then_those_of_the_source_then_those_of_the_event(
    bus: Bus, ledger: Ledger, source: str
) -> None:
    bus.register(ledger.named("event"), source, "e")
    bus.register(ledger.named("source"), source)
    everything = ledger.named("all")
    bus.register(everything)
    bus.register(ledger.named("event, later"), source, "e")
    bus.post(source, "e")
    bus.post(source, "other")
    bus.post_local(source, "e")
    # It would record the marker too.
    bus.post_local(source, "local")
    ledger.wait(source, "local", 2)
    ledger.wait(source, "other", 2)
    of_e = [("e", "all"), ("e", "source"), ("e", "event"), ("e", "event, later")]
    calls = [(seen.event, seen.data) for seen in ledger.of(source)]
    assert [call for call in calls if call[0] == "e"] == of_e * 2
    assert [call for call in calls if call[0] == "other"] == [("other", "all"), ("other", "source")]


def test_h2_the_other_levels_fire_when_one_is_unregistered(
    bus: Bus, ledger: Ledger, source: str, caplog: pytest.LogCaptureFixture
) -> None:
    levels: dict[str, tuple[str, ...]] = {"all": (), "source": (source,), "event": (source, "e")}
    handlers = {name: ledger.named(name) for name in levels}
    for name, level in levels.items():
        bus.register(handlers[name], *level)
    for left in (["source", "event"], ["event"], []):
        gone = next(name for name in levels if name not in left and name in handlers)
        assert bus.unregister(handlers.pop(gone), *levels[gone])
        before = len(ledger.of(source))
        assert bus.post(source, "e")
        handled(bus, ledger, source)
        since = [(seen.event, seen.data) for seen in ledger.of(source)[before:]]
        assert [name for event, name in since if event == "e"] == left
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_h3_a_callback_of_two_events_is_removed_from_just_those_that_are_named(
    bus: Bus, ledger: Ledger, source: str
) -> None:
    both, one = ledger.named("both"), ledger.named("one")
    bus.register(both, source, "e1", "e2")
    bus.register(one, source, "e1", "e2")
    bus.post(source, "e1")
    bus.post(source, "e2")
    first = [("e1", "both"), ("e1", "one"), ("e2", "both"), ("e2", "one")]
    assert handled(bus, ledger, source) == first
    assert bus.unregister(both, source, "e1", "e2")
    assert bus.unregister(one, source, "e1")
    bus.post(source, "e1")
    bus.post(source, "e2")
    assert handled(bus, ledger, source) == [*first, ("e2", "one")]


def test_h4_unregister_tells_whether_the_handler_was_there(bus: Bus, source: str) -> None:
    handler = Ledger().record
    assert bus.register(handler, source, "e")
    assert not bus.unregister(handler, source)
    assert not bus.unregister(handler, source, "other")
    assert bus.unregister(handler, source, "e")
    assert not bus.unregister(handler, source, "e")
    for not_callable in (None, "handler", 5):
        with pytest.raises(TypeError, match="callable"):
            bus.unregister(not_callable, source)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="callable"):
            bus.register(not_callable, source)  # type: ignore[arg-type]


class Holder:
    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def take(self, data: Any, event: str, source: str, pid: int | None) -> None:
        self._ledger.record("weak", event, source, pid)


def test_h5_a_weak_handler_is_called_for_as_long_as_its_object_lives(bus: Bus, ledger: Ledger, source: str) -> None:
    holder = Holder(ledger)
    bus.register_weak(holder.take)
    bus.register_weak(holder.take, source)
    bus.register_weak(holder.take, source, "e")
    for _ in range(3):
        bus.post(source, "e")
    ledger.wait(source, "e", 9)
    del holder
    gc.collect()
    for _ in range(3):
        bus.post(source, "e")
    assert handled(bus, ledger, source) == [("e", "weak")] * 9


def test_h5_what_nothing_else_holds_is_warned_of(bus: Bus, source: str) -> None:
    def local(data: Any, event: str, source: str, pid: int | None) -> None: ...

    with pytest.warns(RuntimeWarning, match="local .*registered weakly"):
        bus.register_weak(local, source)
    with pytest.warns(RuntimeWarning, match="lambda.*registered weakly"):
        bus.register_weak(lambda *_: None, source)


def fail_deep_down() -> None:
    raise ZeroDivisionError("on purpose")


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_h6_a_handler_that_raises_is_logged_in_full_and_stops_nothing(
    is_async: bool, bus: Bus, ledger: Ledger, source: str, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(data: Any, event: str, source: str, pid: int | None) -> None:
        fail_deep_down()

    async def failing_later(data: Any, event: str, source: str, pid: int | None) -> None:
        fail_deep_down()

    bus.register(failing_later if is_async else failing, source, "e")
    bus.register(ledger.named("later"), source, "e")
    assert bus.post(source, "e") is True
    assert bus.post(source, "e") is True
    assert handled(bus, ledger, source) == [("e", "later")] * 2
    bus.close()
    name = "failing_later" if is_async else "failing"
    records = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(records) == 2
    for record in records:
        assert name in record.getMessage()
        assert __file__ in record.getMessage()
        assert record.exc_info is not None
        frames = [frame.name for frame in traceback.extract_tb(record.exc_info[2])]
        assert frames[-2:] == [name, "fail_deep_down"]


def test_h7_a_handler_may_post_register_and_unregister_while_it_runs(bus: Bus, ledger: Ledger, source: str) -> None:
    events = bus.events
    neighbour, last, new = ledger.named("neighbour"), ledger.named("last"), ledger.named("new")

    def busy(data: Any, event: str, source: str, pid: int | None) -> None:
        ledger.record("busy", event, source, pid)
        assert events.unregister(busy, source, "e")
        assert events.unregister(last, source, "e")
        assert events.register(new, source, "e", "posted", "local")
        assert events.post(source, "posted")
        assert events.post_local(source, "local")

    for handler in (busy, neighbour, last):
        bus.register(handler, source, "e")
    bus.post(source, "e")
    ledger.wait(source, "posted")
    bus.post(source, "e")
    calls = handled(bus, ledger, source)
    # What changes while an event is handled holds from the next one on.
    assert calls == [
        *[("e", "busy"), ("e", "neighbour"), ("e", "last")],
        *[("local", "new"), ("posted", "new")],
        *[("e", "neighbour"), ("e", "new")],
    ]
