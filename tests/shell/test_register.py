"""Handlers written in a shell, at work in real workers."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.pool import Done, Pool, environment, run, wait_until
from tests.shell.terminal import Terminal


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    pool = Pool(tmp_path_factory.mktemp("register"), workers=2)
    yield pool
    assert pool.stop() == 0


def script(pool: Pool, text: str) -> Done:
    return pool.run("shell", stdin=text.encode())


def lines(done: Done) -> list[str]:
    """What workers wrote, in the order of the workers, without what differs each time."""
    return sorted(re.sub(r"\d{2,}\.", "N.", line) for line in done.out.splitlines() if line.startswith("[worker"))


def test_what_handlers_print_in_the_workers_comes_back(pool):
    done = script(
        pool, 'register cache purge --workers: print(source, event, data["k"])\npost cache purge k=v --wait\n'
    )
    assert (done.status, done.err) == (0, "")
    assert "registered 1 in 2 workers; unregister 1 takes it back" in done.out
    assert lines(done) == ["[worker 0] cache purge v", "[worker 1] cache purge v"]


def test_what_they_raise_comes_back_with_a_traceback_into_the_script(pool):
    done = script(
        pool,
        "register cache bad --worker 1:\n    x = data\n    print('now')\n    x.nothing\n\npost cache bad 1 --wait\n",
    )
    assert done.status == 6
    assert [line.strip() for line in done.out.splitlines() if line.startswith("[worker")] == [
        "[worker 1] now",
        "[worker 1] handler 1 failed:",
        next(line for line in done.out.splitlines() if "line 3, in script" in line),
        "[worker 1]     x.nothing",
        "[worker 1] AttributeError: 'int' object has no attribute 'nothing'",
    ]
    assert re.search(r'\[worker 1\]   File "<script \d+\.1>", line 3, in script', done.out)


def test_what_is_unregistered_is_called_no_more_and_what_the_shell_leaves_is_gone(pool):
    done = script(
        pool,
        "register a --workers: print('first')\nregister b: print('here', data)\npost a x --wait\npost b x 5 --wait\n"
        "unregister 1\npost a x --wait\nregister a --workers: print('second')\n",
    )
    assert (done.status, done.err) == (0, "")
    assert lines(done) == ["[worker 0] first", "[worker 1] first"]
    assert done.out.count("[here] here 5") == 1
    assert "unregistered 1" in done.out
    wait_until(lambda: "script" not in pool.run("handlers").out, "the shell's handlers are gone")


def test_a_mistake_is_told_at_its_place_and_changes_nothing(pool):
    for text, message in (
        ("register a --workers: x = = 1", "invalid syntax (row 1, column 27)"),
        ("register a --workers:\n    x = 1\n    y = $\n", "invalid syntax (row 3, column 9)"),
        ("register a --workers: yield 1", "a handler can't yield"),
        ("register a --workers", "code is missing"),
        ("register a --keep: 1", "--keep is for handlers in workers: add --workers"),
        ("register_weak a: 1", "register_weak needs @FILE:FUNCTION"),
        ("register a @nowhere.py:f", "can't read nowhere.py: No such file or directory"),
        ("unregister 3", "there is no registration 3 of this shell; there are none"),
    ):
        done = script(pool, text)
        assert (done.status, done.err.count("\n")) == (2, 1), done.err
        assert message in done.err
    assert "script" not in pool.run("handlers").out


@pytest.mark.parametrize("where", ["", "--workers", "--workers --keep"])
def test_what_is_no_utf8_is_refused_in_one_line(pool, where):
    refused = [
        (f"register a\udcff b {where}: 1", "the source a\\udcff is not UTF-8"),
        (f"register a b\udcff {where}: 1", "the event b\\udcff is not UTF-8"),
        (f"register a b {where}: print('\udcff')", "surrogates not allowed (row 1"),
    ]
    if where:
        file = pool.directory / "handlers\udcff.py"
        file.write_text("import eventsh\neventsh.register(print)\n")
        refused.append((f"load {where} {file}", "the file name "))
    for line, message in refused:
        for done in (pool.run("shell", "-c", line), pool.run("shell", stdin=os.fsencode(line))):
            assert (done.status, done.err.count("\n")) == (2, 1), done.err
            assert message in done.err
            assert "Error" not in done.err
    assert "script" not in pool.run("handlers").out


def test_a_file_of_handlers_is_loaded_here_and_in_the_workers(pool, tmp_path: Path):
    file = tmp_path / "more.py"
    file.write_text(
        "import eventsh\n@eventsh.on('load')\ndef more(data, event, source, pid):\n    print('more \\x1b[2J', data)\n"
        "def other(data, event, source, pid):\n    raise KeyError(data)\n"
    )
    done = script(
        pool,
        f"load {file} --workers\nload {file}\npost load x 1 --wait\nunregister 1\n"
        f"register odd @{file}:other --workers\npost odd x 2 --wait\n",
    )
    assert done.status == 6
    assert "registered 1 in 2 workers" in done.out
    assert "registered 2 in this shell" in done.out
    assert r"[here] more \x1b[2J 1" in done.out
    assert [line for line in lines(done) if "more \\x1b" in line] == [
        r"[worker 0] more \x1b[2J 1",
        r"[worker 1] more \x1b[2J 1",
    ]
    assert f'[worker 0]   File "{file}", line 6, in other' in done.out
    assert "\x1b" not in done.out


def test_a_handler_that_is_kept_stays_when_the_shell_ends(pool):
    done = script(pool, "register kept x --workers --keep: eventsh.post('test', 'kept', data)\nhandlers\n")
    assert (done.status, done.err) == (0, "")
    told = re.search(
        r"registered 1 in 2 workers until the broker ends; unregister (\S+) takes it back in any", done.out
    )
    assert told is not None
    assert "of other shells" not in done.out
    assert pool.run("post", "kept", "x", "5", "--wait").status == 0
    wait_until(lambda: sum(map(len, pool.handled("kept").values())) == 4, "both workers posted it to both")
    wait_until(lambda: pool.run("handlers").out.count("(<script ") == 2, "it is still there")
    name = told[1]
    done = script(pool, f"handlers\nunregister {name}\nhandlers\nunregister {name}\n")
    assert done.out.count(f"unregister NAME takes one back:\n  {name}  kept x\n") == 1
    assert (done.status, f"there is no script {name}" in done.err) == (1, True)
    assert "script" not in pool.run("handlers").out


def test_handlers_that_are_kept_from_a_file_are_listed_and_taken_back_by_name(pool, tmp_path: Path):
    file = tmp_path / "kept.py"
    file.write_text(
        "import eventsh\n@eventsh.on('kept', 'one', 'two')\ndef first(*event): pass\ndef second(*event): pass\n"
    )
    done = script(pool, f"load {file} --workers --keep\nregister kept x --workers --keep @{file}:second\nhandlers\n")
    assert (done.status, done.err) == (0, "")
    assert "of other shells" not in done.out
    first, second = re.findall(r"unregister (\d+\.\d) takes it back in any shell", done.out)
    done = script(pool, f"handlers\nunregister {first}\nunregister {second}\nhandlers\n")
    assert (done.status, done.err) == (0, "")
    listed = [line for line in done.out.splitlines() if line.startswith(("  " + first, "  " + second))]
    assert listed == [
        f"  {first}  kept one  first ({file}:2)",
        f"  {first}  kept two  first ({file}:2)",
        f"  {second}  kept x  second ({file}:4)",
    ]
    assert str(file) not in done.out.rpartition(f"unregistered {second}")[2]


# A worker of its own that takes no code.
REFUSING = """
import sys, eventsh
eventsh.register(lambda *event: None, "refusing")
eventsh.configure(broker="never", allow_scripts=False)
eventsh.wait_ready()
print("ready", flush=True)
sys.stdin.read()
"""


def test_a_worker_may_take_no_code_while_the_others_do(pool):
    process = subprocess.Popen(
        [sys.executable, "-c", REFUSING],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment(pool.address),
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        done = script(pool, "register here x --workers: print('got', data)\npost here x 5 --wait\nunregister 1\n")
        assert (done.status, done.err) == (0, "")
        assert lines(done) == ["[worker 0] got 5", "[worker 1] got 5"]
        assert "registered 1 in 2 workers" in done.out
        assert done.out.count("worker 2: this worker takes no code: allow_scripts is off\n") == 1
    finally:
        process.communicate()


def test_a_worker_that_is_restarted_gets_it_again_and_so_does_a_new_broker(open_shell, directory: Path):
    address = f"unix:{directory}/run/e.sock"
    terminal = open_shell("shell", "--workers", "2")
    terminal.wait("eventsh> ")
    terminal.enter("register here --workers: print('got', data)", "registered 1 in 2 workers", "eventsh> ")
    post_and_see(terminal, "11")
    broker, workers = processes(address)
    terminal.enter("kill 1 -s KILL", "sent KILL to worker 1", "eventsh> ")
    wait_until(
        lambda: len(processes(address)[1] - workers) == 1 and len(processes(address)[1]) == 2, "another worker 1"
    )
    post_and_see(terminal, "12")
    os.kill(broker, signal.SIGKILL)
    terminal.wait("the broker is gone", "attached again")
    wait_until(lambda: len(processes(address)[1]) == 2, "both workers are attached again")
    wait_until(lambda: run(address, "handlers").out.count("(<script ") == 2, "both have it again")
    post_and_see(terminal, "13")
    terminal.leave()
    assert terminal.end() == 0


def test_a_shell_that_dies_together_with_the_broker_leaves_nothing_in_the_workers(open_shell, directory: Path):
    pool = Pool(directory, workers=2)
    try:
        terminal = open_shell("shell")
        terminal.wait("eventsh> ")
        terminal.enter("register here --workers: print(data)", "registered 1 in 2 workers", "eventsh> ")
        broker, _ = processes(pool.address)
        # Without its shell from now on, and without anybody who could tell the workers.
        os.kill(broker, signal.SIGSTOP)
        terminal.child.kill(signal.SIGKILL)
        os.kill(broker, signal.SIGKILL)
        wait_until(lambda: pool.err.count("broker (pid") >= 2, "another broker")
        wait_until(lambda: len(processes(pool.address)[1]) == 2, "both workers are attached again")
        assert "script" not in pool.run("handlers").out
    finally:
        assert pool.stop() == 0


def post_and_see(terminal: Terminal, data: str) -> None:
    terminal.enter(f"post here x {data}")
    for worker in (0, 1):
        terminal.wait_row(f"[worker {worker}] got {data}")


def processes(address: str) -> tuple[int, set[int]]:
    """The broker's pid, and those of the workers that are attached."""
    answer = json.loads(run(address, "status", "--json").out)
    workers = answer["workers"]
    return answer["broker"]["pid"], {worker["pid"] for worker in workers if worker["state"] == "attached"}


