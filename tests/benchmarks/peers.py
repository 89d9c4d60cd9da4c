"""eventsh beside what one might use instead: the same events, from one poster to four workers of which it is one.

    python tests/benchmarks/peers.py [--rounds 3] [--scale 1.0] [--only zmq,redis]

pyzmq (PUB and SUB through an XPUB/XSUB proxy, over ipc), redis-py with hiredis (pipelined, over a unix socket), nats-py,
and a multiprocessing.Queue for each worker; each where it is installed (`pip install eventsh[bench]`, and the Debian
packages redis-server and nats-server), with a server of its own that is stopped in the end. No peer loses anything here:
their limits are switched off. eventsh keeps its own, and all of its promises. Rounds are interleaved, medians printed.

- throughput: all that it can, encoded and decoded by orjson, and counted and checked by the same handler;
- single: one post for each turn of an asyncio loop, so that nothing can be batched (eventsh and pyzmq);
- latency: one event after the other, each posted once the poster has handled the last one itself. Here there is also a
  "relay", which is nobody's choice but the least that a broker in Python can be: it writes what it reads to everybody.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from typing import Any, ClassVar

import orjson

import eventsh
from eventsh.commands.latency import summarize
from eventsh.commands.load import Load, Tally
from eventsh.options import Options, broker_arguments
from eventsh.runtime.loop import new_event_loop

WORKERS = 4
START_S = 30.0
ROUND_S = 300.0
# So many events that each takes about as long; in proportion to what one expects of it.
EVENTS = {"eventsh": 300_000, "zmq": 120_000, "nats": 40_000, "redis": 30_000, "queue": 15_000}
SINGLES = {"eventsh": 20_000, "zmq": 20_000}
PINGS = 1500
PIPELINE = 256
MODES = {"throughput": EVENTS, "single": SINGLES, "latency": dict.fromkeys([*EVENTS, "relay"], PINGS)}


def encoded(number: int, stamp: float = 1.5) -> bytes:
    return orjson.dumps(("bench", "tick", {"id": number, "name": "cache-key-000123", "tags": ["a", "bc"], "v": stamp}))


@dataclass
class Part:
    """What a process has measured."""

    began: float = 0.0
    ended: float = 0.0
    wrong: int = 0
    latencies: list[int] = field(default_factory=list)


class Peer(ABC):
    """One way from process to process, as one process sees it."""

    def __init__(self, address: str, queues: list[Any], number: int) -> None:
        self.address = address
        self.queues = queues
        self.number = number

    @abstractmethod
    def open(self) -> None: ...

    @abstractmethod
    def post(self, payload: bytes) -> None: ...

    def flush(self) -> None:
        """Have everything leave that was posted."""

    @abstractmethod
    def receive(self) -> bytes:
        """Wait for the next payload."""


class Zmq(Peer):
    def open(self) -> None:
        zmq: Any = import_module("zmq")
        context = zmq.Context()
        self.pub, self.sub = context.socket(zmq.PUB), context.socket(zmq.SUB)
        for socket in (self.pub, self.sub):
            socket.setsockopt(zmq.LINGER, 0)
            socket.set_hwm(0)
        self.pub.connect(f"ipc://{self.address}.in")
        self.sub.connect(f"ipc://{self.address}.out")
        self.sub.setsockopt(zmq.SUBSCRIBE, b"")

    def post(self, payload: bytes) -> None:
        self.pub.send(payload)

    def receive(self) -> bytes:
        return bytes(self.sub.recv())


class Redis(Peer):
    def open(self) -> None:
        redis: Any = import_module("redis")
        self.client = redis.Redis(unix_socket_path=self.address)
        self.pipeline = self.client.pipeline(transaction=False)
        self.waiting = 0
        self.pubsub = redis.Redis(unix_socket_path=self.address).pubsub(ignore_subscribe_messages=True)
        self.pubsub.subscribe("bench")

    def post(self, payload: bytes) -> None:
        self.pipeline.publish("bench", payload)
        self.waiting += 1
        if self.waiting == PIPELINE:
            self.flush()

    def flush(self) -> None:
        if self.waiting:
            self.pipeline.execute()
            self.waiting = 0

    def receive(self) -> bytes:
        while True:
            message = self.pubsub.get_message(timeout=None)
            if message is not None:
                return bytes(message["data"])


class Queue(Peer):
    def open(self) -> None:
        self.own = self.queues[self.number]

    def post(self, payload: bytes) -> None:
        for queue in self.queues:
            queue.put(payload)

    def receive(self) -> bytes:
        return bytes(self.own.get())


BLOCKING: dict[str, type[Peer]] = {"zmq": Zmq, "redis": Redis, "queue": Queue}


class Play:
    """One process's part in a round: how it takes payloads, and when it is through."""

    def __init__(self, mode: str, events: int, number: int, ready: Callable[[], None]) -> None:
        self.mode = mode
        self.events = events
        self.is_poster = number == 0
        self.part = Part()
        self.tally = Tally(Load(events, rate=1.0 if mode == "latency" else 0.0), self.end)
        self.synced = False
        self.ended = False
        self._ready = ready

    def end(self) -> None:
        self.part.ended = time.monotonic()
        self.ended = True

    def take(self, payload: bytes) -> None:
        source, event, data = orjson.loads(payload)
        self.handle(data, event, source, None)

    def handle(self, data: Any, event: str, source: str, pid: int | None) -> None:
        if event == "sync":
            # The poster tries until everybody hears it.
            if not self.synced:
                self.synced = True
                self._ready()
        else:
            self.tally.handler(data, event, source, pid)

    def result(self) -> Part:
        self.part.wrong = self.tally.out_of_order
        self.part.latencies = self.tally.latencies.tolist()
        return self.part


