"""What tests/conftest.py promises to the tests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

CONFTEST = Path(__file__).with_name("conftest.py")
SETTINGS = Path(__file__).parents[1] / "pyproject.toml"


def run(pytester: pytest.Pytester, **outcomes: int) -> None:
    arguments = ("-p", "no:cacheprovider", "-c", str(SETTINGS), "--rootdir", ".", ".")
    done = pytester.runpytest_subprocess(*arguments, timeout=160)
    done.assert_outcomes(**outcomes)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_what_a_failing_test_leaves_open_is_not_blamed_on_the_next_one(pytester: pytest.Pytester, loop: str) -> None:
    pytester.makeconftest(CONFTEST.read_text())
    pytester.makepyfile(
        f"""
        import asyncio, gc, socket, {loop}

        async def fail():
            listener = socket.create_server(("127.0.0.1", 0))
            connection = await asyncio.open_connection(*listener.getsockname())
            assert connection is None

        def test_fails():
            {loop}.run(fail())

        def test_passes():
            gc.collect()
        """
    )
    run(pytester, failed=1, passed=1)


def test_who_leaves_something_open_in_uvloop_fails(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(CONFTEST.read_text())
    pytester.makepyfile(
        """
        import asyncio, socket, uvloop

        listener = socket.create_server(("127.0.0.1", 0))

        async def leak():
            # No stream: its writer would complain by itself. And the listener stays, or the connection would end with it.
            await asyncio.get_running_loop().create_connection(asyncio.Protocol, *listener.getsockname())

        def test_leaks():
            uvloop.run(leak())

        def test_passes():
            listener.close()
        """
    )
    run(pytester, failed=1, passed=1)


def test_no_example_of_a_property_test_fails_by_its_time(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(CONFTEST.read_text())
    pytester.makepyfile(
        """
        import time
        from hypothesis import given, settings
        from hypothesis import strategies as st

        @settings(max_examples=2, database=None)
        @given(st.integers())
        def test_slow(number):
            time.sleep(0.3)
        """
    )
    run(pytester, passed=1)


# A job of a script, of nohup, of a service or of a CI system. The variables are those that some test would fail with.
SOMEWHERE_ELSE = """
trap '' INT QUIT HUP TTIN TTOU
umask 077
exec "$@" <&-
"""
VARIABLES = {
    "CI": "true",
    "COLUMNS": "20",
    "EVENTSH_ADDRESS": "unix:/nowhere/e.sock",
    "EVENTSH_TIMEOUT": "0.5",
    "FORCE_COLOR": "1",
    "GUNICORN_CMD_ARGS": "--workers 7",
    "LANG": "tr_TR",
    "LINES": "5",
    "NO_COLOR": "1",
    "PYTHONASYNCIODEBUG": "1",
    "PYTHONUNBUFFERED": "1",
    "TERM": "dumb",
    "XDG_RUNTIME_DIR": "/run/user/7",
}


@pytest.mark.parametrize("processes", [0, pytest.param(1, marks=pytest.mark.long)])
def test_tests_run_in_the_same_environment_everywhere(pytester: pytest.Pytester, processes: int) -> None:
    pytester.makeconftest(CONFTEST.read_text())
    pytester.makepyfile(
        """
        import os, signal, subprocess, sys, tempfile

        SHOW = '''if True:
            import os, signal
            os.fstat(0)
            print(sorted(set(os.environ) & set({variables})), signal.getsignal(signal.SIGINT).__name__)
            ignored = [one.name for one in signal.valid_signals() if signal.getsignal(one) is signal.SIG_IGN]
            print(sorted(ignored), oct(os.umask(0)))
        '''

        def test_environment(tmp_path):
            done = subprocess.run([sys.executable, "-c", SHOW], stdout=subprocess.PIPE, text=True, check=True)
            assert done.stdout == "[] default_int_handler\\n['SIGPIPE', 'SIGXFSZ'] 0o22\\n"
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
            assert len(str(tmp_path)) < 80
            assert len(tempfile.gettempdir()) < 80
        """.replace("{variables}", repr([*VARIABLES, "TMPDIR"]))
    )
    long = pytester.path / ("long" * 20)
    long.mkdir()
    pytest_run = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-c", str(SETTINGS), "--rootdir", "."]
    done = subprocess.run(
        ["sh", "-c", SOMEWHERE_ELSE, "sh", *pytest_run, "-n", str(processes), "."],
        cwd=pytester.path,
        env={**VARIABLES, "PATH": "/usr/bin:/bin", "TMPDIR": str(long)},
        capture_output=True,
        text=True,
        timeout=160,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