def test_what_was_registered_is_written_as_a_file_for_serve(pool, tmp_path: Path):
    file, other = tmp_path / "saved.py", tmp_path / "other.py"
    other.write_text("import os\ndef f(data, event, source, pid):\n    print('f', data, flush=True)\n")
    done = script(
        pool,
        f"register s one: print('one', data, flush=True)\n"
        f"register s two:\n    text = '''a\n  b'''\n    if data:\n        print(repr(text), flush=True)\n\n"
        f"register s: await __import__('asyncio').sleep(0)\n"
        f"register s three @{other}:f\n"
        f"handlers --save {file}\nhandlers --save {file}\n",
    )
    assert (done.status, done.err.count("is there already")) == (2, 1)
    assert f"wrote 4 registrations; eventsh serve --handlers {file} has them" in done.out
    (tmp_path / "pool").mkdir()
    serving = Pool(tmp_path / "pool", "--handlers", str(file), workers=1, prints=True)
    try:
        for event in ("one", "two", "three"):
            assert serving.run("post", "s", event, "5", "--wait").status == 0
        assert serving.out.splitlines()[-3:] == ["one 5", r"'a\n  b'", "f 5"]
    finally:
        assert serving.stop() == 0


def test_code_is_refused_where_it_is_switched_off_and_over_tcp(tmp_path: Path):
    pool = Pool(tmp_path, "--allow-scripts", "no", workers=1)
    try:
        done = script(pool, "register a --workers: 1\n")
        assert (done.status, "allow_scripts is off" in done.err) == (1, True)
        assert script(pool, "register a: 1\n").status == 0
    finally:
        assert pool.stop() == 0


def test_code_is_refused_over_tcp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_port: Callable[[], int]):
    address = f"tcp://127.0.0.1:{free_port()}"
    pool = Pool(tmp_path, "--listen", address, workers=1)
    try:
        pool.address = address
        done = script(pool, "register a --workers: 1\n")
        assert done.status == 1
        assert "code goes into workers only over a unix socket" in done.err
        done = script(pool, "kill 0\n")
        assert (done.status, "only over a unix socket" in done.err) == (1, True)
    finally:
        assert pool.stop() == 0
