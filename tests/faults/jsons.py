"""Row 8: JSON that is wrong, or right and unusual; the verdict on it must be one, at the poster and at every worker.

Each text goes three ways: as a person's or a program's data through `post`, which accepts or refuses it, as the same data
in subclasses of its types, and as the bytes that a poster of somebody else's making could send, which the broker never
looks at.
"""

from __future__ import annotations

import hashlib
import json
import marshal
import random
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eventsh.api import Events
from eventsh.errors import ProtocolError, UsageError
from eventsh.protocol.codec import decode, parse_json
from eventsh.protocol.frame import MAX_BODY_BYTES, FrameDecoder, Kind, encode_frame
from tests.faults.garbage import hello_frame
from tests.faults.processes import DEADLINE_S, Served, ask, wait_until
from tests.protocol.dresses import dress

__all__ = ["HANDLERS", "TEXTS", "JsonReport", "abuse_json", "digest", "draw_text"]

HANDLERS = str(Path(__file__).with_name("json_handlers.py"))
MAX_PAYLOAD_BYTES = 16 * 1024 * 1024
# The longest string that fits with its envelope, ["json","typed 12",["..."]] and what a frame adds.
_LONG = MAX_PAYLOAD_BYTES - 200

TEXTS: tuple[bytes, ...] = (
    b"[" * 1_000_000,
    b"[" * 1_000_000 + b"]" * 1_000_000,
    b'{"a":' * 1_000_000 + b"1" + b"}" * 1_000_000,
    *(b"[" * depth + b"]" * depth for depth in (199, 200, 201, 254, 255, 1000, 1023, 1024, 1025)),
    *(b"NaN", b"-NaN", b"Infinity", b"-Infinity", b"nan", b"[1,NaN]", b"1e400", b"-1e400", b"1e-400"),
    *(b"%d" % number for number in (2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1, 10**400)),
    *(b"-0", b"-0.0", b"01", b"1.", b".5", b"+1", b"0x10", b"1_000", b"1e5", b"123456789012345678901234567890.0"),
    *(b'{"a":1,"a":2}', b'{"a":1,"\\u0061":2}', b'{"":0}', b"{1:2}", b'{"a"}', b'{"a":1,}', b"[1,]", b"[,1]"),
    *(
        rb'"\ud800"',
        rb'"\udc00\ud800"',
        rb'"\ud83d\ude00"',
        rb'{"\ud800":1}',
        b'"\xed\xa0\x80"',
        b'"\xff"',
        b'"\xc0\x80"',
    ),
    *(rb'"\u0000"', b'"\0"', b'"\n"', b'"\x7f"', rb'"\x41"', rb'"\u12"', b"'a'", b'"', b"", b" ", b"\xef\xbb\xbf1"),
    *(b"true", b"True", b"nul", b"null", b"1 2", b"1,2", b"]", b"1]]]", b"// a\n1", b"/**/1"),
    b'"' + b"x" * _LONG + b'"',
    b'"' + b"x" * MAX_PAYLOAD_BYTES + b'"',
    '"\u202e\u2028\ufeff\U000e0041\U0010ffff"'.encode(),
)


def digest(data: Any) -> str:
    """Tell values apart by type and order too. Of version 2, in which one value has one form."""
    return hashlib.sha256(marshal.dumps(data, 2)).hexdigest()[:24]


def draw_text(draw: random.Random) -> bytes:
    """A text that is nearly JSON: one of the short ones above, inside of others, with bytes changed."""
    text = draw.choice([text for text in TEXTS if len(text) < 3000])
    for _ in range(draw.randrange(3)):
        text = draw.choice((b"[%b]", b'{"k":%b}', b'[1,"a",%b]', b'{"k":[%b,null],"k":2}')).replace(b"%b", text)
    changed = bytearray(text)
    for _ in range(draw.choice((0, 0, 1, 2))):
        place = draw.randrange(len(changed) + 1)
        changed[place : place + draw.randrange(2)] = draw.choice(
            (b"", b'"', b"\\", b"[", b"]", b",", b"\xff", b"9", b"e")
        )
    return bytes(changed)


@dataclass(slots=True)
class JsonReport:
    """What was posted in all ways, and every difference."""

    seed: int
    texts: int = 0
    accepted: int = 0
    refused: int = 0
    read: int = 0
    """Of the raw ones, those that the workers could read."""
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        head = (
            f"row 8, seed {self.seed}: {self.texts} texts; posted: {self.accepted} accepted, {self.refused} refused;"
            f" sent as they are: {self.read} read by every worker, {self.texts - self.read} by none;"
            f" {len(self.faults)} differences"
        )
        return "\n".join([head, *(f"  FAULT: {fault}" for fault in self.faults[:40])])


