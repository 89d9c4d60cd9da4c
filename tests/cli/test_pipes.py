from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import subprocess
from collections.abc import Iterator

import pytest

from tests.cli.pool import COMMAND, DEADLINE_S, Pool, environment, wait_until


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    pool = Pool(tmp_path_factory.mktemp("pool"), workers=1)
    yield pool
    assert pool.stop() == 0


def test_tail_waits_for_a_slow_reader_and_leaves_the_shared_pipe_blocking(pool):
    reading, writing = os.pipe()
    process = pool.start("tail", "slow", "--json", "--count", "300", stdout=writing)
    try:
        assert process.stderr is not None
        assert process.stderr.readline() == b"eventsh: watching; Ctrl-C ends it\n"
        text = json.dumps("x" * 1000).encode() + b"\n"
        done = pool.run("post", "slow", "event", "--stdin", stdin=text * 300)
        assert done.status == 0, done.err
        # A full pipe holds 16 pages, each with as many whole lines as fit.
        wait_until(lambda: _waiting(reading) > 48_000, "the pipe is full")
        assert not fcntl.fcntl(writing, fcntl.F_GETFL) & os.O_NONBLOCK
        os.close(writing)
        writing = -1
        with os.fdopen(reading, "rb", closefd=False) as file:
            lines = file.read().splitlines()
        assert process.wait(DEADLINE_S) == 0
        assert [json.loads(line)["data"] for line in lines] == ["x" * 1000] * 300
    finally:
        process.kill()
        process.communicate()
        os.close(reading)
        if writing >= 0:
            os.close(writing)


def _waiting(descriptor: int) -> int:
    import array
    import termios

    count = array.array("i", [0])
    fcntl.ioctl(descriptor, termios.FIONREAD, count)
    return count[0]


@pytest.mark.parametrize("kind", ["full", "closed"])
def test_serve_goes_on_when_its_output_cannot_be_written(tmp_path, kind):
    address = f"unix:{tmp_path}/run/e.sock"
    if kind == "full":
        out = os.open("/dev/full", os.O_WRONLY)
    else:
        reading, out = os.pipe()
        os.close(reading)
    log = tmp_path / "err"
    with log.open("wb") as err:
        process = subprocess.Popen(
            [*COMMAND, "serve", "--workers", "1"], stdout=out, stderr=err, env=environment(address)
        )
    os.close(out)
    try:
        wait_until(
            lambda: (
                ("worker 0" in log.read_text() and "is ready" in log.read_text().partition("worker 0")[2])
                or process.poll() is not None
            ),
            "the worker is ready",
        )
        posted = subprocess.run(
            [*COMMAND, "post", "a", "b"], env=environment(address), capture_output=True, check=False
        )
        assert posted.returncode == 0, posted.stderr
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_S) == 0
        assert "Traceback" not in log.read_text()
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("def f(:\n", ["handlers.py", "line 1", "def f(:", "^", "SyntaxError"]),
        ("import no_such_module\n", ["handlers.py", "line 1", "import no_such_module", "no_such_module"]),
        ("x = 1\nraise ValueError('bad start')\n", ["handlers.py", "line 2", "raise ValueError", "bad start"]),
        ("import sys\nsys.exit(3)\n", ["handlers.py"]),
    ],
    ids=["syntax", "import", "raise", "exit"],
)
def test_handlers_that_do_not_import_end_a_first_start_at_once(tmp_path, code, expected):
    handlers = tmp_path / "handlers.py"
    marks = tmp_path / "marks"
    # Each attempt to import leaves a mark, but where the file does not even compile.
    handlers.write_text(code if "def f" in code else f"open({str(marks)!r}, 'a').write('x')\n".rstrip() + f"; {code}")
    done = subprocess.run(
        [*COMMAND, "serve", "--workers", "2", "--handlers", str(handlers)],
        env=environment(f"unix:{tmp_path}/run/e.sock"),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert all(text in done.stderr for text in expected), done.stderr
    assert "next start in" not in done.stderr
    if "def f" not in code:
        assert marks.read_text() == "x"


def test_ctrl_c_ends_a_command_by_the_signal(pool):
    process = pool.start("tail")
    assert process.stderr is not None
    process.stderr.readline()
    process.send_signal(signal.SIGINT)
    assert process.wait(DEADLINE_S) == -signal.SIGINT
    process.communicate()


def test_the_shell_answers_each_line_of_a_pipe_before_the_next_is_written(pool):
    process = pool.start("shell")
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        for number in range(3):
            process.stdin.write(f"post driven event {number}\n".encode())
            process.stdin.flush()
            assert select.select([process.stdout], [], [], DEADLINE_S)[0], "no answer"
            assert process.stdout.readline().startswith(b"posted 1 event")
        out, err = process.communicate(timeout=DEADLINE_S)
        assert (process.returncode, out, err) == (0, b"", b"")
    finally:
        process.kill()
        process.communicate()