SYNC = orjson.dumps(("bench", "sync", None))


def play_blocking(peer: Peer, play: Play, go: Callable[[], bool]) -> None:
    """A process of a peer whose calls block; where it posts and handles at once, it does so in two threads."""
    peer.open()

    def receive() -> None:
        while not play.ended:
            play.take(peer.receive())

    if not play.is_poster:
        receive()
        return
    while not go():
        peer.post(SYNC)
        peer.flush()
        time.sleep(0.02)
    if play.mode == "latency":
        # Whatever of the synchronizing is still under way is taken first.
        play.part.began = time.monotonic()
        for number in range(play.events):
            peer.post(encoded(number, time.monotonic_ns()))
            peer.flush()
            left = play.tally.handled
            while play.tally.handled == left:
                play.take(peer.receive())
        return
    thread = threading.Thread(target=receive)
    thread.start()
    play.part.began = time.monotonic()
    if play.mode == "single":
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(post_singly(lambda number: peer.post(encoded(number)), play.events))
    else:
        for number in range(play.events):
            peer.post(encoded(number))
    peer.flush()
    thread.join()


async def post_singly(post: Callable[[int], Any], events: int) -> None:
    for number in range(events):
        post(number)
        await asyncio.sleep(0)


async def play_nats(address: str, play: Play, go: Callable[[], bool]) -> None:
    nats: Any = import_module("nats")
    client = await nats.connect(address, pending_size=64 * 1024 * 1024)
    over = asyncio.Event()
    arrived = asyncio.Event()

    async def take(message: Any) -> None:
        play.take(message.data)
        arrived.set()
        if play.ended:
            over.set()

    await client.subscribe("bench", cb=take, pending_msgs_limit=10**8, pending_bytes_limit=10**10)
    if play.is_poster:
        while not go():
            await client.publish("bench", SYNC)
            await asyncio.sleep(0.02)
        play.part.began = time.monotonic()
        for number in range(play.events):
            if play.mode == "latency":
                before = play.tally.handled
                await client.publish("bench", encoded(number, time.monotonic_ns()))
                while play.tally.handled == before:
                    arrived.clear()
                    await arrived.wait()
            else:
                await client.publish("bench", encoded(number))
        await client.flush()
    await over.wait()
    await client.close()


class Lines(asyncio.Protocol):
    """Hands on what arrives, line by line."""

    def __init__(self, take: Callable[[bytes], None]) -> None:
        self._take = take
        self._rest = b""

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._take(line)


async def play_relay(address: str, play: Play, go: Callable[[], bool]) -> None:
    arrived = asyncio.Event()

    def take(payload: bytes) -> None:
        play.take(payload)
        arrived.set()

    transport, _ = await asyncio.get_running_loop().create_unix_connection(lambda: Lines(take), address)
    if play.is_poster:
        while not go():
            transport.write(SYNC + b"\n")
            await asyncio.sleep(0.02)
        play.part.began = time.monotonic()
        for number in range(play.events):
            before = play.tally.handled
            transport.write(encoded(number, time.monotonic_ns()) + b"\n")
            while play.tally.handled == before:
                arrived.clear()
                await arrived.wait()
    while not play.ended:
        await asyncio.sleep(0.002)
    transport.close()


