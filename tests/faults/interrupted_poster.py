"""Post numbers as fast as it goes while exceptions are raised in the posting thread from outside; print a report in JSON.

Run as `python interrupted_poster.py ADDRESS POSTS INTERRUPTIONS signal|thread`.
"""

from __future__ import annotations

import ctypes
import json
import signal
import sys
import threading
from types import FrameType

import eventsh

PERIOD_S = 0.002


class Limit(Exception):
    """What a time limit raises."""


class Poster:
    def __init__(self, posts: int, interruptions: int) -> None:
        self.posts = posts
        self.interruptions = interruptions
        self.hits = 0
        self.number = 0
        # Every post that gave True; the last of a run that was interrupted may be missing.
        self.returned = bytearray()
        self.seen = bytearray()
        self.twice = 0
        self.out_of_order = 0
        self.last = 0

    def handle(self, data: int | None, event: str, source: str, pid: int | None) -> None:
        if data is None:
            return
        self.twice += self.seen[data]
        self.seen[data] = 1
        self.out_of_order += data < self.last
        self.last = data

    @property
    def is_over(self) -> bool:
        return self.number >= self.posts and self.hits >= self.interruptions

    def fill(self) -> None:
        """Post until it is over. Exceptions are raised in here, and nowhere else."""
        while not self.is_over:
            self.number += 1
            # Each by itself: it may be interrupted between the two.
            for numbers in (self.seen, self.returned):
                if self.number >= len(numbers):
                    numbers.extend(bytes(1_000_000))
            try:
                eventsh.post("app", "e", self.number)
            except eventsh.QueueOverflow:
                eventsh.drain(60)
                self.number -= 1
                continue
            self.returned[self.number] = 1

    def is_within(self, frame: FrameType | None) -> bool:
        while frame is not None:
            if frame.f_code is Poster.fill.__code__:
                return True
            frame = frame.f_back
        return False

    def run(self) -> None:
        while not self.is_over:
            # One may come while another is handled.
            try:
                try:
                    self.fill()
                except Limit:
                    self.hits += 1
            except Limit:
                self.hits += 1


def main() -> None:
    address, posts, interruptions, by = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    poster = Poster(posts, interruptions)
    eventsh.register(poster.handle, "app")
    eventsh.configure(address, linger=0.2)
    eventsh.wait_ready(60)
    me, over = threading.get_ident(), threading.Event()

    def interrupt(_: int, frame: FrameType | None) -> None:
        if poster.is_within(frame):
            raise Limit

    def limit() -> None:
        while not over.wait(PERIOD_S):
            if poster.is_within(sys._current_frames().get(me)):
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(me), ctypes.py_object(Limit))

    thread = threading.Thread(target=limit)
    if by == "signal":
        signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, PERIOD_S, PERIOD_S)
    else:
        thread.start()
    while True:
        try:
            poster.run()
            over.set()
            if by == "signal":
                signal.setitimer(signal.ITIMER_REAL, 0)
            else:
                thread.join()
            break
        except Limit:
            poster.hits += 1
    eventsh.flush(60)
    eventsh.post_and_wait("app", "end", timeout=60)
    lost = sum(mine and not theirs for mine, theirs in zip(poster.returned, poster.seen, strict=False))
    report = {
        "posts": sum(poster.returned),
        "interruptions": poster.hits,
        "lost": lost,
        "twice": poster.twice,
        "out_of_order": poster.out_of_order,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
