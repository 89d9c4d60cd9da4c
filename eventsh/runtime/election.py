"""Who starts the broker of an address: whoever gets the lock, and nobody else.

The lock is an advisory one on a file beside the endpoint. It belongs to the open file description, so it is handed to
the broker as an inherited descriptor and is held for exactly as long as the broker lives, also if that is killed. A
file's mere existence says nothing and is never taken as a sign. Nor does its absence: the name can be removed while the
broker lives, so its holder calls `keep_lock` every few seconds.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import stat
import subprocess
import threading
import time
from typing import TYPE_CHECKING

import orjson

from eventsh.errors import TransportError
from eventsh.escape import escape
from eventsh.options import broker_arguments
from eventsh.runtime.interpreter import is_frozen, python_command, python_environment
from eventsh.transports.files import identity_at, identity_of, keep_file, unlink_if_same

if TYPE_CHECKING:
    from collections.abc import Iterator

    from eventsh.address import Address
    from eventsh.options import Options
    from eventsh.transport import Transport

__all__ = [
    "Log",
    "forget_starts",
    "is_locked",
    "keep_lock",
    "lock_address",
    "start_broker",
    "unlock_address",
]

# A broker is ready in 0.4 s, also where ten processes want its two processors. One that is not by then is given up by its
# starter; the lock goes with it, so that another process may try.
START_TIMEOUT_S = 10.0
# The log of a broker that no supervisor reads, beside its endpoint. Begun anew by each broker, so that it stays small.
LOG_NAME = ".log"
# How much of its end is read for the reason why a broker did not start, and how much of that is shown.
_LOG_TAIL_BYTES = 8192
_LAST_LINE_CHARS = 500
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
            advice = ": it is a symbolic link: remove it" if error.errno == errno.ELOOP else ""
            raise TransportError(f"can't lock {address}: {path}: {error.strerror}{advice}") from error
        try:
            is_ours = _try_lock(descriptor)
        except OSError as error:
            os.close(descriptor)
            raise TransportError(f"can't lock {address}: {path}: {error.strerror}") from error
        if not is_ours:
            os.close(descriptor)
            return None
        if identity_at(path) == identity_of(descriptor):
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


def keep_lock(transport: Transport, address: Address, descriptor: int) -> bool:
    """Keep the lock's file at its name: refresh its times, or make and lock a new file if it was removed or replaced.

    The new file gets the number `descriptor`.

    Returns:
        True when the file was made anew.

    Raises:
        TransportError: The file can't be made, or another process has locked one at that name.
    """
    path = transport.lock_path(address)
    if path is None or address.port == 0 or keep_file(path, identity_of(descriptor)):
        return False
    fresh = lock_address(transport, address)
    if fresh is None:
        raise TransportError(f"another process has locked {path}")
    # Closes the lock of the removed file.
    os.dup2(fresh, descriptor, inheritable=False)
    os.close(fresh)
    return True


def unlock_address(transport: Transport, address: Address, descriptor: int) -> None:
    """Remove the lock's file and let go of the lock, in this order: nobody can lock what is no longer there."""
    path = transport.lock_path(address)
    if path is not None:
        unlink_if_same(path, identity_of(descriptor))
    os.close(descriptor)


class Log:
    """The log of a broker that no supervisor reads, as an open file. Kept for brokers that end badly."""

    def __init__(self, transport: Transport, address: Address, descriptor: int) -> None:
        self._transport = transport
        self._address = address
        self._path = _log_path(transport, address)
        self._descriptor = descriptor
        # A broker that was started by hand logs elsewhere.
        self._is_own = identity_at(self._path) == identity_of(descriptor)

    def keep(self) -> None:
        """Keep the file at its name, as `keep_lock` does. Raises TransportError."""
        if not self._is_own or keep_file(self._path, identity_of(self._descriptor)):
            return
        # As for the lock: no file is made in a directory that others may write to.
        self._transport.prepare(self._address)
        tail = _read_tail(self._descriptor)
        # A second broker may have made it. It says in it why it ends, and both append.
        fresh = _open_log(self._transport, self._address)
        os.write(fresh, tail)
        os.dup2(fresh, self._descriptor)
        os.close(fresh)

    def leave(self) -> None:
        """Leave the file to another broker of the address, which goes on in it."""
        self._is_own = False

    def remove(self) -> None:
        """Remove the file, unless another one has its name."""
        if self._is_own:
            unlink_if_same(self._path, identity_of(self._descriptor))


def _log_path(transport: Transport, address: Address) -> str:
    return f"{transport.lock_path(address)}".removesuffix(".lock") + LOG_NAME


def start_broker(transport: Transport, address: Address, options: Options) -> bool:
    """Start a broker at `address` as a process of its own, and wait until it listens. Blocks; call it in a thread.

    Returns:
        False when another process has the lock of the address: it has a broker there, or is about to start one.

    Raises:
        TransportError: The broker did not start. The text has the reason, which is the last line of the broker's log
            where the broker did not report one.
        ConfigureError: This program can't start a broker at all.
    """
    # Before anything is made at the address: it raises where there is no interpreter.
    command = _broker_command(address, options)
    with contextlib.ExitStack() as opened:
        with _own_guard():
            lock = lock_address(transport, address)
            if lock is None:
                return False
            # The broker has its own copy in the end; if it has none, the lock is let go.
            opened.enter_context(_open_here(lock))
            # Their files are removed before the lock is let go, unless there is a broker, or may be one.
            files = opened.enter_context(contextlib.ExitStack())
            files.callback(unlink_if_same, str(transport.lock_path(address)), identity_of(lock))
            log = _open_log(transport, address)
            os.ftruncate(log, 0)
            opened.enter_context(_open_here(log))
            files.callback(unlink_if_same, _log_path(transport, address), identity_of(log))
            report_read, report_write = os.pipe()
            opened.enter_context(_open_here(report_read))
            with _open_here(report_write):
                process = _spawn(address, command, lock, report_write, log)
        try:
            _await_detached(process)
            failure = _await_report(report_read)
        except _NotStarted as error:
            failure = f"{error}: {_last_line(log)}"
            if not error.has_ended:
                files.pop_all()
        if failure is None:
            files.pop_all()
    if failure is not None:
        raise TransportError(f"the broker at {address} did not start: {failure}")
    return True


