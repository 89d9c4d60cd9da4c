"""Commands that run a module of eventsh in a process of its own, with this program's interpreter and packages.

Theory of operation: a process that eventsh starts must import the same eventsh, orjson and plugins as the program that
starts it, also where that program's `sys.path` was made at run time (PEX, a zipapp, `sys.path.insert`). The interpreter's
flags and variables alone don't reproduce that path, and PYTHONPATH would be inherited by every program that a handler
starts, can't hold a colon, and means nothing after `python -I`. So the starter passes its path in one variable as a short
program; the child removes the variable, sets its path, checks that it got the same eventsh, and only then runs a module.
"""

from __future__ import annotations

import os
import re
import sys
from importlib import import_module

from eventsh.errors import ConfigureError

__all__ = ["freeze_support", "is_frozen", "python_command", "python_environment"]

START_ENV = "EVENTSH_START"
# Short, so that `ps` shows the module and the address within a line or two.
_RUN_START = f"import os;exec(os.environ.pop({START_ENV!r}))"
# Begins the program in START_ENV. The interpreter is checked first: with another one, the path would be another's too.
# Its path is replaced as a whole after `site` has run: each .pth file is executed once, by the interpreter itself.
_START = """
import os, sys
def start(python, path, version, file):
    own = sys.implementation.cache_tag + getattr(sys, "abiflags", "")
    if own != python:
        sys.exit("%s is %s, and the program that starts it runs on %s: restart the program" % (sys.executable, own, python))
    sys.path[:] = path
    import eventsh
    if os.path.realpath(eventsh.__file__) != os.path.realpath(file):
        sys.exit(
            "%s imports eventsh %s from %s, and the program that starts it has eventsh %s from %s: put that one first on"
            " sys.path" % (sys.executable, eventsh.__version__, eventsh.__file__, version, file)
        )
    from eventsh.runtime.interpreter import run_module
    run_module()
"""
# Not whatever begins with "python": a program of that name that embeds Python would be started again and again.
_PYTHON_NAME = re.compile(r"(python|pypy)[\d.]*[a-z]?(-dbg|-intel64)?")

# Whether this frozen program runs a module when it is started for that.
_calls_freeze_support = False


def is_frozen() -> bool:
    """Whether `sys.executable` is the program itself, with an interpreter inside (PyInstaller, cx_Freeze)."""
    return bool(getattr(sys, "frozen", False))


def freeze_support() -> None:
    """Allow a frozen program (PyInstaller, cx_Freeze) to start brokers: call it first in the program's main module.

    A frozen program has no interpreter to run a broker, so eventsh starts the program itself once more. In that process
    this call runs the broker and does not return. Everywhere else it returns at once; in a program that is not frozen it
    has no effect.
    """
    global _calls_freeze_support
    if not is_frozen():
        return
    if os.environ.pop(START_ENV, None) is not None:
        run_module()
    _calls_freeze_support = True


def run_module() -> None:
    """Run the module that the first argument names, and end the process with its status."""
    # As in a script, the first argument stands for the program.
    del sys.argv[0]
    sys.exit(import_module(sys.argv[0]).main())


def python_command(module: str) -> list[str]:
    """Return the command that runs `module` of eventsh afresh, in the environment of `python_environment`.

    Returns:
        The command; flags of the module may follow.

    Raises:
        ConfigureError: No interpreter can be found, or the program is frozen and did not call `freeze_support`.
    """
    if not is_frozen():
        return [_find_python(), *_interpreter_flags(), "-c", _RUN_START, module]
    if not _calls_freeze_support:
        # Started again without that call, the program would do its own work again, and start itself again.
        raise ConfigureError(
            f"{sys.executable} is a frozen program without a Python interpreter: call eventsh.freeze_support() first in its"
            " main module, or run 'eventsh serve --workers 0' beside it",
            option="broker",
        )
    return [sys.executable, module]


def python_environment() -> dict[str, str]:
    """Return the environment in which `python_command` finds this program's packages."""
    if is_frozen():
        # PyInstaller's single file is unpacked for each program, and the directory is removed when that program ends.
        return {**os.environ, START_ENV: "frozen", "PYINSTALLER_RESET_ENVIRONMENT": "1"}
    own = sys.modules["eventsh"]
    facts = (_interpreter_tag(), _import_path(), own.__version__, own.__file__)
    return {**os.environ, START_ENV: f"{_START}start(*{facts!a})"}


def _interpreter_tag() -> str:
    return f"{sys.implementation.cache_tag}{getattr(sys, 'abiflags', '')}"


def _interpreter_flags() -> list[str]:
    """Return the flags that decide which packages are imported, as this interpreter has them."""
    flags = sys.flags
    if flags.isolated:
        given = ["-I"]
    else:
        # -P: the working directory may be anybody's.
        given = ["-P"]
        given += ["-E"] if flags.ignore_environment else []
        given += ["-s"] if flags.no_user_site else []
    given += ["-S"] if flags.no_site else []
    given += ["-B"] if flags.dont_write_bytecode else []
    return given


def _import_path() -> list[str]:
    """Return `sys.path` as it means the same in another directory: the standard library first, the working directory out.

    A program's own directory may hold a queue.py or a token.py. The program has what it needs of the standard library; a
    process that imports other parts of it would run that file in their place.
    """
    library = os.path.dirname(os.__file__)
    libraries = [entry for entry in sys.path if entry in (library, os.path.join(library, "lib-dynload"))]
    # Where eventsh itself was found by an import hook, or in the working directory, no entry leads to it.
    root = os.path.dirname(os.path.dirname(os.path.abspath(sys.modules["eventsh"].__file__ or "")))
    # Programs also insert Path objects, which the import system passes over. An entry that is not a path is a name that an
    # import hook knows (editable installs have such entries).
    entries: list[object] = [*sys.path]
    others = [
        os.path.abspath(entry) if not os.path.isabs(entry) and os.path.exists(entry) else entry
        for entry in entries
        if isinstance(entry, str) and entry
    ]
    roots = [] if root in map(os.path.normpath, others) else [root]
    return list(dict.fromkeys([*libraries, *roots, *others]))


def _find_python() -> str:
    """Return an interpreter of this version. Raises ConfigureError.

    Under a server that embeds Python, `sys.executable` is that server or empty; its interpreter is beside the library.
    """
    if _is_program(sys.executable) and _PYTHON_NAME.fullmatch(os.path.basename(sys.executable)):
        return sys.executable
    # A program that embeds Python names its interpreter there; else it is what was found to be none.
    spawn = sys.modules.get("multiprocessing.spawn")
    named = os.fsdecode(spawn.get_executable() or "") if spawn is not None else ""
    if named != sys.executable and _is_program(named):
        return named
    import sysconfig

    prefixes = (sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix)
    directories = dict.fromkeys([*(os.path.join(each, "bin") for each in prefixes), sysconfig.get_config_var("BINDIR")])
    name = f"python{sys.version_info.major}.{sys.version_info.minor}{getattr(sys, 'abiflags', '')}"
    for directory in directories:
        if _is_program(path := os.path.join(directory, name)):
            return path
    raise ConfigureError(
        f"no Python interpreter: sys.executable is {sys.executable!r}, and there is no {name} in {', '.join(directories)}:"
        " name one with multiprocessing.set_executable(), or run 'eventsh serve --workers 0'",
        option="broker",
    )


def _is_program(path: str | None) -> bool:
    return bool(path and os.path.isfile(path) and os.access(path, os.X_OK))
