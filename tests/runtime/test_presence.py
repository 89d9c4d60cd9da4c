"""A broker whose lock, socket, log or directory is removed, replaced or old; and two brokers at one address."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from eventsh.api import AsyncEvents, Events
from eventsh.commands.status import status
from eventsh.errors import EventError, TransportError, UsageError
from eventsh.options import Options
from eventsh.runtime.broker import Broker
from eventsh.runtime.election import is_locked, start_broker
from eventsh.runtime.endpoint import find_endpoint
from tests.cli.pool import COMMAND, DEADLINE_S, Pool, environment, run, wait_until

OTHER_UID = 65534
DAYS_S = 10 * 24 * 3600.0
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user, or mount a file system")
transports = pytest.mark.parametrize("transport", ["unix", "shm"])


@pytest.fixture
def path() -> Iterator[Path]:
    # Not tmp_path: a socket's path has to be short.
    with tempfile.TemporaryDirectory(prefix="evp-", dir="/tmp", ignore_cleanup_errors=True) as directory:
        yield Path(directory)


class Worker:
    """A bus that handles what is posted for a test, and starts a broker where none is."""

    def __init__(self, address: str, **options: Any) -> None:
        self.handled: list[Any] = []
        self.gaps: list[dict[str, Any]] = []
        self.events = Events(address, linger=1.0, **options)
        self.events.register(lambda data, *_: self.handled.append(data), "test")
        self.events.register(lambda data, *_: self.gaps.append(data), "eventsh", "gap")
        self.events.configure()
        self.events.wait_ready(30.0)

    @property
    def missed(self) -> int:
        return sum(gap["missed"] for gap in self.gaps)

    def post(self, *data: Any) -> None:
        for each in data:
            self.events.post("test", "e", each)
        self.events.flush(30.0)


@contextmanager
def working(address: str, **options: Any) -> Iterator[Worker]:
    worker = Worker(address, **options)
    try:
        yield worker
    finally:
        worker.events.close()


def broker_of(address: str) -> dict[str, Any] | None:
    try:
        broker: dict[str, Any] = status(address, timeout_s=5.0)["broker"]
        return broker
    except EventError:
        return None


def broker_pid(address: str) -> int:
    broker = broker_of(address)
    assert broker is not None
    pid: int = broker["pid"]
    return pid


@contextmanager
def stopped(*pids: int) -> Iterator[None]:
    """Let processes stand still, so that what follows is done before they look at their files."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def has_ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def log_of(run: Path) -> str:
    try:
        return (run / "e.sock.log").read_text()
    except FileNotFoundError:
        return ""


def serves(*workers: Worker) -> bool:
    """Whether a post of the first one comes to all."""
    mark = time.monotonic_ns()
    workers[0].post(mark)
    wait_until(lambda: all(mark in worker.handled for worker in workers), "all have it")
    return True


# One broker, and what becomes of its files.


@transports
def test_what_a_cleaner_of_temporary_directories_takes_for_old_is_refreshed_in_time(path, transport):
    address = f"{transport}:{path}/run/e.sock"
    with working(address) as worker:
        files = sorted((path / "run").iterdir())
        assert [file.name for file in files] == ["e.sock", "e.sock.lock", "e.sock.log"]
        inodes = [file.lstat().st_ino for file in files]
        for file in files:
            os.utime(file, (time.time() - DAYS_S,) * 2)

        def all_are_fresh() -> bool:
            return all(min(file.stat().st_atime, file.stat().st_mtime) > time.time() - 100 for file in files)

        wait_until(all_are_fresh, "the times are those of files in use")
        # From the future, as after a clock that was set back: no cleaner, but no reason to wait for it either.
        os.utime(files[0], (time.time() + DAYS_S,) * 2)
        wait_until(lambda: files[0].stat().st_mtime < time.time() + 100, "it has the time of now")
        assert [file.lstat().st_ino for file in files] == inodes
        assert serves(worker)


@transports
def test_what_is_made_anew_is_private_whatever_the_umask(path, transport):
    before = os.umask(0)
    try:
        with working(f"{transport}:{path}/run/e.sock") as worker:
            shutil.rmtree(path / "run")
            wait_until(lambda: len(os.listdir(path / "run")) == 3 if (path / "run").exists() else False, "all is anew")
            assert (path / "run").stat().st_mode & 0o777 == 0o700
            assert {file.lstat().st_mode & 0o777 for file in (path / "run").iterdir()} == {0o600}
            assert serves(worker)
    finally:
        os.umask(before)