# Held while descriptors and a process are made. A program may fork at any time, and servers fork their workers right after
# `configure`. A child that came in between would have descriptors that nobody closes: of the lock, so that no broker could
# follow this one for as long as the child lives, and of the pipe for whose end Popen waits.
_fork_guard = threading.RLock()
_guard_pid = os.getpid()
# What is open while a broker is started, to be closed in such a child.
_open_descriptors: set[int] = set()


@contextlib.contextmanager
def _open_here(descriptor: int) -> Iterator[None]:
    """Close `descriptor` in the end; and at once in a child that is forked meanwhile."""
    _open_descriptors.add(descriptor)
    try:
        yield
    finally:
        with _own_guard():
            # A child that was forked meanwhile has closed it, and may have another one of its number.
            if descriptor in _open_descriptors:
                _open_descriptors.remove(descriptor)
                os.close(descriptor)


def forget_starts() -> None:
    """In a child of a fork that Python does not see: close the descriptors of brokers that the parent was starting.

    Does nothing in the process that starts them, and nothing the second time.
    """
    if os.getpid() != _guard_pid:
        _begin_anew()


def _begin_anew() -> None:
    global _fork_guard, _guard_pid
    # A new one: where Python does not see the fork, a thread that is not in this process may hold the former for ever.
    _fork_guard, _guard_pid = threading.RLock(), os.getpid()
    while _open_descriptors:
        # A daemonizer may have closed it.
        with contextlib.suppress(OSError):
            os.close(_open_descriptors.pop())


def _own_guard() -> threading.RLock:
    forget_starts()
    return _fork_guard


os.register_at_fork(
    before=lambda: _own_guard().acquire(),
    after_in_parent=lambda: _fork_guard.release(),
    after_in_child=_begin_anew,
)


def _with_absolute_paths(options: Options) -> Options:
    """The broker is started in another directory."""
    if options.record is not None:
        options = options.replace(record=os.path.abspath(options.record))
    if options.flight_recorder is not None:
        options = options.replace(flight_dir=os.path.abspath(options.flight_dir or "."))
    return options


def _broker_command(address: Address, options: Options) -> list[str]:
    command = [*python_command("eventsh.runtime.broker"), "--address", str(address)]
    command += broker_arguments(_with_absolute_paths(options))
    if is_frozen():
        # A program in a single file is two processes, and removes its unpacked files when the inner one ends: that one
        # can't detach itself.
        return ["/bin/sh", "-c", '"$@" &', "sh", *command]
    return [*command, "--detach"]


def _open_log(transport: Transport, address: Address) -> int:
    """Open the log of a broker. Raises TransportError."""
    # Where others may make files too, one of this name may be anything: not waited for, and not written to unless ours.
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW
    path = _log_path(transport, address)
    try:
        log = os.open(path, flags, 0o600)
    except OSError as error:
        raise TransportError(f"can't start a broker at {address}: {path}: {error.strerror}") from error
    about = os.fstat(log)
    if not stat.S_ISREG(about.st_mode) or about.st_uid != os.geteuid() or about.st_nlink != 1:
        os.close(log)
        raise TransportError(f"can't start a broker at {address}: {path} is not a file of our own: remove it")
    return log


def _spawn(address: Address, command: list[str], lock: int, report: int, log: int) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            [*command, "--lock-fd", str(lock), "--report-fd", str(report)],
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


class _NotStarted(Exception):
    """A broker that did not report why it failed. The text is what its starter saw of it. Unless it `has_ended`, it may
    still come up."""

    def __init__(self, message: str, *, has_ended: bool) -> None:
        super().__init__(message)
        self.has_ended = has_ended


def _await_detached(process: subprocess.Popen[bytes]) -> None:
    """Wait for the end of the process that was started: it is only the parent of the broker."""
    try:
        status = process.wait(START_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise _NotStarted(f"it was not up within {START_TIMEOUT_S:g} s", has_ended=False) from None
    if status:
        # Imported here: the broker itself imports this file, and starts sooner without.
        from eventsh.runtime.process import describe_status

        raise _NotStarted(describe_status(status), has_ended=True)


def _await_report(report: int) -> str | None:
    """Wait for the broker's first report; return the reason why it failed, None when it is ready."""
    line = b""
    deadline = time.monotonic() + START_TIMEOUT_S
    poll = select.poll()
    poll.register(report, select.POLLIN)
    while not line.endswith(b"\n"):
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise _NotStarted(f"it was not ready within {START_TIMEOUT_S:g} s", has_ended=False)
        data = os.read(report, 65536)
        if not data:
            raise _NotStarted("it ended before it was ready", has_ended=True)
        line += data
    reason: str | None = orjson.loads(line).get("error")
    return reason


def _last_line(log: int) -> str:
    """Return the last line of a broker's log, safe to show."""
    lines = _read_tail(log).decode(errors="replace").strip().splitlines()
    return escape(lines[-1].strip())[:_LAST_LINE_CHARS] if lines else "its log is empty"


def _read_tail(log: int) -> bytes:
    return os.pread(log, _LOG_TAIL_BYTES, max(0, os.fstat(log).st_size - _LOG_TAIL_BYTES))
