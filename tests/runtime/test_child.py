from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

ROOT = str(Path(__file__).parents[2])
DEADLINE_S = 60.0

LIVING = """
    import asyncio

    async def live():
        commands = asyncio.Queue()
        supervisor.follow(asyncio.get_running_loop(), commands.put_nowait, grace_s=GRACE)
        supervisor.report("ready")
        while (command := await commands.get()) != "stop":
            supervisor.report(command)
        supervisor.report("stopping")
        END

    asyncio.run(live())
"""


class Started:
    """A child program, seen from the other ends of its pipes."""

    def __init__(self, body: str, *, log_format: str = "text", **popen: Any) -> None:
        report_read, report_write = os.pipe()
        control_read, control_write = os.pipe()
        start = f"supervisor = start_child({report_write}, {control_read}, {log_format!r})\n"
        program = "from eventsh.runtime.child import start_child\n" + start + textwrap.dedent(body)
        self.process = subprocess.Popen(
            [sys.executable, "-c", program],
            pass_fds=(report_write, control_read),
            env={**os.environ, "PYTHONPATH": ROOT},
            stderr=subprocess.PIPE,
            **popen,
        )
        os.close(report_write)
        os.close(control_read)
        self.report_fd, self.control_fd = report_read, control_write
        self.rest = b""

    def next_report(self) -> dict[str, Any]:
        end = time.monotonic() + DEADLINE_S
        while b"\n" not in self.rest:
            assert select.select([self.report_fd], [], [], end - time.monotonic())[0], "no report in time"
            data = os.read(self.report_fd, 65536)
            assert data, "the child has ended"
            self.rest += data
        line, self.rest = self.rest.split(b"\n", 1)
        report: dict[str, Any] = json.loads(line)
        return report

    def tell(self, text: bytes) -> None:
        os.write(self.control_fd, text)

    def leave(self) -> None:
        """What the kernel does when the supervisor dies."""
        os.close(self.control_fd)
        self.control_fd = -1

    def end(self) -> tuple[int, str]:
        _, stderr = self.process.communicate(timeout=DEADLINE_S)
        return self.process.returncode, stderr.decode()


@pytest.fixture
def start() -> Iterator[type[Started]]:
    children: list[Started] = []

    class Kept(Started):
        def __init__(self, *args: Any, **more: Any) -> None:
            super().__init__(*args, **more)
            children.append(self)

    yield Kept
    for child in children:
        with suppress(ProcessLookupError):
            child.process.kill()
        child.process.communicate()
        for descriptor in (child.report_fd, child.control_fd):
            if descriptor >= 0:
                os.close(descriptor)


def living(end: str = "", grace_s: float = 600.0) -> str:
    return textwrap.dedent(LIVING).replace("END", end).replace("GRACE", str(grace_s))


def test_commands_come_in_order_those_included_that_came_before_the_loop(start):
    child = start(
        "import sys\nsupervisor.report('importing')\nsys.stdin.readline()\n" + living(), stdin=subprocess.PIPE
    )
    assert child.next_report() == {"state": "importing"}
    child.tell(b'{"do": "attach"}\n{"do": "hand_over"}\n')
    child.process.stdin.write(b"\n")
    child.process.stdin.flush()
    assert [child.next_report()["state"] for _ in range(3)] == ["ready", "attach", "hand_over"]


