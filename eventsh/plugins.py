"""The one plugin manager: which plugins there are, and what they give.

Imports pluggy and reads entry points only when somebody needs a plugin: that costs more than all else of a post from the
command line. A plugin that fails is named in `failures` and in the log, and the rest works.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eventsh.errors import ConfigureError, PluginError
from eventsh.transports import BUILTIN, BuiltinTransport, load_builtin

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    import pluggy

    from eventsh.transport import Transport, TransportWrapper

__all__ = [
    "DISABLE_ENV",
    "ENTRY_POINT_GROUP",
    "PluginFacts",
    "PluginFailure",
    "PluginManager",
    "apply_options",
    "find_transport",
    "plugins",
]

ENTRY_POINT_GROUP = "eventsh"
DISABLE_ENV = "EVENTSH_DISABLE_PLUGINS"
# Values of DISABLE_ENV that switch off all entry points; the built-in plugins only go by name.
ALL = frozenset({"1", "all"})

# Of one plugin: a hook can raise with another text for every event.
_MAX_FAILURES = 20


@dataclass(frozen=True, slots=True)
class PluginFailure:
    """What is wrong with a plugin, for people."""

    name: str
    error: str


@dataclass(frozen=True, slots=True)
class PluginFacts:
    """A plugin, for people. `version` is that of the distribution it came with, None where it is not known; a scheme that
    ends with a plus sign is that of a wrapper."""

    name: str
    version: str | None
    module: str | None
    hooks: list[str]
    schemes: list[str]
    errors: list[str]


class PluginManager:
    """All plugins of this process. Built-in ones are there from the start, others after `load` or `register`."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self.failures: list[PluginFailure] = []
        self._off = {name.strip() for name in environ.get(DISABLE_ENV, "").split(",")} - {""}
        self._no_entry_points = bool(self._off & ALL)
        self._pluggy: pluggy.PluginManager | None = None
        self._loaded = False
        self._names: list[str] = []
        # Of those that came by an entry point.
        self._versions: dict[str, str] = {}
        self._implemented: set[str] = {"eventsh_transports"}
        self._transports: dict[str, Transport] = {}
        self._wrappers: dict[str, TransportWrapper] = {}
        self._owners: dict[str, str] = {}
        self._asked: set[str] = set()
        # Reentrant: a plugin may use eventsh while it is imported.
        self._lock = threading.RLock()

    @property
    def names(self) -> list[str]:
        """The plugins that are registered so far, in the order in which they were."""
        return list(self._names) if self._pluggy is not None else [name for name in BUILTIN if name not in self._off]

    def apply_option(self, text: str) -> None:
        """Do what `-p TEXT` asks for: "no:NAME" switches a plugin off. Raises ConfigureError for anything else."""
        prefix, colon, name = text.partition(":")
        if prefix != "no" or not colon or not name:
            raise ConfigureError(
                f"-p {text!r}: write no:NAME, with the name of a plugin to switch off", option="plugin"
            )
        self.switch_off(name)

    def switch_off(self, name: str) -> None:
        """Do without the plugin `name`, whether it is there or not; "all" stands for every entry point that is not loaded
        yet. Transports of it that are in use stay."""
        with self._lock:
            self._off.add(name)
            self._no_entry_points = bool(self._off & ALL)
            if self._pluggy is not None and name in self._names:
                self._unregister(name)
            for scheme in [scheme for scheme, owner in self._owners.items() if owner == name]:
                del self._owners[scheme]
                self._transports.pop(scheme, None)
                self._wrappers.pop(scheme, None)

    def load(self) -> None:
        """Load the plugins of all entry points, once. Call it where hooks are to be called: at the start of a broker, of a
        worker, of a command that lists or uses plugins. Logs what can't be loaded, and raises nothing for it."""
        with self._lock:
            if self._loaded:
                return
            self._loaded = True
            if self._no_entry_points:
                return
            try:
                # The import can fail too, in a process that is out of descriptors.
                from importlib.metadata import entry_points

                found = entry_points(group=ENTRY_POINT_GROUP)
            except Exception as error:  # noqa: BLE001  # any distribution's broken metadata ends up here
                self._fail("entry points", error)
                return
            for entry_point in found:
                if entry_point.name not in self._off:
                    self._load_entry_point(entry_point)

    def _load_entry_point(self, entry_point: EntryPoint) -> None:
        if entry_point.dist is not None:
            self._versions[entry_point.name] = entry_point.dist.version
        try:
            self.register(entry_point.load(), entry_point.name)
        # SystemExit too: a module that ends the program when it is imported is a plugin that fails to load.
        except (Exception, SystemExit) as error:  # noqa: BLE001  # it is named and logged, the rest works
            self._fail(entry_point.name, error)

    def register(self, plugin: object, name: str) -> bool:
        """Add a plugin, a module or an object with marked hooks. False: it is switched off or was refused, and then named in
        `failures`. Of its hooks, unknown ones are reported and the others work."""
        with self._lock:
            if name in self._off:
                return False
            manager = self._load_pluggy()
            try:
                if name in self._names:
                    raise PluginError(f"another plugin is named {name!r} already")
                if manager.register(plugin, name) is None:
                    raise PluginError("it is None, and no plugin")
            except Exception as error:  # noqa: BLE001  # pluggy, and what looking at the attributes of a plugin may do
                self._fail(name, error)
                return False
            self._names.append(name)
            return self._check_hooks(plugin, name)

    def is_registered(self, plugin: object) -> bool:
        """Whether this very module or object is a plugin, under whatever name."""
        with self._lock:
            return self._load_pluggy().is_registered(plugin)

    def has_impl(self, hook: str) -> bool:
        """Whether any plugin implements `hook`. Cheap, and imports nothing: ask it before collecting what a hook is told."""
        return hook in self._implemented

    def call(self, hook: str, **facts: Any) -> list[Any]:
        """Call `hook` in every plugin, in the order of their registration, and give what is not None. A plugin that raises is
        logged; the others are called all the same."""
        return [result for _, result in self._results(hook, facts)]

    def schemes(self) -> list[str]:
        """The schemes of all transports, sorted. Loads the plugins."""
        with self._lock:
            self._collect_transports()
            return sorted(self._transports)

    def owner_of(self, scheme: str) -> str:
        """The name of the plugin whose transport serves `scheme`. Raises as `find_transport` does."""
        with self._lock:
            self.find_transport(scheme)
            return self._owners[scheme]

    def describe(self, own_version: str) -> list[PluginFacts]:
        """Every plugin, in the order of registration, and then those that could not be loaded. Loads them all. The built-in
        ones are of `own_version`."""
        with self._lock:
            manager = self._load_pluggy()
            self._collect_transports()
            failed = [failure.name for failure in self.failures if failure.name not in self._names]
            return [
                self._describe(name, manager.get_plugin(name), own_version)
                for name in dict.fromkeys([*self._names, *failed])
            ]

    def _describe(self, name: str, plugin: object | None, own_version: str) -> PluginFacts:
        callers = [] if plugin is None else self._load_pluggy().get_hookcallers(plugin) or []
        module = None if plugin is None else getattr(plugin, "__name__", type(plugin).__module__)
        version = own_version if name in BUILTIN else self._versions.get(name)
        schemes = [
            f"{scheme}+" if scheme in self._wrappers else scheme
            for scheme, owner in self._owners.items()
            if owner == name
        ]
        return PluginFacts(
            name,
            version,
            module,
            sorted(caller.name for caller in callers if caller.has_spec()),
            sorted(schemes),
            [failure.error for failure in self.failures if failure.name == name],
        )

    def find_transport(self, scheme: str) -> Transport:
        """The transport for addresses of `scheme`, always the same object. A built-in one is found without loading plugins.
        Raises ConfigureError, which lists the schemes that there are."""
        with self._lock:
            if scheme in BUILTIN and scheme not in self._off and scheme not in self._transports:
                try:
                    self._add_transport(scheme, load_builtin(scheme))
                except ImportError as error:
                    self._fail(scheme, error)
            if scheme not in self._transports:
                self._collect_transports()
            if scheme not in self._transports:
                self._wrap(scheme)
            if scheme in self._transports:
                return self._transports[scheme]
            known = ", ".join([*sorted(self._transports), *(f"{name}+…" for name in sorted(self._wrappers))]) or "none"
            failed = ", ".join(sorted({failure.name for failure in self.failures}))
        hint = f"; plugins with errors: {failed}" if failed else ""
        hint += "; it is switched off" if scheme in self._off else ""
        raise ConfigureError(
            f"address: no transport has the scheme {scheme!r}; known are: {known}{hint}", option="address"
        )

    def _load_pluggy(self) -> pluggy.PluginManager:
        if self._pluggy is None:
            import pluggy

            from eventsh import hookspecs

            self._pluggy = pluggy.PluginManager("eventsh")
            self._pluggy.add_hookspecs(hookspecs)
            hookspecs.hookimpl(BuiltinTransport.eventsh_transports)
            for scheme in BUILTIN:
                self.register(BuiltinTransport(scheme), scheme)
        return self._pluggy

    def _check_hooks(self, plugin: object, name: str) -> bool:
        manager = self._load_pluggy()
        for caller in manager.get_hookcallers(plugin) or ():
            own = [impl for impl in caller.get_hookimpls() if impl.plugin is plugin]
            if any(impl.wrapper or impl.hookwrapper for impl in own):
                self._unregister(name)
                self._fail(name, PluginError(f"its {caller.name} is a wrapper, which eventsh does not support"))
                return False
            if caller.has_spec():
                self._implemented.add(caller.name)
            elif not all(impl.optionalhook for impl in own):
                self._fail(
                    name, PluginError(f"there is no hook {caller.name!r}; mark it optionalhook if that is intended")
                )
        return True

    def _unregister(self, name: str) -> None:
        manager = self._load_pluggy()
        manager.unregister(name=name)
        self._names.remove(name)
        callers = [caller for hook in self._implemented if (caller := getattr(manager.hook, hook, None)) is not None]
        self._implemented = {caller.name for caller in callers if caller.get_hookimpls()}

    def _results(
        self, hook: str, facts: Mapping[str, Any], skip: frozenset[str] = frozenset()
    ) -> Iterator[tuple[str, Any]]:
        """Not pluggy's own call, which ends at the first plugin that raises."""
        if hook not in self._implemented:
            return
        impls = getattr(self._load_pluggy().hook, hook).get_hookimpls()
        impls = [impl for impl in impls if impl.plugin_name not in skip]
        for impl in sorted(impls, key=lambda impl: self._names.index(impl.plugin_name)):
            try:
                result = impl.function(*(facts[name] for name in impl.argnames))
            except Exception as error:  # noqa: BLE001  # it is logged, with its traceback
                self._fail(impl.plugin_name, error, hook)
            else:
                if result is not None:
                    yield impl.plugin_name, result

    def _collect_transports(self) -> None:
        self.load()
        asked = frozenset(self._asked)
        self._asked.update(self._names)
        for name, transports in self._results("eventsh_transports", {}, skip=asked):
            try:
                for transport in transports:
                    self._add_transport(name, transport)
            except Exception as error:  # noqa: BLE001  # whatever it returned, it can't be iterated over
                self._fail(name, error)

    def _add_transport(self, name: str, transport: object) -> None:
        from eventsh.transport import Transport, TransportWrapper

        if not isinstance(transport, Transport | TransportWrapper) or not isinstance(
            getattr(transport, "scheme", None), str
        ):
            raise PluginError(f"{transport!r} is no transport with a scheme")
        owner = self._owners.setdefault(transport.scheme, name)
        if owner != name:
            self._fail(name, PluginError(f"the scheme {transport.scheme!r} is taken by the plugin {owner!r}"))
        elif isinstance(transport, Transport):
            self._transports.setdefault(transport.scheme, transport)
        else:
            self._wrappers.setdefault(transport.scheme, transport)

    def _wrap(self, scheme: str) -> None:
        """Make the transport of `scheme`, if it is that of a wrapper, a plus sign, and another one. Raises ConfigureError
        where that one is not to be had."""
        outer, _, inner = scheme.partition("+")
        if inner and outer in self._wrappers:
            wrapped = self._wrappers[outer].wrap(self.find_transport(inner))
            if wrapped.scheme != scheme:
                raise PluginError(
                    f"the plugin {self._owners[outer]!r} made {wrapped.scheme!r} when asked for {scheme!r}"
                )
            self._add_transport(self._owners[outer], wrapped)

    def _fail(self, name: str, error: BaseException, hook: str | None = None) -> None:
        """Note and log it, once for each plugin and error, up to `_MAX_FAILURES` of a plugin."""
        import logging

        text = str(error) if isinstance(error, PluginError) else f"{type(error).__name__}: {error}"
        failure = PluginFailure(name, f"{hook}: {text}" if hook else text)
        if failure not in self.failures and sum(known.name == name for known in self.failures) < _MAX_FAILURES:
            self.failures.append(failure)
            trace = error if hook else None
            logging.getLogger("eventsh").warning("plugin %s: %s", name, failure.error, exc_info=trace)


