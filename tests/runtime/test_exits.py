"""KeyboardInterrupt and SystemExit out of a handler end the program in its main thread, once the event is complete."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from eventsh import Events
from eventsh.testing.broker import BrokerHandle, start_broker
from eventsh.testing.pool import ServedPool

DEADLINE_S = 30.0


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[BrokerHandle]:
    broker = start_broker(f"unix:{tmp_path}/s", tmp_path / "log")
    yield broker
    broker.stop()


HEAD = """
import asyncio, contextlib, logging, signal, sys, threading, time
import eventsh

class Broken(logging.Filter):
    def filter(self, record):
        if "failed" in record.getMessage():
            {raising}
        return True

def note(data, event, source, pid):
    print("noted", event, flush=True)

{define} end(data, event, source, pid):
    {in_handler}

def register(events):
    events.register(end, "s", "end")
    events.register(note, "s")
    events.register(lambda *_: None, "s", "end")
"""

FACES = {
    "Events, asleep": """
events = eventsh.Events(sys.argv[1], broker="never")
register(events)
events.configure()
events.wait_ready(20)
print("ready", flush=True)
try:
    time.sleep(60)
finally:
    print("cleaned up", flush=True)
""",
    "Events, waiting": """
events = eventsh.Events(sys.argv[1], broker="never")
register(events)
with events:
    events.wait_ready(20)
    print("ready", flush=True)
    try:
        threading.Event().wait()
    finally:
        print("cleaned up", flush=True)
""",
    "Events, under asyncio": """
async def main():
    with eventsh.Events(sys.argv[1], broker="never") as events:
        register(events)
        events.wait_ready(20)
        print("ready", flush=True)
        try:
            await asyncio.sleep(60)
        finally:
            print("cleaned up", flush=True)
asyncio.run(main())
""",
    "AsyncEvents": """
async def main():
    async with eventsh.AsyncEvents(sys.argv[1], broker="never") as events:
        register(events)
        await events.wait_ready(20)
        print("ready", flush=True)
        try:
            await asyncio.sleep(60)
        finally:
            print("cleaned up", flush=True)
asyncio.run(main())
""",
    "AsyncEvents, in a thread": """
async def main():
    async with eventsh.AsyncEvents(sys.argv[1], broker="never") as events:
        register(events)
        await events.wait_ready(20)
        print("ready", flush=True)
        await asyncio.sleep(60)
import eventsh.runtime.exits
eventsh.runtime.exits.prepare_exits()
threading.Thread(target=asyncio.run, args=(main(),), daemon=True).start()
try:
    time.sleep(60)
finally:
    print("cleaned up", flush=True)
