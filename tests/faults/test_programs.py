"""Row 27 of FAULTS.md: programs whose packages are not where another interpreter would look for them. Their broker runs with
the packages of the program, or the program logs at once why it has none."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipapp
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from eventsh import __version__
from eventsh.runtime.election import is_locked
from eventsh.runtime.endpoint import find_endpoint
from tests.faults.campaign import directory
from tests.faults.processes import DEADLINE_S, ROOT, environment, wait_until

# The interpreter without this virtual environment's packages. -S: nor those that are installed for it.
BASE_PYTHON = os.path.realpath(sys.executable)
BARE = (BASE_PYTHON, "-I", "-S")
# What the API and a broker need, compiled packages too.
NEEDED = ("orjson", "pluggy")
# Attaches; or, told to fail, waits until it has logged why it can't. Prints why, or which orjson this process and its broker have loaded, and
# how the broker runs.
PROGRAM = """
import json, logging, os, sys
logging.basicConfig(format="%(levelname)s %(message)s")
import eventsh, orjson
from eventsh.commands.status import status

warnings = []
class Keep(logging.Handler):
    def emit(self, record):
        warnings.append(record.getMessage())
logging.getLogger().addHandler(Keep())
address, fails = sys.argv[1], sys.argv[2] == "fails"
eventsh.configure(address, linger=0.2, timeout=1.0)
eventsh.post("app", "e")
while True:
    try:
        eventsh.wait_ready(0.2)
        break
    except eventsh.NotConnected as error:
        if fails and any(str(error).partition(" s: ")[2] in warning for warning in warnings):
            print(json.dumps({"error": str(error)}))
            eventsh.close(timeout=0.0)
            sys.exit()
eventsh.flush(30)
pid = status(address, timeout_s=30.0)["broker"]["pid"]
with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/cmdline") as cmdline, open("/proc/self/maps") as own:
    loaded = [sorted({line.split(maxsplit=5)[5].strip() for line in file if "orjson" in line}) for file in (maps, own)]
    print(json.dumps({"orjson": loaded[0], "own": loaded[1], "command": cmdline.read().split("\\0")}))
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture
def path() -> Iterator[Path]:
    with directory() as path:
        spaced = path / "a path: with spaces"
        spaced.mkdir()
        yield spaced
        # A broker that ends removes its files, and so does the directory.
        endpoint = find_endpoint(f"unix:{path}/e.sock")
        wait_until(lambda: not is_locked(*endpoint), "the broker has ended")


def copy_packages(to: Path, *names: str) -> Path:
    """Copy installed packages, so that their files differ from those of this interpreter."""
    for name in names:
        shutil.copytree(Path(sysconfig.get_path("platlib")) / name, to / name)
    return to


def program_file(path: Path, *lines: str) -> Path:
    file = path / "program.py"
    file.write_text("\n".join([*lines, PROGRAM]))
    return file


def run(path: Path, *command: str | Path, fails: bool = False, **variables: str) -> tuple[dict[str, Any], str]:
    """Run a program at an address in `path`; return the facts that it printed, and its log."""
    own = {name: value for name, value in environment(path).items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [*command, f"unix:{path.parent}/e.sock", "fails" if fails else "attaches"],
        env={**own, **variables},
        cwd=path,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S * 2,
        check=False,
    )
    assert done.stdout, done.stderr
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts, done.stderr


def assert_same_packages(facts: dict[str, Any], packages: Path | None = None) -> None:
    assert facts.get("error") is None
    assert facts["orjson"] == facts["own"] != []
    if packages is not None:
        assert all(file.startswith(str(packages)) for file in facts["own"])


def test_a_path_that_the_program_makes_at_run_time_is_its_brokers_too(path: Path) -> None:
    # As a PEX does: the base interpreter, and a directory for each distribution.
    packages = copy_packages(path / "packages", *NEEDED)
    file = program_file(path, "import sys", f"sys.path[1:1] = [{ROOT!r}, {str(packages)!r}]")
    assert_same_packages(run(path, *BARE, file)[0], packages)


def test_another_orjson_on_pythonpath_that_the_program_put_aside_is_put_aside_by_its_broker(path: Path) -> None:
    packages = copy_packages(path / "packages", *NEEDED)
    decoy = path.parent / "decoy"
    decoy.mkdir()
    (decoy / "orjson.py").write_text("raise ImportError('the decoy was imported')")
    file = program_file(
        path, "import sys", f"sys.path.remove({str(decoy)!r})", f"sys.path[1:1] = [{ROOT!r}, {str(packages)!r}]"
    )
    assert_same_packages(run(path, BASE_PYTHON, file, PYTHONPATH=str(decoy))[0], packages)