class _RawPoster:
    """A client that checks nothing: any bytes as the body of a batch."""

    def __init__(self, path: str, draw: random.Random) -> None:
        self._path = path
        self._draw = draw
        self._attach()

    def _attach(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(DEADLINE_S)
        self._socket.connect(self._path)
        self._decoder = FrameDecoder(MAX_BODY_BYTES)
        self._number = 0
        self._socket.sendall(hello_frame(self._draw))
        if not self._await(lambda frame: frame[4] == Kind.WELCOME):
            raise ConnectionError("the broker has closed the connection")

    def post(self, body: bytes, *, is_bad: bool) -> None:
        """Send it, and wait until every worker has it, or until the broker ends the connection for a bad one."""
        self._number += 1
        self._socket.sendall(encode_frame(Kind.EVENTS, body, count=1, pid=1, origin_seq=self._number))
        if is_bad:
            assert not self._await(lambda frame: False)
            self.close()
            self._attach()
        elif not self._await(lambda frame: frame[4] == Kind.CONFIRM):
            raise ConnectionError("the broker has closed the connection")

    def _await(self, is_it: Callable[[bytearray], bool]) -> bool:
        """Return whether such a frame came before the end of the connection."""
        while data := self._socket.recv(65536):
            if any(map(is_it, self._decoder.receive_data(data))):
                return True
        return False

    def close(self) -> None:
        self._socket.close()


def abuse_json(texts: Sequence[bytes], seed: int, path: Path) -> JsonReport:
    """Post `texts` in all ways to a pool of two workers."""
    report = JsonReport(seed, len(texts))
    flags = (f"--max-payload-len={MAX_PAYLOAD_BYTES}", "--max-queue-len=100000")
    pool = Served(path, f"unix:{path}/run/e.sock", 2, *flags, handlers=HANDLERS)
    try:
        before = _pids(pool)
        expected: dict[str, str] = {}
        with Events(pool.address, broker="never", role="observer", max_payload_len=MAX_PAYLOAD_BYTES) as events:
            events.wait_ready(DEADLINE_S)
            draw = random.Random(seed)
            for number, text in enumerate(texts):
                typed = _post_typed(events, f"typed {number}", text, report)
                dressed = _post_dressed(events, f"dressed {number}", text, draw)
                if dressed is not None and list(dressed.values()) != list(typed.values()):
                    report.faults.append(f"{text[:60]!r} has another verdict in subclasses")
                expected |= typed | (dressed or {})
            events.flush(DEADLINE_S)
        raw = _RawPoster(pool.address.removeprefix("unix:"), random.Random(seed))
        for number, text in enumerate(texts):
            # Without its last brackets it may still be closed by what the text says itself.
            body = b'[["json","raw %d",[%b]]]' % (number, text)
            if len(body) > MAX_PAYLOAD_BYTES:
                body = body[:MAX_PAYLOAD_BYTES]
            read = _read_raw(body, report)
            raw.post(body, is_bad=not read)
            expected |= read
        raw.post(b'[["json","end",[null]]]', is_bad=False)
        raw.close()
        wait_until(
            lambda: all(seen[-1:] == [["end", digest(None)]] for seen in _seen(path, before[1:])), "all is handled"
        )
        for number, seen in enumerate(_seen(path, before[1:])):
            report.faults += _compare(f"worker {number}", dict(seen[:-1]), expected)
            if len(seen) != len(dict(seen)):
                report.faults.append(f"worker {number} has handled something twice")
        if _pids(pool) != before:
            report.faults.append("a process has died")
    finally:
        if pool.stop():
            report.faults.append("the pool did not end in good order")
    return report


def _post_typed(events: Events, name: str, text: bytes, report: JsonReport) -> dict[str, str]:
    """Post what a person typed; what every worker must have of it then."""
    try:
        value = parse_json(text)
        events.post("json", name, value)
    except UsageError:
        report.refused += 1
        return {}
    report.accepted += 1
    if json.loads(text) != value:
        report.faults.append(f"{name} is read as another value than by Python's own module: {text[:60]!r}")
    return {name: digest(value)}


def _post_dressed(events: Events, name: str, text: bytes, draw: random.Random) -> dict[str, str] | None:
    """Post in subclasses what Python's own module reads; None if it reads nothing. Returns as `_post_typed`."""
    try:
        value = json.loads(text.decode(), object_pairs_hook=_single)
        data = dress(value, draw)
    except (ValueError, RecursionError):
        return None
    try:
        events.post("json", name, data)
    except UsageError:
        return {}
    return {name: digest(value)}


def _single(members: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(members)
    if len(value) < len(members):
        raise ValueError("a doubled key: its first value can be refused in the text, and is not in the data")
    return value


def _read_raw(body: bytes, report: JsonReport) -> dict[str, str]:
    """What every worker must make of a body, if it can be read at all."""
    try:
        [[source, event, [value]]] = decode(body)
    except (ProtocolError, TypeError, ValueError):
        return {}
    if source != "json" or type(event) is not str:
        return {}
    report.read += 1
    return {event: digest(value)}


def _compare(who: str, seen: dict[str, str], expected: dict[str, str]) -> list[str]:
    return [
        f"{who} has {seen.get(name, 'nothing')} for {name!r}, and not {expected.get(name, 'nothing')}"
        for name in {**seen, **expected}
        if seen.get(name) != expected.get(name)
    ]


def _seen(path: Path, pids: Sequence[int]) -> list[list[list[str]]]:
    files = [path / f"{pid}.digests" for pid in pids]
    return [[json.loads(line) for line in file.read_bytes().splitlines()] for file in files]


def _pids(pool: Served) -> list[int]:
    state = ask(pool.address, 10.0)
    assert state is not None
    return [state["broker"]["pid"], *(worker["pid"] for worker in state["workers"])]
