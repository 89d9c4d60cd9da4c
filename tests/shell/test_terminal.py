"""A person at the shell: start a pool, post, watch, and leave; in a pseudo-terminal."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys

from tests.cli.pool import Pool, run, wait_until
from tests.recording.sample import small_file
from tests.shell.terminal import PROMPT, Terminal


def test_a_shell_offers_a_pool_where_there_is_none_and_ends_it(open_shell, directory):
    terminal = open_shell()
    terminal.wait("nobody listens at unix:", "Start a pool of 4 workers here")
    terminal.enter("y", "starting 4 workers", "help lists the commands", "attached", PROMPT)
    terminal.wait_bar("workers 4/4")
    terminal.enter('post cache purge {"key": "k1"}', "posted 1 event to 4 workers")
    for number in range(4):
        wanted = f'[worker {number}] cache purge {{"key":"k1"}}'
        terminal.wait_row(wanted)
    leave(terminal)
    # Nothing of the pool is left, and no socket.
    assert run(f"unix:{directory}/run/e.sock", "status").status == 3
    assert list((directory / "run").iterdir()) == []


def test_a_shell_without_a_broker_attaches_once_there_is_one(open_shell, directory):
    terminal = open_shell()
    terminal.wait("Start a pool of 4 workers here")
    terminal.enter("n", "not attached", PROMPT)
    terminal.enter("tail", "nobody listens at unix:", PROMPT)
    pool = Pool(directory, workers=1)
    try:
        terminal.enter("tail", "tail is on", PROMPT)
        terminal.wait_bar("workers 1/1")
        terminal.enter("post test seen 5")
        terminal.wait_until(lambda: re.search(r"\d test seen 5", terminal.text) is not None, "the event")
        leave(terminal)
    finally:
        assert pool.stop() == 0


def test_what_a_pool_prints_too_much_of_is_counted_without_more_of_it(open_shell):
    terminal = open_shell("shell", "--workers", "1")
    terminal.wait(PROMPT)
    terminal.enter("set rate 1", PROMPT)
    terminal.enter("post a b --count 50", "posted 50 events")
    terminal.wait_until(lambda: lines_of_workers(terminal.text) == 50, "all 50")
    leave(terminal)


def lines_of_workers(text: str) -> int:
    """How many were shown, and how many counted."""
    counted = [int(number) for number in re.findall(r"… ([0-9]+) more line", text)]
    return text.count("[worker 0] a b null") + sum(counted)


def leave(terminal: Terminal) -> None:
    terminal.leave()
    assert terminal.end() == 0


def test_the_pool_ends_with_a_shell_that_is_killed(open_shell, directory):
    terminal = open_shell("shell", "--workers", "1")
    terminal.wait(PROMPT)
    terminal.wait_bar("workers 1/1")
    terminal.child.kill(9)
    wait_until(lambda: not list((directory / "run").iterdir()), "the pool has ended")


def test_events_are_shown_above_what_is_being_typed(open_shell, directory):
    terminal = open_shell("shell", "--workers", "1")
    terminal.wait(PROMPT)
    terminal.enter("tail 'ca*'", "tail is on", PROMPT)
    terminal.type("workers --js")
    terminal.wait_shown("workers --js")
    terminal.type("\t")
    terminal.wait_row("eventsh> workers --json")
    terminal.type("\r")
    terminal.wait('[{"worker_id":0,', PROMPT)
    terminal.wait_bar("tail")
    terminal.type("post cache half")
    terminal.wait("post cache half")
    address = f"unix:{directory}/run/e.sock"
    assert run(address, "post", "cache", "evil", "--text", "\x1b[2J\u202e").status == 0
    assert run(address, "post", "other", "unseen").status == 0
    terminal.wait_until(lambda: r' cache evil "\u001b[2J\u202e"' in terminal.text, "the event")
    terminal.wait_until(lambda: terminal.rows.count("eventsh> post cache half") == 1, "the line, once, as it was")
    terminal.type(" 1")
    terminal.wait("half 1")
    terminal.type("\r")
    terminal.wait_until(lambda: re.search(r"\d cache half 1", terminal.text) is not None, "the event of the line")
    terminal.wait_until(lambda: "posted 1 event to 1 worker" in terminal.rows, "the answer")
    assert "\x1b[2J\u202e" not in terminal.raw
    assert re.search(r"\d other unseen", terminal.text) is None
    terminal.enter("tail off", "tail is off", PROMPT)
    leave(terminal)


def test_of_many_events_a_sample_is_shown_and_the_rest_counted(open_shell, directory):
    terminal = open_shell("shell", "--workers", "1", "--handlers", "quiet.py")
    assert terminal.end() == 1
    assert "handlers: there is no file 'quiet.py'" in terminal.text
    (directory / "quiet.py").write_text("import eventsh\neventsh.register(lambda *event: None)\n")
    terminal = open_shell("shell", "--workers", "1", "--handlers", "quiet.py")
    terminal.wait(PROMPT)
    terminal.enter("tail load", "tail is on", PROMPT)
    terminal.enter("post load tick --count 20000", "posted 20,000 events to 1 worker")
    terminal.wait_until(lambda: sum(seen(terminal.text)) >= 20000, "all events")
    shown, counted = seen(terminal.text)
    assert shown + counted == 20000
    assert 0 < shown < 2000
    leave(terminal)


def seen(text: str) -> tuple[int, int]:
    """How many events were shown, and how many counted."""
    counted = [int(number.replace(",", "")) for number in re.findall(r"… ([0-9,]+) more event", text)]
    return len(re.findall(r"\d load tick null", text)), sum(counted)


def test_ctrl_c_clears_the_line_and_stops_a_command(open_shell):
    terminal = open_shell("shell", "--workers", "1")
    terminal.wait(PROMPT)
    terminal.type("post a b {")
    terminal.wait("post a b {")
    terminal.type("\x03")
    terminal.wait(PROMPT)
    # Another run of this test on this machine has a time of its own.
    sleep = f"sleep 6{os.getpid()}"
    terminal.enter(f"!{sleep}")
    wait_until(lambda: sleep in processes(), "the command runs")
    terminal.type("\x03")
    terminal.wait("interrupted", PROMPT)
    assert sleep not in processes()
    terminal.resize(20, 60)
    terminal.enter("set rate 33", PROMPT)
    terminal.enter("set", "rate     33", PROMPT)
    terminal.enter("nothing", "there is no command 'nothing'", PROMPT)
    leave(terminal)


def test_a_handler_is_written_at_the_prompt_and_its_mistakes_are_shown(open_shell):
    terminal = open_shell("shell", "--workers", "4")
    terminal.wait(PROMPT)
    terminal.type("register cache purge --workers: print(data) = 1")
    terminal.wait_shown("column 33: cannot assign to function call")
    terminal.type("\x03")
    terminal.wait(PROMPT)
    # Enter, four times: below the colon, below the row that ends in one, behind the last row, and in the empty one.
    terminal.type("register cache purge --workers:\rif data['key'] == 'bad':\rdata.nothing\r\x7fprint('got', data)\r\r")
    terminal.wait("registered 1 in 4 workers", PROMPT)
    terminal.enter("post cache purge key=k1", "posted 1 event to 4 workers")
    for number in range(4):
        wanted = f"[worker {number}] got {{'key': 'k1'}}"
        terminal.wait_row(wanted)
    terminal.enter("post cache purge key=bad", "posted 1 event to 4 workers")
    for number in range(4):
        wanted = f"[worker {number}] AttributeError: 'dict' object has no attribute 'nothing'"
        terminal.wait_row(wanted)
    terminal.wait_bar("failed 4")
    terminal.enter("unregister 1", "unregistered 1", PROMPT)
    terminal.enter("post cache purge key=k2 --wait", "worker 3 (pid", PROMPT)
    assert "got {'key': 'k2'}" not in terminal.text
    leave(terminal)


def processes() -> str:
    return subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout


def test_what_is_shown_while_a_recording_is_replayed_is_not_mixed_with_its_progress(open_shell, directory):
    terminal = open_shell("shell", "--workers", "1")
    terminal.wait(PROMPT)
    terminal.enter("tail cache", "tail is on", PROMPT)
    (directory / "a.evlog").write_bytes(small_file())
    terminal.enter("replay a.evlog --yes --rate 4 --count 6", "replayed 6 events", PROMPT)
    progress = [row for row in terminal.rows if "ms late" in row and "late by" not in row]
    assert progress == []
    assert "ms late" in terminal.raw


def test_a_dumb_terminal_without_colours_has_the_same(open_shell):
    terminal = open_shell("shell", "--workers", "1", TERM="dumb", NO_COLOR="1")
    terminal.wait(PROMPT)
    terminal.enter("post a b 1", "posted 1 event to 1 worker", PROMPT)
    terminal.enter("exit")
    assert terminal.end() == 0
    assert "\x1b[3" not in terminal.raw


def test_what_is_longer_than_the_screen_is_shown_in_less(open_shell):
    terminal = open_shell("shell", "--workers", "1", PAGER="less")
    terminal.wait(PROMPT)
    # What fits is not paged: the prompt is there again by itself.
    terminal.enter("help", "help COMMAND tells more", PROMPT)
    terminal.enter("help log", "Usage", "\n:")
    assert "jq -c" not in terminal.text
    # Neither less nor the shell ends by Ctrl-C; q leaves less, and the keys are the shell's again.
    interrupt_less(terminal)
    terminal.wait_shown("jq -c")
    assert "interrupted" not in terminal.text
    terminal.type("q")
    terminal.enter("set pager off", PROMPT)
    terminal.enter("help log", "Usage", "jq -c", PROMPT)
    leave(terminal)


def interrupt_less(terminal: Terminal) -> None:
    """Ctrl-C, and have it go to the end. What is typed right behind Ctrl-C may be dropped."""
    terminal.type("\x03")

    def is_at_end() -> bool:
        if "(END)" in terminal.rows[-1]:
            return True
        terminal.type("G")
        return False

    terminal.wait_until(is_at_end, "(END)")


def test_a_recording_is_paged_and_ctrl_c_is_the_pagers(open_shell, directory):
    (directory / "r.evlog").write_bytes(small_file())
    terminal = open_shell("log", "show", "r.evlog", PAGER="less")
    terminal.wait("only one", "\n:")
    interrupt_less(terminal)
    terminal.type("q")
    assert terminal.end() == 0
    terminal = open_shell("shell", "--workers", "1", PAGER="less")
    terminal.wait(PROMPT)
    terminal.enter("tail", "tail is on", PROMPT)
    terminal.enter("log show r.evlog", "only one", "\n:")
    assert run(f"unix:{directory}/run/e.sock", "post", "seen", "meanwhile", "--wait").status == 0
    interrupt_less(terminal)
    assert "seen meanwhile" not in terminal.text
    terminal.type("q")
    terminal.wait("seen meanwhile", PROMPT)
    terminal.enter("set pager off", PROMPT)
    terminal.enter("log show r.evlog", "only one", "--- end", PROMPT)
    leave(terminal)


# Shows how wide its terminal is, waits for a line, and says what came in.
PAGER = """\
import os, sys
size = os.get_terminal_size(2)
tty = open("/dev/tty")
print(f"my pager {size.columns}", flush=True)
key = tty.readline()
text = sys.stdin.read()
print("read", len(text.splitlines()), max(map(len, text.splitlines())) > 80, key.strip(), flush=True)
"""


def test_a_pager_of_ones_own_has_the_terminal_for_itself_at_any_width(open_shell, directory):
    (directory / "pager.py").write_text(PAGER)
    pager = f"{shlex.quote(sys.executable)} {directory}/pager.py"
    terminal = open_shell("shell", "--workers", "1", PAGER=pager, COLUMNS="")
    terminal.wait(PROMPT)
    terminal.enter("tail", "tail is on", PROMPT)
    address = f"unix:{directory}/run/e.sock"
    for columns, is_wide in ((120, True), (40, False), (80, False)):
        terminal.resize(24, columns)
        terminal.wait_until(lambda: PROMPT.rstrip() in terminal.rows, "the prompt, drawn again")
        terminal.type("help log\r")
        terminal.wait(f"my pager {columns}")
        assert run(address, "post", "seen", f"at{columns}", "--wait").status == 0
        assert f"seen at{columns}" not in terminal.text
        terminal.type("enough\n")
        terminal.wait("read ", f"{is_wide} enough", f"seen at{columns}")
    terminal.resize(24, 80)
    leave(terminal)


def test_a_program_may_do_something_else_at_ctrl_c(open_shell, directory):
    (directory / "trap.sh").write_text(
        "trap 'sleep 1; echo still; exit 5' INT\necho begun\nwhile :; do sleep 0.1; done\n"
    )
    terminal = open_shell("shell", "--workers", "1")
    terminal.wait(PROMPT)
    terminal.enter("!exec sh trap.sh", "begun")
    terminal.type("\x03")
    terminal.wait("still", PROMPT)
    assert "interrupted" not in terminal.text
    terminal.enter("post a b", "posted 1 event to 1 worker")
    leave(terminal)
