from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from eventsh import hookspecs
from eventsh import plugins as plugins_module
from eventsh.errors import ConfigureError, PluginError
from eventsh.hookspecs import hookimpl
from eventsh.plugins import DISABLE_ENV, PluginFailure, PluginManager
from eventsh.transport import Transport, TransportWrapper
from eventsh.transports import BUILTIN
from eventsh.transports.inproc import InprocTransport
from eventsh.transports.unix import UnixTransport

PACKAGE_ROOT = str(Path(plugins_module.__file__).parent.parent)


class PigeonTransport(InprocTransport):
    scheme = "pigeon"


class Pigeon:
    """A plugin with one transport, which counts how often it is asked for it."""

    def __init__(self, *transports: object) -> None:
        self.transports = transports or (PigeonTransport(),)
        self.asked = 0

    @hookimpl
    def eventsh_transports(self) -> object:
        self.asked += 1
        return self.transports


@pytest.fixture
def manager() -> PluginManager:
    """One that leaves the entry points of this machine alone."""
    return PluginManager({DISABLE_ENV: "all"})


class Site:
    """A directory of installed distributions, and programs that find them there."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def install(self, distribution: str, source: str, entry_points: dict[str, str] | None = None) -> None:
        """Install `source` as a module of the distribution's name, which by default is its one plugin too."""
        (self.directory / f"{distribution}.py").write_text(dedent(source))
        info = self.directory / f"{distribution}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        named = entry_points or {distribution.removeprefix("eventsh_"): distribution}
        lines = [f"{name} = {value}\n" for name, value in named.items()]
        (info / "entry_points.txt").write_text("[eventsh]\n" + "".join(lines))

    def run(self, program: str, **environ: str) -> tuple[Any, str]:
        """What `program` prints as JSON, and what it logs."""
        path = os.pathsep.join((str(self.directory), PACKAGE_ROOT))
        process = subprocess.run(
            [sys.executable, "-c", "from eventsh.plugins import *\nimport json, sys\n" + dedent(program)],
            env={"PATH": os.defpath, "PYTHONPATH": path, **environ},
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert process.returncode == 0, process.stderr
        return json.loads(process.stdout), process.stderr


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


PIGEON = """
    from eventsh.hookspecs import hookimpl
    from eventsh.transports.inproc import InprocTransport

    class PigeonTransport(InprocTransport):
        scheme = "pigeon"

    @hookimpl
    def eventsh_transports():
        return [PigeonTransport()]
"""
TRY_PIGEON = """
    try:
        found = type(find_transport("pigeon")).__module__
    except Exception as error:
        found = f"{type(error).__name__} {error.option}: {error}"
    print(json.dumps([found, [[failure.name, failure.error] for failure in plugins().failures]]))
"""


# Installed plugins.


def test_an_installed_plugin_gives_its_transport(site):
    site.install("eventsh_pigeon", PIGEON)
    assert site.run(TRY_PIGEON) == (["eventsh_pigeon", []], "")


@pytest.mark.parametrize("value", ["pigeon", "other, pigeon", "1", "all"])
def test_the_environment_switches_installed_plugins_off(site, value):
    site.install("eventsh_pigeon", PIGEON)
    (found, failures), _ = site.run(TRY_PIGEON, **{DISABLE_ENV: value})
    assert found.startswith("ConfigureError address: address: no transport has the scheme 'pigeon'")
    assert all(scheme in found for scheme in BUILTIN)
    assert failures == []


def test_the_option_p_switches_an_installed_plugin_off(site):
    site.install("eventsh_pigeon", PIGEON)
    (found, _), _ = site.run("plugins().apply_option('no:pigeon')\n" + dedent(TRY_PIGEON))
    assert found.startswith("ConfigureError")


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("this is no Python", "SyntaxError"),
    ],
)
def test_a_plugin_that_fails_to_load_is_named_and_the_rest_works(site, source, error):
    site.install("eventsh_broken", source)
    site.install("eventsh_pigeon", PIGEON)
    (found, failures), log = site.run(TRY_PIGEON)
    assert found == "eventsh_pigeon"
    [(name, text)] = failures
    assert name == "broken"
    assert text.startswith(error)
    assert log.count("plugin broken: ") == 1


