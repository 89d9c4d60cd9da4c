"""`eventsh bench`: how fast eventsh is here, and what part that is of what Python can do at all.

Starts a broker and workers of its own, warms them up, and has them work through the public API. Decides what is
measured, and what comes of it; never prints.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
import time
from array import array
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import orjson

from eventsh.commands.latency import Latency, summarize
from eventsh.commands.load import LEAST_SIZE, Load
from eventsh.commands.player import Run, peak_bytes
from eventsh.errors import ConfigureError, EventError
from eventsh.options import Options, broker_arguments
from eventsh.protocol.frame import MAX_PAYLOAD_BYTES
from eventsh.runtime.endpoint import find_endpoint
from eventsh.runtime.interpreter import python_command, python_environment
from eventsh.runtime.process import Process, Program, describe_status

if TYPE_CHECKING:
    from eventsh.address import Address
    from eventsh.transport import Transport

__all__ = ["BenchArguments", "BenchResult", "Ceiling", "LoadResult", "Tell", "bench", "measure", "measure_ceiling"]

_START_S = 30.0
_STOP_S = 5.0
_LOOK_S = 0.01
# When nothing is handled for so long, what is missing does not come: longer than any `timeout` that is at its default.
_STALL_S = 15.0
# Without a rate, latencies are measured at this one, for so long.
_LATENCY_RATE = 1000.0
_LATENCY_S = 5.0
_MOST_EVENTS = 100_000_000
_MOST_WORKERS = 1024

# Told what is going on, and which part of it is done.
Tell = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class BenchArguments:
    """What to measure. The posters are among the workers. `address` is where the broker is to listen; with only a
    scheme, or nothing (unix), it is one that is made up."""

    workers: int = 4
    posters: int = 1
    events: int = 500_000
    size: int = 65
    sources: int = 1
    rate: float = 0.0
    address: str = "unix"
    api: str = "async"
    latency: bool = False

    def __post_init__(self) -> None:
        _check("workers", self.workers, 1, _MOST_WORKERS)
        _check("posters", self.posters, 1, self.workers)
        _check("events", self.events, self.posters, _MOST_EVENTS)
        _check("size", self.size, LEAST_SIZE, MAX_PAYLOAD_BYTES - 1024)
        _check("sources", self.sources, 1, 1000)
        if not _endpoint(self.address, "/run")[0].capabilities.crosses_processes:
            raise ConfigureError(f"address: {self.address} does not leave the process", option="address")
        if self.api not in ("async", "thread"):
            raise ConfigureError(f"api must be async or thread, not {self.api!r}", option="api")


def _check(name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise ConfigureError(f"{name} must be from {least} to {most}, not {value}", option=name)


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What eventsh did. CPU and memory by part: `posters`, `workers` (those that only handle, all together; memory is
    that of the largest) and `broker`; None where the system does not tell."""

    address: str
    events: int
    seconds: float
    posts_per_s: float
    deliveries_per_s: float
    cpu_s: dict[str, float | None]
    peak_bytes: dict[str, int | None]
    lost: int
    out_of_order: int
    to_handler: Latency | None
    to_last: Latency | None


@dataclass(frozen=True, slots=True)
class Ceiling:
    """What Python can do at all; `cpu_s` of all processes together."""

    posts_per_s: float
    cpu_s: float


@dataclass(frozen=True, slots=True)
class BenchResult:
    """What was measured. The ceiling, and eventsh's `share` of it, only where events were posted as fast as can be."""

    arguments: BenchArguments
    cpus: int
    throughput: LoadResult | None
    ceiling: Ceiling | None
    share: float | None
    latency: LoadResult | None

    @property
    def is_sound(self) -> bool:
        """Whether every event came, once and in order."""
        return not any(part and (part.lost or part.out_of_order) for part in (self.throughput, self.latency))


def bench(arguments: BenchArguments, tell: Tell) -> BenchResult:
    """Measure, and give the result. Raises EventError; whatever ends it, the processes that it started end too."""
    return asyncio.run(_bench(arguments, tell))


