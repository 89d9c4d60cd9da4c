from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pexpect  # type: ignore[import-untyped, unused-ignore]
import pytest

from tests.cli.pool import COMMAND, DEADLINE_S, Done, Pool, environment, run, wait_until


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    pool = Pool(tmp_path_factory.mktemp("pool"), "--unique-timeout", "3s", "--log-format", "json")
    yield pool
    assert pool.stop() == 0


@pytest.fixture
def nowhere(tmp_path: Path) -> str:
    return f"unix:{tmp_path}/e.sock"


def all_of(pool: Pool, event: str) -> list[Any]:
    return [data for handled in pool.handled(event).values() for data in handled]


def assert_refused(done: Done, status: int, *parts: str) -> None:
    """It ended with this status, and one line on stderr that has these parts."""
    assert (done.status, done.out) == (status, ""), done
    assert done.err.count("\n") == 1, done.err
    assert done.err.startswith("eventsh: ")
    assert "Traceback" not in done.err
    for part in parts:
        assert part in done.err


# --- what is posted, and by whom it is handled ---


def test_four_workers_handle_one_post_once_each(pool):
    done = pool.run("post", "test", "one", '<"k":1>')
    assert done == Done(0, "posted 1 event to 4 workers\n", "")
    pool.wait_handled("one", [{"k": 1}])


@pytest.mark.parametrize(
    ("arguments", "stdin", "data"),
    [
        ([], b"", None),
        (["[1, 2.5, null]"], b"", [1, 2.5, None]),
        (["a=b", "n:=3"], b"", {"a": "b", "n": 3}),
        (["--text", "plain {"], b"", "plain {"),
        (["-"], b'{"from": "stdin"}', {"from": "stdin"}),
        (["@FILE"], b"", ["from", "file"]),
        (["--", "-5"], b"", -5),
        (["é\u202e", "--text"], b"", "é\u202e"),
    ],
)
def test_data_arrives_as_it_was_meant(pool, tmp_path, arguments, stdin, data):
    (tmp_path / "data").write_text('["from", "file"]')
    name = f"data {arguments}"
    arguments = [argument.replace("FILE", f"{tmp_path}/data") for argument in arguments]
    done = pool.run("post", "test", name, *arguments, stdin=stdin)
    assert (done.status, done.err) == (0, "")
    pool.wait_handled(name, [data])


def test_count_posts_it_so_often_and_tells_a_rate(pool):
    done = pool.run("post", "test", "counted", "7", "--count", "2500")
    assert done.status == 0
    assert re.fullmatch(r"posted 2,500 events to 4 workers in [\d.]+ s \([\d,]+/s\)\n", done.out)
    pool.wait_handled("counted", [7] * 2500)


def test_json_tells_who_has_it(pool):
    done = pool.run("post", "test", "told", "--json")
    told = json.loads(done.out)
    assert isinstance(told.pop("seconds"), float)
    assert told == {"posted": 1, "repeats": 0, "workers": [0, 1, 2, 3], "missing": [], "unique": None}


def test_a_unique_event_is_handled_once_and_its_repeats_are_ignored_until_the_timeout(pool):
    first = pool.run("post", "test", "unique", "1", "--unique", "key")
    assert re.fullmatch(r"posted 1 event to worker [0-3]\n", first.out)

    def again() -> bool:
        done = pool.run("post", "test", "unique", "2", "--unique", "key")
        assert done.status == 0
        return bool(done.out.startswith("posted 1 event"))

    wait_until(again, "the key is free again")
    wait_until(lambda: sorted(all_of(pool, "unique")) == [1, 2], "both are handled, by one worker each")


def test_a_unique_event_that_is_repeated_says_so(pool):
    done = pool.run("post", "test", "often", "--unique", "often", "--count", "3", "--json")
    told = json.loads(done.out)
    assert (told["posted"], told["repeats"]) == (1, 2)
    done = pool.run("post", "test", "often", "--unique", "twice", "--count", "3")
    assert re.match(r"posted 1 event; 2 repeats ignored, as the unique key is taken in ", done.out)
    wait_until(lambda: len(all_of(pool, "often")) == 2, "one for each key")


# --- many, from standard input ---


def test_ten_thousand_lines_are_posted_in_their_order(pool):
    lines = b"".join(b"%d\n" % number for number in range(10_000))
    done = pool.run("post", "test", "lines", "--stdin", stdin=lines)
    assert (done.status, done.err) == (0, "")
    assert re.fullmatch(r"posted 10,000 events to 4 workers in [\d.]+ s \([\d,]+/s\)\n", done.out)
    pool.wait_handled("lines", list(range(10_000)))