def test_an_entry_point_that_names_nothing_is_named(site):
    site.install("eventsh_pigeon", PIGEON, {"pigeon": "eventsh_pigeon", "typo": "eventsh_pigeon:nothing"})
    (found, failures), _ = site.run(TRY_PIGEON)
    assert found == "eventsh_pigeon"
    assert [name for name, _ in failures] == ["typo"]


def test_built_in_transports_are_found_without_pluggy_and_entry_points(site):
    site.install("eventsh_broken", "raise SystemExit(3)")
    program = """
        transport = find_transport("unix")
        heavy = [name for name in ("pluggy", "importlib.metadata", "asyncio", "logging") if name in sys.modules]
        print(json.dumps([transport.scheme, plugins().has_impl("eventsh_gap"), plugins().names, heavy]))
    """
    assert site.run(program) == (["unix", False, list(BUILTIN), []], "")


def test_loading_no_plugins_imports_no_pluggy(site):
    program = "plugins().load(); print(json.dumps('pluggy' in sys.modules))"
    site.install("eventsh_pigeon", PIGEON)
    assert site.run(program)[0] is True
    assert site.run(program, **{DISABLE_ENV: "pigeon"})[0] is False


# Transports.


def test_a_transport_is_one_object(manager):
    assert manager.find_transport("unix") is manager.find_transport("unix")
    assert isinstance(manager.find_transport("unix"), UnixTransport)
    pigeon = Pigeon()
    assert manager.register(pigeon, "pigeon")
    found = manager.find_transport("pigeon")
    assert found is pigeon.transports[0]
    assert manager.find_transport("pigeon") is found
    assert manager.schemes() == sorted([*BUILTIN, "pigeon"])
    with pytest.raises(ConfigureError):
        manager.find_transport("swallow")
    assert pigeon.asked == 1


def test_an_unknown_scheme_is_refused_with_those_that_are_known(manager):
    with pytest.raises(
        ConfigureError, match=r"no transport has the scheme 'pigeon'; known are: inproc, .*unix"
    ) as caught:
        manager.find_transport("pigeon")
    assert caught.value.option == "address"


def test_the_message_about_an_unknown_scheme_names_plugins_that_failed(manager):
    manager.register(None, "pigeon")
    with pytest.raises(ConfigureError, match="plugins with errors: pigeon"):
        manager.find_transport("pigeon")


def test_every_built_in_transport_has_the_scheme_of_its_name(manager):
    for scheme in BUILTIN:
        transport = manager.find_transport(scheme)
        assert isinstance(transport, Transport)
        assert transport.scheme == scheme


def test_a_built_in_transport_can_be_switched_off(manager):
    assert manager.find_transport("unix")
    manager.switch_off("unix")
    with pytest.raises(ConfigureError, match="it is switched off"):
        manager.find_transport("unix")
    assert manager.find_transport("inproc")
    assert "unix" not in manager.names
    other = PluginManager({DISABLE_ENV: "all,unix"})
    with pytest.raises(ConfigureError):
        other.find_transport("unix")


def test_a_plugin_can_stand_in_for_a_built_in_transport_that_is_off(manager):
    class Own(UnixTransport):
        pass

    manager.switch_off("unix")
    manager.register(Pigeon(Own()), "own")
    assert isinstance(manager.find_transport("unix"), Own)


