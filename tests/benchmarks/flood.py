"""A poster's rate beside one client that floods the broker, in parts of its rate beside a process that only burns CPU.

    python tests/benchmarks/flood.py [--checkout ..] [--rounds 3] [--seconds 1.5] [--only requests,acks]

One poster and one worker at a broker of their own. The burner is as much CPU as the flood's own process can take, so what is
lost below 1 is the broker's. Rounds are interleaved with those of the burner; the figures are medians.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parents[2]
FLOODS = ["requests", "acks", "pings", "handled", "reports", "hellos", "workers", "events"]

PAIR = """
import json, os, sys, time, eventsh
address, role, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
handled = 0
def count(data, event, source, pid):
    global handled
    handled += 1
events = eventsh.Events(address=address, broker="never")
if role == "work":
    events.register(count, "bench", "tick")
events.configure() if hasattr(events, "configure") else None
events.wait_ready(20)
if role == "post":
    data = {"k": 17, "path": "/a/b/c/d/e/f/g/h/i", "ok": True}
    end = time.monotonic() + 3600
    while time.monotonic() < end:
        try:
            events.post("bench", "tick", data)
        except eventsh.QueueOverflow:
            events.drain(30)
else:
    print("ready", flush=True)
    for line in sys.stdin:
        # Until the poster has begun.
        start, end = handled, time.monotonic() + 30
        while handled == start and time.monotonic() < end:
            time.sleep(0.01)
        before, began = handled, time.monotonic()
        time.sleep(seconds)
        print((handled - before) / (time.monotonic() - began), flush=True)
"""

FLOOD = """
import os, select, socket, sys
from eventsh.protocol.features import FEATURES
from eventsh.protocol.frame import MAX_BODY_BYTES, FrameDecoder, Kind, decode_header, encode_frame
from eventsh.protocol.messages import Handled, Hello, Report, Request
path, what = sys.argv[1:3]
if what == "burner":
    while True:
        pass
def connect(number, role):
    while True:
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.connect(path)
            break
        except OSError:
            sock.close()
    hello = Hello(f"flood {number}", number, os.getpid(), role, None, False, 0, 0, 0, [], False)
    hello.features[:] = sorted(FEATURES)
    sock.sendall(hello.encode())
    return sock
if what in ("hellos", "workers"):
    number = 100
    while True:
        number += 1
        sock = connect(number, "poster" if what == "hellos" else "worker")
        sock.recv(65536)
        sock.close()
sock = connect(99, "poster" if what in ("requests", "pings", "events") else "observer")
frames = {
    "requests": lambda: Request(1, "status", {}).encode(),
    "acks": lambda: encode_frame(Kind.ACK),
    "pings": lambda: encode_frame(Kind.PING),
    "handled": lambda: Handled(1, 1, [], None, None).encode(),
    "reports": lambda: Report(1, {"error": "x"}).encode(),
}
number = confirmed = 0
decoder = FrameDecoder(MAX_BODY_BYTES)
sock.setblocking(False)
waiting = memoryview(b"")
while True:
    if not waiting and what == "events" and number - confirmed < 6000:
        # Within the window, else the broker ends the connection.
        body = b'[["flood","tick",[1]]]'
        new = b"".join(encode_frame(Kind.EVENTS, body, count=1, origin_seq=number + n) for n in range(1, 3001))
        number += 3000
        waiting = memoryview(new)
    elif not waiting and what != "events":
        waiting = memoryview(bytes(frames[what]()) * 3000)
    can_read, can_write, _ = select.select([sock], [sock] if waiting else [], [])
    if can_read:
        data = sock.recv(1 << 20)
        if not data:
            sys.exit("the broker ended the connection")
        if what == "events":
            for frame in decoder.receive_data(data):
                header = decode_header(frame)
                if header.kind == Kind.CONFIRM:
                    confirmed = header.origin_seq
    if can_write:
        waiting = waiting[sock.send(waiting):]
"""


class Bench:
    def __init__(self, checkout: Path, seconds: float) -> None:
        self.environment = {**os.environ, "PYTHONPATH": str(checkout.resolve())}
        self.seconds = seconds
        self.started: list[subprocess.Popen[str]] = []

    def start(
        self, *arguments: str, stdin: int | None = None, stdout: int | None = None, stderr: int | None = None
    ) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            env=self.environment,
            cwd="/",
            text=True,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
        )
        self.started.append(process)
        return process

    def end(self) -> None:
        for process in reversed(self.started):
            process.kill()
            process.wait()
        self.started.clear()

    def measure(self, what: str, path: str) -> float:
        address = f"unix:{path}"
        try:
            broker = self.start("-m", "eventsh.runtime.broker", "--address", address, stderr=subprocess.DEVNULL)
            while not os.path.exists(path):
                assert broker.poll() is None
            pipe = subprocess.PIPE
            worker = self.start("-c", PAIR, address, "work", str(self.seconds), stdin=pipe, stdout=pipe)
            assert worker.stdin
            assert worker.stdout
            worker.stdout.readline()
            self.start("-c", PAIR, address, "post", "0")
            flood = self.start("-c", FLOOD, path, what)
            figures: list[float] = []
            for _ in range(2):
                # The first is the warm-up.
                worker.stdin.write("go\n")
                worker.stdin.flush()
                figures.append(float(worker.stdout.readline()))
            assert flood.poll() is None, f"the flood of {what} has ended"
            return figures[-1]
        finally:
            self.end()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkout", type=Path, default=HERE)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.5)
    parser.add_argument("--only", help="floods, with commas between them")
    options = parser.parse_args()
    bench = Bench(options.checkout, options.seconds)
    names = options.only.split(",") if options.only else FLOODS
    found: dict[str, list[float]] = {name: [] for name in ["burner", *names]}
    with tempfile.TemporaryDirectory(prefix="eventsh-flood-") as directory:
        for number in range(options.rounds):
            for name in found:
                found[name].append(bench.measure(name, f"{directory}/{name}-{number}.sock"))
    burner = statistics.median(found.pop("burner"))
    print(f"{'burner':10}{burner:>12,.0f} events/s")
    for name, rates in found.items():
        kept = [rate / burner for rate in rates]
        print(
            f"{name:10}{statistics.median(rates):>12,.0f} events/s, {statistics.median(kept):.2f} kept ({min(kept):.2f}, {max(kept):.2f})"
        )


if __name__ == "__main__":
    main()
