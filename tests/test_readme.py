"""The README tells the truth: names, options, exit statuses and commands are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import eventsh
from eventsh.cli.verbs import VERBS, build_command
from eventsh.commands.outcome import Exit
from eventsh.errors import EventError
from eventsh.options import OPTIONS
from eventsh.shell.verbs import make_verbs

README = (Path(__file__).parent.parent / "README.md").read_text()


def rows(heading: str) -> list[str]:
    """The first cells of the rows of the table whose first heading is `heading`."""
    lines = README.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"| {heading} |"))
    cells = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        cells.append(line.split("|")[1].strip())
    return cells


def test_the_table_of_functions_names_every_public_function() -> None:
    named = {re.match(r"`(\w+)", cell)[1] for cell in rows("function")}  # type: ignore[index]
    public = {
        name
        for name in eventsh.__all__
        if callable(getattr(eventsh, name)) and not isinstance(getattr(eventsh, name), type)
    }
    assert named == public


def test_every_public_error_is_told() -> None:
    errors = [name for name in eventsh.__all__ if isinstance(getattr(eventsh, name), type)]
    errors = [name for name in errors if issubclass(getattr(eventsh, name), EventError)]
    assert len(errors) > 10
    assert [name for name in errors if f"`{name}`" not in README] == []


def test_every_option_is_told() -> None:
    told = re.search(r"<!-- options -->(.*?)<!-- /options -->", README, re.DOTALL)
    assert told is not None
    assert set(re.findall(r"`(\w+)`", told[1])) == set(OPTIONS)


def test_the_table_of_exit_statuses_is_that_of_the_code() -> None:
    told = [int(cell) for cell in rows("exit status")]
    assert told == [*(int(status) for status in Exit), 130]


def test_every_command_with_json_is_told() -> None:
    told = re.search(r"`--help` with examples\. (.*?) have `--json`", README, re.DOTALL)
    assert told is not None
    having = {verb for verb in VERBS if any("--json" in param.opts for param in build_command(verb).params)}
    assert set(re.findall(r"`(\w+)`", told[1])) == having


def test_every_command_of_the_shell_is_told() -> None:
    section = README.partition("## The shell\n")[2].partition("\n## ")[0]
    verbs = [verb.name for verb in make_verbs().all(with_plugins=False)]
    assert [name for name in verbs if f"`{name}`" not in section] == []


@pytest.mark.parametrize("name", eventsh.__all__)
def test_every_public_name_can_be_had(name: str) -> None:
    assert getattr(eventsh, name) is not None
