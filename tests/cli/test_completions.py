"""The scripts in completions/, in real shells at whose keys somebody presses Tab."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from eventsh.cli.completions import scripts, write_scripts
from tests.cli.pool import ROOT, Pool, run, wait_until
from tests.cli.typist import COMMANDS, Typist, install, why_not

# A name with all that a shell could take for something else.
ODD = """odd $HOME "it's" *;:=one"""
HANDLERS = f"""
import eventsh

@eventsh.on("cache", "purge:key")
def purge(data, event, source, pid):
    print(f"purged {{data!r}}", flush=True)

@eventsh.on({ODD!r}, "last")
def odd(data, event, source, pid):
    print("odd", [source, event], flush=True)

@eventsh.on("evil\\x1b[2J", "gone")
def evil(data, event, source, pid):
    pass
"""


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    directory = tmp_path_factory.mktemp("completions")
    (directory / "names.py").write_text(HANDLERS)
    pool = Pool(directory, "--handlers", str(directory / "names.py"), workers=1)
    yield pool
    assert pool.stop() == 0


# Where bash-completion is, it finds the script; without it the script works by itself, which one test tries.
@pytest.fixture(params=[name for name in COMMANDS if name != "bash"])
def shell(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if (reason := why_not(request.param)) is not None:
        pytest.skip(reason)
    install(tmp_path)
    name: str = request.param
    return name


@pytest.fixture
def typist(shell: str, tmp_path: Path, pool: Pool) -> Iterator[Typist]:
    typist = Typist(shell, tmp_path, pool.address)
    yield typist
    typist.close()


@pytest.fixture
def lonely(shell: str, tmp_path: Path) -> Iterator[Typist]:
    """Where no broker runs."""
    typist = Typist(shell, tmp_path, f"unix:{tmp_path}/none.sock")
    yield typist
    typist.close()


def ask(pool: Pool, *words: str) -> list[str]:
    done = pool.run("__complete", "fish", *words)
    assert (done.status, done.err) == (0, "")
    return [line.partition("\t")[0] for line in done.out.splitlines()]


def offers(pool: Pool, *words: str, wanted: list[str]) -> None:
    """Wait until this is what the program offers: a broker that is slow to answer is done without."""
    wait_until(lambda: ask(pool, *words) == wanted, f"{words} brings {wanted}")


def test_the_scripts_are_what_the_command_writes(tmp_path: Path) -> None:
    write_scripts(tmp_path)
    for name in scripts():
        assert (tmp_path / name).read_text() == Path(ROOT, "completions", name).read_text(), (
            "run python -m eventsh.cli.completions"
        )
    assert {path.name for path in Path(ROOT, "completions").iterdir()} == {*scripts(), "README.md"}


@pytest.mark.parametrize("shell", COMMANDS, indirect=True)
def test_a_whole_line_is_typed_by_its_first_letters(typist: Typist, pool: Pool) -> None:
    before = pool.out.count("purged {'k': '1'}")
    typist.complete("eventsh po", "eventsh post")
    typist.complete("cac", " post cache")
    typist.complete("pur", "purge:key")
    typist.complete("k=1 --wa", "--wait")
    typist.enter()
    typist.see("worker 0")
    wait_until(lambda: pool.out.count("purged {'k': '1'}") > before, "the event had its names")


@pytest.mark.parametrize("quote", ["", '"'])
def test_a_name_with_signs_of_the_shell_stays_one_word(typist: Typist, pool: Pool, quote: str) -> None:
    before = pool.out.count(f"odd {[ODD, 'last']}")
    typist.complete(f"eventsh post {quote}od", "=one")
    typist.complete(f"{quote}la", "st")
    typist.enter()
    typist.see("posted 1 event to 1 worker")
    wait_until(lambda: pool.out.count(f"odd {[ODD, 'last']}") > before, "the event had its names")


def test_commands_are_listed(lonely: Typist) -> None:
    lonely.type("eventsh s\t\t")
    lonely.see("serve", "status")


def test_options_choices_and_files_are_completed(lonely: Typist, tmp_path: Path) -> None:
    (tmp_path / "my things").mkdir()
    (tmp_path / "my things" / "handlers.py").write_text("raise SystemExit('loaded' + ' this file')")
    (tmp_path / "my things" / "handlers.txt").write_text("")
    lonely.complete("eventsh serve -w 1 --log-f", "--log-format")
    lonely.complete("js", "json")
    lonely.complete("--hand", "--handlers")
    lonely.complete("my", "things/")
    lonely.complete("hand", "handlers.py")
    lonely.enter()
    lonely.see("loaded this file")


def test_recordings_are_completed_where_a_command_takes_one(lonely: Typist, tmp_path: Path) -> None:
    for name in ("incident.evlog", "incident.txt"):
        (tmp_path / name).write_text("no recording")
    lonely.complete("eventsh rep", "eventsh replay")
    lonely.complete("inc", "incident.evlog")
    lonely.enter()
    lonely.see("eventsh: ")


def test_without_a_broker_nothing_is_said_and_the_line_stays(lonely: Typist) -> None:
    lonely.enter("eventsh post nosuch\t thing")
    lonely.see("eventsh post nosuch thing", "nobody listens at")


def test_a_stopped_broker_holds_nobody_up(tmp_path: Path) -> None:
    pool = Pool(tmp_path, workers=0, prints=True)
    broker = pool.status()["broker"]["pid"]
    os.kill(broker, signal.SIGSTOP)
    try:
        assert ask(pool, "post", "") == []
        assert ask(
            pool,
            "status",
            "--add",
        ) == ["--address"]
    finally:
        os.kill(broker, signal.SIGCONT)
        pool.stop()


def test_the_broker_is_asked_at_the_address_of_the_line(pool: Pool) -> None:
    words = ["post", "--address", pool.address, "ca"]
    wait_until(
        lambda: (
            run("unix:/nowhere/e.sock", "__complete", "fish", *words).out == "cache\tpurge:key is handled by purge\n"
        ),
        "the pool's names",
    )
    assert run("unix:/nowhere/e.sock", "__complete", "fish", "post", "ca").out == ""
    words = ["replay", "--to", pool.address, "--source", "ca"]
    wait_until(lambda: run("unix:/nowhere/e.sock", "__complete", "fish", *words).out, "the pool's names for replay")


def test_only_events_of_the_source_are_offered_and_nothing_that_moves_the_cursor(pool: Pool) -> None:
    offers(pool, "post", "cache", "", wanted=["purge:key"])
    offers(pool, "tail", "eventsh", "ga", wanted=["gap"])
    offers(pool, "post", "", wanted=["cache", ODD, "test"])
    offers(pool, "tail", "", wanted=["cache", ODD, "test", "eventsh"])


def test_workers_and_actions_are_offered(pool: Pool) -> None:
    offers(pool, "log", "show", "--worker", "", wanted=["0"])
    offers(pool, "log", "re", wanted=["repair"])
    offers(pool, "plugins", "", wanted=["list", "check", "new"])


def test_options_before_the_command_change_nothing(pool: Pool) -> None:
    offers(pool, "-p", "no:chaos", "pos", wanted=["post"])
    offers(pool, "-pno:chaos", "-p", "no:x", "log", "re", wanted=["repair"])
    assert ask(pool, "-p", "") == []
    assert "--version" in ask(pool, "-p", "no:x", "--")


def test_files_are_those_that_the_parameter_takes(pool: Pool, tmp_path: Path) -> None:
    for name in ("a.evlog", "a.py", "a.pem"):
        (tmp_path / name).write_text("")
    (tmp_path / "a.d").mkdir()
    begun = str(tmp_path / "a")
    assert ask(pool, "replay", begun) == ask(pool, "serve", "--record", begun) == [f"{begun}.d/", f"{begun}.evlog"]
    assert ask(pool, "log", "import", begun) == ask(pool, "log", "export", "x", begun)
    assert ask(pool, "log", "import", begun) == [f"{begun}{end}" for end in (".d/", ".evlog", ".pem", ".py")]
    assert ask(pool, "log", "export", begun) == ask(pool, "log", "import", "x", begun) == ask(pool, "replay", begun)
    assert ask(pool, "serve", "--handlers", begun) == [f"{begun}.d/", f"{begun}.py"]
    assert f"{begun}.pem" in ask(pool, "status", "--token-file", begun)
    assert ask(pool, "serve", "--flight-dir", begun) == [f"{begun}.d/"]
    assert ask(pool, "post", "a", "b", f"@{begun}.p") == [f"@{begun}.pem", f"@{begun}.py"]


def test_what_was_given_is_not_offered_again(pool: Pool) -> None:
    assert "--json" in ask(pool, "status", "--timeout=3", "--")
    assert "--timeout" not in ask(pool, "status", "--timeout=3", "--")
    assert "--handlers" in ask(pool, "serve", "--handlers", "a.py", "--")
    assert ask(pool, "post", "--", "--") == []


@pytest.mark.parametrize("words", [(), ("fish",), ("bash", "x"), ("tcsh", "a"), ("fish", "no-such-verb", "")])
def test_what_no_script_asks_is_answered_by_nothing(words: tuple[str, ...]) -> None:
    done = run("unix:/nowhere/e.sock", "__complete", *words)
    assert (done.status, done.out, done.err) == (0, "", "")