def test_of_two_plugins_with_one_scheme_the_first_wins(manager, caplog):
    first, second = Pigeon(), Pigeon()
    manager.register(first, "first")
    manager.register(second, "second")
    manager.register(Pigeon(UnixTransport()), "third")
    assert manager.find_transport("pigeon") is first.transports[0]
    assert type(manager.find_transport("unix")) is UnixTransport
    assert manager.failures == [
        PluginFailure("second", "the scheme 'pigeon' is taken by the plugin 'first'"),
        PluginFailure("third", "the scheme 'unix' is taken by the plugin 'unix'"),
    ]
    assert [record.name for record in caplog.records] == ["eventsh", "eventsh"]


@pytest.mark.parametrize("result", [["text"], 7, [UnixTransport]])
def test_a_plugin_whose_transports_are_none_is_named(manager, result):
    class Wrong:
        @hookimpl
        def eventsh_transports(self) -> object:
            return result

    manager.register(Wrong(), "wrong")
    manager.register(Pigeon(), "pigeon")
    assert manager.find_transport("pigeon")
    assert [failure.name for failure in manager.failures] == ["wrong"]


def test_a_plugin_may_use_eventsh_while_it_is_asked(manager):
    class Wrapping:
        @hookimpl
        def eventsh_transports(self) -> object:
            manager.find_transport("unix")
            return [PigeonTransport()]

    manager.register(Wrapping(), "wrapping")
    assert manager.find_transport("pigeon")


# Hooks.


class Watcher:
    def __init__(self) -> None:
        self.seen: list[object] = []

    @hookimpl
    def eventsh_gap(self, gap: object) -> object:
        self.seen.append(gap)
        return len(self.seen)

    @hookimpl
    def eventsh_event_posted(self, event: str, source: str) -> None:
        self.seen.append((source, event))


def test_a_hook_that_nobody_implements_is_known_and_calls_nothing(manager):
    assert not manager.has_impl("eventsh_gap")
    assert manager.call("eventsh_gap", gap={}) == []
    manager.register(Watcher(), "watcher")
    assert manager.has_impl("eventsh_gap")
    assert not manager.has_impl("eventsh_handler_failed")
    manager.switch_off("watcher")
    assert not manager.has_impl("eventsh_gap")
    assert manager.call("eventsh_gap", gap={}) == []
    assert not manager.register(Watcher(), "watcher")


def test_a_hook_gets_the_facts_that_it_names(manager):
    watcher = Watcher()
    manager.register(watcher, "watcher")
    assert manager.call("eventsh_gap", gap={"missed": 3}) == [1]
    assert manager.call("eventsh_event_posted", source="s", event="e", data=1, unique=None) == []
    assert watcher.seen == [{"missed": 3}, ("s", "e")]


def test_a_plugin_that_fails_in_ever_new_ways_is_noted_and_logged_a_few_times(manager, caplog):
    class Failing:
        calls = 0

        @hookimpl
        def eventsh_gap(self) -> None:
            self.calls += 1
            raise ValueError(f"number {self.calls}")

    failing = Failing()
    manager.register(failing, "failing")
    for _ in range(50):
        manager.call("eventsh_gap", missed=1, first_seq=1, last_seq=1, reason="")
    assert failing.calls == 50
    assert len(manager.failures) == 20
    assert caplog.text.count("plugin failing: ") == 20


def test_a_hook_that_raises_is_logged_once_and_the_others_are_called(manager, caplog):
    class Failing:
        @hookimpl
        def eventsh_gap(self) -> None:
            raise ZeroDivisionError("on purpose")

    first, last = Watcher(), Watcher()
    for plugin, name in ((first, "first"), (Failing(), "failing"), (last, "last")):
        manager.register(plugin, name)
    for _ in range(3):
        manager.call("eventsh_gap", gap={})
    assert len(first.seen) == len(last.seen) == 3
    assert manager.failures == [PluginFailure("failing", "eventsh_gap: ZeroDivisionError: on purpose")]
    [record] = caplog.records
    assert record.exc_info
    assert record.levelno == logging.WARNING