def test_a_zipapp_with_compiled_packages_beside_it_has_a_broker(path: Path) -> None:
    packages = copy_packages(path / "packages", *NEEDED)
    shutil.copytree(Path(ROOT) / "eventsh", path / "app" / "eventsh", ignore=shutil.ignore_patterns("__pycache__"))
    (path / "app" / "__main__.py").write_text(f"import sys\nsys.path.append({str(packages)!r})\n{PROGRAM}")
    zipapp.create_archive(path / "app", path / "app.pyz")
    shutil.rmtree(path / "app")
    assert_same_packages(run(path, *BARE, path / "app.pyz")[0], packages)


@pytest.mark.parametrize("flags", ["", "-I", "-E", "-P", "-s", "-S", "-IS"])
def test_with_every_flag_of_the_interpreter_the_broker_has_the_programs_packages(path: Path, flags: str) -> None:
    lines = ["import sys", f"sys.path.insert(1, {ROOT!r})"]
    if "S" in flags:
        lines.append(f"sys.path.append({str(copy_packages(path / 'packages', *NEEDED))!r})")
    facts, _ = run(path, sys.executable, *([flags] if flags else []), program_file(path, *lines))
    assert_same_packages(facts)


def test_a_virtual_environment_in_a_path_with_spaces_behind_another_python_in_path(path: Path) -> None:
    # A virtual environment's path may not hold a colon.
    venv = path.parent / "a virtual environment"
    subprocess.run([BASE_PYTHON, "-m", "venv", "--without-pip", venv], check=True)
    site = next((venv / "lib").glob("python*/site-packages"))
    copy_packages(site, *NEEDED)
    # As an editable install has it.
    (site / "eventsh.pth").write_text(f"{ROOT}\nimport os; os.write(2, b'pth ')\n")
    other = path / "other"
    other.mkdir()
    for name in ("python", "python3", f"python3.{sys.version_info.minor}"):
        (other / name).write_text("#!/bin/sh\necho started >> ../other-was-started\n")
        (other / name).chmod(0o755)
    search = f"{other}:{os.environ['PATH']}"
    facts, _ = run(path, venv / "bin" / "python", program_file(path), PATH=search)
    assert_same_packages(facts, site)
    assert not (path / "other-was-started").exists()


def test_files_beside_the_program_do_not_replace_the_standard_library_in_its_broker(path: Path) -> None:
    # The program has imported the library's own by then.
    beside = path / "beside"
    beside.mkdir()
    (beside / "argparse.py").write_text(f"open({str(path / 'imported')!r}, 'w')\nraise SystemExit('imported')")
    lines = [
        "import sys",
        f"sys.path.insert(1, {ROOT!r})",
        "import eventsh.api",
        f"sys.path.insert(0, {str(beside)!r})",
    ]
    file = program_file(path, *lines)
    assert_same_packages(run(path, sys.executable, file)[0])
    assert not (path / "imported").exists()


def test_ps_shows_the_module_and_the_address_of_a_broker_and_little_else(path: Path) -> None:
    facts, _ = run(path, sys.executable, program_file(path, "import sys", f"sys.path.insert(1, {ROOT!r})"))
    shown = " ".join(facts["command"])
    assert f"eventsh.runtime.broker --address unix:{path.parent}/e.sock" in shown[: len(sys.executable) + 200]


EXECUTABLES = {"empty": "", "none": None, "missing": "/nowhere/python3", "a server": "{path}/uwsgi"}


@pytest.mark.parametrize("executable", EXECUTABLES.values(), ids=EXECUTABLES)
def test_where_sys_executable_is_no_python_the_one_beside_the_library_is_taken(
    path: Path, executable: str | None
) -> None:
    server = path / "uwsgi"
    server.write_text("#!/bin/sh\necho started >> server-was-started\n")
    server.chmod(0o755)
    value = executable.format(path=path) if executable is not None else None
    file = program_file(path, "import sys", f"sys.path.insert(1, {ROOT!r})", f"sys.executable = {value!r}")
    assert_same_packages(run(path, sys.executable, file)[0])
    assert not (path / "server-was-started").exists()