def test_empty_lines_are_passed_over_and_the_last_line_needs_no_end(pool):
    done = pool.run("post", "test", "gaps", "--stdin", stdin=b'\n1\r\n\n  \n"two"')
    assert done.out.startswith("posted 2 events to 4 workers")
    pool.wait_handled("gaps", [1, "two"])
    done = pool.run("post", "test", "gaps", "--stdin")
    assert done == Done(0, "nothing to post: standard input was empty\n", "")


@pytest.mark.parametrize(
    ("bad", "why"),
    [(b"{", "not JSON"), (b"\xff", "not UTF-8"), (b"NaN", "NaN"), (b'"%s"' % (b"x" * 70_000), "max_payload_len")],
    ids=["json", "utf-8", "nan", "large"],
)
def test_a_bad_line_ends_it_once_those_before_it_are_confirmed(pool, bad, why):
    lines = b"".join(b"%d\n" % number for number in range(3000)) + bad + b"\n3001\n"
    done = pool.run("post", "test", f"bad {why}", "--stdin", stdin=lines)
    assert_refused(done, 2, "line 3001: ", why, "(3000 posted before it)")
    pool.wait_handled(f"bad {why}", list(range(3000)))


def test_a_line_is_posted_before_the_next_one_comes(pool):
    process = pool.start("post", "test", "slow", "--stdin")
    assert process.stdin is not None
    for number in range(3):
        process.stdin.write(b"%d\n" % number)
        process.stdin.flush()
        pool.wait_handled("slow", list(range(number + 1)))
    out, err = process.communicate(timeout=DEADLINE_S)
    assert out.startswith(b"posted 3 events to 4 workers")
    assert (process.returncode, err) == (0, b"")


def test_ctrl_c_ends_it_by_the_signal_and_no_word(pool):
    process = pool.start("post", "test", "interrupted", "--stdin")
    assert process.stdin is not None
    process.stdin.write(b"1\n")
    process.stdin.flush()
    pool.wait_handled("interrupted", [1])
    process.send_signal(signal.SIGINT)
    assert process.wait(DEADLINE_S) == -signal.SIGINT
    assert process.communicate() == (b"", b"")


# --- what is refused ---


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["post", "a", "b", "{"], "put JSON in single quotes"),
        (["post", "a", "b", "NaN"], "NaN"),
        (["post", "a", "b", "@/nowhere/x"], "can't read /nowhere/x: No such file or directory"),
        (["post", "a", "b", "@/"], "can't read /: Is a directory"),
        (["post", "a", "b", b"\xff"], "is not UTF-8"),
        (["post", b"\xff", "b"], "the source \\udcff is not UTF-8"),
        (["post", "a", "b", "--unique", b"\xff"], "the unique key \\udcff is not UTF-8"),
        (["post", "", "b"], "source must not be empty"),
        (["post", "a", "b", "-5"], "put -- before DATA"),
        (["post", "a", "b", "--count", "0"], "--count must be a whole number of at least 1, not '0'"),
        (["post", "a", "b", "--count", "x" * 5000], "--count must be"),
        (["post", "a", "b", "--timeout", "soon"], "--timeout: 'soon' is no length of time"),
        (["post", "a", "b", "--timeout", "0"], "--timeout must be"),
        (["post", "a", "b", "--address", "nonsense"], "an address looks like unix:/run/app/events.sock"),
        (["post", "a", "b", "--address", "unix:/" + "x" * 200], "use a shorter one"),
        (["post", "a", "b", "1", "--stdin"], "leave out DATA"),
        (["post", "a", "b", "--nonsense\x1b[2J"], "No such option: --nonsense"),
        (["post"], "Missing argument 'SOURCE' (see eventsh post --help)"),
        (["post", "a", "b", "--count"], "--count"),
        (["pots", "a", "b"], "Did you mean 'post'? (see eventsh --help)"),
        (["tail", "--count", "0"], "--count must be"),
        (["tail", "", "b"], "the pattern for the source is empty"),
        (["tail", b"\xff"], "the source \\udcff is not UTF-8"),
        (["tail", "--format", "{nonsense}"], "has no field {nonsense}"),
        (["tail", "--format", "x", "--json"], "exclude each other"),
        (["status", "extra"], "extra"),
        (["serve", "--workers", "-1"], "--workers must be a whole number of at least 0"),
        (["serve", "--workers", "2000"], "max_slots"),
        (["serve", "--handlers", "nowhere.py"], "there is no file 'nowhere.py'"),
        (["serve", "--log-format", "xml"], "--log-format must be text or json, not 'xml'"),
        (["serve", "--max-payload-len", "17MiB"], "--max-payload-len must be"),
    ],
    ids=lambda value: " ".join(map(str, value))[:50] if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_that_says_what_to_do(nowhere, arguments, part):
    done = run(nowhere, *arguments)
    assert_refused(done, 2, part)
    assert "\x1b" not in done.err


