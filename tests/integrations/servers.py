"""gunicorn and uvicorn as processes of their own, on a free port of the loopback, and what tests ask of them."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlencode

from eventsh.commands.status import status
from eventsh.errors import UnreachableError
from eventsh.testing.addresses import free_port
from tests.integrations.journal import Line, read

__all__ = ["DEADLINE_S", "Server", "gunicorn", "uvicorn", "wait_until"]

ROOT = Path(__file__).parents[2]
DEADLINE_S = 30.0


def wait_until(condition: Callable[[], bool], shown: Callable[[], object]) -> None:
    """Wait until `condition` holds; `shown` tells what was there instead."""
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, f"it stayed at {shown()}"
        time.sleep(0.02)


class Server:
    """A running server, its journal, and the bus of its workers."""

    def __init__(self, directory: Path, port: int, arguments: list[str], environment: dict[str, str]) -> None:
        self.port = port
        self.address = f"unix:{directory}/e.sock"
        self.journal = str(directory / "journal")
        self.log = directory / "server.log"
        own = {name: value for name, value in os.environ.items() if not name.startswith("EVENTSH_")}
        own |= {"PYTHONPATH": str(ROOT), "JOURNAL": self.journal, "APP_ADDRESS": self.address, **environment}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                cwd=directory,
                env=own,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
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

    def post(self, event: str, **query: str) -> int:
        """Have a worker post an event, and wait until all have it."""
        return self.get(f"/post?{urlencode({'event': event, **query})}")

    def attached(self) -> set[int]:
        """The pids of the attached workers."""
        try:
            workers = status(self.address, timeout_s=DEADLINE_S)["workers"]
        except UnreachableError:
            return set()
        return {worker["pid"] for worker in workers if worker["state"] == "attached"}

    def wait_attached(self, count: int, *, without: set[int] = frozenset()) -> set[int]:  # type: ignore[assignment]
        """Wait until this many workers are attached, and none of those in `without`; give their pids."""
        pids: set[int] = set()

        def is_there() -> bool:
            nonlocal pids
            assert self.process.poll() is None, self.log.read_text()
            pids = self.attached()
            return len(pids) == count and not pids & without

        wait_until(is_there, lambda: (pids, self.log.read_text()))
        return pids

    def lines(self, event: str) -> list[Line]:
        return [line for line in read(self.journal) if line.event == event]

    def wait_handled(self, event: str, by: set[int]) -> None:
        """Wait until an event was handled by each of these, and make sure that nobody handled it twice."""
        wait_until(lambda: {line.pid for line in self.lines(event)} >= by, lambda: (by, self.lines(event)))
        pids = [line.pid for line in self.lines(event)]
        assert len(pids) == len(set(pids)), pids

    def stop(self) -> int:
        """End it as its users do; give the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(DEADLINE_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise
        return self.process.returncode


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


def gunicorn(directory: Path, *arguments: str, hooks: str = GUNICORN_HOOKS, **environment: str) -> Server:
    """`arguments` are those of the command line, `environment` what the application under test reads."""
    port = free_port()
    conf = directory / "gunicorn.conf.py"
    conf.write_text(GUNICORN_CONF.format(hooks=hooks, port=port, directory=str(directory)))
    command = ["gunicorn", "--config", str(conf), *arguments, "tests.integrations.wsgi_app:app"]
    return Server(directory, port, command, environment)


def uvicorn(directory: Path, app: str, *arguments: str) -> Server:
    """`app` is a name in asgi_app."""
    port = free_port()
    command = ["uvicorn", "--host", "127.0.0.1", "--port", str(port), "--log-level", "info", *arguments]
    # A worker of a busy machine needs longer than 5 s to start; uvicorn would give the reload up.
    command += ["--timeout-worker-healthcheck", str(int(DEADLINE_S))]
    return Server(directory, port, [*command, f"tests.integrations.asgi_app:{app}"], {})