async def _bench(arguments: BenchArguments, tell: Tell) -> BenchResult:
    throughput = latency = ceiling = None
    load = Load(arguments.events, arguments.posters, arguments.size, arguments.sources)
    if not arguments.rate:
        ceiling = await measure_ceiling(load, arguments.workers, tell)
        throughput = await measure(load, arguments.workers, arguments.address, arguments.api, tell)
    if arguments.rate or arguments.latency:
        rate = arguments.rate or _LATENCY_RATE
        events = arguments.events if arguments.rate else min(arguments.events, int(rate * _LATENCY_S))
        paced = Load(events, arguments.posters, arguments.size, arguments.sources, rate)
        latency = await measure(paced, arguments.workers, arguments.address, arguments.api, tell)
    share = throughput.posts_per_s / ceiling.posts_per_s if throughput and ceiling else None
    return BenchResult(arguments, os.cpu_count() or 1, throughput, ceiling, share, latency)


async def measure_ceiling(load: Load, workers: int, tell: Tell) -> Ceiling:
    """As fast as can be with nothing in between: one process encodes each event and drops it, and beside it each worker
    decodes as many that lie ready and calls the handler."""
    with tempfile.TemporaryDirectory(prefix="eventsh-bench-") as directory:
        alone = Load(load.events, 1, load.size, load.sources)
        roles = ["encode", *["decode"] * workers]
        async with _started(directory, alone, roles, ()) as crew:
            runs = await crew.run("ceiling", tell)
    return Ceiling(load.events / _seconds(runs), sum(run.cpu_s for run in runs))


async def measure(load: Load, workers: int, address: str, api: str, tell: Tell) -> LoadResult:
    """Have a broker of its own and `workers` processes, of which the first ones post, do the work. Raises EventError."""
    with tempfile.TemporaryDirectory(prefix="eventsh-bench-") as directory:
        # It ends when it is told to, however long workers take to start.
        options = Options.from_values(**load.options(), max_slots=workers, linger=None)
        flags = ["--address", str(_endpoint(address, directory)[1]), *broker_arguments(options)]
        # What goes wrong shows in what was lost, and why it does not start is in its report.
        broker = await _start("the broker", "eventsh.runtime.broker", flags, silent=True)
        try:
            await _reach([broker], "ready")
            where = str(broker.facts["address"])
            roles = ["post"] * load.posters + ["work"] * (workers - load.posters)
            async with _started(directory, load, roles, ("--api", api, "--address", where)) as crew:
                await crew.run("warm-up", tell, prepare="warm_up")
                before = _cpu_s(broker.pid)
                runs = await crew.run("latency" if load.rate else "throughput", tell)
                after, memory = _cpu_s(broker.pid), peak_bytes(broker.pid)
            latencies = crew.latencies()
        finally:
            await _end([broker])
    return _result(where, load, runs, latencies, None if before is None or after is None else after - before, memory)


def _result(
    address: str,
    load: Load,
    runs: Sequence[Run],
    latencies: Sequence[array[int]],
    broker_cpu_s: float | None,
    broker_bytes: int,
) -> LoadResult:
    posters, workers = runs[: load.posters], runs[load.posters :]
    seconds = _seconds(runs)
    handled = sum(run.handled for run in runs)
    return LoadResult(
        address=address,
        events=sum(run.posted for run in posters),
        seconds=seconds,
        posts_per_s=load.events / seconds,
        deliveries_per_s=handled / seconds,
        cpu_s={
            "posters": sum(run.cpu_s for run in posters),
            "broker": broker_cpu_s,
            "workers": sum(run.cpu_s for run in workers),
        },
        peak_bytes={
            "posters": max(run.peak_bytes for run in posters),
            "broker": broker_bytes or None,
            "workers": max((run.peak_bytes for run in workers), default=None),
        },
        lost=load.events * len(runs) - handled,
        out_of_order=sum(run.out_of_order for run in runs),
        to_handler=summarize([value for each in latencies for value in each]),
        to_last=summarize([max(of_event) for of_event in zip(*latencies, strict=True)]),
    )


def _seconds(runs: Sequence[Run]) -> float:
    return max(run.ended for run in runs) - min(run.began for run in runs)


