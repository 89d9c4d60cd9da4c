"""What a process that eventsh starts gets of the program that starts it. Whole programs are in tests/faults/test_programs.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = str(Path(__file__).parents[2])
DEADLINE_S = 60.0
# A module of the program's that a process of its own runs: it has a `main`, as all modules that eventsh starts.
SHOWN = """
import json, os, sys
def main():
    facts = {"path": sys.path, "argv": sys.argv, "environ": dict(os.environ), "main": sys.modules["__main__"].__name__}
    facts["flags"] = {name: getattr(sys.flags, name) for name in ("isolated", "no_site", "dont_write_bytecode", "safe_path")}
    print(json.dumps(facts))
    return 7
"""
# Starts it as eventsh starts its own, in another directory.
STARTER = """
import json, subprocess, sys
from eventsh.runtime.interpreter import python_command, python_environment
command = [*python_command("shown"), "--one", "two words"]
done = subprocess.run(command, env=python_environment(), cwd="/", stdout=subprocess.PIPE, check=False)
print(json.dumps({"status": done.returncode, "own": [str(entry) for entry in sys.path], **json.loads(done.stdout)}))
"""


def start(path: Path, *flags: str, first: str = "", **variables: str) -> dict[str, Any]:
    """Have a program started in `path`, whose module `shown` is in lib/, start that module."""
    (path / "lib").mkdir(exist_ok=True)
    (path / "lib" / "shown.py").write_text(SHOWN)
    begin = f"import sys; sys.path[1:1] = [{ROOT!r}, {str(path / 'lib')!r}]\n"
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [sys.executable, *flags, "-c", f"{begin}{first}\n{STARTER}"],
        env={**own, **variables},
        cwd=path,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


def test_it_gets_its_arguments_and_ends_with_its_own_status(tmp_path: Path) -> None:
    facts = start(tmp_path)
    assert facts["argv"] == ["shown", "--one", "two words"]
    assert facts["status"] == 7
    assert facts["main"] == "__main__"


def test_its_path_is_that_of_the_program_with_the_standard_library_first_and_without_the_working_directory(
    tmp_path: Path,
) -> None:
    facts = start(tmp_path)
    own, path = list(dict.fromkeys(facts["own"])), facts["path"]
    assert own[0] == ""
    assert sorted(path) == sorted(own[1:])
    library = os.path.dirname(os.__file__)
    assert path[0] == library
    assert [entry for entry in path if library not in entry] == [entry for entry in own[1:] if library not in entry]


def test_what_a_program_puts_on_its_path_by_relative_names_is_found_from_another_directory(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    facts = start(tmp_path, first="import pathlib; sys.path += ['more', '__hook__', pathlib.Path('/x'), 'more/../lib']")
    assert str(tmp_path / "more") in facts["path"]
    # A name that an import hook knows, such as an editable install's.
    assert "__hook__" in facts["path"]
    assert "/x" not in facts["path"]


def test_where_eventsh_is_found_in_the_working_directory_its_directory_is_on_the_path(tmp_path: Path) -> None:
    (tmp_path / "eventsh").symlink_to(Path(ROOT) / "eventsh")
    facts = start(tmp_path, first=f"sys.path.remove({ROOT!r})")
    assert str(tmp_path) in facts["path"]


@pytest.mark.parametrize(
    "entry", ["/with a space", "/with:colon", "/with'quote", '/with"quotes"', "/with\nline", "/umläut", "/\udcff"]
)
def test_a_path_of_any_name_arrives_as_it_is(tmp_path: Path, entry: str) -> None:
    assert entry in start(tmp_path, first=f"sys.path.append({entry!a})")["path"]


def test_nothing_of_how_it_was_started_is_inherited_by_programs_that_it_starts(tmp_path: Path) -> None:
    environ = start(tmp_path, MARK="1")["environ"]
    assert environ["MARK"] == "1"
    assert [name for name in environ if name.startswith(("PYTHON", "EVENTSH"))] == []


def test_the_programs_own_pythonpath_stays_its_own(tmp_path: Path) -> None:
    assert start(tmp_path, PYTHONPATH="/one:/two")["environ"]["PYTHONPATH"] == "/one:/two"


@pytest.mark.parametrize("flags", [["-I"], ["-S"], ["-B"], ["-I", "-S", "-B"], []], ids=" ".join)
def test_the_flags_that_decide_what_is_imported_are_those_of_the_program(tmp_path: Path, flags: list[str]) -> None:
    assert start(tmp_path, *flags)["flags"] == {
        "isolated": int("-I" in flags),
        "no_site": int("-S" in flags),
        "dont_write_bytecode": int("-B" in flags),
        "safe_path": True,
    }


def test_pth_files_are_executed_as_often_as_in_the_program(tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    subprocess.run([os.path.realpath(sys.executable), "-m", "venv", "--without-pip", venv], check=True)
    site = next((venv / "lib").glob("python*/site-packages"))
    (site / "counted.pth").write_text(f"import os; open({str(tmp_path / 'count')!r}, 'a').write(f'{{os.getpid()}} ')\n")
    (site / "more.pth").write_text(f"{tmp_path}\n")
    (tmp_path / "shown.py").write_text(SHOWN)
    begin = f"import sys; sys.path.append({ROOT!r})\n"
    done = subprocess.run(
        [venv / "bin" / "python", "-c", begin + STARTER], capture_output=True, text=True, timeout=DEADLINE_S, check=True
    )
    assert json.loads(done.stdout)["path"].count(str(tmp_path)) == 1
    pids = (tmp_path / "count").read_text().split()
    program, started = sorted(set(pids), key=pids.index)
    # Python itself does it twice where lib64 is a link to lib.
    assert pids.count(started) == pids.count(program)
