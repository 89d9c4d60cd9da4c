"""Row 14 of FAULTS.md: whatever sources, events, data, errors and names hold, no control character gets out of a command."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from unicodedata import category

import pytest

from eventsh.cli.verbs import VERBS
from tests.faults.campaign import directory
from tests.faults.processes import DEADLINE_S, Served, ask, environment, wait_until

# Clears the screen, colours (as one character of C1 too), goes back, rings, turns the direction, ends the line.
NASTY = "\x1b[2J\x9b31m\r\x07\x08\u202e\u2028\x7f\n"
HANDLERS = f"""
import sys
import eventsh

NASTY = {NASTY!r}

@eventsh.on(NASTY, NASTY)
def fail(data, event, source, pid):
    raise ValueError(NASTY, data)

@eventsh.on(NASTY)
def pass_by(data, event, source, pid):
    pass

fail.__qualname__ = fail.__name__ = "fail" + NASTY
"""
DATA = json.dumps({"k": NASTY + "\0", NASTY: 1}, ensure_ascii=False)


def unsafe(text: str) -> set[str]:
    """What may not get out; a command's own lines end with a line feed."""
    return {character for character in text if category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")} - {"\n"}


@pytest.fixture(scope="module")
def pool() -> Iterator[Served]:
    with directory() as path:
        handlers = path / f"handlers{NASTY}.py"
        handlers.write_text(HANDLERS)
        pool = Served(path, f"unix:{path}/run/e.sock", 2, handlers=str(handlers))
        yield pool
        assert pool.stop() == 0
        # Not as text, in which Python makes line feeds of what ends a line elsewhere.
        log = (path / "serve.err").read_bytes().decode()
        assert "ValueError" in log
        assert not unsafe(log)


def start(pool: Served, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "eventsh", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**environment(pool.directory), "EVENTSH_ADDRESS": pool.address, "COLUMNS": "80"},
    )


def output(process: subprocess.Popen[bytes]) -> str:
    """What a command says until its end, all of it harmless."""
    out, _ = process.communicate(timeout=DEADLINE_S)
    text: str = out.decode()
    assert not unsafe(text), (process.args, text)
    # What looks like an escape sequence is one that was escaped.
    assert text.count("[2J") == text.count("\\x1b[2J") + text.count("\\u001b[2J"), text
    return text


def run(pool: Served, *arguments: str) -> str:
    return output(start(pool, *arguments))


@contextmanager
def watching(pool: Served, count: int, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start one that watches, as the `count`th at this time."""
    process = start(pool, *arguments)
    try:
        wait_until(lambda: (ask(pool.address) or {"broker": {}})["broker"].get("observers") == count, "it watches")
        yield process
    finally:
        process.kill()
        process.communicate()


def test_what_events_and_their_handlers_hold_is_shown_escaped_by_every_command(pool: Served) -> None:
    recording = str(pool.directory / f"recording{NASTY}.evlog")
    tail = ("tail", "--count", "3")
    with (
        watching(pool, 1, *tail) as lines,
        watching(pool, 2, *tail, "--json") as objects,
        watching(pool, 3, *tail, "--format", "{source} {event} {data}") as fields,
        watching(pool, 4, "record", recording) as recorder,
    ):
        # The event, and what two workers tell of their handlers.
        assert "fail" in run(pool, "post", NASTY, NASTY, DATA, "--wait")
        for process in (lines, objects, fields):
            assert "handler_error" in output(process)
        recorder.send_signal(signal.SIGINT)
        assert "recording" in output(recorder)
    for arguments in (
        ("post", NASTY, NASTY, DATA, "--wait", "--json"),
        ("post", NASTY, NASTY, DATA, "--unique", NASTY),
        ("post", NASTY, NASTY, DATA, "--json"),
        ("status",),
        ("status", "--json"),
        ("replay", recording, "--dry-run"),
        ("replay", recording, "--dry-run", "--json"),
        ("record", "--mark", NASTY),
    ):
        run(pool, *arguments)
    assert "fail" in run(pool, "handlers")
    assert "fail" in run(pool, "handlers", "--json")


def test_a_mistake_with_control_characters_is_told_without_them(pool: Served) -> None:
    for process in [start(pool, verb, f"--{NASTY}") for verb in VERBS] + [start(pool, NASTY)]:
        assert output(process).startswith("eventsh: ")
        assert process.returncode == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ("post", "a", "b", f"[{NASTY}"),
        ("post", "a", "b", f"@/nowhere/{NASTY}"),
        ("post", "a", "b", "--count", NASTY),
        ("post", "a", "b", "--timeout", NASTY),
        ("tail", "--format", f"{{{NASTY}}}"),
        ("serve", "--handlers", f"/nowhere/{NASTY}.py"),
        ("serve", "--log-format", NASTY),
        ("replay", f"/nowhere/{NASTY}.evlog"),
        ("record", f"/nowhere/{NASTY}/a.evlog"),
    ],
    ids=lambda arguments: " ".join(arguments[:3]).replace(NASTY, "NASTY"),
)
def test_a_wrong_value_is_told_without_its_control_characters(pool: Served, arguments: tuple[str, ...]) -> None:
    process = start(pool, *arguments)
    assert output(process).startswith("eventsh: ")
    assert process.returncode != 0