def test_data_that_is_too_large_is_refused_with_its_size_and_the_option(pool):
    done = pool.run("post", "test", "large", "--text", "-", stdin=b"x" * 70_000)
    assert_refused(done, 2, "70019 bytes", "65536", "max_payload_len")


def test_without_a_broker_it_says_how_to_start_one(nowhere):
    for arguments in (["post", "a", "b"], ["tail"], ["status"]):
        assert_refused(run(nowhere, *arguments), 3, f"nobody listens at {nowhere}", "eventsh serve --workers 4")


def test_without_a_worker_it_says_that_nobody_got_it(tmp_path):
    pool = Pool(tmp_path, workers=0)
    try:
        assert_refused(pool.run("post", "test", "x"), 5, "no worker is attached", "eventsh serve --workers 4")
        assert_refused(pool.run("post", "test", "x", "--unique", "k"), 5, "nothing was posted")
        assert "no workers: start some" in pool.run("status").out
    finally:
        assert pool.stop() == 0


def test_a_broker_that_is_stopped_is_a_timeout(tmp_path):
    pool = Pool(tmp_path, workers=1)
    broker = pool.status()["broker"]["pid"]
    os.kill(broker, signal.SIGSTOP)
    try:
        for arguments in (["post", "test", "x"], ["status"]):
            done = pool.run(*arguments, "--timeout", "300ms")
            assert_refused(done, 4, "the broker is stopped or overloaded: no answer within 0.3 s")
    finally:
        os.kill(broker, signal.SIGCONT)
        assert pool.stop() == 0


def test_a_full_queue_is_a_timeout_that_tells_what_is_confirmed(tmp_path):
    pool = Pool(tmp_path, "--max-queue-len", "4", "--timeout", "1m", workers=1)
    try:
        assert pool.run("post", "test", "hang").status == 0
        wait_until(lambda: pool.handled("hang"), "the handler hangs")
        done = pool.run("post", "test", "x", "--count", "50", "--timeout", "3s")
        assert_refused(done, 4, "no room for posts within 3 s", "eventsh status", "posted events are confirmed")
    finally:
        # The worker hangs: the second signal kills.
        pool.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "SIGTERM: stopping" in pool.err, "it is stopping")
        pool.process.send_signal(signal.SIGTERM)
        assert pool.process.wait(DEADLINE_S) == 128 + signal.SIGTERM


# --- serve ---


def test_a_handlers_file_that_does_not_load_ends_it_and_names_the_line(tmp_path, nowhere):
    handlers = tmp_path / "handlers.py"
    handlers.write_text("import eventsh\n1 / 0\n")
    done = run(nowhere, "serve", "--workers", "1", "--handlers", str(handlers))
    assert (done.status, done.out) == (1, f"listening at {nowhere} (pid {done.out.split()[-1][:-1]})\n")
    assert f"{handlers}:2: ZeroDivisionError: division by zero" in done.err.splitlines()[-1]


def test_a_second_broker_at_the_address_is_refused(pool):
    assert_refused(pool.run("serve", "--workers", "1"), 1, "a broker is already running at", "--listen")


def test_workers_without_handlers_print_what_they_get(tmp_path):
    pool = Pool(tmp_path, workers=2, prints=True)
    try:
        pool.run("post", "source", "event", '<"k":1>')
        pool.run("post", "source", "\x1b[2J", "--text", "\x1b]0;\x07\n")
        lines = ['source event {"k":1}', r'source \x1b[2J "\u001b]0;\u0007\n"']
        expected = {f"[worker {number}] {line}" for number in (0, 1) for line in lines}
        wait_until(lambda: expected <= set(pool.out.splitlines()), "both workers have printed both")
        assert "\x1b" not in pool.out
    finally:
        assert pool.stop() == 0


def test_on_a_terminal_the_start_is_what_to_do_next_and_the_log_follows(tmp_path):
    address = f"unix:{tmp_path}/run/e.sock"
    command = [*COMMAND, "serve", "--workers", "2"]
    child: Any = pexpect.spawn(command[0], command[1:], env=environment(address), encoding="utf-8", timeout=DEADLINE_S)
    try:
        child.expect("Ctrl-C stops it[^\n]*\n")
        first = (child.before + child.after).splitlines()
        assert [line.split(" ")[0] for line in first] == ["listening", "2", "", "Ctrl-C"]
        worker = json.loads(run(address, "status", "--json").out)["workers"][1]["pid"]
        os.kill(worker, signal.SIGKILL)
        child.expect(r"WARNING eventsh.pool.*worker 1 ")
        child.expect(r"INFO eventsh.pool.*worker 1 \(pid [0-9]+\) is ready")
        child.send("\x03")
        child.expect(pexpect.EOF)
        assert child.wait() == 0
    finally:
        child.close(force=True)


