"""Post as fast as there is room. Usage: soak_poster.py ADDRESS POSTER EVENTS SEED; prints `ready`, posts once it is told a
line, prints how far it is, then `done`."""

from __future__ import annotations

import random
import sys

from eventsh.api import Events
from eventsh.errors import QueueOverflow

# So many of its events have a key, and so many are large.
_UNIQUE_SHARE = 0.01
_LARGE_SHARE = 0.001
_LARGE_CHARS = 4000
_TELL_EVERY = 10_000
_ROOM_S = 120.0


def main() -> int:
    address, poster, count, seed = sys.argv[1], *map(int, sys.argv[2:])
    draw = random.Random(seed * 1000 + poster)
    number = keys = 0
    with Events(address, broker="never", role="observer") as events:
        events.wait_ready(_ROOM_S)
        print("ready", flush=True)
        sys.stdin.readline()
        for done in range(1, count + 1):
            dice, key = draw.random(), None
            if dice < _UNIQUE_SHARE:
                keys += 1
                event, key, data = "unique", f"{poster}/{keys}", [poster, keys]
            else:
                number += 1
                event, data = "e", [poster, number]
                if dice > 1 - _LARGE_SHARE:
                    data.append("x" * _LARGE_CHARS)  # type: ignore[arg-type]
            while True:
                try:
                    events.post("soak", event, data, key)
                    break
                except QueueOverflow:
                    events.drain(_ROOM_S)
            if done % _TELL_EVERY == 0:
                print(f"posted {done}", flush=True)
        events.flush(_ROOM_S)
        print(f"done {number} {keys}", flush=True)
        # Stays, so that its memory can be looked at when everything is at rest.
        sys.stdin.read()
    return 0


if __name__ == "__main__":
    sys.exit(main())