def _endpoint(address: str, directory: str) -> tuple[Transport, Address]:
    """Where the broker is to listen: for a scheme alone a place is made up."""
    if ":" not in address:
        address = "tcp://127.0.0.1:0" if address == "tcp" else f"{address}:{directory}/bench.sock"
    return find_endpoint(address)


def _cpu_s(pid: int) -> float | None:
    """The CPU time of another process, finer than /proc has it; None where the system does not tell."""
    try:
        return time.clock_gettime(~pid << 3 | 2)  # as clock_getcpuclockid of Linux makes it
    except OSError:
        return None


# --- processes ---


class _Crew:
    """The processes of a round, which begin each run together."""

    def __init__(self, processes: Sequence[Process], results: Sequence[str], load: Load) -> None:
        self._processes = processes
        self._results = results
        self._load = load

    async def run(self, name: str, tell: Tell, *, prepare: str = "measure") -> list[Run]:
        """One run of all; gives what each has measured."""
        load = self._load.warm_up() if prepare == "warm_up" else self._load
        tell(name, 0.0)
        self._say(prepare)
        await _reach(self._processes, prepare)
        self._say("go")
        await self._watch(load.events, lambda part: tell(name, part))
        tell(name, 1.0)
        return [Run(**orjson.loads(_first_line(path))) for path in self._results]

    def latencies(self) -> list[array[int]]:
        """Of each process that handled stamped events, by number."""
        every = []
        for path in self._results if self._load.rate else ():
            with open(path, "rb") as file:
                file.readline()
                latencies = array("q")
                latencies.frombytes(file.read())
                every.append(latencies)
        return every

    def _say(self, command: str) -> None:
        for process in self._processes:
            process.tell(command)

    async def _watch(self, events: int, tell: Callable[[float], None]) -> None:
        """Wait until all are done, or until nothing goes on any more: then they are told to give what they have."""
        progress, moved_at = -1, time.monotonic()
        while not all(_state(process) == "done" for process in self._processes):
            _check_alive(self._processes)
            now = sum(int(process.facts.get("progress", 0)) for process in self._processes)
            if now != progress:
                progress, moved_at = now, time.monotonic()
                tell(min(1.0, progress / (events * len(self._processes))))
            elif time.monotonic() - moved_at > _STALL_S:
                moved_at = time.monotonic()
                self._say("stop")
            await asyncio.sleep(_LOOK_S)


def _first_line(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.readline()


def _state(process: Process) -> str:
    return str(process.facts.get("state", ""))


def _check_alive(processes: Sequence[Process]) -> None:
    for process in processes:
        if process.ended.done():
            why = process.error or describe_status(process.ended.result())
            raise EventError(f"{process.name} has ended: {why}")


async def _reach(processes: Sequence[Process], state: str) -> None:
    """Wait until all have told that they are there."""
    deadline = time.monotonic() + _START_S
    while not all(_state(process) == state for process in processes):
        _check_alive(processes)
        if time.monotonic() > deadline:
            raise EventError(f"{processes[0].name} was not ready within {_START_S:g} s")
        await asyncio.sleep(_LOOK_S)


async def _start(name: str, module: str, flags: Sequence[str], *, silent: bool = False) -> Process:
    program = Program((*python_command(module), *flags), env=python_environment(), silent=silent)
    try:
        return await Process.start(name, program)
    except OSError as error:
        raise EventError(f"{name} can't be started: {error.strerror}") from error


@contextlib.asynccontextmanager
async def _started(directory: str, load: Load, roles: Sequence[str], flags: Sequence[str]) -> AsyncIterator[_Crew]:
    processes: list[Process] = []
    results: list[str] = []
    try:
        for number, role in enumerate(roles):
            results.append(f"{directory}/{number}.result")
            own = ["--role", role, "--load", orjson.dumps(asdict(load)).decode(), "--result", results[-1]]
            if role == "post":
                own += ["--poster", str(number)]
            processes.append(await _start(f"process {number}, to {role},", "eventsh.commands.player", [*own, *flags]))
        await _reach(processes, "ready")
        yield _Crew(processes, results, load)
    finally:
        await _end(processes)


async def _end(processes: Sequence[Process]) -> None:
    for process in processes:
        process.tell("stop")
    await asyncio.gather(*(process.end_within(_STOP_S) for process in processes))