async def play_eventsh(address: str, play: Play, go: Callable[[], bool]) -> None:
    async with eventsh.AsyncEvents(f"unix:{address}", broker="never") as events:
        handler = play.tally.handler
        events.register(play.handle, "bench", "sync")
        arrived = asyncio.Event()

        def take(data: Any, event: str, source: str, pid: int | None) -> None:
            handler(data, event, source, pid)
            arrived.set()

        events.register(take if play.mode == "latency" else handler, "bench", "tick")
        await events.wait_ready(START_S)
        if play.is_poster:
            while not go():
                events.post("bench", "sync")
                await asyncio.sleep(0.02)
            play.part.began = time.monotonic()
            await post_to(events, play, arrived)
        while not play.ended:
            await asyncio.sleep(0.002)


async def post_to(events: eventsh.AsyncEvents, play: Play, arrived: asyncio.Event) -> None:
    def data(number: int, stamp: float = 1.5) -> dict[str, Any]:
        return {"id": number, "name": "cache-key-000123", "tags": ["a", "bc"], "v": stamp}

    for number in range(play.events):
        if play.mode == "latency":
            arrived.clear()
            events.post("bench", "tick", data(number, time.monotonic_ns()))
            await arrived.wait()
            continue
        try:
            events.post("bench", "tick", data(number))
        except eventsh.QueueOverflow:
            await events.drain()
            events.post("bench", "tick", data(number))
        if play.mode == "single":
            await asyncio.sleep(0)


def child(name: str, address: str, queues: list[Any], number: int, mode: str, events: int, pipe: Any) -> None:
    """A process of a round. Tells when it is connected, and in the end what it has measured."""
    play = Play(mode, events, number, lambda: pipe.send(None))

    def go() -> bool:
        return bool(pipe.poll())

    if name in BLOCKING:
        play_blocking(BLOCKING[name](address, queues, number), play, go)
    else:
        run = {"nats": play_nats, "relay": play_relay}.get(name, play_eventsh)
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(run(address, play, go))
    pipe.send(play.result())


# --- servers ---


@contextmanager
def running(*command: str) -> Iterator[None]:
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        yield
    finally:
        server.terminate()
        server.wait(START_S)


@contextmanager
def serving(name: str) -> Iterator[str]:
    """The server of a peer, and where it is."""
    with tempfile.TemporaryDirectory() as directory:
        address = f"{directory}/s"
        if name == "zmq":
            with running(sys.executable, __file__, "--proxy", address):
                yield address
        elif name == "relay":
            with running(sys.executable, __file__, "--relay", address):
                wait_for(address)
                yield address
        elif name == "redis":
            flags = ["--port", "0", "--unixsocket", address, "--save", "", "--dir", directory]
            with running("redis-server", *flags, "--client-output-buffer-limit", "pubsub 0 0 0"):
                wait_for(address)
                yield address
        elif name == "nats":
            ports = f"{directory}/ports"
            os.mkdir(ports)
            with running("nats-server", "--addr", "127.0.0.1", "--port", "-1", "--ports_file_dir", ports):
                yield nats_address(ports)
        elif name == "eventsh":
            flags = ["--address", f"unix:{address}", *broker_arguments(Options(linger=None))]
            with running(sys.executable, "-m", "eventsh.runtime.broker", *flags):
                wait_for(address)
                yield address
        else:
            yield address


def wait_for(path: str) -> None:
    deadline = time.monotonic() + START_S
    while not os.path.exists(path):
        if time.monotonic() > deadline:
            sys.exit(f"no server at {path}")
        time.sleep(0.01)


def nats_address(ports: str) -> str:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        for file in os.listdir(ports):
            with open(f"{ports}/{file}", "rb") as told:
                text = told.read()
            if text.endswith(b"}"):
                return str(orjson.loads(text)["nats"][0])
        time.sleep(0.01)
    sys.exit("nats-server did not start")


def proxy(address: str) -> None:
    zmq: Any = import_module("zmq")
    context = zmq.Context()
    frontend, backend = context.socket(zmq.XSUB), context.socket(zmq.XPUB)
    for socket in (frontend, backend):
        socket.set_hwm(0)
    frontend.bind(f"ipc://{address}.in")
    backend.bind(f"ipc://{address}.out")
    zmq.proxy(frontend, backend)


class Relay(asyncio.Protocol):
    everybody: ClassVar[list[Any]] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.everybody.append(transport)

    def data_received(self, data: bytes) -> None:
        for transport in self.everybody:
            transport.write(data)


async def relay(address: str) -> None:
    server = await asyncio.get_running_loop().create_unix_server(Relay, address)
    await server.serve_forever()


