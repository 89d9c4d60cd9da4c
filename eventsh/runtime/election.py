"""Who starts the broker of an address: whoever gets the lock, and nobody else.

The lock is an advisory one on a file beside the endpoint. It belongs to the open file description, so it is handed to
the broker as an inherited descriptor and is held for exactly as long as the broker lives, also if that is killed. A
file's mere existence, or a socket that does not answer, says nothing and is never taken as a sign.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from eventsh.errors import TransportError
from eventsh.options import broker_arguments

if TYPE_CHECKING:
    from collections.abc import Iterator

    from eventsh.address import Address
    from eventsh.options import Options
    from eventsh.transport import Transport

__all__ = [
    "is_locked",
    "lock_address",
    "python_command",
    "python_environment",
    "remove_log",
    "start_broker",
    "unlock_address",
]

# A broker is ready in 0.4 s, also where ten processes want its two processors. One that is not by then is given up by its
# starter; the lock goes with it, so that another process may try.
START_TIMEOUT_S = 10.0
# The log of a broker that no supervisor reads, beside its endpoint. Begun anew by each broker, so that it stays small.
LOG_NAME = ".log"
# `is_locked` has to take the lock for a moment to know: whoever meets it then must not think that a broker is there.
_LOCK_TRIES = 3
_LOCK_PAUSE_S = 0.002


def lock_address(transport: Transport, address: Address) -> int | None:
    """Lock `address` for a broker; give the locked descriptor, or None when another process holds it.

    Raises TransportError when the lock's file can't be made, or the transport has no such lock.
    """
    path = transport.lock_path(address)
    if path is None:
        raise TransportError(
            f"a broker can't be started at {address}: the {address.scheme} transport has no lock for it"
        )
    # Not one file is made or opened in a directory that others may write to.
    transport.prepare(address)
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise TransportError(f"can't lock {address}: {path}: {error.strerror}") from error
        try:
            is_ours = _try_lock(descriptor)
        except OSError as error:
            os.close(descriptor)
            raise TransportError(f"can't lock {address}: {path}: {error.strerror}") from error
        if not is_ours:
            os.close(descriptor)
            return None
        if _is_at(descriptor, path):
            if address.port == 0:
                # Every listener there gets a port of its own, and nobody else looks for this lock: the file would only
                # stay behind when the broker is killed.
                os.unlink(path)
            return descriptor
        # Its last holder removed the file between our opening and our locking it: this is a lock on nothing.
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    for _ in range(_LOCK_TRIES):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_LOCK_PAUSE_S)
        else:
            return True
    return False


def is_locked(transport: Transport, address: Address) -> bool:
    """Whether a broker has `address`, or somebody is about to start one there. Changes nothing."""
    path = transport.lock_path(address)
    if path is None:
        return False
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def unlock_address(transport: Transport, address: Address, descriptor: int) -> None:
    """Remove the lock's file and let go of the lock, in this order: nobody can lock what is no longer there."""
    path = transport.lock_path(address)
    if path is not None and _is_at(descriptor, path):
        os.unlink(path)
    os.close(descriptor)