_manager: PluginManager | None = None
_manager_lock = threading.Lock()


def plugins() -> PluginManager:
    """The plugin manager of this process, made when it is first asked for."""
    global _manager
    if _manager is None:
        with _manager_lock:
            # Another thread may have been first.
            manager = _manager or PluginManager()  # type: ignore[redundant-expr]
            _manager = manager
    return _manager


def _hold_over_fork() -> None:
    # Plugins are loaded in a thread. A child that is forked meanwhile would have them half loaded, and the lock held by a
    # thread that it does not have.
    _manager_lock.acquire()
    if _manager is not None:
        _manager._lock.acquire()


def _go_on_after_fork() -> None:
    if _manager is not None:
        _manager._lock.release()
    _manager_lock.release()


os.register_at_fork(before=_hold_over_fork, after_in_parent=_go_on_after_fork, after_in_child=_go_on_after_fork)


def apply_options(texts: Sequence[str]) -> None:
    """Do what `-p TEXT` asks for, in this process and in those that it starts. Raises ConfigureError."""
    for text in texts:
        plugins().apply_option(text)
        name = text.partition(":")[2]
        os.environ[DISABLE_ENV] = ",".join(filter(None, [os.environ.get(DISABLE_ENV), name]))


def find_transport(scheme: str) -> Transport:
    """`PluginManager.find_transport` of this process."""
    return plugins().find_transport(scheme)
