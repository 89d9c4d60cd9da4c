"""One process of a benchmark: it posts, handles, or does the bare minimum of either, and tells what it took.

    python -m eventsh.commands.player --role post --api async --address A --load JSON --result FILE

Its supervisor says "warm_up" or "measure" before each run, "go" to begin it, and "stop". All that is measured goes
through the public API; the roles `encode` and `decode` are the ceiling, and nothing travels between them.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import orjson

from eventsh.api import AsyncEvents, Events
from eventsh.commands.load import Load, Tally
from eventsh.errors import EventError, QueueOverflow
from eventsh.event import LIFECYCLE_SOURCE
from eventsh.runtime.child import EXIT_OK, Supervisor, add_child_arguments, start_child
from eventsh.runtime.loop import new_event_loop

__all__ = ["Run", "main", "peak_bytes"]

# How often a run tells how far it is.
_PROGRESS_S = 0.2
_READY_S = 30.0
# What the ceiling decodes at once: about as much as travels in one frame.
_BATCH = 256
_BATCHES = 100
_BATCHES_BYTES = 8_000_000


@dataclass(slots=True)
class Run:
    """What one process has measured in one run. Times are of the clock that all processes of a host share."""

    began: float = 0.0
    ended: float = 0.0
    cpu_s: float = 0.0
    posted: int = 0
    handled: int = 0
    out_of_order: int = 0
    missed: int = 0
    peak_bytes: int = 0


class Player(ABC):
    """What a process does in a run. `prepare` comes before each `play`."""

    def __init__(self, poster: int | None) -> None:
        self.poster = poster
        self.load = Load(0)
        self.tally = Tally(self.load, lambda: None)
        self.posted = 0

    @property
    def progress(self) -> int:
        """How far the run is, in events."""
        return self.tally.handled

    async def open(self) -> None:
        """Become ready for runs."""

    def prepare(self, load: Load) -> None:
        """Make ready for a run, before anything of it can arrive."""
        self.load = load
        self.posted = 0

    @abstractmethod
    async def play(self) -> float:
        """Do it; gives the time at which the last event was done."""

    async def close(self) -> None:
        """Leave nothing behind."""


class Encoder(Player):
    """The ceiling of posting: encode every event, and drop it."""

    async def play(self) -> float:
        await asyncio.to_thread(self._encode)
        self.posted = self.load.events
        return time.monotonic()

    def _encode(self) -> None:
        name, encode = self.load.name(), orjson.dumps
        for number, (source, event) in zip(range(self.load.events), self.load.pairs(), strict=False):
            encode((source, event, {"id": number, "name": name, "tags": ["a", "bc"], "v": 1.5}))


class Decoder(Player):
    """The ceiling of handling: decode batches that lie ready, and call the handler."""

    def prepare(self, load: Load) -> None:
        super().prepare(load)
        most = max(_BATCH, min(_BATCH * _BATCHES, _BATCHES_BYTES // load.size))
        name = load.name()
        events = [
            orjson.dumps((source, event, {"id": number, "name": name, "tags": ["a", "bc"], "v": 1.5}))
            for number, (source, event) in enumerate(islice(load.pairs(), min(most, load.events)))
        ]
        self._batches = [b"[" + b",".join(events[at : at + _BATCH]) + b"]" for at in range(0, len(events), _BATCH)]
        self._round = Load(len(events))
        self._done = 0

    @property
    def progress(self) -> int:
        return self._done

    async def play(self) -> float:
        await asyncio.to_thread(self._decode)
        return time.monotonic()

    def _decode(self) -> None:
        decode = orjson.loads
        while self._done < self.load.events:
            # A new one for each time round, as the numbers begin anew.
            handler = Tally(self._round, lambda: None).handler
            for batch in self._batches:
                for source, event, data in decode(batch):
                    handler(data, event, source, 1)
                self._done += _BATCH
                if self._done >= self.load.events:
                    break


class AsyncPlayer(Player):
    """A worker, or one that posts as well, in the program's own loop."""

    def __init__(self, poster: int | None, address: str, options: dict[str, Any]) -> None:
        super().__init__(poster)
        self._events = AsyncEvents(address, broker="never", **options)
        self._last = asyncio.Event()

    async def open(self) -> None:
        self._events.configure()
        await self._events.wait_ready(_READY_S)

    def prepare(self, load: Load) -> None:
        super().prepare(load)
        self._last.clear()
        self.tally = _exchange(self._events, load, self.tally, Tally(load, self._last.set))

    async def play(self) -> float:
        if self.poster is not None:
            await (self._post_at_rate() if self.load.rate else self._post())
            await self._events.flush()
        await self._last.wait()
        return time.monotonic()

    async def _post(self) -> None:
        load, name = self.load, self.load.name()
        post, drain = self._events.post, self._events.drain
        for number, (source, event) in zip(_numbers(load, self.poster), load.pairs(), strict=False):
            data = {"id": number, "name": name, "tags": ["a", "bc"], "v": 1.5}
            try:
                post(source, event, data)
            except QueueOverflow:
                await drain()
                post(source, event, data)
        self.posted = len(_numbers(load, self.poster))

    async def _post_at_rate(self) -> None:
        for wait_s, source, event, data in _paced(self.load, self.poster):
            await asyncio.sleep(wait_s)
            data["v"] = time.monotonic_ns()
            self._events.post(source, event, data)
            self.posted += 1

    async def close(self) -> None:
        await self._events.close(timeout=1.0)


