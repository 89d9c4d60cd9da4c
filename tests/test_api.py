"""What a program sees of the API beyond the delivery of events: those rules are in tests/conformance/."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from eventsh.api import AsyncEvents, Events
from eventsh.errors import ConfigureError, EventError, NotConnected, QueueOverflow

DEADLINE_S = 30.0
ROOT = str(Path(__file__).parent.parent)


def python_environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": ROOT}


# What the programs below begin with: the default bus with a handler that fills `seen`, and waits for it.
PREAMBLE = """
import json, os, sys, threading
import eventsh

address = sys.argv[1]
changed = threading.Condition()
seen = []

def record(data, event, source, pid):
    with changed:
        seen.append([event, data, pid])
        changed.notify_all()

def wait_seen(*events):
    with changed:
        assert changed.wait_for(lambda: {one[0] for one in seen} >= set(events), 30), seen

def of(*events):
    return [one for one in seen if one[0] in events]

eventsh.register(record, "app")
"""


@pytest.fixture
def address() -> Iterator[str]:
    # Not tmp_path: a socket's path has to be short.
    with tempfile.TemporaryDirectory(prefix="evsh-", dir="/tmp", ignore_cleanup_errors=True) as directory:
        yield f"unix:{directory}/a.sock"


@pytest.fixture
def make_events() -> Iterator[Callable[..., Events]]:
    made: list[Events] = []

    def make(address: str, **options: Any) -> Events:
        made.append(Events(address, **{"linger": 0.2, **options}))
        return made[-1]

    yield make
    for events in made:
        events.close(timeout=1.0)


class Collector:
    """A handler that waits for what comes."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.seen: list[tuple[str, Any, int | None]] = []

    def __call__(self, data: Any, event: str, source: str, pid: int | None) -> None:
        with self._changed:
            self.seen.append((event, data, pid))
            self._changed.notify_all()

    def wait(self, event: str, count: int = 1) -> None:
        def is_there() -> bool:
            return sum(one[0] == event for one in self.seen) >= count

        with self._changed:
            assert self._changed.wait_for(is_there, DEADLINE_S), self.seen