# --- rounds ---


def play_round(name: str, mode: str, events: int) -> list[Part]:
    """One round: what each process has measured, the poster's first."""
    context = multiprocessing.get_context("spawn")
    with serving(name) as address:
        queues = [context.Queue() for _ in range(WORKERS)] if name == "queue" else []
        pipes, processes = [], []
        try:
            for number in range(WORKERS):
                ours, theirs = context.Pipe()
                arguments = (name, address, queues, number, mode, events, theirs)
                process = context.Process(target=child, args=arguments, daemon=True)
                process.start()
                theirs.close()
                pipes.append(ours)
                processes.append(process)
            # The poster of a blocking peer does not listen before it posts.
            heard = pipes[1:] if name in BLOCKING else pipes
            for pipe in heard:
                expect(pipe, START_S, name)
            pipes[0].send("go")
            return [last(pipe, name) for pipe in pipes]
        finally:
            for process in processes:
                process.kill()
                process.join()


def expect(pipe: Any, timeout_s: float, name: str) -> Any:
    if not pipe.poll(timeout_s):
        sys.exit(f"a process of {name} told nothing for {timeout_s:g} s")
    return pipe.recv()


def last(pipe: Any, name: str) -> Part:
    while True:
        part = expect(pipe, ROUND_S, name)
        if isinstance(part, Part):
            return part


def installed() -> list[str]:
    found = {"eventsh": True, "zmq": bool(find_spec("zmq")), "queue": True, "relay": True}
    found["redis"] = bool(find_spec("redis") and find_spec("hiredis") and shutil.which("redis-server"))
    found["nats"] = bool(find_spec("nats") and shutil.which("nats-server"))
    return [name for name in MODES["latency"] if found[name]]


@dataclass
class Results:
    """By peer: posts a second, all at once and singly; microseconds, p50 and p99."""

    throughput: dict[str, list[float]] = field(default_factory=dict)
    single: dict[str, list[float]] = field(default_factory=dict)
    p50: dict[str, list[float]] = field(default_factory=dict)
    p99: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, mode: str, parts: list[Part], events: int) -> None:
        if sum(part.wrong for part in parts):
            sys.exit(f"{name} lost, doubled or reordered events")
        if mode == "latency":
            latency = summarize([value for part in parts for value in part.latencies])
            assert latency is not None
            self.p50.setdefault(name, []).append(latency.p50)
            self.p99.setdefault(name, []).append(latency.p99)
        else:
            rate = events / (max(part.ended for part in parts) - parts[0].began)
            (self.throughput if mode == "throughput" else self.single).setdefault(name, []).append(rate)

    @staticmethod
    def ratio(values: dict[str, list[float]], name: str) -> float | None:
        """eventsh's to that of a peer: the median of the ratios of each round."""
        if name not in values or "eventsh" not in values:
            return None
        return statistics.median(ours / theirs for ours, theirs in zip(values["eventsh"], values[name], strict=True))


def compare(names: list[str], rounds: int, scale: float, modes: list[str]) -> Results:
    results = Results()
    for number in range(rounds):
        for mode in modes:
            for name in names:
                if name in MODES[mode]:
                    events = max(100, int(MODES[mode][name] * scale))
                    results.add(name, mode, play_round(name, mode, events), events)
                    print(f"round {number + 1}: {mode} {name}", file=sys.stderr, flush=True)
    return results


def show(results: Results) -> None:
    rows = (
        ("posts/s", results.throughput),
        ("posts/s, one a turn", results.single),
        ("latency p50, us", results.p50),
        ("latency p99, us", results.p99),
    )
    for title, values in rows:
        for name, measured in values.items():
            ratio = Results.ratio(values, name)
            told = "" if ratio is None or name == "eventsh" else f"   eventsh / {name} = {ratio:.2f}"
            print(f"{title:22}{name:10}{statistics.median(measured):>12,.0f}{told}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of events")
    parser.add_argument("--only", help="peers, with commas between them")
    parser.add_argument("--modes", default="throughput,single,latency")
    parser.add_argument("--proxy", help=argparse.SUPPRESS)
    parser.add_argument("--relay", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.relay:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(relay(options.relay))
    if options.proxy:
        proxy(options.proxy)
        return
    names = installed()
    if options.only:
        names = ["eventsh", *(name for name in names if name in options.only.split(",") and name != "eventsh")]
    print(f"measured: {', '.join(names)}", file=sys.stderr)
    show(compare(names, options.rounds, options.scale, options.modes.split(",")))


if __name__ == "__main__":
    main()