class ThreadPlayer(Player):
    """The same with a loop of eventsh's own, in a thread beside that of the program."""

    def __init__(self, poster: int | None, address: str, options: dict[str, Any]) -> None:
        super().__init__(poster)
        self._events = Events(address, broker="never", **options)
        self._loop = asyncio.get_running_loop()
        self._last = asyncio.Event()
        self._ended = 0.0

    async def open(self) -> None:
        await asyncio.to_thread(self._events.configure)
        await asyncio.to_thread(self._events.wait_ready, _READY_S)

    def prepare(self, load: Load) -> None:
        super().prepare(load)
        self._last.clear()
        self.tally = _exchange(self._events, load, self.tally, Tally(load, self._end))

    def _end(self) -> None:
        self._ended = time.monotonic()
        self._loop.call_soon_threadsafe(self._last.set)

    async def play(self) -> float:
        if self.poster is not None:
            await asyncio.to_thread(self._post_at_rate if self.load.rate else self._post)
        await self._last.wait()
        return self._ended

    def _post(self) -> None:
        load, name = self.load, self.load.name()
        post, drain = self._events.post, self._events.drain
        for number, (source, event) in zip(_numbers(load, self.poster), load.pairs(), strict=False):
            data = {"id": number, "name": name, "tags": ["a", "bc"], "v": 1.5}
            try:
                post(source, event, data)
            except QueueOverflow:
                drain()
                post(source, event, data)
        self.posted = len(_numbers(load, self.poster))
        self._events.flush()

    def _post_at_rate(self) -> None:
        for wait_s, source, event, data in _paced(self.load, self.poster):
            time.sleep(wait_s)
            data["v"] = time.monotonic_ns()
            self._events.post(source, event, data)
            self.posted += 1
        self._events.flush()

    async def close(self) -> None:
        await asyncio.to_thread(lambda: self._events.close(timeout=1.0))


def _exchange(events: AsyncEvents | Events, load: Load, previous: Tally, following: Tally) -> Tally:
    """Have the next run's handlers called in place of the last one's."""
    for source, event in load.names():
        events.unregister(previous.handler, source, event)
        events.register(following.handler, source, event)
    events.unregister(previous.take_gap, LIFECYCLE_SOURCE, "gap")
    events.register(following.take_gap, LIFECYCLE_SOURCE, "gap")
    return following


def _numbers(load: Load, poster: int | None) -> range:
    """The numbers of a poster's events: every so manyth of all."""
    return range(poster or 0, load.events, load.posters)