def remove_log(transport: Transport, address: Address) -> None:
    """Remove the log of a broker that ends well: it is there for those that don't."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(_log_path(transport, address))


def _log_path(transport: Transport, address: Address) -> str:
    return f"{transport.lock_path(address)}".removesuffix(".lock") + LOG_NAME


def _is_at(descriptor: int, path: str) -> bool:
    try:
        there = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    here = os.fstat(descriptor)
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


def python_command(module: str) -> list[str]:
    """The command that runs a module of eventsh afresh with this interpreter.

    Under a server that embeds Python, sys.executable is that server, so the interpreter beside the library is taken.
    -P keeps the working directory, which may be anybody's, out of the path.
    """
    executable = sys.executable
    if not Path(executable or "").name.startswith(("python", "pypy")):
        executable = str(Path(sys.exec_prefix) / "bin" / "python3")
    return [executable, "-P", "-m", module]


def python_environment() -> dict[str, str]:
    """The environment in which `python_command` finds this same eventsh, however this process found it."""
    package_root = str(Path(__file__).resolve().parents[2])
    others = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part and part != package_root]
    if sys.flags.ignore_environment:
        # What this process was told not to heed is not for its broker either.
        others = []
    return {**os.environ, "PYTHONPATH": os.pathsep.join([package_root, *others])}


def start_broker(transport: Transport, address: Address, options: Options) -> bool:
    """Start a broker at `address` as a process of its own, and wait until it listens. Blocks; call it in a thread.

    False: another process has the address, and has or is about to have a broker there. Raises TransportError with what
    the broker said when it could not start.
    """
    with contextlib.ExitStack() as opened:
        with _fork_guard:
            lock = lock_address(transport, address)
            if lock is None:
                return False
            # The broker has its own copy in the end; if it has none, the lock is let go.
            opened.enter_context(_open_here(lock))
            report_read, report_write = os.pipe()
            opened.enter_context(_open_here(report_read))
            with _open_here(report_write):
                process = _spawn(transport, address, options, lock, report_write)
        _await_detached(address, process)
        _await_ready(address, report_read)
    return True


# Held while descriptors and a process are made. A program may fork at any time, and servers fork their workers right after
# `configure`. A child that came in between would have descriptors that nobody closes: of the lock, so that no broker could
# follow this one for as long as the child lives, and of the pipe for whose end Popen waits.
_fork_guard = threading.RLock()
# What is open while a broker is started, to be closed in such a child.
_open_descriptors: set[int] = set()


@contextlib.contextmanager
def _open_here(descriptor: int) -> Iterator[None]:
    """Close `descriptor` in the end; and at once in a child that is forked meanwhile."""
    _open_descriptors.add(descriptor)
    try:
        yield
    finally:
        with _fork_guard:
            _open_descriptors.discard(descriptor)
            os.close(descriptor)


def _close_in_child() -> None:
    for descriptor in _open_descriptors:
        os.close(descriptor)
    _open_descriptors.clear()
    _fork_guard.release()


os.register_at_fork(before=_fork_guard.acquire, after_in_parent=_fork_guard.release, after_in_child=_close_in_child)


def _with_absolute_paths(options: Options) -> Options:
    """The broker is started in another directory."""
    if options.record is not None:
        options = options.replace(record=os.path.abspath(options.record))
    if options.flight_recorder is not None:
        options = options.replace(flight_dir=os.path.abspath(options.flight_dir or "."))
    return options


def _spawn(transport: Transport, address: Address, options: Options, lock: int, report: int) -> subprocess.Popen[bytes]:
    command = [*python_command("eventsh.runtime.broker"), "--address", str(address), "--lock-fd", str(lock)]
    command += ["--report-fd", str(report), "--detach", *broker_arguments(_with_absolute_paths(options))]
    # Where others may make files too, one of this name may be anything: not waited for, and not written to unless ours.
    flags = os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        path = _log_path(transport, address)
        log = os.open(path, flags, 0o600)
        about = os.fstat(log)
        if not stat.S_ISREG(about.st_mode) or about.st_uid != os.geteuid() or about.st_nlink != 1:
            os.close(log)
            raise TransportError(f"can't start a broker at {address}: {path} is not a file of our own: remove it")
        os.ftruncate(log, 0)
        with _open_here(log):
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                env=python_environment(),
                pass_fds=(lock, report),
                start_new_session=True,
                cwd="/",
            )
    except OSError as error:
        raise TransportError(f"can't start a broker at {address}: {error}") from error


def _await_detached(address: Address, process: subprocess.Popen[bytes]) -> None:
    """Wait for the end of what was started: it is only the parent of the broker."""
    try:
        process.wait(START_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        process.kill()
        process.wait()
        raise TransportError(f"can't start a broker at {address}: {error}") from error


def _await_ready(address: Address, report: int) -> None:
    """Read the broker's first report. Its end without one means that the broker died."""
    line = b""
    deadline = time.monotonic() + START_TIMEOUT_S
    poll = select.poll()
    poll.register(report, select.POLLIN)
    while not line.endswith(b"\n"):
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise TransportError(f"the broker at {address} did not start within {START_TIMEOUT_S:g} s")
        data = os.read(report, 65536)
        if not data:
            break
        line += data
    try:
        state = orjson.loads(line)
    except orjson.JSONDecodeError:
        state = {}
    if state.get("state") != "ready":
        reason = state.get("error") or f"it ended without a word (its log is beside {address})"
        raise TransportError(f"the broker at {address} did not start: {reason}")
