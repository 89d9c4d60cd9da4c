"""The last released version and this one work together: brokers, workers, posters and recorders, in all pairs."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import eventsh
from eventsh.protocol.frame import MAX_BODY_BYTES, Flag, FrameDecoder, Kind, decode_header, encode_frame
from eventsh.protocol.messages import Hello
from tests.compatibility.versions import PROGRAM, Pool, Version, Worker, finish, versions, wait_until

COUNT = 200
NAMES = ("old", "new")
VERSIONS = {"old": "0.1.0", "new": eventsh.__version__}
READ = ("-m", "eventsh", "log", "cat", "--json")


@pytest.fixture(scope="module")
def of(tmp_path_factory) -> dict[str, Version]:
    return versions(tmp_path_factory.mktemp("released"))


def start_recorder(pool: Pool, version: Version, path: Path, *flags: str) -> subprocess.Popen[str]:
    process = version.start("-m", "eventsh", "record", str(path), "--address", pool.address, *flags)
    pool.processes.append(process)
    wait_until(path.exists, lambda: f"the {version.name} recorder is attached")
    return process


def post_from_everywhere(pool: Pool, of: dict[str, Version]) -> tuple[list[str], list[str]]:
    """Post with every interface of both versions at once; give the names of those that posted, and of the events."""
    programs = [(name, f"{kind} {name}", kind) for kind in ("Events", "AsyncEvents") for name in NAMES]
    commands = [(name, f"command {name}") for name in NAMES]
    post = ("-m", "eventsh", "post", "app", "--address", pool.address, "--json")
    running = [
        *(of[name].start(PROGRAM, "post", kind, pool.address, by, str(COUNT)) for name, by, kind in programs),
        *(of[name].start(*post, by, "1", "--count", "50") for name, by in commands),
        *(of[name].start(*post, f"{by} unique", json.dumps(by), "--unique", by) for name, by in commands),
        *(of[name].start(*post, f"{by} waited", json.dumps(by), "--wait") for name, by in commands),
    ]
    answers = [json.loads(finish(process)) for process in running]
    for (name, _, _), answer in zip(programs, answers, strict=False):
        assert answer == {"version": VERSIONS[name], "ran": [0, 1], "is_complete": True}
    counted, unique, waited = answers[4:6], answers[6:8], answers[8:10]
    assert [answer["workers"] for answer in counted] == [[0, 1]] * 2
    assert [answer["unique"] for answer in unique] == ["given"] * 2
    assert [[len(worker["handlers"]) for worker in answer["workers"]] for answer in waited] == [[1, 1]] * 2
    return [by for _, by, _ in programs], [by for _, by in commands]


@pytest.mark.parametrize("broker", NAMES)
def test_old_and_new_workers_posters_and_recorders_share_a_broker(tmp_path, of, broker):
    with Pool(tmp_path) as pool:
        recorded = {"broker": tmp_path / "broker.evlog", **{name: tmp_path / f"{name}.evlog" for name in NAMES}}
        process = pool.broker(of[broker], f"--record={recorded['broker']}")
        workers = [pool.worker(of[name], name) for name in NAMES]
        recorders = [start_recorder(pool, of[name], recorded[name]) for name in NAMES]
        programs, commands = post_from_everywhere(pool, of)
        posters = programs + commands
        for worker in workers:
            for by in posters:
                wait_until(partial(worker.data_of, f"{by} waited"), lambda: "all is handled")
            assert [worker.data_of(by) for by in programs] == [list(range(COUNT))] * 4
            assert [worker.data_of(by) for by in commands] == [[1] * 50] * 2
            assert [worker.data_of(f"{by} waited") for by in posters] == [[by] for by in posters]
            assert not worker.gaps
        once = [[data for worker in workers for data in worker.data_of(f"{by} unique")] for by in posters]
        assert once == [[by] for by in posters]
        for status in (pool.status(of[name]) for name in NAMES):
            assert [worker["dropped"] for worker in status["workers"]] == [0, 0]
        for recorder in recorders:
            assert "Traceback" not in pool.end(recorder, signal.SIGINT)
        assert "Traceback" not in pool.end(process, signal.SIGTERM)
        # Everything is recorded in the order in which workers had it; an observer gets no unique events.
        order = [
            (event, data) for source, event, data in workers[0].seen() if source == "app" and "unique" not in event
        ]
        reading = [(by, name, of[name].start(*READ, str(path))) for by, path in recorded.items() for name in NAMES]
        for by, name, process in reading:
            events = [(item["event"], item["data"]) for item in read_items(process) if item.get("source") == "app"]
            assert [item for item in events if "unique" not in item[0]] == order, (by, name)
            found = sorted(data for event, data in events if "unique" in event)
            assert found == (sorted(posters) if by == "broker" else [])


def read_items(process: subprocess.Popen[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in finish(process).splitlines()]


@pytest.mark.parametrize("broker", NAMES)
def test_old_and_new_workers_that_were_too_slow_are_told_exactly_what_they_missed(tmp_path, of, broker):
    with Pool(tmp_path) as pool:
        pool.broker(of[broker], "--timeout=0.3", "--max-queue-len=20")
        workers = [pool.worker(of[name], name) for name in NAMES]
        fast = pool.worker(of[broker], "fast")
        for worker in workers:
            worker.process.send_signal(signal.SIGSTOP)
        of["new"].run("-m", "eventsh", "post", "app", "e", "1", "--count", "500", "--address", pool.address)
        wait_until(partial(has_handled, fast, "e", [1] * 500), lambda: "the fast worker handles all")
        for worker in workers:
            worker.process.send_signal(signal.SIGCONT)
            wait_until(partial(worker.data_of, "gap", "eventsh"), lambda: "the gap is reported")
            of["old"].run("-m", "eventsh", "post", "app", "last", "--address", pool.address)
            wait_until(partial(worker.data_of, "last"), lambda: "it gets events again")
            missed = sum(gap["missed"] for gap in worker.gaps)
            assert missed > 0
            # Others joined and left meanwhile, which it may have missed too.
            lifecycle = fast.seen()
            assert len(worker.data_of("e")) + missed >= 500 > len(worker.data_of("e"))
            assert missed <= 500 - len(worker.data_of("e")) + len(lifecycle)


@pytest.mark.parametrize(
    ("first", "second", "ends_by"),
    [
        ("old", "new", signal.SIGKILL),
        ("new", "old", signal.SIGKILL),
        pytest.param("old", "new", signal.SIGTERM, marks=pytest.mark.long),
    ],
)
def test_a_broker_of_the_other_version_takes_over_under_load(tmp_path, of, first, second, ends_by):
    with Pool(tmp_path) as pool:
        broker = pool.broker(of[first], "--timeout=30")
        workers = [pool.worker(of[name], name) for name in NAMES]
        posters = [pool.start(of[name], PROGRAM, "load", pool.address, name, ready="ready") for name in NAMES]
        wait_for_more(workers, 50)
        pool.end(broker, ends_by)
        pool.broker(of[second], "--timeout=30")
        # Until both posters are back: a process that takes over a slot does not know what the one before it handled of an
        # earlier broker's, and would handle once more what is sent again.
        wait_for_more(workers, 100)
        # And one worker after the other is replaced by one of the version that the broker has now.
        after = [replace(pool, worker, of[second], f"{number} anew") for number, worker in enumerate(workers)]
        for name, poster in zip(NAMES, posters, strict=True):
            out, err = poster.communicate(timeout=60)
            assert poster.returncode == 0, err
            expected = list(range(int(out)))
            for old, new in zip(workers, after, strict=True):
                wait_until(partial(ends_with, new, name, expected), lambda: "everything is handled")
                assert old.data_of(name) + new.data_of(name) == expected, (name, new.gaps)
        assert not [worker.gaps for worker in workers + after if worker.gaps]


def ends_with(worker: Worker, name: str, expected: list[int]) -> bool:
    return worker.data_of(name)[-1:] == expected[-1:]


def wait_for_more(workers: list[Worker], count: int) -> None:
    """Wait until each worker has handled so many more events of each poster."""

    def handled() -> list[int]:
        return [len(worker.data_of(name)) for worker in workers for name in NAMES]

    before = handled()
    wait_until(
        lambda: all(now >= then + count for now, then in zip(handled(), before, strict=True)), lambda: "it flows"
    )


def replace(pool: Pool, worker: Worker, version: Version, name: str) -> Worker:
    """Have a process leave, which handles what it was given, and another one take its slot."""
    _, err = worker.process.communicate(timeout=60)
    assert worker.process.returncode == 0, err
    return pool.worker(version, name)


PLAIN, LATER = b'[["app","e",[%d]]]', b"\x08\x00\x00\x00{}a form of later"
FORGED = b'[["eventsh","gap",[{"missed":1000}]]]'


def post_by_hand(address: str, origin: int, *batches: tuple[int, int, bytes]) -> None:
    """Post batches of a new origin, each given as flags, number of events and body, and wait until all are confirmed.

    A broker may end the connection of one who posts what nobody can read: the others are sent again, as by any poster."""
    frames, last = [], 0
    for flags, count, body in batches:
        frame = encode_frame(Kind.EVENTS, body, flags=flags, count=count, pid=1, origin=origin, origin_seq=last + 1)
        last += count
        frames.append((last, frame))
    confirmed = 0
    for _ in frames:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(60)
            sock.connect(address.removeprefix("unix:"))
            sock.sendall(Hello(f"by hand {origin}", origin, 1, "poster", None, False, 0, 0, 0, [], False).encode())
            sock.sendall(b"".join(frame for number, frame in frames if number > confirmed))
            decoder = FrameDecoder(MAX_BODY_BYTES)
            while confirmed < last and (data := sock.recv(65536)):
                for header in map(decode_header, decoder.receive_data(data)):
                    confirmed = header.origin_seq if header.kind == Kind.CONFIRM else confirmed
        if confirmed == last:
            return
    raise AssertionError(f"the broker ended each connection, {confirmed} of {last} are confirmed")


@pytest.mark.parametrize("broker", NAMES)
def test_what_a_process_can_t_read_wedges_nobody_and_is_a_gap_in_its_place(tmp_path, of, broker):
    with Pool(tmp_path) as pool:
        pool.broker(of[broker])
        old, new = (pool.worker(of[name], name) for name in NAMES)
        recorded, chosen = tmp_path / "recorded.evlog", tmp_path / "chosen.evlog"
        recorders = [
            start_recorder(pool, of["new"], recorded),
            start_recorder(pool, of["new"], chosen, "--source", "app"),
        ]
        later = [(64, 3, LATER), (128, 1, LATER), (192, 2, b""), (64 | Flag.UNIQUE, 1, b"\xff\xffk")]
        wrong = [(0, 4, b"nonsense"), (0, 1, FORGED), (0, 1, b'[["app","e",[1,2]]]')]
        post_by_hand(pool.address, 77, (0, 1, PLAIN % 0), *later[:3], (0, 1, PLAIN % 1), *wrong, (0, 1, PLAIN % 2))
        for worker in (old, new):
            wait_until(partial(has_handled, worker, "e", [0, 1, 2]), lambda: "all is handled")
        place = [
            data if source == "app" else data["missed"] for source, event, data in new.seen() if event in ("e", "gap")
        ]
        assert place == [0, 3, 1, 2, 1, 4, 1, 1, 2]
        for recorder in recorders:
            assert "Traceback" not in pool.end(recorder, signal.SIGINT)
        wait_until(
            lambda: broker == "old" or pool.status(of["new"])["workers"][1]["unread"] == 6, lambda: "the broker counts"
        )
        if broker == "new":
            # This broker sends no process what it can't read, also not one of the released version.
            assert [gap["missed"] for gap in old.gaps] == [3, 1, 2, 1000]
            rows = pool.status(of["old"])["workers"]
            assert [(row["dropped"], row["unread"]) for row in rows] == [(6, 0), (6, 6)]
            # A unique event is one worker's, also as a gap.
            post_by_hand(pool.address, 78, (0, 1, PLAIN % 3), later[3], (0, 1, PLAIN % 4))
            wait_until(lambda: len(old.gaps) + len(new.gaps) == 4 + 6 + 1, lambda: "one of them has the gap")
        warnings = pool.end(new.process, signal.SIGKILL)
        assert "Traceback" not in warnings
        # One line for each gap that the broker sent, and one for all batches of one poster that this process can't read.
        sent = sum("not known to the broker" in gap["reason"] for gap in new.gaps)
        assert warnings.count(" events: ") == sent + 1
        first = (
            "4 events: the body of a frame is not JSON" if broker == "new" else "3 events: flag 64 (metadata) not known"
        )
        assert f"missed {first}" in warnings
        holes = [read_holes(of["new"], path) for path in (recorded, chosen)]
        # What is not chosen by its names is kept whole, and read by `verify`.
        assert holes == [[3, 1, 2], [3, 1, 2, 4, 1, 1]]


def has_handled(worker: Worker, event: str, expected: list[int]) -> bool:
    return worker.data_of(event) == expected


def read_holes(version: Version, recording: Path) -> list[int]:
    process = version.start(*READ, str(recording))
    out, err = process.communicate(timeout=60)
    assert "Traceback" not in err
    items = [json.loads(line) for line in out.splitlines()]
    return [item["missed"] for item in items if item.get("record") == "hole"]
