"""A worker or a poster of any version of eventsh: of the one that its PYTHONPATH leads to. Uses only what all versions have.

worker ADDRESS JOURNAL   appends each event to JOURNAL as a line of JSON, until standard input ends
post KIND ADDRESS NAME COUNT   posts COUNT events, a unique one and one that it waits for; prints what it learned
load ADDRESS NAME   posts one event after the other until standard input ends, flushes, and prints how many they were
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import sys
import time
from typing import Any

import eventsh

WAIT_S = 60.0


def work(address: str, journal: str) -> None:
    lines = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def handle(data: Any, event: str, source: str, pid: int | None) -> None:
        os.write(lines, json.dumps([source, event, data]).encode() + b"\n")

    events = eventsh.Events()
    events.register(handle)
    events.configure(address, broker="never")
    events.wait_ready(WAIT_S)
    print(f"ready {eventsh.__version__}", flush=True)
    sys.stdin.read()
    # The slot, with what is queued for it, is the next process's.
    events.close(leave=False, timeout=WAIT_S)


def receipt_of(receipt: Any) -> dict[str, Any]:
    ran = [worker.worker_id for worker in receipt.workers if worker.answered and len(worker.handlers) == 1]
    return {"version": eventsh.__version__, "ran": sorted(ran), "is_complete": receipt.is_complete}


def post(kind: str, address: str, name: str, count: int) -> dict[str, Any]:
    if kind == "AsyncEvents":
        return asyncio.run(post_async(address, name, count))
    with eventsh.Events(address, role="observer", broker="never") as events:
        for number in range(count):
            events.post("app", name, number)
        events.post("app", f"{name} unique", name, unique=name)
        receipt = events.post_and_wait("app", f"{name} waited", name, timeout=WAIT_S)
        events.flush(WAIT_S)
    return receipt_of(receipt)


async def post_async(address: str, name: str, count: int) -> dict[str, Any]:
    async with eventsh.AsyncEvents(address, role="observer", broker="never") as events:
        for number in range(count):
            events.post("app", name, number)
        events.post("app", f"{name} unique", name, unique=name)
        receipt = await events.post_and_wait("app", f"{name} waited", name, timeout=WAIT_S)
        await events.flush(WAIT_S)
    return receipt_of(receipt)


def load(address: str, name: str) -> int:
    number = 0
    with eventsh.Events(address, role="observer", broker="never", timeout=WAIT_S) as events:
        events.wait_ready(WAIT_S)
        print("ready", flush=True)
        while not select.select([sys.stdin], [], [], 0)[0]:
            try:
                events.post("app", name, number)
                number += 1
            except eventsh.QueueOverflow:
                events.drain(WAIT_S)
            time.sleep(0.001)
        events.flush(WAIT_S)
    return number


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["worker", address, journal]:
            work(address, journal)
        case ["post", kind, address, name, count]:
            print(json.dumps(post(kind, address, name, int(count))))
        case ["load", address, name]:
            print(load(address, name), flush=True)