""",
}

# How a handler asks for the end, and the status that the program then has.
ENDS = {
    "sys.exit(3)": ("sys.exit(3)", "pass", 3),
    "sys.exit()": ("sys.exit()", "pass", 0),
    "a text": ("sys.exit('because')", "pass", 1),
    "KeyboardInterrupt": ("raise KeyboardInterrupt", "pass", -signal.SIGINT),
    "its report": ("logging.getLogger('eventsh').addFilter(Broken()); raise ValueError", "sys.exit(4)", 4),
}


def start(tmp_path: Path, broker: BrokerHandle, define: str, face: str, end: str) -> subprocess.Popen[str]:
    in_handler, raising, _ = ENDS[end]
    path = tmp_path / "program.py"
    path.write_text(
        HEAD.format(define=define, in_handler=in_handler, raising=textwrap.indent(raising, "")) + FACES[face]
    )
    return subprocess.Popen(
        [sys.executable, "-X", "faulthandler", str(path), broker.address],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.parametrize(
    ("face", "define", "end"),
    [
        *((face, "def", "sys.exit(3)") for face in FACES),
        *((face, "async def", "KeyboardInterrupt") for face in FACES),
        *(("Events, waiting", "async def", end) for end in ENDS if end != "KeyboardInterrupt"),
        *(("AsyncEvents", "def", end) for end in ENDS if end != "sys.exit(3)"),
    ],
)
def test_an_exit_out_of_a_handler_ends_the_program_with_its_status(tmp_path, broker, face, define, end):
    program = start(tmp_path, broker, define, face, end)
    assert program.stdout is not None
    with program, Events(broker.address, broker="never", role="observer") as events:
        while (line := program.stdout.readline()) and line != "ready\n":
            pass
        events.wait_ready(DEADLINE_S)
        for event in ("first", "end", "last"):
            events.post("s", event)
        output, _ = program.communicate(timeout=DEADLINE_S)
        assert program.returncode == ENDS[end][2], output
    # Other handlers had the event, and cleaning up handled the rest of the batch.
    assert "noted end" in output
    assert "cleaned up" in output
    if "thread" not in face:
        assert "noted last" in output
    if end == "a text":
        assert "because" in output


@pytest.mark.parametrize("define", ["def", "async def"])
@pytest.mark.parametrize("face", ["Events, waiting", "AsyncEvents"])
def test_further_exits_do_not_interrupt_the_cleaning_up(tmp_path, broker, face, define):
    program = start(tmp_path, broker, define, face, "sys.exit(3)")
    assert program.stdout is not None
    with program, Events(broker.address, broker="never", role="observer") as events:
        while (line := program.stdout.readline()) and line != "ready\n":
            pass
        events.wait_ready(DEADLINE_S)
        for _ in range(20):
            events.post("s", "end")
        events.post("s", "last")
        output, _ = program.communicate(timeout=DEADLINE_S)
    assert program.returncode == 3, output
    assert (output.count("noted end"), output.count("noted last")) == (20, 1), output


def test_a_unique_event_whose_handler_exits_is_complete(tmp_path, broker):
    """The process ends without closing its bus: the next one must not get the event again."""
    seen: Counter[str] = Counter()
    with Events(broker.address, broker="never", role="observer") as events:
        events.wait_ready(DEADLINE_S)
        for define in ("def", "async def"):
            program = start(tmp_path, broker, define, "AsyncEvents", "sys.exit(3)")
            assert program.stdout is not None
            while (line := program.stdout.readline()) and line != "ready\n":
                pass
            events.post("s", "end", unique=define)
            output, _ = program.communicate(timeout=DEADLINE_S)
            assert (program.returncode, output.count("noted end")) == (3, 1)
            seen.update([define])
        events.register(lambda *_: seen.update(["again"]), "s")
    with Events(broker.address, broker="never") as events:
        events.register(lambda *_: seen.update(["again"]), "s", "end")
        events.wait_ready(DEADLINE_S)
        events.flush(DEADLINE_S)
        events.post_and_wait("other", "o", timeout=DEADLINE_S)
    assert seen == {"def": 1, "async def": 1}


HANDLERS = """
import sys
import eventsh

@eventsh.on("s", "end")
{define} end(data, event, source, pid):
    {in_handler}

@eventsh.on("s")
def note(data, event, source, pid):
    print("noted", data, flush=True)
"""


@pytest.mark.parametrize(
    ("in_handler", "why"),
    [
        ("sys.exit(3)", "exit status 3"),
        ("sys.exit()", "exit status 0"),
        ("sys.exit('because of this')", "because of this"),
        ("raise KeyboardInterrupt", "exit status 130"),
    ],
)
@pytest.mark.parametrize("define", ["def", "async def"])
def test_a_served_worker_stops_in_good_order_and_another_takes_its_place(tmp_path, define, in_handler, why):
    (tmp_path / "handlers.py").write_text(HANDLERS.format(define=define, in_handler=in_handler))
    pool = ServedPool(f"unix:{tmp_path}/s", [tmp_path / "handlers.py"], 1, tmp_path / "log")
    try:
        pool.wait_ready()
        [before] = pool.status()["workers"]
        with Events(pool.address, broker="never", role="observer") as events:
            events.wait_ready(DEADLINE_S)
            for number in range(100):
                events.post("s", "end" if number == 50 else "e", number)
        end = time.monotonic() + DEADLINE_S
        while pool.output.count(") is ready") < 3 or f"noted {99}\n" not in pool.output:
            assert time.monotonic() < end, pool.output
            time.sleep(0.02)
        [after] = pool.status()["workers"]
        assert (after["worker_id"], after["pid"] != before["pid"]) == (before["worker_id"], True)
        assert f"ended: {why}; next start in 0.1 s" in pool.output
        # Each event once, whichever process had it, and no gap.
        noted = [line.split()[1] for line in pool.output.splitlines() if line.startswith("noted")]
        assert [number for number in noted if number != "None"] == [str(number) for number in range(100)]
        assert after["dropped"] == 0
    finally:
        pool.stop()