def test_a_newcomer_attaches_where_the_socket_was_made_anew_and_others_stay_attached(path):
    address = f"unix:{path}/run/e.sock"
    with working(address) as first:
        pid = broker_pid(address)
        (path / "run" / "e.sock").unlink()
        with working(address) as second:
            assert broker_pid(address) == pid
            assert serves(first, second)
        assert "listening anew" in log_of(path / "run")
        assert not first.gaps


def test_a_lock_that_another_file_was_renamed_over_is_locked_anew(path):
    address = f"unix:{path}/run/e.sock"
    with working(address) as worker:
        lock = path / "run" / "e.sock.lock"
        (path / "run" / "other").touch(0o600)
        os.rename(path / "run" / "other", lock)
        inode = lock.stat().st_ino
        wait_until(lambda: is_locked(*find_endpoint(address)), "the new file is locked")
        assert lock.stat().st_ino == inode
        assert serves(worker)
    wait_until(lambda: os.listdir(path / "run") == [], "the broker removes its own files")


@pytest.mark.parametrize("name", ["e.sock", "e.sock.lock"])
@pytest.mark.parametrize("what", ["symlink", "file", "directory"])
def test_what_stands_in_place_of_a_file_is_neither_followed_nor_removed(path, name, what):
    if (name, what) == ("e.sock.lock", "file"):
        pytest.skip("a lock is a plain file")
    address = f"unix:{path}/run/e.sock"
    with working(address) as worker, socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path / "target"))
        other.listen()
        file = path / "run" / name
        file.unlink()
        make: dict[str, Callable[[], object]] = {
            "symlink": lambda: file.symlink_to(path / "target"),
            "file": lambda: file.write_text("mine"),
            "directory": file.mkdir,
        }
        make[what]()
        wait_until(lambda: "can't be kept" in log_of(path / "run"), "it says so")
        (line,) = [line for line in log_of(path / "run").splitlines() if "can't be kept" in line]
        assert str(file) in line
        assert what == "directory" or "remove it" in line
        if what == "symlink":
            assert file.is_symlink()
            assert (path / "target").is_socket()
        elif what == "file":
            assert file.read_text() == "mine"
        else:
            assert file.is_dir()
        file.rmdir() if what == "directory" else file.unlink()
        wait_until(lambda: is_locked(*find_endpoint(address)) and broker_of(address), "it is made anew")
        assert serves(worker)


@as_root
def test_a_directory_that_others_can_write_to_is_refused_until_it_is_mended(path):
    address = f"unix:{path}/run/e.sock"
    with working(address) as worker:
        pid = broker_pid(address)
        with stopped(pid):
            shutil.rmtree(path / "run")
            (path / "run").mkdir()
            (path / "run").chmod(0o777)
            os.chown(path / "run", OTHER_UID, -1)
        # Its log can't be there either: what it says is in the file that was removed.
        old_log = Path(f"/proc/{pid}/fd/2")
        wait_until(lambda: "belongs to user" in old_log.read_text(), "it says so")
        assert os.listdir(path / "run") == []
        os.chown(path / "run", 0, -1)
        (path / "run").chmod(0o700)
        wait_until(lambda: len(os.listdir(path / "run")) == 3, "all is made anew")
        assert "belongs to user" in log_of(path / "run")
        assert serves(worker)


@as_root
def test_on_a_full_file_system_it_is_tried_again_and_logged_now_and_then(path):
    disk = path / "run"
    disk.mkdir(mode=0o700)
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k,nr_inodes=8,mode=700", "none", str(disk)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        address = f"unix:{disk}/e.sock"
        with working(address) as worker:
            (disk / "e.sock").unlink()
            fillers = []
            with suppress(OSError):
                for number in range(8):
                    (disk / f"filler{number}").touch()
                    fillers.append(disk / f"filler{number}")
            wait_until(lambda: "No space left" in log_of(disk), "it says so")
            time.sleep(5.0)
            assert log_of(disk).count("No space left") <= 2
            for filler in fillers:
                filler.unlink()
            wait_until(lambda: broker_of(address) is not None, "the socket is made anew")
            assert serves(worker)
        wait_until(lambda: os.listdir(disk) == [], "the broker has ended")
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)


def test_the_lock_of_a_tcp_broker_is_made_anew(path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(path))
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"
    with working(address) as worker:
        shutil.rmtree(path / "eventsh")
        wait_until(lambda: is_locked(*find_endpoint(address)), "the lock is held anew")
        assert serves(worker)


# Starts at an address whose broker has lost its files.