def _paced(load: Load, poster: int | None) -> Iterator[tuple[float, str, str, dict[str, Any]]]:
    """For each event how long to wait before it, and its parts. One that is late does not put off those behind it."""
    name = load.name()
    began = time.monotonic()
    for number, (source, event) in zip(_numbers(load, poster), load.pairs(), strict=False):
        data = {"id": number, "name": name, "tags": ["a", "bc"], "v": 1.5}
        yield max(0.0, began + number / load.rate - time.monotonic()), source, event, data


def peak_bytes(pid: int | str = "self") -> int:
    """The most memory that a process has had, of the system's own account; 0 where it can't be known."""
    try:
        with open(f"/proc/{pid}/status", "rb") as status:
            # Not ru_maxrss: a process inherits that of whoever started it.
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith(b"VmHWM"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss if pid == "self" else 0


async def _play(player: Player, commands: asyncio.Queue[str], supervisor: Supervisor) -> tuple[Run, bool]:
    """One run, and whether it came to its end: else the supervisor waits no more for what does not come."""
    run = Run(time.monotonic())
    cpu_s = time.process_time()
    playing = asyncio.create_task(player.play())
    stopped = asyncio.create_task(commands.get())
    while not (playing.done() or stopped.done()):
        await asyncio.wait((playing, stopped), timeout=_PROGRESS_S, return_when=asyncio.FIRST_COMPLETED)
        supervisor.report("running", progress=player.progress)
    run.cpu_s = time.process_time() - cpu_s
    run.ended = playing.result() if playing.done() else time.monotonic()
    for task in (playing, stopped):
        task.cancel()
    tally = player.tally
    run.posted, run.handled, run.peak_bytes = player.posted, tally.handled, peak_bytes()
    run.out_of_order, run.missed = tally.out_of_order, tally.missed
    return run, not stopped.done()


def _write(run: Run, tally: Tally, path: str) -> None:
    """A line of JSON, then the latencies as they are in memory."""
    with open(path, "wb") as file:
        file.write(orjson.dumps(asdict(run)) + b"\n")
        tally.latencies.tofile(file)


async def _live(player: Player, load: Load, result: str, supervisor: Supervisor) -> int:
    commands: asyncio.Queue[str] = asyncio.Queue()
    supervisor.follow(asyncio.get_running_loop(), commands.put_nowait, grace_s=1.0)
    try:
        await player.open()
        supervisor.report("ready")
        while (command := await commands.get()) != "stop":
            if command == "go":
                run, is_whole = await _play(player, commands, supervisor)
                _write(run, player.tally, result)
                supervisor.report("done", progress=player.progress)
                if not is_whole:
                    break
            else:
                player.prepare(load.warm_up() if command == "warm_up" else load)
                supervisor.report(command)
    except (EventError, OSError) as error:
        return supervisor.fail(str(error))
    finally:
        await player.close()
    return EXIT_OK


def main(arguments: Sequence[str] | None = None) -> int:
    """Play one process's part until told to stop; gives the exit status."""
    parser = argparse.ArgumentParser(prog="python -m eventsh.commands.player", allow_abbrev=False)
    parser.add_argument("--role", choices=("encode", "decode", "post", "work"), required=True)
    parser.add_argument("--api", choices=("async", "thread"), default="async")
    parser.add_argument("--address")
    parser.add_argument("--load", type=lambda text: Load(**orjson.loads(text)), required=True)
    parser.add_argument("--poster", type=int, help="which of the posters it is")
    parser.add_argument("--result", required=True, help="the file for what was measured")
    add_child_arguments(parser)
    known = parser.parse_args(arguments)
    supervisor = start_child(known.report_fd, known.control_fd, known.log_format)

    async def live() -> int:
        return await _live(_player(known), known.load, known.result, supervisor)

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(live())


def _player(known: argparse.Namespace) -> Player:
    if known.role in ("encode", "decode"):
        return Encoder(None) if known.role == "encode" else Decoder(None)
    kind = AsyncPlayer if known.api == "async" else ThreadPlayer
    return kind(known.poster, known.address, known.load.options())


if __name__ == "__main__":
    sys.exit(main())
