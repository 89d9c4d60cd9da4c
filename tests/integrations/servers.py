"""Servers as processes of their own, and what tests ask of them."""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

import eventsh
from eventsh.commands.status import status
from eventsh.errors import UnreachableError
from eventsh.testing.addresses import free_port
from tests.integrations.journal import Line, read

__all__ = [
    "DEADLINE_S",
    "Server",
    "Start",
    "Witness",
    "celery",
    "granian",
    "gunicorn",
    "hypercorn",
    "redis",
    "redis_url",
    "require",
    "rq",
    "uvicorn",
    "uwsgi",
    "wait_until",
    "witness",
]

ROOT = Path(__file__).parents[2]
DEADLINE_S = 30.0


def wait_until(condition: Callable[[], bool], shown: Callable[[], object]) -> None:
    """Wait until `condition` holds; `shown` tells what was there instead."""
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, f"it stayed at {shown()}"
        time.sleep(0.02)


def require(name: str) -> None:
    """Skip the test where a module or program is not installed. In CI all are, so there it fails."""
    if importlib.util.find_spec(name) is None and shutil.which(name) is None:
        assert not os.environ.get("CI"), f"{name} is not installed"
        pytest.skip(f"{name} is not installed")


class Server:
    """A running server, its journal, and the bus of its workers."""

    def __init__(
        self, directory: Path, command: list[str], *, port: int = 0, environment: dict[str, str] | None = None
    ) -> None:
        self.port = port
        self.address = f"unix:{directory}/e.sock"
        self.journal = str(directory / "journal")
        # A file for each server of a test.
        self.log = directory / f"server{len(list(directory.glob('*.log')))}.log"
        own = {name: value for name, value in os.environ.items() if not name.startswith("EVENTSH_")}
        own |= {"PYTHONPATH": str(ROOT), "JOURNAL": self.journal, "APP_ADDRESS": self.address, **(environment or {})}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, cwd=directory, env=own, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def get(self, path: str, timeout_s: float = DEADLINE_S) -> int:
        """Ask for a page; give the pid of the worker that answered."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        with contextlib.closing(connection):
            connection.request("GET", path)
            response = connection.getresponse()
            body = response.read()
            assert response.status == 200, (response.status, body, self.log.read_text())
            return int(body)

    def wait_answering(self) -> int:
        """Wait until a worker answers; give its pid."""
        pid = 0

        def answers() -> bool:
            nonlocal pid
            assert self.process.poll() is None, self.log.read_text()
            with contextlib.suppress(OSError, http.client.HTTPException):
                pid = self.get("/")
            return pid != 0

        wait_until(answers, self.log.read_text)
        return pid

    def post(self, event: str, **query: str) -> int:
        """Have a worker post an event, and wait until all have it."""
        return self.get(f"/post?{urlencode({'event': event, **query})}")

    def workers(self) -> dict[int, str]:
        """The pid and the state of every worker that the broker knows."""
        try:
            workers = status(self.address, timeout_s=DEADLINE_S)["workers"]
        except UnreachableError:
            return {}
        return {worker["pid"]: worker["state"] for worker in workers}

    def attached(self) -> set[int]:
        """The pids of the attached workers."""
        return {pid for pid, state in self.workers().items() if state == "attached"}

    def wait_attached(self, count: int, *, without: set[int] = frozenset()) -> set[int]:  # type: ignore[assignment]
        """Wait until this many workers are attached, beside the test itself, and none of those in `without`; give their
        pids."""
        pids: set[int] = set()

        def is_there() -> bool:
            nonlocal pids
            assert self.process.poll() is None, self.log.read_text()
            pids = self.attached() - {os.getpid()}
            return len(pids) == count and not pids & without

        wait_until(is_there, lambda: (pids, self.log.read_text()))
        return pids

    def wait_only(self, count: int) -> None:
        """Wait until this many workers are attached, beside the test itself, and the broker knows no other."""

        def are_only() -> bool:
            workers = {pid: state for pid, state in self.workers().items() if pid != os.getpid()}
            return len(workers) == count and set(workers.values()) <= {"attached"}

        wait_until(are_only, lambda: (os.getpid(), self.workers(), self.log.read_text()[-4000:]))

    def wait_logged(self, text: str) -> None:
        """Wait until the server's log has `text`."""
        wait_until(lambda: text in self.log.read_text(), self.log.read_text)

    def lines(self, event: str) -> list[Line]:
        return [line for line in read(self.journal) if line.event == event]

    def wait_handled(self, event: str, by: set[int]) -> None:
        """Wait until an event was handled by each of these, and make sure that nobody handled it twice."""
        wait_until(lambda: {line.pid for line in self.lines(event)} >= by, lambda: (by, self.lines(event)))
        pids = [line.pid for line in self.lines(event)]
        assert len(pids) == len(set(pids)), pids

    def stop(self, signum: int = signal.SIGTERM) -> int:
        """End it as its users do; give the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signum)
            try:
                self.process.wait(DEADLINE_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise AssertionError(f"the server does not end: {self.log.read_text()}") from None
        return self.process.returncode


Start = Callable[..., Server]


class Witness:
    """This process as one more worker of the bus, which counts what it handles. It takes no unique event."""

    def __init__(self, events: eventsh.Events) -> None:
        self.events = events
        self.seen: Counter[tuple[str, str, Any]] = Counter()
        self.posters: set[int | None] = set()
        events.register(self._count)

    def _count(self, data: Any, event: str, source: str, pid: int | None) -> None:
        if source == "app":
            self.seen[source, event, data] += 1
            self.posters.add(pid)

    @contextlib.contextmanager
    def broker_stopped(self) -> Iterator[None]:
        """Stop the broker meanwhile: a process that starts in the block can post, and none of it can leave by chance."""
        broker = status(str(self.events.address), timeout_s=DEADLINE_S)["broker"]["pid"]
        os.kill(broker, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(broker, signal.SIGCONT)

    def wait_all(self, event: str, numbers: range, server: Server, *, times: int = 1) -> None:
        """Wait until each number was handled as often as it was posted, and make sure that none was handled again."""
        expected = Counter({("app", event, number): times for number in numbers})
        wait_until(
            lambda: self.seen.total() >= expected.total(),
            lambda: (self.seen.total(), expected.total(), server.log.read_text()[-4000:]),
        )
        assert self.seen == expected


@contextlib.contextmanager
def witness(directory: Path, timeout: float = 30.0) -> Iterator[Witness]:
    """A witness on the bus of a server in `directory`, attached before the server starts. `timeout` is the broker's."""
    events = eventsh.Events(f"unix:{directory}/e.sock", timeout=timeout, linger=0.5, take_unique=False)
    one = Witness(events)
    with events:
        events.wait_ready(DEADLINE_S)
        yield one