@transports
def test_serve_refuses_a_live_socket_whose_lock_was_removed(path, transport):
    address = f"{transport}:{path}/run/e.sock"
    with working(address) as worker:
        with stopped(broker_pid(address)):
            (path / "run" / "e.sock.lock").unlink()
            inode = (path / "run" / "e.sock").stat().st_ino
            done = run(address, "serve", "--workers", "1")
            assert done.status == 1
            assert done.err.count("\n") == 1
            assert "a broker is already running" in done.err
            assert (path / "run" / "e.sock").stat().st_ino == inode
            assert not (path / "run" / "e.sock.lock").exists()
        wait_until(lambda: is_locked(*find_endpoint(address)), "the lock is made anew")
        assert (path / "run" / "e.sock").stat().st_ino == inode
        assert serves(worker)


def test_a_broker_that_does_not_start_leaves_no_file(path):
    (path / "e.sock").mkdir()
    address = f"unix:{path}/e.sock"
    with pytest.raises(TransportError, match="is a directory"):
        start_broker(*find_endpoint(address), Options())
    assert os.listdir(path) == ["e.sock"]


def test_a_broker_that_can_not_log_leaves_no_lock(path):
    (path / "e.sock.log").mkdir()
    with pytest.raises(TransportError, match="log"):
        start_broker(*find_endpoint(f"unix:{path}/e.sock"), Options())
    assert os.listdir(path) == ["e.sock.log"]


def test_a_broker_that_dies_at_its_start_leaves_no_file(path, monkeypatch):
    (path / "site").mkdir()
    (path / "site" / "sitecustomize.py").write_text("import os, sys\nif '--lock-fd' in sys.orig_argv: os._exit(7)\n")
    monkeypatch.setenv("PYTHONPATH", f"{path}/site:{environment('')['PYTHONPATH']}")
    with pytest.raises(TransportError, match="exit status 7"):
        start_broker(*find_endpoint(f"unix:{path}/run/e.sock"), Options())
    assert os.listdir(path / "run") == []


def test_a_broker_that_ends_leaves_the_files_of_others(path):
    address = f"unix:{path}/run/e.sock"
    assert start_broker(*find_endpoint(address), Options.from_values(linger=None))
    pid = broker_pid(address)
    others = {name: f"another's {name}" for name in ("e.sock", "e.sock.lock", "e.sock.log")}
    with stopped(pid):
        shutil.rmtree(path / "run")
        (path / "run").mkdir(mode=0o700)
        for name, text in others.items():
            (path / "run" / name).write_text(text)
        os.kill(pid, signal.SIGTERM)
    wait_until(lambda: has_ended(pid), "it has ended")
    assert {file.name: file.read_text() for file in (path / "run").iterdir()} == others


# Two brokers.


@contextmanager
def two_brokers(path: Path, transport: str, **options: Any) -> Iterator[tuple[Worker, Worker, int, int]]:
    """Two brokers that both believe to have the address, each with a worker, and both standing still; the path belongs to
    the younger one. Gives the worker and the broker of the older one and of the younger one."""
    address = f"{transport}:{path}/run/e.sock"
    with working(address, **options) as first:
        older = broker_pid(address)
        os.kill(older, signal.SIGSTOP)
        try:
            shutil.rmtree(path / "run")
            with working(address, **options) as second:
                younger = broker_pid(address)
                assert younger != older
                second.post("at the younger")
                with stopped(younger):
                    yield first, second, older, younger
                for pid in (older, younger):
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGCONT)
                wait_until(lambda: has_ended(younger), "the younger one has ended")
                wait_until(lambda: broker_of(address) and broker_pid(address) == older, "the older one answers")
                assert serves(first, second)
                assert serves(second, first)
                # No more than what it missed.
                wait_until(lambda: first.missed == 1, "the first worker is told of what it missed")
                assert "at the younger" in second.handled
                assert "at the younger" not in first.handled
                reasons = ("hands over to it and ends", "hands over to this one")
                wait_until(lambda: all(reason in log_of(path / "run") for reason in reasons), "both log it")
        finally:
            with suppress(ProcessLookupError):
                os.kill(older, signal.SIGCONT)


@transports
@pytest.mark.parametrize("has_token", [False, True])
def test_the_older_broker_finds_the_younger_one_which_hands_over(path, transport, has_token, monkeypatch):
    if has_token:
        (path / "token").write_text("0123456789abcdef0123456789abcdef")
        (path / "token").chmod(0o600)
        # For the questions of this test; the brokers have it as an option.
        monkeypatch.setenv("EVENTSH_TOKEN_FILE", str(path / "token"))
    with two_brokers(path, transport):
        pass