def test_where_there_is_no_interpreter_at_all_the_program_logs_it_at_once(path: Path) -> None:
    prefixes = "sys.prefix = sys.exec_prefix = sys.base_prefix = sys.base_exec_prefix = '/nowhere'"
    lines = ["import sys, sysconfig", f"sys.path.insert(1, {ROOT!r})", "sys.executable = ''", prefixes]
    lines.append("sysconfig.get_config_vars()['BINDIR'] = '/nowhere/bin'")
    facts, log = run(path, sys.executable, program_file(path, *lines), fails=True)
    assert "no Python interpreter: sys.executable is ''" in facts["error"]
    assert log.startswith("WARNING unix:")
    assert "'eventsh serve --workers 0'" in log.splitlines()[0]


def test_an_interpreter_that_an_embedding_program_names_for_multiprocessing_is_taken(path: Path) -> None:
    named = path / "own python"
    named.write_text(f"#!/bin/sh\nexec '{sys.executable}' \"$@\"\n")
    named.chmod(0o755)
    lines = ["import sys, multiprocessing.spawn", "sys.executable = ''", "sys.prefix = sys.exec_prefix = '/nowhere'"]
    lines += [f"sys.path.insert(1, {ROOT!r})", f"multiprocessing.set_executable({str(named)!r})"]
    facts, _ = run(path, sys.executable, program_file(path, *lines))
    assert_same_packages(facts)


def frozen(path: Path, *first: str) -> Path:
    """Make a program that is its own `sys.executable`, and writes a line each time its main part runs."""
    program = path / "frozen"
    lines = [
        "import sys",
        "sys.frozen = True",
        f"sys.executable = {str(program)!r}",
        f"sys.path.insert(1, {ROOT!r})",
        *first,
    ]
    lines.append(f"open({str(path / 'runs')!r}, 'a').write('run\\n')")
    file = program_file(path, *lines)
    program.write_text(f"#!/bin/sh\nexec '{sys.executable}' '{file}' \"$@\"\n")
    program.chmod(0o755)
    return program


def test_a_frozen_program_is_not_started_again_and_logs_at_once_that_it_has_no_broker(path: Path) -> None:
    facts, log = run(path, frozen(path), fails=True)
    assert "is a frozen program without a Python interpreter: call eventsh.freeze_support()" in facts["error"]
    first = log.splitlines()[0]
    assert first.startswith("WARNING unix:")
    assert "'eventsh serve --workers 0'" in first
    assert (path / "runs").read_text() == "run\n"
    assert not list(path.parent.glob("e.sock*"))


def test_a_frozen_program_with_freeze_support_runs_its_broker_itself(path: Path) -> None:
    facts, _ = run(path, frozen(path, "import eventsh", "eventsh.freeze_support()"))
    assert_same_packages(facts)
    assert (path / "runs").read_text() == "run\n"