GUNICORN_CONF = """
{hooks}
bind = "127.0.0.1:{port}"
accesslog = None
worker_tmp_dir = {directory!r}
# Else it makes a file in the home directory.
control_socket_disable = True
# What is still there then has no more to say.
graceful_timeout = 10
"""
GUNICORN_HOOKS = """
import os
from eventsh.integrations.gunicorn import hooks
pre_fork, post_fork, worker_exit = hooks(os.environ["APP_ADDRESS"], timeout=30.0, linger=0.5)
"""


def gunicorn(
    directory: Path,
    *arguments: str,
    hooks: str = GUNICORN_HOOKS,
    app: str = "tests.integrations.wsgi_app:app",
    **environment: str,
) -> Server:
    """`arguments` are those of the command line, `environment` what the application under test reads."""
    port = free_port()
    conf = directory / "gunicorn.conf.py"
    conf.write_text(GUNICORN_CONF.format(hooks=hooks, port=port, directory=str(directory)))
    command = [sys.executable, "-m", "gunicorn", "--config", str(conf), *arguments, app]
    return Server(directory, command, port=port, environment=environment)


def uvicorn(directory: Path, app: str, *arguments: str, **environment: str) -> Server:
    """`app` is a name in asgi_app."""
    port = free_port()
    options = ["--host", "127.0.0.1", "--port", str(port), "--log-level", "info", *arguments]
    # A worker of a busy machine needs longer than 5 s to start; uvicorn would give the reload up.
    options += ["--timeout-worker-healthcheck", str(int(DEADLINE_S / 3))]
    command = [sys.executable, "-m", "uvicorn", *options, f"tests.integrations.asgi_app:{app}"]
    return Server(directory, command, port=port, environment=environment)


def hypercorn(directory: Path, app: str, *arguments: str, **environment: str) -> Server:
    """`app` is a name in asgi_app."""
    require("hypercorn")
    port = free_port()
    options = ["--bind", f"127.0.0.1:{port}", *arguments]
    command = [sys.executable, "-m", "hypercorn", *options, f"tests.integrations.asgi_app:{app}"]
    return Server(directory, command, port=port, environment=environment)


def granian(directory: Path, app: str, *arguments: str, **environment: str) -> Server:
    """`app` is a name in asgi_app."""
    require("granian")
    port = free_port()
    options = ["--interface", "asgi", "--host", "127.0.0.1", "--port", str(port), *arguments]
    command = [sys.executable, "-m", "granian", *options, f"tests.integrations.asgi_app:{app}"]
    return Server(directory, command, port=port, environment=environment)


def uwsgi(directory: Path, *arguments: str, app: str = "tests.integrations.uwsgi_app", **environment: str) -> Server:
    """`app` is a module, or a module and the name of the application in it."""
    # The wheel pyuwsgi has uWSGI's server as a module, which becomes the program that imports it.
    require("pyuwsgi")
    port = free_port()
    options = ["--http-socket", f"127.0.0.1:{port}", "--die-on-term", "--need-app", "--module", app]
    program = "import sys, pyuwsgi; pyuwsgi.run(sys.argv[1:])"
    command = [sys.executable, "-c", program, *options, *arguments]
    # At a reload it becomes the interpreter that this one is a virtual environment of, which has no packages.
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), sysconfig.get_path("platlib")])
    return Server(directory, command, port=port, environment=environment)


def redis(directory: Path) -> Server:
    """On a unix socket alone, `redis.sock`."""
    require("redis-server")
    path = directory / "redis.sock"
    server = Server(directory, ["redis-server", "--port", "0", "--unixsocket", str(path), "--save", ""])
    wait_until(path.exists, server.log.read_text)
    return server


def redis_url(directory: Path, scheme: str = "unix") -> str:
    """The address of the redis-server in this directory, as rq or Celery wants it."""
    return f"{scheme}://{directory}/redis.sock"


def rq(directory: Path, worker_class: str, *arguments: str) -> Server:
    """`worker_class` is a name in rq_jobs."""
    require("rq")
    options = ["--url", redis_url(directory), "--worker-class", f"tests.integrations.rq_jobs.{worker_class}"]
    return Server(directory, [sys.executable, "-m", "rq.cli", "worker", *options, *arguments, "default"])


def celery(directory: Path, *arguments: str, **environment: str) -> Server:
    """A worker for the application in celery_tasks."""
    require("celery")
    app = ["-A", "tests.integrations.celery_tasks"]
    options = ["--loglevel", "INFO", "--without-gossip", "--without-mingle", *arguments]
    command = [sys.executable, "-m", "celery", *app, "worker", *options]
    return Server(
        directory, command, environment={"CELERY_BROKER": redis_url(directory, "redis+socket"), **environment}
    )
