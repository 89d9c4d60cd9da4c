from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from eventsh.runtime.loader import HandlersError, is_file_name, load_handlers

Write = Callable[[str, str], str]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Write a file into a directory of its own; modules and paths are as before afterwards."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)

    def write(name: str, text: str) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return str(path)

    yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]


def failure(name: str) -> HandlersError:
    with pytest.raises(HandlersError) as caught:
        load_handlers([name])
    assert "\n" not in str(caught.value)
    return caught.value


def test_a_file_is_a_module_of_its_own_name_that_others_can_look_up(write):
    path = write(
        "my_handlers.py",
        "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass Fact:\n    n: int\n",
    )
    (module,) = load_handlers([path])
    assert module.__name__ == "my_handlers"
    assert module.__file__ == path
    assert sys.modules["my_handlers"] is module


def test_a_relative_path_is_a_file_too(write):
    write("deep/er/handlers_rel.py", "X = 1\n")
    (module,) = load_handlers(["deep/er/handlers_rel.py"])
    assert module.X == 1


def test_a_file_imports_its_neighbours_as_a_script_does(write, tmp_path):
    write("app/neighbour.py", "X = 2\n")
    path = write("app/handlers_near.py", "from neighbour import X\n")
    (module,) = load_handlers([path])
    assert module.X == 2
    assert sys.path[0] == str(tmp_path / "app")


def test_a_module_is_found_in_the_working_directory(write):
    write("package_here/__init__.py", "")
    write("package_here/handlers.py", "X = 3\n")
    (module,) = load_handlers(["package_here.handlers"])
    assert module.X == 3


@pytest.mark.parametrize("name", ["queue.py", "json.py", "eventsh.py", "two-words.py", "3.py"])
def test_a_file_hides_no_module_whatever_its_name_is(write, name):
    known = {each: sys.modules.get(each) for each in ("queue", "json", "eventsh")}
    (module,) = load_handlers([write(name, "X = 4\n")])
    assert module.X == 4
    assert module.__name__.isidentifier()
    assert {each: sys.modules.get(each) for each in known} == known


def test_two_files_of_one_name_are_two_modules(write):
    first, second = load_handlers([write("a/same.py", "X = 1\n"), write("b/same.py", "X = 2\n")])
    assert (first.X, second.X) == (1, 2)
    assert first.__name__ != second.__name__


def test_an_error_is_told_with_the_line_of_the_handlers_and_not_of_a_library(write):
    path = write("bad_call.py", "import json\n\njson.loads('{')\n")
    error = failure(path)
    assert str(error).startswith(f"{path}:3: json.decoder.JSONDecodeError: ")
    assert error.detail.startswith("Traceback")
    assert "loader.py" not in error.detail
    assert "importlib" not in error.detail


def test_a_syntax_error_is_told_with_its_own_line(write):
    path = write("bad_syntax.py", "x = 1\ndef (\n")
    assert str(failure(path)).startswith(f"{path}:2: SyntaxError: ")


def test_a_missing_import_is_told_where_it_stands(write):
    path = write("bad_import.py", "import os\nimport there_is_no_such_module\n")
    assert str(failure(path)) == f"{path}:2: ModuleNotFoundError: No module named 'there_is_no_such_module'"


def test_an_error_in_a_neighbour_is_told_in_the_neighbour(write):
    neighbour = write("app2/neighbour2.py", "1 / 0\n")
    path = write("app2/handlers2.py", "import neighbour2\n")
    assert str(failure(path)) == f"{neighbour}:1: ZeroDivisionError: division by zero"


def test_an_error_in_a_module_is_told_in_its_file(write):
    path = write("bad_module.py", "\nraise ValueError('first\\nsecond')\n")
    assert str(failure("bad_module")) == f"{path}:2: ValueError: first second"


def test_sys_exit_at_import_is_an_error_and_ends_nobody(write):
    path = write("exits.py", "import sys\nsys.exit(0)\n")
    assert str(failure(path)) == f"{path}:2: it called sys.exit(0) while it was imported"


def test_what_failed_is_no_module_afterwards(write):
    failure(write("half_done.py", "1 / 0\n"))
    assert "half_done" not in sys.modules


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("missing.py", "missing.py: there is no such file"),
        ("some/dir/", "some/dir/: there is no such file"),
        (
            "no_such_module_at_all",
            "no_such_module_at_all: ModuleNotFoundError: No module named 'no_such_module_at_all'",
        ),
        ("not a name", "not a name: neither a module's name nor a file that ends in .py"),
        ("", ": neither a module's name nor a file that ends in .py"),
    ],
)
def test_what_is_not_there_is_named(write, name, text):
    assert str(failure(name)) == text


def test_a_file_that_is_no_python_is_refused(write):
    path = write("handlers.txt", "hello")
    assert str(failure(path)) == f"{path}: not a Python file; its name must end in .py"


def test_a_name_with_a_slash_or_py_is_a_file():
    assert [is_file_name(name) for name in ("a.py", f"a{os.sep}b", "a.b", "a")] == [True, True, False, False]
