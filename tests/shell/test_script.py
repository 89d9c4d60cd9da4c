"""The shell without a terminal: lines from -c, from standard input, from a file."""

from __future__ import annotations

import io
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import pytest
import typer

from eventsh.errors import EventError
from eventsh.hookspecs import hookimpl
from eventsh.plugins import DISABLE_ENV, PluginManager
from eventsh.runtime.host import process_state
from eventsh.shell import registry
from eventsh.shell.overview import GROUPS
from eventsh.shell.render import Paint
from eventsh.shell.script import read_script
from eventsh.shell.shell import Shell
from eventsh.shell.verbs import make_verbs
from tests.cli.pool import Done, Pool, run, wait_until
from tests.recording.sample import small_file


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    pool = Pool(tmp_path_factory.mktemp("shell"), workers=2)
    yield pool
    assert pool.stop() == 0


def shell(pool: Pool, *lines: str) -> Done:
    return pool.run("shell", *(word for line in lines for word in ("-c", line)))


def test_lines_of_the_command_line_are_run_in_turn(pool):
    done = shell(pool, 'post test one <"k":1>', "workers --json", "post_local test two")
    assert (done.status, done.err) == (0, "")
    posted, workers = done.out.splitlines()
    assert posted == "posted 1 event to 2 workers"
    assert [worker["worker_id"] for worker in json.loads(workers)] == [0, 1]
    pool.wait_handled("one", [{"k": 1}], workers=2)


def test_a_text_is_taken_without_its_quotes_and_is_no_json(pool):
    done = shell(pool, 'post test text --text "hello world"', "post test text '[draft] hi' --text")
    assert (done.status, done.err) == (0, "")
    pool.wait_handled("text", ["hello world", "[draft] hi"], workers=2)


def test_the_home_is_known_in_names_of_files(pool, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "x.json").write_text("[1]")
    (tmp_path / "my script").write_text("post test home @~/x.json\n")
    done = shell(pool, "source '~/my script'", "post_local test home @~/x.json")
    assert (done.status, done.err, done.out) == (0, "", "posted 1 event to 2 workers\n")
    pool.wait_handled("home", [[1]], workers=2)


def test_the_first_line_that_fails_ends_it_with_its_status(pool):
    done = shell(pool, "post test never {", "post test never 1")
    assert (done.status, done.out) == (2, "")
    assert done.err == "eventsh: -c:1: a quote or bracket is not closed\n"
    done = shell(pool, "status | cat >&2; exit 7", "post test never 1")
    assert (done.status, done.err.splitlines()[0].split()[0]) == (7, "broker")
    assert pool.handled("never") == {}


@pytest.mark.parametrize(
    ("line", "status", "message"),
    [
        ("pots a b", 2, "there is no command 'pots': did you mean post?"),
        ("post a", 2, "Missing argument 'EVENT' (see help post)"),
        ("workers 1", 2, "Got unexpected extra argument"),
        ("kill x", 2, "WORKER must be a whole number of at least 0, not 'x'"),
        ("kill 7", 2, "there is no worker 7 attached; the workers are 0, 1"),
        ("kill 0 --signal NO", 2, "there is no signal 'NO'"),
        ("set rate 0", 2, "rate must be a whole number from 1 to 1000"),
        ("set speed 1", 2, "there is no setting 'speed'; the settings are pager, pretty, rate"),
        ("source /nowhere", 1, "No such file or directory: '/nowhere'"),
        ("help nothing", 2, "there is no command 'nothing'"),
        ("status |", 2, "a command of the system's shell is missing"),
    ],
)
def test_a_mistake_is_one_line(pool, line, status, message, monkeypatch):
    monkeypatch.setenv("EVENTSH_ADDRESS", pool.address)
    output = io.StringIO()
    shell = Shell(pool.address, make_verbs(), Paint(False), output, is_interactive=True)
    assert shell.run(line) == status
    assert message in output.getvalue()
    assert output.getvalue().count("\n") == 1


