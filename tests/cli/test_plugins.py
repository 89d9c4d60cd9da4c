"""`eventsh plugins`, run as people run it, with plugins that are installed for it alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path
from textwrap import dedent

import pytest

from eventsh.testing.broker import BrokerProcess
from tests.cli.pool import COMMAND, ROOT, Done

# The whole kit runs in some of these: minutes, where many others run.
DEADLINE_S = 600.0
VAGUE = """
    from eventsh.errors import TransportError
    from eventsh.hookspecs import hookimpl
    from eventsh.transports.inproc import InprocTransport

    class VagueTransport(InprocTransport):
        scheme = "vague"

        async def connect(self, address, on_connection):
            try:
                return await super().connect(address, on_connection)
            except TransportError:
                raise TransportError("no")

    @hookimpl
    def eventsh_transports():
        return [VagueTransport()]
"""

GREETER = """
    from eventsh.hookspecs import hookimpl

    def greet(name: str, times: int = 1) -> None:
        \"\"\"Greet somebody.\"\"\"
        print(f"hello {name} " * times)

    @hookimpl
    def eventsh_cli_commands():
        return {"greet": greet, "status": greet}
"""


class Site:
    """A directory of plugins as an install leaves them, and the command line that finds them there."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def install(self, name: str, source: str) -> None:
        (self.directory / f"eventsh_{name}.py").write_text(dedent(source))
        info = self.directory / f"eventsh_{name}-1.5.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: eventsh-{name}\nVersion: 1.5\n")
        (info / "entry_points.txt").write_text(f"[eventsh]\n{name} = eventsh_{name}\n")

    def run(self, *arguments: str, command: list[str] = COMMAND) -> Done:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("EVENTSH_")}
        done = subprocess.run(
            [*command, *arguments],
            capture_output=True,
            text=True,
            cwd=self.directory,
            env={**kept, "PYTHONPATH": f"{ROOT}:{self.directory}"},
            timeout=DEADLINE_S,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


# list.


def test_list_shows_versions_schemes_hooks_and_what_is_wrong(site):
    site.install("vague", VAGUE)
    site.install("broken", "raise ValueError('no luck\\x1b[31m')")
    done = site.run("plugins", "list")
    assert (done.status, done.err) == (0, "")
    assert "vague 1.5\n  schemes  vague\n  hooks    eventsh_transports\n" in done.out
    assert "unix 0.2.0\n  schemes  unix\n" in done.out
    assert "\x1b" not in done.out
    rows = {row["name"]: row for row in json.loads(site.run("plugins", "list", "--json").out)}
    assert rows["broken"]["errors"] == ["ValueError: no luck\x1b[31m"]
    assert rows["broken"]["version"] == "1.5"
    assert rows["vague"] == {
        "name": "vague",
        "version": "1.5",
        "module": "eventsh_vague",
        "hooks": ["eventsh_transports"],
        "schemes": ["vague"],
        "errors": [],
    }


def test_a_plugin_can_be_switched_off_for_one_command_and_the_processes_it_starts(site):
    site.install("vague", VAGUE)
    rows = json.loads(site.run("-p", "no:vague", "-p", "no:shm", "plugins", "list", "--json").out)
    assert {"vague", "shm"}.isdisjoint(row["name"] for row in rows)
    assert "unix" in {row["name"] for row in rows}
    done = site.run("-p", "vague", "plugins", "list")
    assert done.status == 2
    assert "write no:NAME" in done.err
    # A process that starts another one, to which the plugin is gone too.
    program = "import os, sys; from eventsh.plugins import apply_options; apply_options(['no:vague']);"
    program += "os.execv(sys.executable, [sys.executable, '-m', 'eventsh', 'plugins', 'list', '--json'])"
    rows = json.loads(site.run(command=[sys.executable, "-c", program]).out)
    assert "vague" not in {row["name"] for row in rows}


def test_a_plugins_command_is_found_shown_and_takes_the_place_of_none(site):
    site.install("greeter", GREETER)
    done = site.run("greet", "you", "--times", "2")
    assert (done.status, done.out, done.err) == (0, "hello you hello you \n", "")
    assert "Greet somebody." in site.run("--help").out
    done = site.run("greet", "you", "--times", "x")
    assert done.status == 2
    assert done.err.count("\n") == 1
    assert "Greet" not in site.run("status", "--help").out
    done = site.run("-p", "no:greeter", "greet", "you")
    assert done.status == 2
    assert "greet" in done.err


# check.


@pytest.mark.timeout(DEADLINE_S)
def test_check_passes_a_good_transport_and_names_what_a_bad_one_fails(site):
    done = site.run("plugins", "check", "inproc")
    assert (done.status, done.err) == (0, "")
    assert "inproc (inproc): " in done.out
    assert done.out.endswith("keeps the contract of transports\n")
    site.install("vague", VAGUE)
    done = site.run("plugins", "check", "vague", "--json")
    assert (done.status, done.err) == (1, "")
    found = json.loads(done.out)
    assert found["plugin"] == "vague"
    assert found["passed"] > 50
    assert {failure["test"].partition("[")[0] for failure in found["failed"]} == {
        "test_where_nobody_listens_the_error_says_so"
    }
    # A failure shows the values, as in a checkout.
    assert "where None = TransportError('no').__cause__" in found["failed"][0]["error"]


def test_check_says_what_it_can_t_check(site, tmp_path):
    for target, why in (("nope", "no transport has the scheme 'nope'"), ("unix:" + "/x" * 100, "107")):
        done = site.run("plugins", "check", target)
        assert done.status == 2
        assert why in done.err
        assert done.err.count("\n") == 1
    broker = BrokerProcess(f"unix:{tmp_path}/e.sock", _options(), tmp_path / "log")
    try:
        done = site.run("plugins", "check", broker.address)
        assert done.status == 2
        assert "a broker runs at" in done.err
        assert broker.status()["broker"]["pid"] == broker.pid
    finally:
        broker.stop()


def _options():
    from eventsh.options import Options

    return Options.from_values(linger=None)


def test_check_says_that_it_needs_pytest(site):
    program = "import sys; sys.modules['pytest'] = None; from eventsh.cli.app import main; main(sys.argv[1:])"
    done = site.run("plugins", "check", "inproc", command=[sys.executable, "-c", program])
    assert done.status == 2
    assert done.err.startswith("eventsh: plugins check needs pytest: ")


def test_a_transport_that_hangs_or_ends_the_process_is_named_by_its_test(site):
    site.install("vague", VAGUE.replace('raise TransportError("no")', "import os; os._exit(7)"))
    done = site.run("plugins", "check", "vague")
    assert done.status == 1
    assert "it hung, or ended the process (status 7)" in done.out


# new.


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("Mail", "can't be the name"),
        ("mail_box", "can't be the name"),
        ("../mail", "can't be the name"),
        ("2mail", "can't be the name"),
        ("chaos+mail", "can't be the name"),
        ("x" * 41, "can't be the name"),
        ("unix", "there is a transport 'unix' already"),
        ("eventsh-inproc", "there is a transport 'inproc' already"),
    ],
)
def test_new_refuses_a_name_that_can_t_be_one(site, name, why):
    done = site.run("plugins", "new", name)
    assert done.status == 2
    assert why in done.err
    assert os.listdir(site.directory) == []


