"""What tests/conftest.py promises to the tests."""

from __future__ import annotations

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
