"""What is seen while a line is typed: mistakes with their place, rows that go on, completion. With prompt-toolkit's own
pipe for an input."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.document import Document
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from prompt_toolkit.validation import ValidationError

from eventsh.shell.check import find_fault, goes_on
from eventsh.shell.complete import candidates
from eventsh.shell.highlight import ShellLexer
from eventsh.shell.prompt import LineValidator, make_session
from eventsh.shell.render import Paint
from eventsh.shell.shell import Shell
from eventsh.shell.verbs import make_verbs


@pytest.fixture(scope="module")
def shell() -> Shell:
    shell = Shell("unix:/nowhere/e.sock", make_verbs(), Paint(True), io.StringIO(), is_interactive=True)
    shell.names.note("cache", "purge", {"key": "k1", "size": 3})
    shell.names.note("cache", "fill", [1])
    shell.names.note("my jobs", "run", None)
    return shell


def offered(shell: Shell, text: str) -> list[str]:
    return [found.text for found in candidates(text, shell)]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("po", ["post", "post_local"]),
        ("post ", ["cache", "'my jobs'"]),
        ("post ca", ["cache"]),
        ("post cache ", ["fill", "purge"]),
        ("post cache p", ["purge"]),
        ("post --wait cache p", ["purge"]),
        ("post --unique cache cache p", ["purge"]),
        ("post cache purge ", ["key=", "size="]),
        ("post cache purge key=1 ", ["size="]),
        ('post cache purge {"', ['"key": ', '"size": ']),
        ('post cache purge {"key": "x", "s', ['"size": ']),
        ('post cache purge {"key": "', []),
        ('post cache purge <"k', ['"key": ']),
        ("post cache fill ", []),
        ("post --w", ["--wait"]),
        ("post 'my jobs' ", ["run"]),
        ("help unreg", ["unregister"]),
        ("register cache p", ["purge"]),
        ("register cache purge --worker", ["--workers", "--worker"]),
        ("register cache purge: pri", []),
        ("unregister ", []),
        ("help st", ["status"]),
        ("set ", ["pager", "pretty", "rate"]),
        ("set pager o", ["on", "off"]),
        ("kill 1 --signal K", ["KILL"]),
        ("!ls ", []),
        ("status | j", []),
        ("nothing of this name ", []),
    ],
)
def test_completion(shell, text, wanted):
    assert offered(shell, text) == wanted


def test_files_are_completed(shell, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.json").write_text("1")
    (tmp_path / "sub").mkdir()
    (tmp_path / ".hidden").write_text("")
    assert offered(shell, "source ") == ["one.json", "sub/"]
    assert offered(shell, "post a b @o") == ["@one.json"]
    assert offered(shell, f"source {tmp_path}/s") == [f"{tmp_path}/sub/"]


@pytest.mark.parametrize(
    ("text", "position", "message"),
    [
        ('post a b {"k": 1,, "l"', 17, "property name"),
        ('post a b {"k" 1}', 14, "':' delimiter"),
        ("post a b [1 2]", 12, "',' delimiter"),
        ('post a b <"k" 1>', 14, "':' delimiter"),
        ("post a b k:=[1 2]", 15, "',' delimiter"),
        ("post a b [1, tru", None, ""),
        ('post a b {"k": ', None, ""),
        ('post a b "abc', None, ""),
        ("post a b {'k': 1}", 10, "double quotes"),
        ("post a b {} {", None, ""),
        ("post a b text", None, ""),
        ("post a b --text '[draft] hi'", None, ""),
        ("post --text a b [1 2]", None, ""),
        ("post a b -- [1 2] --text", 15, "',' delimiter"),
        ("post a b note=x:=y", None, ""),
        ("post a b note=x k:=y", 19, "expecting value"),
        pytest.param("post a b " + "1" * 5000, None, "", id="digits"),
        pytest.param("post a b k:=" + "1" * 5000, None, "", id="digits-of-a-pair"),
        pytest.param("post a b " + "[" * 5000 + "]" * 5000, None, "", id="brackets"),
        ("tail [ab", None, ""),
        ("!echo {'", None, ""),
        ("nothing [1 2]", None, ""),
        ("register cache: x = = 1", 20, "invalid syntax"),
        ("register cache:\n    x = 1\n    y = $", 34, "invalid syntax"),
        ("register cache: print(", None, ""),
        ("register cache:", None, ""),
    ],
)
def test_a_mistake_in_json_is_shown_at_its_place_and_what_is_not_finished_is_none(shell, text, position, message):
    fault = find_fault(text, shell.verbs)
    assert (None if fault is None else fault.position) == position
    if fault is not None:
        assert message in fault.message


def test_the_prompt_says_where_a_mistake_is(shell):
    with pytest.raises(ValidationError, match=r"column 13: JSON") as raised:
        LineValidator(shell).validate(Document("post a b [1 2]"))
    assert raised.value.cursor_position == 12
    LineValidator(shell).validate(Document("post a b [1, 2]"))


@pytest.mark.parametrize(
    ("text", "more"),
    [
        ("post a b", False),
        ('post a b {"k": 1', True),
        ('post a b {"k": 1}', False),
        ("post 'a", True),
        ("!echo '", False),
        ("# don't", False),
        ("register a: print(data)", False),
        ("register a: print(", True),
        ("register a:", True),
        ("register a:\n    print(1)", True),
        ("register a:\n    print(1)\n", False),
    ],
)
def test_an_open_bracket_or_quote_goes_on_in_the_next_row(shell, text, more):
    assert goes_on(text, shell.verbs) is more


def test_every_prefix_of_a_line_is_coloured_without_loss(shell):
    lexer = ShellLexer(shell.verbs)
    for line in ('post cache purge {"k": 1, "l": [true, "x"]} --wait', "post a b [1 2] <", "x\ny {"):
        for end in range(len(line) + 1):
            document = Document(line[:end])
            rows = [
                "".join(part[1] for part in lexer.lex_document(document)(row)) for row in range(document.line_count)
            ]
            assert "\n".join(rows) == line[:end]


@pytest.fixture
def keyboard(shell: Shell) -> Iterator[object]:
    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        yield pipe


def typed(shell: Shell, keyboard: object, text: str) -> str:
    keyboard.send_text(text)  # type: ignore[attr-defined]
    return make_session(shell, InMemoryHistory(["post cache purge key=k1"])).prompt()


def test_enter_sends_a_line(shell, keyboard):
    assert typed(shell, keyboard, "status\r") == "status"


def test_enter_goes_on_while_a_bracket_is_open(shell, keyboard):
    assert typed(shell, keyboard, 'post a b {\r"k": 1}\r') == 'post a b {\n"k": 1}'


def test_rows_of_a_handler_are_indented_and_an_empty_one_ends_it(shell, keyboard):
    text = typed(shell, keyboard, "register a b:\rif data:\rprint(data)\r\r")
    assert text.rstrip() == "register a b:\n    if data:\n        print(data)"


def test_backspace_takes_a_level_of_indentation(shell, keyboard):
    text = typed(shell, keyboard, "register a b:\rif data:\rx\r\x7fprint(1)\r\r")
    assert text.rstrip() == "register a b:\n    if data:\n        x\n    print(1)"


def test_enter_does_not_send_a_mistake(shell, keyboard):
    assert typed(shell, keyboard, "post a b [1 2]\r\x01\x0bstatus\r") == "status"


def test_ctrl_r_searches_the_history(shell, keyboard):
    assert typed(shell, keyboard, "\x12purge\r\r") == "post cache purge key=k1"


def test_ctrl_c_and_ctrl_d(shell, keyboard):
    with pytest.raises(KeyboardInterrupt):
        typed(shell, keyboard, "post a\x03")
    with pytest.raises(EOFError):
        typed(shell, keyboard, "\x04")


def test_who_has_no_home_has_a_history_until_the_end(monkeypatch):
    from eventsh.shell import prompt

    def nobody(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", nobody)
    assert isinstance(prompt._history(), InMemoryHistory)


def test_the_history_is_the_users_alone(monkeypatch, tmp_path: Path):
    from eventsh.shell import prompt

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    file = tmp_path / "eventsh" / "history"
    file.parent.mkdir()
    file.write_text("")
    file.chmod(0o644)
    history = prompt._history()
    history.append_string("status")
    history.append_string(" post secret stuff")
    assert file.stat().st_mode & 0o777 == 0o600
    assert list(history.load_history_strings()) == ["status"]
    os.unlink(file)
    os.mkdir(file)
    assert isinstance(prompt._history(), InMemoryHistory)