def test_new_leaves_alone_what_is_there(site):
    (site.directory / "eventsh-mail").mkdir()
    (site.directory / "eventsh-mail" / "README.md").write_text("mine")
    done = site.run("plugins", "new", "mail")
    assert done.status == 2
    assert "there is 'eventsh-mail' already" in done.err
    assert [path.name for path in (site.directory / "eventsh-mail").iterdir()] == ["README.md"]
    assert (site.directory / "eventsh-mail" / "README.md").read_text() == "mine"


@pytest.mark.timeout(DEADLINE_S)
def test_a_new_plugin_can_be_installed_and_passes_the_kit_as_it_is(site):
    pytest.importorskip("pip")
    made = json.loads(site.run("plugins", "new", "ring-buffer", "--json").out)
    assert made["scheme"] == "ring-buffer"
    assert made["files"] == ["pyproject.toml", "README.md", "eventsh_ring_buffer.py", "tests/test_ring_buffer.py"]
    project = site.directory / made["directory"]
    assert len((project / "eventsh_ring_buffer.py").read_text().splitlines()) < 130
    # An environment of its own, which has what this one has, so that nothing is downloaded.
    environment = site.directory / "env"
    venv.create(environment, symlinks=True)
    python = str(environment / "bin" / "python")
    (packages,) = environment.glob("lib/python*/site-packages")
    here = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "here.pth").write_text("".join(f"import site; site.addsitedir({path!r})\n" for path in here))
    install = ["--python", python, "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    done = site.run(*install, "--disable-pip-version-check", str(project), command=[sys.executable, "-m", "pip"])
    assert done.status == 0, done.err
    done = site.run("-q", "-k", "asyncio", "-p", "no:cacheprovider", str(project), command=[python, "-m", "pytest"])
    assert done.status == 0, done.out
    done = site.run("plugins", "check", "ring-buffer", command=[python, "-m", "eventsh"])
    assert done.status == 0, done.out + done.err
    assert "ring-buffer (ring-buffer): " in done.out
