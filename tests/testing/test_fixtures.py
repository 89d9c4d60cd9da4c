"""The fixtures for programs that use eventsh, in pytest processes of their own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

README = (Path(__file__).parents[2] / "README.md").read_text()
# Of a whole pytest process.
DEADLINE_S = 160.0


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """An empty project that asks for the fixtures."""
    monkeypatch.delenv("EVENTSH_ADDRESS", raising=False)
    pytester.makeconftest('pytest_plugins = ["eventsh.testing.plugin"]')
    return pytester


def run(project: pytest.Pytester, **outcomes: int) -> None:
    result = project.runpytest_subprocess("-p", "no:cacheprovider", "-W", "error", timeout=DEADLINE_S)
    result.assert_outcomes(**outcomes)


def test_the_example_of_the_readme_works(project):
    section = README[README.index("## Testing your program") :]
    for text in re.findall(r"```python\n(.*?)```", section, re.DOTALL)[:2]:
        name = re.match(r"# (\w+\.py)\n", text)
        assert name is not None
        (project.path / name[1]).write_text(text)
    (handlers,) = re.findall(r"`handlers.py`.*?```python\n(.*?)```", README, re.DOTALL)[:1]
    (project.path / "handlers.py").write_text(handlers)
    run(project, passed=2)


def test_the_bus_of_a_test_is_its_own(project):
    project.makepyfile(
        """
        import eventsh
        import pytest

        def test_local_handlers_are_gone_after_it(eventsh_bus):
            eventsh.register(lambda *args: seen.append(args), "s")
            eventsh.post("s", "e", 1)
            eventsh_bus.settle()
            assert len(seen) == 1
            from app import handled
            eventsh.post("app", "e", 1)
            eventsh_bus.settle()
            assert handled == [1]

        seen = []

        def test_only_those_of_modules_stay(eventsh_bus):
            assert eventsh_bus.handled() == []
            eventsh.post("s", "e", 2)
            eventsh.post("app", "e", 2)
            eventsh.post("app", "f", 3, unique="k")
            assert [one.data for one in eventsh_bus.wait_handled("app", count=2)] == [2, 3]
            eventsh_bus.settle()
            assert len(seen) == 1
            from app import handled
            assert handled == [1, 2, 3]
            assert eventsh_bus.handled("eventsh", "started")

        def test_without_it_nothing_is_configured():
            assert not eventsh.configured()

        def test_what_is_configured_already_is_not_taken_over(request, tmp_path):
            eventsh.configure("inproc:other")
            try:
                with pytest.raises(eventsh.EventError, match="close"):
                    request.getfixturevalue("eventsh_bus")
            finally:
                eventsh.close()
        """
    )
    project.makepyfile(
        app="""
        import eventsh
        handled = []

        @eventsh.on("app")
        def handle(data, event, source, pid):
            handled.append(data)
        """
    )
    run(project, passed=4)


def test_a_broker_can_be_killed_and_a_pool_says_why_it_did_not_start(project):
    project.makepyfile(
        bad="import no_such_module",
        test_it="""
        import os
        import eventsh
        import pytest

        def test_a_broker(eventsh_broker):
            assert os.environ["EVENTSH_ADDRESS"] == eventsh_broker.address
            with eventsh.Events(broker="never") as events:
                events.wait_ready(30)
                assert len(eventsh_broker.status()["workers"]) == 1
                eventsh_broker.kill()

        def test_a_pool(eventsh_pool):
            pool = eventsh_pool()
            assert len(pool.status()["workers"]) == 2
            assert len(pool.handlers()) == 2
            with pytest.raises(eventsh.EventError, match="no_such_module"):
                eventsh_pool("bad.py", workers=1)
        """,
    )
    run(project, passed=2)


def test_asking_for_the_fixtures_imports_nothing_of_eventsh_but_them():
    program = "import sys, eventsh.testing.plugin; print([m for m in sys.modules if m.startswith('eventsh')])"
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert output.stdout == "['eventsh', 'eventsh.testing', 'eventsh.testing.plugin']\n"