def run_program(text: str, *arguments: str) -> Any:
    """Run a Python program to its end; give what it printed, as JSON."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PREAMBLE + dedent(text), *arguments],
        env=python_environment(),
        capture_output=True,
        timeout=DEADLINE_S * 1.5,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


# --- at import ---


def test_nothing_happens_at_import_nor_before_configure() -> None:
    facts = run_program(
        """
        import eventsh.api
        eventsh.post("app", "e", 1)
        eventsh.post_local("app", "e", 2)
        links = []
        for descriptor in os.listdir("/proc/self/fd"):
            try:
                links.append(os.readlink(f"/proc/self/fd/{descriptor}"))
            except FileNotFoundError:
                pass
        print(json.dumps({
            "threads": threading.active_count(),
            "descriptors": [link for link in links if "socket" in link or "eventpoll" in link],
            "configured": eventsh.configured(),
        }))
        # What is told at the end of such a program is another test's matter.
        import logging
        logging.disable()
        """,
        "unix:/nowhere",
    )
    assert facts == {"threads": 1, "descriptors": [], "configured": False}


def test_a_program_that_never_configures_is_told_at_its_end_how_many_posts_were_never_sent() -> None:
    program = "import eventsh; eventsh.post('a', 'b'); eventsh.post('a', 'b')"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True)
    assert ended.stderr == "2 posts were never sent: no configuration that could attach came for them\n"


def test_importing_the_package_loads_no_asyncio() -> None:
    program = "import sys, eventsh; print([name in sys.modules for name in ('asyncio', 'socket', 'threading')])"
    done = subprocess.run(
        [sys.executable, "-S", "-c", program], env=python_environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[False, False, False]"


# --- configure ---


def test_the_functions_of_the_package_act_on_one_default_bus(address: str) -> None:
    facts = run_program(
        """
        same = eventsh.configure(address, linger=0.2)
        eventsh.wait_ready(30)
        eventsh.on("app", "decorated")(record)
        eventsh.post("app", "first", {"a": 1})
        same.post("app", "decorated")
        wait_seen("first", "decorated")
        eventsh.flush(30)
        eventsh.drain(30)
        eventsh.close()
        print(json.dumps([seen, eventsh.configured(), same.configured(), os.getpid()]))
        """,
        address,
    )
    seen, *configured, pid = facts
    assert seen == [["first", {"a": 1}, pid], *[["decorated", None, pid]] * 2]
    assert configured == [False, False]


def test_configure_again_changes_options_and_nothing_else(
    address: str, make_events: Callable[..., Events], caplog: pytest.LogCaptureFixture
) -> None:
    events, collector = make_events(address, max_queue_len=100), Collector()
    events.register(collector, "app")
    events.configure()
    events.wait_ready(DEADLINE_S)
    worker_id = events.worker_id
    assert events.configure(max_payload_len=300, timeout=7.0) is events
    assert events.configure(address) is events
    assert events.worker_id == worker_id
    assert events.address == address
    with pytest.raises(EventError, match="limit of 300"):
        events.post("app", "e", "x" * 300)
    events.post("app", "e", "x")
    collector.wait("e")
    assert collector.seen == [("e", "x", os.getpid())]


@pytest.mark.parametrize(
    "change", [{"worker_id": 7}, {"role": "observer"}, {"take_unique": False}, {"broker": "never"}], ids=str
)
def test_configure_again_can_not_change_what_the_process_is(
    address: str, make_events: Callable[..., Events], change: dict[str, Any]
) -> None:
    events = make_events(address).configure()
    with pytest.raises(ConfigureError, match="close") as caught:
        events.configure(**change)
    assert caught.value.option == next(iter(change))
    with pytest.raises(ConfigureError, match="already configured at"):
        events.configure(address + "2")
    assert events.configured()
    assert events.address == address


def test_a_configuration_that_is_refused_changes_nothing(address: str) -> None:
    threads = threading.active_count()
    events = Events(address)
    with pytest.raises(ConfigureError, match="timeout must be a number of seconds above 0"):
        events.configure(timeout="soon")
    with pytest.raises(ConfigureError, match="there is no option 'time_out'"):
        events.configure(time_out=1)
    assert not events.configured()
    assert threading.active_count() == threads


def test_after_close_it_can_be_configured_anew_and_keeps_its_handlers(
    address: str, make_events: Callable[..., Events]
) -> None:
    events, collector = make_events(address), Collector()
    events.register(collector, "app")
    for round_number in range(2):
        events.configure()
        events.post("app", "e", round_number)
        collector.wait("e", round_number + 1)
        events.close()
        events.close()
        assert events.worker_id is None
        assert events.address is None
    assert [data for _, data, _ in collector.seen] == [0, 1]


# --- waiting ---


def test_waits_need_a_configuration() -> None:
    events = Events()
    for wait in (events.wait_ready, events.flush, events.drain):
        with pytest.raises(EventError, match="not configured: call configure"):
            wait()


def test_a_handler_can_not_wait_for_its_own_bus(address: str, make_events: Callable[..., Events]) -> None:
    events, collector = make_events(address), Collector()
    raised: list[str] = []

    def wait(data: Any, event: str, source: str, pid: int | None) -> None:
        for method in (events.flush, events.drain, events.wait_ready, events.close):
            try:
                method()
            except EventError as error:
                raised.append(str(error))

    events.register(wait, "app", "e")
    events.register(collector, "app")
    events.configure()
    events.post("app", "e")
    events.post("app", "done")
    collector.wait("done")
    assert len(raised) == 4
    assert all("a handler can't wait for its own bus" in text for text in raised)
    assert events.configured()


def why_not_attached(events: Events) -> str:
    """What its waits say once it has tried to attach: that may take some time on a busy machine."""
    end = time.monotonic() + DEADLINE_S
    while True:
        with pytest.raises(NotConnected) as caught:
            events.wait_ready(0.2)
        if "nobody listens" in str(caught.value) or time.monotonic() > end:
            return str(caught.value)


def test_wait_ready_says_where_nobody_answered_and_why(address: str, make_events: Callable[..., Events]) -> None:
    events = make_events(address, broker="never").configure()
    assert re.search(r"not attached to unix:.* within 0\.2 s: nobody listens at unix:", why_not_attached(events))


def test_flush_says_how_much_is_not_confirmed(address: str, make_events: Callable[..., Events]) -> None:
    events = make_events(address, broker="never").configure()
    events.post("app", "e")
    why_not_attached(events)
    with pytest.raises(NotConnected, match=r"not confirmed within 0\.1 s: nobody listens"):
        events.flush(0.1)
    with pytest.raises(NotConnected, match="not confirmed within 0 s"):
        events.flush(0)


def test_a_handler_registered_later_gets_what_waited_for_it_at_once(address: str) -> None:
    async def run() -> list[Any]:
        seen: list[Any] = []
        done = asyncio.Event()

        def handler(data: Any, event: str, source: str, pid: int | None) -> None:
            seen.append(data)
            done.set()

        # Longer than the test may take: it is not to be waited for.
        async with AsyncEvents(address, timeout=600.0, linger=0.2) as events:
            events.post("app", "e", 1)
            await events.flush(DEADLINE_S)
            assert not seen
            events.register(handler, "app")
            await asyncio.wait_for(done.wait(), DEADLINE_S)
        return seen

    assert asyncio.run(run()) == [1]


def test_close_does_not_wait_for_a_first_handler(address: str, make_events: Callable[..., Events]) -> None:
    events = make_events(address, timeout=600.0).configure()
    events.post("app", "e")
    events.flush(DEADLINE_S)
    events.close()
    assert not events.configured()


# --- the end of the process ---


@pytest.mark.parametrize("is_ready", [True, False], ids=["attached", "not attached yet"])
def test_a_program_that_posts_and_ends_loses_nothing(
    address: str, make_events: Callable[..., Events], is_ready: bool
) -> None:
    events, collector = make_events(address, linger=1.0), Collector()
    events.register(collector, "app")
    events.configure()
    events.wait_ready(DEADLINE_S)
    run_program(
        f"""
        eventsh.configure(address, timeout=30.0)
        {"eventsh.wait_ready(30)" if is_ready else ""}
        for number in range(1000):
            eventsh.post("app", "e", number)
        print("null")
        """,
        address,
    )
    collector.wait("e", 1000)
    assert [data for _, data, _ in collector.seen] == list(range(1000))


def test_a_program_that_ends_before_there_is_a_broker_loses_nothing(address: str) -> None:
    # Its own handler sees what it posted, for it starts the broker while it ends.
    seen = run_program(
        """
        import atexit
        atexit.register(lambda: print(json.dumps(seen)))
        eventsh.configure(address, timeout=20.0, linger=0.2)
        eventsh.post("app", "e", 1)
        """,
        address,
    )
    assert [data for _, data, _ in seen] == [1]


def test_ctrl_c_during_posts_leaves_the_bus_as_it_was(address: str) -> None:
    facts = run_program(
        """
        import signal

        def interrupt(*_):
            raise KeyboardInterrupt

        # Over and over, for it must not matter where in a post it comes.
        signal.signal(signal.SIGALRM, interrupt)
        interrupts = 0
        posted = 0
        while interrupts < 300:
            events = eventsh.Events(max_queue_len=100_000)
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.0003)
                while True:
                    events.post("app", "e", 1)
            except KeyboardInterrupt:
                interrupts += 1
            poster = threading.Thread(target=events.post_local, args=("app", "e", 2), daemon=True)
            poster.start()
            poster.join(30)
            posted += not poster.is_alive()
        print(json.dumps([interrupts, posted]), flush=True)
        # Without the warnings of what was never sent.
        os._exit(0)
        """,
        address,
    )
    assert facts == [300, 300]


# --- forks ---


def test_a_forked_child_does_not_keep_its_parents_connection_open(address: str) -> None:
    # Both are workers. The parent is killed; the broker must see its end while the child goes on.
    left = run_program(
        """
        import signal
        gone = []
        eventsh.register(lambda data, event, source, pid: gone.append(data) or changed_all(), "eventsh", "worker_left")
        def changed_all():
            with changed:
                changed.notify_all()
        read, write = os.pipe()
        parent = os.fork()
        if not parent:
            eventsh.configure(address, linger=0.5)
            eventsh.wait_ready(30)
            child = os.fork()
            if not child:
                eventsh.wait_ready(30)
                os.write(write, b"x")
                signal.pause()
            os.write(write, json.dumps([os.getpid(), child]).encode().ljust(64))
            signal.pause()
        pids, ready = b"", b""
        data = b""
        while len(data) < 65:
            data += os.read(read, 65)
        middle, child = json.loads(data.replace(b"x", b""))
        eventsh.configure(address)
        eventsh.wait_ready(30)
        os.kill(middle, signal.SIGKILL)
        try:
            with changed:
                assert changed.wait_for(lambda: [one for one in gone if one["pid"] == middle], 20), gone
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(middle, 0)
        print(json.dumps(True))
        """,
        address,
    )
    assert left is True


def test_a_wait_ends_when_another_thread_closes(address: str) -> None:
    events = Events(address, broker="never", timeout=1.0).configure()
    failures: list[BaseException] = []

    def wait() -> None:
        try:
            events.wait_ready()
        # NotConnected while it waits, or "not configured" if the other thread was faster.
        except EventError as error:
            failures.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    events.close(timeout=0.2)
    waiting.join(20)
    assert not waiting.is_alive()
    assert len(failures) == 1


def test_configuring_in_several_threads_makes_one_client(address: str) -> None:
    events = Events(linger=0.2)
    others = set(threading.enumerate())
    threads = [threading.Thread(target=events.configure, args=(address,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    try:
        assert sum(thread.name == "eventsh" for thread in set(threading.enumerate()) - others) == 1
        events.wait_ready(20)
    finally:
        events.close()


def test_a_forked_child_attaches_as_a_process_of_its_own(address: str) -> None:
    facts = run_program(
        """
        eventsh.configure(address, linger=0.5)
        eventsh.wait_ready(30)
        parent = eventsh.api.default_events()
        eventsh.post("app", "before", 1)
        wait_seen("before")
        slot = parent.worker_id
        read, write = os.pipe()
        child = os.fork()
        if not child:
            seen.clear()
            eventsh.wait_ready(30)
            eventsh.post("app", "child", 1)
            wait_seen("child", "parent")
            facts = [os.getpid(), eventsh.api.default_events().worker_id, of("before", "child", "parent")]
            os.write(write, json.dumps(facts).encode())
            eventsh.close()
            os._exit(0)
        os.close(write)
        wait_seen("child")
        eventsh.post("app", "parent", 2)
        wait_seen("parent")
        with os.fdopen(read) as reports:
            of_child = json.load(reports)
        assert os.waitpid(child, 0)[1] == 0
        eventsh.post("app", "after", 3)
        wait_seen("after")
        eventsh.flush(30)
        assert parent.worker_id == slot
        print(json.dumps([os.getpid(), slot, seen, of_child]))
        """,
        address,
    )
    pid, slot, seen, (child_pid, child_slot, seen_by_child) = facts
    assert pid != child_pid
    assert slot != child_slot
    assert seen == [["before", 1, pid], ["child", 1, child_pid], ["parent", 2, pid], ["after", 3, pid]]
    assert seen_by_child == [["child", 1, child_pid], ["parent", 2, pid]]


def test_a_child_forked_while_posts_wait_does_not_post_them_again(address: str) -> None:
    facts = run_program(
        """
        eventsh.configure(address, linger=0.5)
        for number in range(500):
            eventsh.post("app", "e", number)
        read, write = os.pipe()
        child = os.fork()
        if not child:
            # Not before the parent is attached, who could not see it otherwise.
            os.read(read, 1)
            eventsh.wait_ready(30)
            eventsh.post("app", "child", 1)
            eventsh.close()
            os._exit(0)
        eventsh.wait_ready(30)
        os.write(write, b".")
        wait_seen("child")
        assert os.waitpid(child, 0)[1] == 0
        eventsh.post("app", "done")
        wait_seen("done")
        print(json.dumps(of("e")))
        """,
        address,
    )
    assert [data for _, data, _ in facts] == list(range(500))


def test_a_child_forked_while_a_broker_is_started_does_not_keep_the_brokers_lock(address: str) -> None:
    seen = run_program(
        """
        import signal, time
        from eventsh.commands.status import status

        eventsh.configure(address, linger=0.5)
        deadline = time.monotonic() + 30
        while not os.path.exists(address.removeprefix("unix:") + ".lock"):
            assert time.monotonic() < deadline
        read, write = os.pipe()
        child = os.fork()
        if not child:
            os.close(write)
            # It neither attaches nor starts a broker, and lives on until the parent is done.
            eventsh.close(timeout=0.1)
            os.read(read, 1)
            os._exit(0)
        eventsh.wait_ready(30)
        eventsh.post("app", "before")
        wait_seen("before")
        os.kill(status(address, timeout_s=30)["broker"]["pid"], signal.SIGKILL)
        eventsh.post("app", "after")
        wait_seen("after")
        os.close(write)
        assert os.waitpid(child, 0)[1] == 0
        print(json.dumps([event for event, _, _ in seen]))
        """,
        address,
    )
    assert seen == ["before", "after"]


def test_a_bus_imports_nothing_in_its_own_thread(address: str) -> None:
    # A child that is forked in the midst of an import would find that module locked for ever.
    facts = run_program(
        """
        import eventsh.api
        import eventsh.transports.unix
        before = set(sys.modules)
        eventsh.configure(address, linger=0.2)
        eventsh.post("app", "e")
        wait_seen("e")
        eventsh.close()
        ours = ("eventsh", "asyncio", "concurrent", "subprocess")
        print(json.dumps([name for name in sys.modules if name not in before and name.startswith(ours)]))
        """,
        address,
    )
    assert facts == []


def test_children_of_multiprocessing_attach_and_lose_nothing_at_their_end(address: str) -> None:
    facts = run_program(
        """
        import multiprocessing

        def work(number):
            eventsh.post("app", "child", number)

        # As long they may take to attach and send it, at their end.
        eventsh.configure(address, timeout=30.0, linger=0.5)
        eventsh.wait_ready(30)
        context = multiprocessing.get_context("fork")
        children = [context.Process(target=work, args=(number,)) for number in range(3)]
        for child in children:
            child.start()
        for child in children:
            child.join()
        eventsh.post("app", "done")
        wait_seen("done")
        print(json.dumps([[child.pid for child in children], [child.exitcode for child in children], of("child")]))
        """,
        address,
    )
    pids, statuses, seen = facts
    assert statuses == [0, 0, 0]
    assert sorted(seen, key=lambda one: one[1]) == [["child", number, pids[number]] for number in range(3)]


def test_a_bus_in_the_programs_own_loop_is_not_configured_in_a_forked_child(address: str) -> None:
    facts = run_program(
        """
        import asyncio

        async def run():
            async with eventsh.AsyncEvents(address, linger=0.2) as events:
                await events.wait_ready(30)
                child = os.fork()
                if not child:
                    os._exit(int(events.configured()))
                status = os.waitpid(child, 0)[1]
                events.register(record, "app")
                events.post("app", "after")
                await events.flush(30)
            return status

        status = asyncio.run(run())
        print(json.dumps([status, [event for event, _, _ in seen]]))
        """,
        address,
    )
    assert facts == [0, ["after"]]


# --- what must not happen at its end, or to what it says ---


def test_an_error_that_quotes_a_file_name_which_is_no_unicode_keeps_nobody_from_sending(
    address: str, make_events: Callable[..., Events], caplog: pytest.LogCaptureFixture
) -> None:
    # What is captured has to travel between the processes of pytest-xdist, which can't encode it either.
    caplog.set_level(logging.CRITICAL, "eventsh")
    events = make_events(address)
    seen = Collector()

    def fail(data: Any, event: str, source: str, pid: int | None) -> None:
        raise ValueError("can't read bad-\udcff.txt")

    events.register(fail, "app", "fail")
    events.register(seen, "app")
    events.configure()
    for number in range(3):
        events.post("app", "fail", number)
        events.flush(timeout=DEADLINE_S)
    events.post("app", "after")
    seen.wait("after")
    events.flush(timeout=DEADLINE_S)
    assert [one[:2] for one in seen.seen] == [("fail", 0), ("fail", 1), ("fail", 2), ("after", None)]


def test_local_events_count_until_their_async_handlers_have_returned_and_drain_waits_for_them() -> None:
    async def program() -> int:
        handled = begun = 0
        gate = asyncio.Event()

        async def handler(data: Any, event: str, source: str, pid: int | None) -> None:
            nonlocal handled, begun
            begun += 1
            await gate.wait()
            handled += 1

        async with AsyncEvents("inproc:local-room", max_queue_len=16) as events:
            events.register(handler, "app")
            await events.wait_ready(DEADLINE_S)
            for number in range(16):
                events.post_local("app", "e", number)
            # Given to the handler, which does not return.
            while begun < 1:
                await asyncio.sleep(0)
            with pytest.raises(QueueOverflow, match=r"local queue holds 16 events"):
                events.post_local("app", "e", 16)
            with pytest.raises(NotConnected):
                await events.drain(timeout=0.01)
            gate.set()
            await events.drain(DEADLINE_S)
            assert events.post_local("app", "e")
        return handled

    assert asyncio.run(program()) == 17


def test_a_wait_that_begins_while_it_closes_ends() -> None:
    async def program() -> None:
        events = AsyncEvents("inproc:closing")
        events.configure()
        await events.wait_ready(DEADLINE_S)
        client = events._bus.working_client()
        await events.close()
        async with asyncio.timeout(DEADLINE_S):
            with pytest.raises(NotConnected, match="closed while waiting for inproc:closing"):
                await client.waiters.wait_until(lambda: False, None, "nothing")

    asyncio.run(program())


def test_a_close_that_ends_late_leaves_the_next_configuration_alone() -> None:
    async def program() -> list[int]:
        seen: list[int] = []
        events = AsyncEvents("inproc:closed-twice")
        events.register(lambda data, event, source, pid: seen.append(data), "app")
        events.configure()
        await events.wait_ready(DEADLINE_S)
        late = asyncio.create_task(events.close())
        early = asyncio.create_task(events.close())
        await asyncio.wait((late, early), return_when=asyncio.FIRST_COMPLETED)
        events.configure()
        events.post("app", "e", 1)
        await asyncio.gather(late, early)
        assert events.configured()
        await events.flush(DEADLINE_S)
        await events.close()
        return seen

    assert asyncio.run(program()) == [1]


def test_a_loop_that_ended_without_a_close_is_told_with_its_posts_and_hinders_nobody(address: str) -> None:
    code = """
        import asyncio, sys
        from eventsh import AsyncEvents

        events = AsyncEvents(sys.argv[1], broker="never")

        async def program():
            events.configure()
            for number in range(3):
                events.post("app", "e", number)

        asyncio.run(program())
        events.register(print, "app")
        events.post_local("app", "local")
        """
    command = [sys.executable, "-c", dedent(code), address]
    done = subprocess.run(
        command, env=python_environment(), capture_output=True, timeout=DEADLINE_S, text=True, check=False
    )
    assert done.returncode == 0
    assert f"{address}: ended with 3 posts that were not confirmed: close() it" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_broker_in_this_process_that_can_not_start_leaves_no_threads(tmp_path: Path) -> None:
    async def program() -> None:
        before = threading.active_count()
        events = AsyncEvents("inproc:no-record", record=str(tmp_path / "nowhere" / "x.evlog"))
        events.configure()
        with pytest.raises(NotConnected):
            await events.wait_ready(0.5)
        # Its own and the executor's; one for each attempt, and there were many, would be more.
        assert threading.active_count() <= before + 4
        await events.close(timeout=0.1)

    asyncio.run(program())
