"""`eventsh plugins new`: a package with a transport that works, to begin with. Its text is in the files beside this one."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from eventsh.errors import EventError, UsageError
from eventsh.plugins import plugins

__all__ = ["Skeleton", "write_skeleton"]

# A scheme without a plus sign; also, with "_" for "-", a part of a module's name.
NAME_PATTERN = re.compile(r"[a-z][a-z0-9]*(?:-[a-z0-9]+)*")
# A distribution's name that is longer is a mistake.
MAX_NAME = 40
# What is written, and from which of the files here; the placeholders are filled in, in names too.
FILES = {
    "pyproject.toml": "pyproject.txt",
    "README.md": "readme.txt",
    "eventsh_MODULE.py": "transport.txt",
    "tests/test_MODULE.py": "tests.txt",
}


@dataclass(frozen=True, slots=True)
class Skeleton:
    """What was written. `files` are relative to `directory`."""

    directory: str
    scheme: str
    files: list[str]


def write_skeleton(name: str, directory: str) -> Skeleton:
    """Write a plugin `name` into a new directory `eventsh-NAME` in `directory`. Raises UsageError for a name that can't be
    one, or is taken, and where there is something already, which is left alone; EventError when it can't be written."""
    scheme = _check_name(name)
    words = {
        "MODULE": scheme.replace("-", "_"),
        "CLASS": "".join(part.capitalize() for part in scheme.split("-")),
        "SCHEME": scheme,
    }
    root = Path(directory) / f"eventsh-{scheme}"
    files = {_fill(target, words): _fill(_template(source), words) for target, source in FILES.items()}
    try:
        root.mkdir()
        for file, text in files.items():
            (root / file).parent.mkdir(exist_ok=True)
            (root / file).write_text(text)
    except FileExistsError:
        raise UsageError(f"there is {str(root)!r} already: remove it, or choose another name or --directory") from None
    except OSError as error:
        raise EventError(f"can't write {str(root)!r}: {error.strerror}") from error
    return Skeleton(os.path.relpath(root), scheme, list(files))


def _check_name(name: str) -> str:
    scheme = name.removeprefix("eventsh-")
    if not NAME_PATTERN.fullmatch(scheme) or len(scheme) > MAX_NAME:
        raise UsageError(
            f"{name[:60]!r} can't be the name of a plugin: lower-case letters and digits, in words joined by '-', such as"
            f" mail or ring-buffer, at most {MAX_NAME}"
        )
    if scheme in plugins().schemes():
        raise UsageError(f"there is a transport {scheme!r} already (see 'eventsh plugins list'): choose another name")
    return scheme


def _template(file: str) -> str:
    return Path(__file__).with_name(file).read_text()


def _fill(text: str, words: dict[str, str]) -> str:
    return re.sub("|".join(words), lambda match: words[match[0]], text)