@transports
def test_the_younger_broker_finds_the_older_one_and_hands_over_by_itself(path, transport):
    with two_brokers(path, transport) as (_, _, older, _):
        # Gone again, and this time the older one is the first to look.
        (path / "run" / "e.sock").unlink()
        os.kill(older, signal.SIGCONT)
        wait_until((path / "run" / "e.sock").exists, "the older one listens anew")


def test_a_younger_serve_ends_with_a_reason_once_its_workers_have_drained(path):
    address = f"unix:{path}/run/e.sock"
    with working(address) as first:
        older = broker_pid(address)
        with stopped(older):
            shutil.rmtree(path / "run")
            pool = Pool(path, workers=2)
            done = pool.run("post", "test", "e", '"at the younger"', "--wait")
            assert done.status == 0
        try:
            began = time.monotonic()
            assert pool.process.wait(30.0) == 1
            assert time.monotonic() - began < 10
        finally:
            pool.stop()
        assert f"giving up: {address}: an older broker (pid {older}) has the address" in pool.err
        assert sum(len(events) for events in pool.handled("e").values()) == 2
        wait_until(lambda: broker_of(address) and broker_pid(address) == older, "the older one answers")
        wait_until(lambda: first.missed == 1, "its worker is told of what it missed")
        assert serves(first)


def test_an_older_serve_stays_and_a_younger_one_ends(path):
    older = Pool(path, workers=1)
    (path / "b").mkdir()
    try:
        broker = older.status()["broker"]
        with stopped(older.process.pid, broker["pid"]):
            shutil.rmtree(path / "run")
            with (path / "b" / "err").open("wb") as err:
                younger = subprocess.Popen(
                    [*COMMAND, "serve", "--workers", "1"],
                    stdout=subprocess.DEVNULL,
                    stderr=err,
                    env=environment(older.address),
                )
            wait_until(lambda: broker_of(older.address) is not None, "the younger one serves")
        assert younger.wait(30.0) == 1
        assert "has the address" in (path / "b" / "err").read_text()
        wait_until(lambda: broker_of(older.address), "the older one answers")
        assert older.status()["broker"]["epoch"] == broker["epoch"]
        wait_until(lambda: is_locked(*find_endpoint(older.address)), "its lock is made anew")
        assert older.run("post", "test", "e", "1", "--wait").status == 0
    finally:
        older.stop()
    assert os.listdir(path / "run") == []


def test_an_older_broker_that_stands_still_is_not_displaced(path):
    address = f"unix:{path}/run/e.sock"
    with working(address):
        pid = broker_pid(address)
        with stopped(pid):
            (path / "run" / "e.sock.lock").unlink()
            with pytest.raises(TransportError, match="already running"):
                start_broker(*find_endpoint(address), Options())
            assert sorted(os.listdir(path / "run")) == ["e.sock"]
        wait_until(lambda: len(os.listdir(path / "run")) == 3, "its files are made anew")
        assert broker_pid(address) == pid


def test_a_broker_goes_on_if_the_older_one_does_not_come_for_the_address(path, caplog):
    address = f"unix:{path}/e.sock"

    async def main() -> None:
        options = Options.from_values(linger=None)
        broker = Broker(*find_endpoint(address), options)
        await broker.start()
        ended: list[str] = []
        broker.presence.begin(None, None, ended.append)
        async with asyncio.timeout(DEADLINE_S), AsyncEvents(address, broker="never") as events:
            await events.wait_ready()
            # The older one is killed right after that.
            facts = {"pid": 1, "started_ns": 0, "epoch": 3, "posts": 0}
            assert broker.presence.answer(facts)["pid"] == os.getpid()
            while not (path / "e.sock").exists() or "this one goes on" not in caplog.text:
                await asyncio.sleep(0.05)
            async with AsyncEvents(address, broker="never") as newcomer:
                await newcomer.wait_ready()
                newcomer.post("test", "e")
                await newcomer.flush()
        assert not ended
        await broker.close()

    asyncio.run(main())
    assert os.listdir(path) == []


@pytest.mark.parametrize("facts", [{}, {"pid": 1, "started_ns": "0", "epoch": 3, "posts": 0}])
def test_what_is_not_what_a_broker_says_of_itself_changes_nothing(path, facts):
    async def main() -> None:
        broker = Broker(*find_endpoint(f"unix:{path}/e.sock"), Options.from_values(linger=None))
        await broker.start()
        with pytest.raises(UsageError, match="hand_over"):
            broker.presence.answer(facts)
        assert broker.is_reachable()
        await broker.close()

    asyncio.run(main())