def test_standard_input_is_a_script(pool):
    script = b"""# comment
post test three {
    "k": "v"
}

post test four key=1
exit
post test five
"""
    done = pool.run("shell", stdin=script)
    assert (done.status, done.err) == (0, "")
    assert done.out == "posted 1 event to 2 workers\n" * 2
    pool.wait_handled("three", [{"k": "v"}], workers=2)
    pool.wait_handled("four", [{"key": "1"}], workers=2)
    assert pool.handled("five") == {}
    done = pool.run("shell", stdin=b"\nset rate 1\nset rate\nnothing\nset\n")
    assert (done.status, done.out.split()[:2]) == (2, ["rate", "1"])
    assert done.err.startswith("eventsh: standard input:4: there is no command 'nothing'")


def test_a_file_is_a_script_and_can_not_run_itself_for_ever(pool, tmp_path: Path):
    file = tmp_path / "s.eventsh"
    file.write_text(f"set rate\nsource {file}\n")
    done = shell(pool, f"source {file}")
    assert done.status == 2
    assert done.err.endswith("scripts call each other more than 20 deep\n")


def test_a_pipe_and_the_systems_shell(pool):
    done = shell(pool, "workers --json | tr -d '[:digit:]' | head -c 15", '!echo "$EVENTSH_ADDRESS"')
    assert (done.status, done.out) == (0, '[{"worker_id":,' + pool.address + "\n")


def test_bytes_go_into_a_pipe_and_so_does_what_comes_with_a_bad_status(pool, tmp_path: Path):
    whole, cut = tmp_path / "whole.evlog", tmp_path / "cut.evlog"
    whole.write_bytes(small_file())
    cut.write_bytes(small_file()[:-3])
    done = shell(pool, f"log cat {whole} | wc -l")
    assert (done.status, done.err) == (0, "")
    assert int(done.out) > 0
    done = shell(pool, f"log verify {cut} | sed s/^/-/")
    assert (done.status, done.out.startswith(f"-{cut}: DAMAGED")) == (1, True)


def test_plugins_add_commands_and_take_none_away(pool, monkeypatch):
    def greet(
        whom: Annotated[str, typer.Argument(metavar="SOURCE", help="Whom.")] = "you",
        fail: Annotated[bool, typer.Option("--fail", help="Fail.")] = False,
    ) -> int:
        """Greet somebody."""
        if fail:
            raise EventError("no greeting today")
        print(f"hello {whom}")
        return 0

    class Greeter:
        @hookimpl
        def eventsh_shell_commands(self):
            return {"greet": greet, "post": greet}

    manager = PluginManager({DISABLE_ENV: "all"})
    manager.register(Greeter(), "greeter")
    monkeypatch.setattr(registry, "plugins", lambda: manager)
    output = io.StringIO()
    shell = Shell(pool.address, make_verbs(), Paint(False), output, is_interactive=True)
    assert [shell.run("greet all"), shell.run("greet --fail"), shell.run("post --xyz")] == [0, 1, 2]
    assert output.getvalue().splitlines() == [
        "hello all",
        "no greeting today",
        "No such option: --xyz (see help post)",
    ]
    assert "Greet somebody." in [verb.summary for verb in shell.verbs.all(with_plugins=True)]