def needs(module: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(find_spec(module) is None, reason=f"{module} is not installed")


def build(path: Path, *command: str | Path) -> None:
    """Run what builds a program, with nothing left behind in the user's directories."""
    own = {"PEX_ROOT": str(path / "pex root"), "PYINSTALLER_CONFIG_DIR": str(path / "cache")}
    subprocess.run([sys.executable, "-m", *command], cwd=path, env={**os.environ, **own}, check=True)


@needs("pex")
@pytest.mark.parametrize("flags", [pytest.param([], marks=pytest.mark.long), ["--venv"]], ids=["unpacked", "venv"])
def test_a_pex_has_a_broker_with_its_own_packages_and_not_those_of_its_interpreter(
    path: Path, flags: list[str]
) -> None:
    sources = copy_packages(path.parent / "sources", *NEEDED)
    shutil.copytree(Path(ROOT) / "eventsh", sources / "eventsh", ignore=shutil.ignore_patterns("__pycache__"))
    program_file(sources)
    build(path.parent, "pex", *flags, "-D", "sources", "-m", "program", "-o", path / "app.pex")
    shutil.rmtree(sources)
    facts, _ = run(path, BASE_PYTHON, path / "app.pex", PEX_ROOT=str(path.parent / "pex root"))
    assert_same_packages(facts, path.parent / "pex root")


@needs("PyInstaller")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("form", ["--onedir", "--onefile"])
def test_a_program_frozen_by_pyinstaller_has_a_broker_once_it_calls_freeze_support(path: Path, form: str) -> None:
    call = ["import os, eventsh", "if 'NO_CALL' not in os.environ: eventsh.freeze_support()"]
    parts = [f"--collect-submodules=eventsh.{name}" for name in ("runtime", "transports", "commands")]
    build(path, "PyInstaller", form, "--log-level=ERROR", f"--paths={ROOT}", *parts, program_file(path, *call))
    program = path / "dist" / "program"
    program = program / "program" if form == "--onedir" else program
    facts, log = run(path, program, fails=True, NO_CALL="1")
    assert "call eventsh.freeze_support()" in facts["error"]
    assert log.startswith("WARNING unix:")
    facts, _ = run(path, program)
    assert facts["command"][:2] == [str(program), "eventsh.runtime.broker"]
    # A single file is unpacked anew for the broker, which may outlive the program.
    assert (facts["orjson"] == facts["own"]) == (form == "--onedir")


def sitecustomize(path: Path, *lines: str) -> str:
    """Make code that runs in the broker's process before anything of eventsh; return the directory for PYTHONPATH."""
    # Not below `path`: PYTHONPATH has no way to hold a colon.
    hook = path.parent / "hook"
    hook.mkdir()
    text = "\n".join(["import os, sys", "if 'EVENTSH_START' in os.environ:", *(f"    {line}" for line in lines)])
    (hook / "sitecustomize.py").write_text(text)
    return str(hook)


def why_not(path: Path, *first: str, **variables: str) -> str:
    """Run a program whose broker can't start; return the warning that it logs after `timeout`."""
    file = program_file(path, "import sys", f"sys.path.insert(1, {ROOT!r})", *first)
    facts, log = run(path, sys.executable, file, fails=True, **variables)
    reason = facts["error"].partition(" s: ")[2]
    (warning, *_) = [line for line in log.splitlines() if "not attached for" in line and reason in line]
    assert "1 post waits: " in warning
    return warning


def test_an_interpreter_that_was_replaced_by_another_version_is_named(path: Path) -> None:
    hook = sitecustomize(path, "sys.implementation.cache_tag = 'cpython-399'")
    own = f"{sys.implementation.cache_tag}{sys.abiflags}"
    expected = f"{sys.executable} is cpython-399{sys.abiflags}, and the program that starts it runs on {own}: restart the program"
    assert expected in why_not(path, PYTHONPATH=hook)


def test_a_broker_that_would_run_another_eventsh_does_not_start_and_names_both(path: Path) -> None:
    other = path / "other"
    shutil.copytree(Path(ROOT) / "eventsh", other / "eventsh")
    init = other / "eventsh" / "__init__.py"
    init.write_text(init.read_text().replace('__version__ = "', '__version__ = "7.'))
    hook = sitecustomize(path, f"sys.path.insert(0, {str(other)!r})", "import eventsh", "sys.path.pop(0)")
    warning = why_not(path, PYTHONPATH=hook)
    assert f"imports eventsh 7.{__version__} from {init}" in warning
    assert f"has eventsh {__version__} from {ROOT}/eventsh/__init__.py" in warning


def test_the_last_line_of_the_log_of_a_broker_without_its_packages_is_in_the_error(path: Path) -> None:
    packages = copy_packages(path / "packages", *NEEDED)
    lines = [f"sys.path.insert(0, {str(packages)!r})", "import eventsh.api", f"sys.path.remove({str(packages)!r})"]
    file = program_file(path, "import sys", f"sys.path.insert(1, {ROOT!r})", *lines)
    facts, _ = run(path, *BARE, file, fails=True)
    assert facts["error"].endswith("did not start: exit status 1: ModuleNotFoundError: No module named 'orjson'")


def test_what_a_dying_broker_writes_last_is_escaped_and_bounded_in_the_error(path: Path) -> None:
    hook = sitecustomize(path, r"os.write(2, b'first\n\x1b[31mred \xff' + b'x' * 100_000 + b'\n\n')", "os._exit(3)")
    warning = why_not(path, PYTHONPATH=hook)
    assert "exit status 3: xxx" in warning
    assert len(warning) < 1000
    assert "\x1b" not in warning


def test_the_signal_that_ended_a_broker_at_its_start_is_named(path: Path) -> None:
    hook = sitecustomize(path, "os.write(2, b'\\x1b[31mred\\n')", "os.kill(os.getpid(), 9)")
    assert r"did not start: killed by SIGKILL: \x1b[31mred" in why_not(path, PYTHONPATH=hook)