def test_a_command_cut_in_pieces_is_whole_and_what_is_no_command_is_passed_over(start):
    child = start(living())
    child.next_report()
    child.tell(b'{"do": "at')
    child.tell(b'tach"}\nrubbish\n[]\n{"do": 3}\n{"do": "next"}\n')
    assert [child.next_report()["state"] for _ in range(2)] == ["attach", "next"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_a_stop(start, number):
    child = start(living())
    child.next_report()
    child.process.send_signal(number)
    assert child.next_report() == {"state": "stopping"}
    assert child.end() == (0, "")


def test_the_death_of_the_supervisor_is_a_stop(start):
    child = start(living())
    child.next_report()
    child.leave()
    assert child.next_report() == {"state": "stopping"}
    assert child.end() == (0, "")


@pytest.mark.parametrize("hang", ["while True: pass", "__import__('time').sleep(600)"])
def test_a_child_that_hangs_ends_all_the_same_once_its_supervisor_is_dead(start, hang):
    child = start(living(hang, grace_s=0.1))
    child.next_report()
    child.leave()
    assert child.end() == (1, "")


def test_a_child_that_has_not_begun_ends_at_once_with_its_supervisor(start):
    child = start("import time\nsupervisor.report('importing')\ntime.sleep(600)\n")
    child.next_report()
    child.leave()
    assert child.end() == (1, "")


def test_reporting_to_a_supervisor_that_is_gone_is_no_error(start):
    child = start(
        "supervisor.report('importing')\nimport sys\nsys.stdin.readline()\nsys.exit(supervisor.fail('x'))",
        stdin=subprocess.PIPE,
    )
    child.next_report()
    os.close(child.report_fd)
    child.report_fd = -1
    child.process.stdin.write(b"\n")
    child.process.stdin.flush()
    assert child.end() == (1, "")


def test_a_failure_is_reported_in_bounds_whatever_it_holds(start):
    child = start("import sys\nsys.exit(supervisor.fail('\\udc80\\x1b' + 'x' * 10**6, detail='d'))\n")
    report = child.next_report()
    assert report["state"] == "failed"
    assert report["error"].startswith("\\udc80\x1bxxx")
    assert report["error"].endswith("...")
    assert len(report["error"]) == 3000
    assert report["detail"] == "d"
    assert child.end()[0] == 1


def test_signals_that_the_supervisor_had_blocked_or_ignored_are_as_usual(start):
    def spoil() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1})
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    body = """
        import signal
        supervisor.report("signals", blocked=sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
            hup=signal.getsignal(signal.SIGHUP), int=signal.getsignal(signal.SIGINT) is signal.default_int_handler)
    """
    child = start(body, preexec_fn=spoil)
    assert child.next_report() == {"state": "signals", "blocked": [], "hup": 0, "int": True}


def test_programs_that_handlers_start_do_not_get_the_pipes(start):
    body = """
        import subprocess, sys
        out = subprocess.run([sys.executable, "-c", "import os; print(sorted(os.listdir('/proc/self/fd')))"],
            close_fds=False, capture_output=True, text=True)
        supervisor.report("descriptors", seen=out.stdout)
    """
    seen = json.loads(start(body).next_report()["seen"].replace("'", '"'))
    # 0, 1, 2 and the one that lists the directory.
    assert seen == ["0", "1", "2", "3"]


def test_text_logs_are_escaped_line_by_line(start):
    body = """
        import logging
        try:
            raise ValueError("\\x1b[31mred")
        except ValueError:
            logging.getLogger("handlers").exception("from %s", "an\\x1b event\\nERROR forged")
    """
    status, log = start(body).end()
    assert status == 0
    first, *trace = log.splitlines()
    assert "ERROR handlers[" in first
    assert first.endswith(r"from an\x1b event\nERROR forged")
    assert trace[0] == "Traceback (most recent call last):"
    assert trace[-1] == r"ValueError: \x1b[31mred"
    assert "\x1b" not in log


def test_json_logs_are_one_object_a_line(start):
    body = """
        import logging
        logging.getLogger("handlers").warning("two\\nlines \\udc80")
        try:
            1 / 0
        except ZeroDivisionError:
            logging.getLogger("handlers").exception("no")
    """
    child = start(body, log_format="json")
    _, log = child.end()
    first, second = map(json.loads, log.splitlines())
    assert first.keys() == {"time", "level", "logger", "message", "pid"}
    assert first["message"] == "two\nlines \\udc80"
    assert (first["level"], first["logger"], first["pid"]) == ("warning", "handlers", child.process.pid)
    assert second["traceback"].endswith("ZeroDivisionError: division by zero")


def test_started_by_hand_it_has_nobody_to_report_to():
    program = "from eventsh.runtime.child import start_child\nimport sys\nsys.exit(start_child().fail('x'))"
    done = subprocess.run([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": ROOT}, timeout=DEADLINE_S)
    assert done.returncode == 1