def test_a_plugin_that_fails_ends_nothing(pool, monkeypatch):
    def broken(number: int) -> None:
        """Divide."""
        print(10 // number)

    class Broken:
        @hookimpl
        def eventsh_shell_commands(self):
            return {"broken": broken}

    class Odd:
        @hookimpl
        def eventsh_shell_commands(self):
            return ["no", "mapping"]

    manager = PluginManager({DISABLE_ENV: "all"})
    manager.register(Broken(), "broken")
    manager.register(Odd(), "odd")
    monkeypatch.setattr(registry, "plugins", lambda: manager)
    output = io.StringIO()
    shell = Shell(pool.address, make_verbs(), Paint(False), output, is_interactive=True)
    assert [shell.run("broken 5"), shell.run("broken 0"), shell.run("broken x")] == [0, 1, 2]
    lines = output.getvalue().splitlines()
    assert lines[0] == "2"
    assert lines[1].startswith("ZeroDivisionError: integer division or modulo by zero (")
    assert __file__ in lines[1]
    assert "valid integer" in lines[2]


def test_no_broker_is_told_with_the_status_for_it(tmp_path):
    done = run(f"unix:{tmp_path}/none.sock", "shell", "-c", "status")
    assert (done.status, done.out) == (3, "")
    assert "start one with 'eventsh serve --workers 4'" in done.err


def test_every_command_has_help_with_an_example(pool):
    verbs = make_verbs().all(with_plugins=False)
    done = shell(pool, "help", *(f"help {verb.name}" for verb in verbs))
    assert done.status == 0
    for verb in verbs:
        assert f"Usage: {verb.name} [OPTIONS]" in done.out
        assert verb.summary
        assert verb.examples


def test_help_fits_on_a_screen_of_24_rows_and_names_every_command(pool):
    lines = shell(pool, "help").out.splitlines()
    assert [line for line in lines if len(line) > 80] == []
    assert [line for line in lines if "…" in line] == []
    # One row is the prompt's.
    assert len(lines) < 24
    named = [name for commands in GROUPS.values() for names in commands for name in names]
    assert sorted(named) == [verb.name for verb in make_verbs().all(with_plugins=False)]


def test_what_other_shells_call_help_and_exit_is_known(pool):
    assert shell(pool, "?").out == shell(pool, "help").out
    for name in ("quit", "q", "exit"):
        done = shell(pool, name, "status")
        assert (done.status, done.out) == (0, "")


@pytest.mark.parametrize("columns", [1, 16, 40])
def test_help_is_shown_however_narrow_the_terminal_is(columns):
    output = io.StringIO()
    shell = Shell("unix:/nowhere/e.sock", make_verbs(), Paint(False), output, is_interactive=True)
    shell.columns = lambda: columns
    assert shell.run("help") == 0
    assert "help, exit         also ?" in output.getvalue()


def test_reload_and_kill_reach_the_pool(pool):
    pids = {worker["pid"] for worker in pool.status()["workers"]}
    done = shell(pool, "kill 0 --signal KILL", "reload")
    assert (done.status, done.err) == (0, "")
    assert f"told the supervisor (pid {pool.process.pid}) to reload" in done.out

    def renewed() -> bool:
        workers = pool.status()["workers"]
        return all(worker["state"] == "attached" for worker in workers) and not pids & {
            worker["pid"] for worker in workers
        }

    wait_until(renewed, "both workers are others")


def test_a_worker_that_is_paused_goes_on_when_the_shell_ends(pool):
    done = shell(pool, "pause 1")
    assert (done.status, done.out) == (0, "paused worker 1; resume goes on\n")
    done = pool.run("post", "test", "after", "1", "--wait")
    assert done.status == 0, done.err


def test_a_worker_that_somebody_else_stopped_stays_so_when_the_shell_ends(pool):
    first, second = (worker["pid"] for worker in pool.status()["workers"])
    os.kill(first, signal.SIGSTOP)
    try:
        wait_until(lambda: process_state(first) == "T", "it is stopped")
        done = shell(pool, "pause 0", "pause")
        assert (done.status, done.out) == (0, "paused already; resume goes on\npaused worker 1; resume goes on\n")
        wait_until(lambda: process_state(second) != "T", "the other one goes on")
        assert process_state(first) == "T"
    finally:
        os.kill(first, signal.SIGCONT)
    assert pool.run("post", "test", "others", "1", "--wait").status == 0


def test_rows_of_a_script():
    verbs = make_verbs()
    text = 'status\n\n# no\npost a b {\n  "k": 1\n}\nregister c d:\n    x = 1\n\n    print(x)\n\nexit\n'
    assert list(read_script(text.splitlines(), verbs)) == [
        (1, "status"),
        (4, 'post a b {\n  "k": 1\n}'),
        (7, "register c d:\n    x = 1\n\n    print(x)"),
        (12, "exit"),
    ]