def test_a_pool_serves_at_a_path_that_is_no_utf8(tmp_path):
    directory = tmp_path / "d\udcff"
    directory.mkdir()
    pool = Pool(directory, workers=2)
    try:
        assert pool.run("post", "test", "here", "1", "--wait").status == 0
        pool.wait_handled("here", [1], workers=2)
    finally:
        assert pool.stop() == 0


def test_the_log_is_json_where_that_is_wanted(pool):
    wait_until(lambda: pool.err.endswith("\n"), "something is logged")
    entries = [json.loads(line) for line in pool.err.splitlines()]
    assert all({"time", "level", "logger", "message", "pid"} <= entry.keys() for entry in entries)


def test_ctrl_c_stops_the_pool_with_status_0(tmp_path):
    pool = Pool(tmp_path, workers=1)
    pool.process.send_signal(signal.SIGINT)
    assert pool.process.wait(DEADLINE_S) == 0
    assert "Traceback" not in pool.err
    assert not list((tmp_path / "run").glob("*"))


# --- output ---


def test_a_full_disk_is_one_line(pool):
    with open("/dev/full", "wb") as full:
        for arguments in (["status"], ["--help"], ["--version"], ["post", "test", "full disk"]):
            done = pool.run(*arguments, out=full.fileno())
            assert_refused(done, 1, "can't write the output: No space left on device")


@pytest.mark.parametrize(
    "arguments", [["status"], ["--help"], ["--version"], ["post", "test", "closed"], ["post", "--help"]]
)
def test_nobody_who_reads_is_no_trouble(pool, arguments):
    reading, writing = os.pipe()
    os.close(reading)
    try:
        assert pool.run(*arguments, out=writing) == Done(0, "", "")
    finally:
        os.close(writing)


def test_an_error_that_can_not_be_told_keeps_its_status(nowhere):
    command = '"$@" 2>/dev/full'
    done = subprocess.run(["sh", "-c", command, "sh", *COMMAND, "status"], env=environment(nowhere), check=False)
    assert done.returncode == 3


def test_streams_that_are_closed_are_no_trouble(pool):
    command = '"$@" <&- >&- 2>&-'
    done = subprocess.run(
        ["sh", "-c", command, "sh", *COMMAND, "post", "test", "streams"], env=environment(pool.address), check=False
    )
    assert done.returncode == 0
    pool.wait_handled("streams", [None])


@pytest.mark.parametrize("verb", ["", "serve", "post", "tail", "status"])
def test_help_has_examples_that_fit_and_nothing_wraps_them(nowhere, verb):
    done = run(nowhere, *verb.split(), "--help")
    assert (done.status, done.err) == (0, "")
    assert max(map(len, done.out.splitlines())) <= 80
    examples = done.out.partition("\nExamples:\n")[2].splitlines()
    assert len(examples) >= 2
    assert all(re.match(r"  (seq 1000 \| )?eventsh \w+", line) for line in examples)


def test_without_a_command_the_help_is_shown_and_it_is_a_mistake(nowhere):
    assert run(nowhere) == Done(2, run(nowhere, "--help").out, "")
    assert run(nowhere, "--version").out.startswith("eventsh ")


# Ctrl-C in the midst of orjson's import, when it looks for a module that it needs.
INTERRUPTED = """
import signal, sys

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if "orjson" in sys.modules and not name.startswith("orjson"):
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, Interrupting())
from eventsh.cli.app import main
main(["status"])
"""


def test_ctrl_c_while_it_loads_is_no_crash(nowhere):
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED],
        capture_output=True,
        env=environment(nowhere),
        timeout=DEADLINE_S,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, b"", b"")


def test_whoever_serves_where_no_directory_can_be_is_not_told_that_a_broker_is_missing(tmp_path):
    done = run(f"unix:{tmp_path}/no/such/e.sock", "serve")
    assert_refused(done, 1, "can't be used or made", "No such file or directory")
    assert "start one" not in done.err


def test_an_option_without_its_value_names_the_help_of_its_command(nowhere):
    assert_refused(run(nowhere, "post", "a", "b", "--address"), 2, "--address", "see eventsh post --help")
