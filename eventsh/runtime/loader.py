"""Load the operator's handlers: files and modules of plain Python, which register what they like when imported.

Decides how a file becomes a module and how an error in it is told in one line. Knows nothing of events.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Iterable
from typing import TYPE_CHECKING

from eventsh.errors import EventError

if TYPE_CHECKING:
    from types import ModuleType, TracebackType

__all__ = ["HandlersError", "is_file_name", "load_handlers"]


class HandlersError(EventError):
    """Handlers can't be loaded. The text is one line, with file and line where they are known."""

    def __init__(self, message: str, detail: str = "") -> None:
        super().__init__(message)
        self.detail = detail
        """The traceback, from the first line of the handlers on."""


def load_handlers(names: Iterable[str]) -> list[ModuleType]:
    """Import every file and module in `names`, in order. Raises HandlersError at the first that fails.

    A file's directory, and for a module the working directory, comes first on sys.path, as it does for a script.
    """
    return [_load_file(name) if is_file_name(name) else _load_module(name) for name in names]


def is_file_name(name: str) -> bool:
    """Whether `name` means a file: it ends in .py or holds a slash, which no module's name does."""
    return name.endswith(".py") or os.sep in name


def _load_file(name: str) -> ModuleType:
    path = os.path.abspath(name)
    if not os.path.isfile(path):
        raise HandlersError(f"{name}: there is no such file")
    _put_first(os.path.dirname(path))
    module_name = _module_name(path)
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise HandlersError(f"{name}: not a Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    # As import does: dataclasses and pickle look modules up by name, also while they are being executed.
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[module_name]
        raise _told(error, name, os.path.dirname(path)) from error
    return module


def _load_module(name: str) -> ModuleType:
    _put_first(os.getcwd())
    if not all(part.isidentifier() for part in name.split(".")):
        raise HandlersError(f"{name}: neither a module's name nor a file that ends in .py")
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise _told(error, name, os.getcwd()) from error


def _module_name(path: str) -> str:
    """The file's own name, unless that would hide another module: handlers in a file called queue.py are fine."""
    stem = os.path.splitext(os.path.basename(path))[0]
    name = "".join(each if each.isalnum() or each == "_" else "_" for each in stem)
    taken = sys.modules.keys() | sys.stdlib_module_names
    if name.isidentifier() and name not in taken:
        return name
    number = 1
    while (free := f"eventsh_handlers_{name}_{number}") in taken:
        number += 1
    return free


def _put_first(directory: str) -> None:
    if sys.path[:1] != [directory]:
        sys.path.insert(0, directory)


def _told(error: BaseException, name: str, directory: str) -> HandlersError:
    what = " ".join(traceback.format_exception_only(error)[-1].split())
    if isinstance(error, SystemExit):
        what = f"it called sys.exit({error.code!r}) while it was imported"
    own = _own_frames(error.__traceback__)
    place = _place(error, own, directory)
    detail = "".join(traceback.format_exception(type(error), error, own))
    # A module that is not there at all failed in nobody's file.
    return HandlersError(
        f"{place}: {what}" if place else f"{name}: {what}", detail if own or isinstance(error, SyntaxError) else ""
    )


def _own_frames(trace: TracebackType | None) -> TracebackType | None:
    """The part of a traceback that begins in the handlers: importlib's frames and ours before it say nothing."""
    skipped = (__file__, importlib.__file__)
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if file not in skipped and not file.startswith("<frozen "):
            break
        trace = trace.tb_next
    return trace


def _place(error: BaseException, own: TracebackType | None, directory: str) -> str | None:
    """The last file and line that are the operator's: errors are mostly raised inside some library."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = [frame for frame in traceback.extract_tb(own) if not frame.filename.startswith("<frozen ")]
    theirs = [frame for frame in frames if frame.filename.startswith(directory + os.sep)]
    if not frames:
        return None
    last = (theirs or frames)[-1]
    return f"{last.filename}:{last.lineno}"
