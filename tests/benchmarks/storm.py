"""Clients that reconnect at once to a new broker: the time until all are welcomed, and have one post.

    python tests/benchmarks/storm.py [--clients 1000] [--shape fresh] [--checkout ..] [--rounds 1] [--profile FILE]

Speaks the protocol by hand, in this one process, so that the broker alone is measured. Each client acknowledges all that comes.
"""

from __future__ import annotations

import argparse
import os
import selectors
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from eventsh.protocol.features import FEATURES
from eventsh.protocol.frame import HEADER, MAX_BODY_BYTES, FrameDecoder, Kind, decode_header, encode_frame
from eventsh.protocol.messages import Hello

HERE = Path(__file__).parents[2]
DEADLINE_S = 60.0
SHAPES = {
    "numbered": "workers with numbers that had an earlier broker, whose slots each of them names",
    "assigned": "the same of workers that asked for no number",
    "fresh": "workers that come for the first time and ask for no number",
    "observers": "clients that take no slot of a worker",
    "posters": "clients that get no events",
}


class Client:
    def __init__(self, number: int, clients: int, path: str, shape: str) -> None:
        self.number = number
        self.is_welcomed = False
        self.confirmed = 0
        self.events = 0
        self.decoder = FrameDecoder(MAX_BODY_BYTES)
        self.sock = socket.socket(socket.AF_UNIX)
        while self.sock.connect_ex(path):
            time.sleep(0.001)
        self.sock.setblocking(False)
        epoch = 1 if shape in ("numbered", "assigned") else 0
        slots = list(range(clients)) if epoch else []
        role = shape[:-1] if shape in ("observers", "posters") else "worker"
        hello = Hello(
            *(
                f"storm {number}",
                number + 1,
                os.getpid(),
                role,
                number if epoch else None,
                False,
                epoch,
                0,
                0,
                slots,
                False,
            ),
            told=epoch,
            places=[[epoch, 0, 0]] if epoch else [],
            features=sorted(FEATURES),
            assigned=shape == "assigned",
            assigned_slots=slots if shape == "assigned" else [],
        )
        self.sock.send(hello.encode())

    def post(self) -> None:
        self.sock.send(encode_frame(Kind.EVENTS, b'[["storm","post",[1]]]', count=1, origin_seq=1))

    def read(self) -> None:
        received = 0
        frames = self.decoder.receive_data(self.sock.recv(1 << 18))
        for frame in frames:
            header = decode_header(frame)
            if header.kind == Kind.WELCOME:
                self.is_welcomed = True
            elif header.kind == Kind.EVENTS:
                self.events += header.count
                received = header.seq + header.count - 1
            elif header.kind == Kind.CONFIRM:
                self.confirmed = header.origin_seq
            elif header.kind == Kind.GAP:
                received = header.seq
            elif header.kind == Kind.ERROR:
                sys.exit(f"client {self.number} was refused: {bytes(frame[HEADER.size :])!r}")
        if received:
            self.sock.send(encode_frame(Kind.ACK, origin_seq=received, seq=received))


def storm(clients: int, path: str, shape: str, broker: int) -> tuple[float, float, int, float]:
    """Return the seconds until all are welcomed, until a post of the first is confirmed, how many events came, and the broker's
    seconds of CPU until then."""
    selector = selectors.DefaultSelector()
    began = time.monotonic()
    pool = []
    welcomed_s = 0.0
    for number in range(clients):
        client = Client(number, clients, path, shape)
        selector.register(client.sock, selectors.EVENT_READ, client)
        pool.append(client)
        for key, _ in selector.select(0) if number % 16 == 0 else ():
            key.data.read()
    while not pool[0].confirmed:
        if time.monotonic() - began > DEADLINE_S:
            sys.exit(f"only {sum(client.is_welcomed for client in pool)} of {clients} welcomed within {DEADLINE_S:g} s")
        for key, _ in selector.select(1):
            key.data.read()
        if not welcomed_s and all(client.is_welcomed for client in pool):
            welcomed_s = time.monotonic() - began
            pool[0].post()
    settled_s = time.monotonic() - began
    ticks = Path(f"/proc/{broker}/stat").read_text().rpartition(")")[2].split()[11:13]
    cpu_s = sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
    for client in pool:
        client.sock.close()
    return welcomed_s, settled_s, sum(client.events for client in pool), cpu_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--checkout", type=Path, default=HERE)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--shape", choices=SHAPES, default="numbered")
    parser.add_argument("--profile", help="write the broker's profile there")
    options = parser.parse_args()
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory(prefix="eventsh-storm-") as directory:
            path = f"{directory}/storm.sock"
            profile = ["-m", "cProfile", "-o", os.path.abspath(options.profile)] if options.profile else []
            limits = [f"--max-slots={options.clients}", f"--max-connections={options.clients + 100}", "--linger=1"]
            broker = subprocess.Popen(
                [sys.executable, *profile, "-m", "eventsh.runtime.broker", "--address", f"unix:{path}", *limits],
                env={**os.environ, "PYTHONPATH": str(options.checkout.resolve())},
                # Not here: Python would find this directory's package before the other checkout's.
                cwd="/",
                stderr=subprocess.DEVNULL,
            )
            try:
                welcomed_s, settled_s, events, cpu_s = storm(options.clients, path, options.shape, broker.pid)
                if options.profile:
                    broker.wait(30)
            finally:
                broker.kill()
                broker.wait()
        print(
            f"{options.clients} {options.shape}: all welcomed after {welcomed_s:.2f} s, settled after {settled_s:.2f} s, the broker's"
            f" CPU {cpu_s:.2f} s, {events} events"
        )


if __name__ == "__main__":
    main()