def test_a_plugin_with_an_unknown_hook_is_named_and_its_other_hooks_work(manager, caplog):
    class Newer(Watcher):
        @hookimpl
        def eventsh_of_the_future(self) -> None: ...

        @hookimpl(optionalhook=True)
        def eventsh_of_the_far_future(self) -> None: ...

    assert manager.register(Newer(), "newer")
    [failure] = manager.failures
    assert failure.name == "newer"
    assert "eventsh_of_the_future" in failure.error
    assert len(caplog.records) == 1
    assert manager.call("eventsh_gap", gap={}) == [1]


def test_a_plugin_whose_hook_asks_for_unknown_facts_is_refused(manager):
    class Wrong:
        @hookimpl
        def eventsh_gap(self, gap: object, colour: str) -> None: ...

    assert not manager.register(Wrong(), "wrong")
    [failure] = manager.failures
    assert failure.name == "wrong"
    assert "colour" in failure.error
    assert not manager.has_impl("eventsh_gap")
    assert "wrong" not in manager.names


def test_a_wrapper_is_refused(manager):
    class Wrapping:
        @hookimpl(wrapper=True)
        def eventsh_gap(self) -> Iterator[None]:
            yield

    assert not manager.register(Wrapping(), "wrapping")
    assert "wrapper" in manager.failures[0].error
    assert not manager.has_impl("eventsh_gap")


def test_two_plugins_can_not_have_one_name(manager):
    assert manager.register(Watcher(), "watcher")
    assert not manager.register(Watcher(), "watcher")
    assert not manager.register(Watcher(), "unix")
    assert [failure.name for failure in manager.failures] == ["watcher", "unix"]


@pytest.mark.parametrize("text", ["pigeon", "no:", "yes:pigeon", ""])
def test_other_forms_of_the_option_p_are_refused(manager, text):
    with pytest.raises(ConfigureError, match="no:NAME") as caught:
        manager.apply_option(text)
    assert caught.value.option == "plugin"


def test_every_hook_is_exported_and_says_what_it_is_for():
    names = [name for name in vars(hookspecs) if name.startswith("eventsh_")]
    assert sorted([*names, "hookimpl", "hookspec"]) == sorted(hookspecs.__all__)
    for name in names:
        assert "Called" in (getattr(hookspecs, name).__doc__ or ""), name


def test_the_process_has_one_manager():
    assert plugins_module.plugins() is plugins_module.plugins()
    assert plugins_module.find_transport("unix") is plugins_module.plugins().find_transport("unix")


class LoudTransport(InprocTransport):
    scheme = "loud+pigeon"


class Loud(TransportWrapper):
    """Wraps whatever it is given, and says that it is pigeons."""

    scheme = "loud"

    def __init__(self) -> None:
        self.wrapped: list[Transport] = []

    def wrap(self, inner: Transport) -> Transport:
        self.wrapped.append(inner)
        return LoudTransport()


def test_a_wrapper_makes_a_transport_of_another_plugins_once(manager):
    loud = Loud()
    manager.register(Pigeon(loud), "loud")
    manager.register(Pigeon(), "pigeon")
    transport = manager.find_transport("loud+pigeon")
    assert isinstance(transport, LoudTransport)
    assert manager.find_transport("loud+pigeon") is transport
    assert loud.wrapped == [manager.find_transport("pigeon")]


def test_what_a_wrapper_can_t_wrap_is_named(manager):
    manager.register(Pigeon(Loud()), "loud")
    with pytest.raises(ConfigureError, match="no transport has the scheme 'smoke'"):
        manager.find_transport("loud+smoke")
    with pytest.raises(ConfigureError, match=r"no transport has the scheme 'loud'; known are: .*unix, loud\+…"):
        manager.find_transport("loud")
    with pytest.raises(PluginError, match=r"the plugin 'loud' made 'loud\+pigeon' when asked for 'loud\+unix'"):
        manager.find_transport("loud+unix")
    manager.switch_off("loud")
    with pytest.raises(ConfigureError, match="known are"):
        manager.find_transport("loud+unix")
