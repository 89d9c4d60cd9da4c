"""The blocks of the package, and what each may import. A new file belongs in a block: add it to BLOCKS."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "eventsh"

# Top to bottom: the modules and directories of a block may import each other and those of the blocks before theirs.
BLOCKS: list[tuple[str, ...]] = [
    ("errors", "event", "notation", "option", "options", "address", "receipt"),
    ("protocol", "escape"),
    ("core",),
    ("transport", "hookspecs", "plugins", "transports"),
    ("recording",),
    ("runtime",),
    ("api", "__init__"),
    ("commands",),
    ("cli", "shell", "integrations", "__main__"),
    ("testing",),
]
BLOCK_OF = {name: number for number, names in enumerate(BLOCKS) for name in names}

# A pure module gets bytes, objects and the clock from its caller. Beside what reaches the outside, this lists the
# other doors to the same rooms: random numbers by `secrets`, threads by `concurrent`.
LAST_PURE_BLOCK = 2
PURE_FILES = {"recording/format.py"}
IMPURE = {
    *("asyncio", "socket", "time", "random", "os", "threading", "multiprocessing", "selectors", "subprocess"),
    *("_thread", "concurrent", "posix", "secrets", "select", "signal", "ssl", "tempfile", "uvloop"),
}

FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def top_name(file: str) -> str:
    """The name that BLOCKS has for a file, given relative to the package: "core" for core/broker/router.py."""
    return file.partition("/")[0].removesuffix(".py")


def is_type_checking(test: ast.expr) -> bool:
    return ast.unparse(test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def imported_modules(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and dotted name of all that is imported when the program runs, at whatever depth.

    `from a import b` gives "a.b", as b can be a module. A relative import gives a name that begins with a dot.
    """
    for node in ast.iter_child_nodes(tree):
        match node:
            case ast.If(test=test, orelse=orelse) if is_type_checking(test):
                yield from imported_modules(ast.Module(orelse, []))
                continue
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                yield from ((node.lineno, f"{'.' * level}{module or ''}.{alias.name}") for alias in names)
            case ast.Call(func=func, args=[ast.Constant(value=str(name)), *_]) if ast.unparse(func) in (
                "import_module",
                "importlib.import_module",
                "__import__",
            ):
                yield node.lineno, name
        yield from imported_modules(node)


def imported_block_name(module: str) -> str:
    """The name that BLOCKS has for what `module`, a dotted name in eventsh, belongs to."""
    name = [*module.split("."), ""][1]
    # What is no module of that name is a name in the package's __init__.
    is_module = (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file() or name in BLOCK_OF
    return name if name and is_module else "__init__"


def violation(file: str, module: str) -> str | None:
    """Why `file` may not import `module`; None if it may."""
    block = BLOCK_OF[top_name(file)]
    pure = block <= LAST_PURE_BLOCK or file in PURE_FILES
    if module.startswith("."):
        return f"imports {module}: write it absolute"
    if module.split(".")[0] != "eventsh":
        return f"imports {module}: pure modules must not" if pure and module.split(".")[0] in IMPURE else None
    name = imported_block_name(module)
    if name not in BLOCK_OF:
        return f"imports {module}, which is in no block"
    if BLOCK_OF[name] > block:
        return f"of block {block} imports {module} of block {BLOCK_OF[name]}, which is below it"
    if pure and BLOCK_OF[name] > LAST_PURE_BLOCK and name != top_name(file):
        return f"imports {module} of block {BLOCK_OF[name]}, which is not pure"
    return None


def violations(file: str, source: str) -> list[str]:
    if top_name(file) not in BLOCK_OF:
        return [f"eventsh/{file} is in no block: add {top_name(file)!r} to BLOCKS, where it belongs by its imports"]
    found = ((line, violation(file, module)) for line, module in imported_modules(ast.parse(source)))
    return [f"eventsh/{file}:{line} {why}" for line, why in found if why]


@pytest.mark.parametrize("file", FILES)
def test_a_module_imports_only_from_its_own_block_and_those_above(file):
    assert violations(file, (PACKAGE / file).read_text(encoding="utf-8")) == []


def test_every_file_of_the_package_is_read():
    assert {"errors.py", "__init__.py", "protocol/frame.py"} <= set(FILES)


@pytest.mark.parametrize(
    ("file", "source", "why"),
    [
        ("protocol/frame.py", "from eventsh.core.queue import Queue", "of block 1 imports eventsh.core.queue.Queue of"),
        ("protocol/frame.py", "import eventsh.core", "of block 1 imports eventsh.core of block 2, which is below it"),
        ("errors.py", "from eventsh import core", "of block 0 imports eventsh.core of block 2"),
        ("errors.py", "from eventsh import post", "of block 0 imports eventsh.post of block 6"),
        ("core/broker/router.py", "import eventsh", "of block 2 imports eventsh of block 6"),
        ("transport.py", "def f():\n    from eventsh.api import Events", "of block 3 imports eventsh.api.Events"),
        ("runtime/broker.py", "importlib.import_module('eventsh.cli.app')", "of block 5 imports eventsh.cli.app"),
        ("runtime/broker.py", "__import__('eventsh.api')", "of block 5 imports eventsh.api"),
        ("runtime/broker.py", "if TYPE_CHECKING:\n    pass\nelse:\n    import eventsh.api", "of block 5 imports"),
        ("runtime/broker.py", "try:\n    import eventsh.cli\nexcept ImportError:\n    pass", "of block 5 imports"),
        ("api.py", "from eventsh.commands import post", "of block 6 imports eventsh.commands.post of block 7"),
        ("cli/app.py", "from eventsh.testing import TransportConformance", "of block 8 imports eventsh.testing"),
        ("cli/app.py", "from ..api import Events", "imports ..api.Events: write it absolute"),
        ("core/broker/router.py", "from . import slots", "imports ..slots: write it absolute"),
        ("core/broker/router.py", "import time", "imports time: pure modules must not"),
        ("options.py", "from os.path import join", "imports os.path.join: pure modules must not"),
        ("protocol/frame.py", "def f():\n    import asyncio.streams", "imports asyncio.streams: pure"),
        ("recording/format.py", "import os", "imports os: pure modules must not"),
        ("recording/format.py", "from eventsh.transport import Buffer", "imports eventsh.transport.Buffer of block 3"),
    ],
)
def test_an_import_against_the_rules_is_found(file, source, why):
    (found,) = violations(file, source)
    assert found.startswith(f"eventsh/{file}:")
    assert why in found


@pytest.mark.parametrize(
    ("file", "source"),
    [
        (
            "core/broker/router.py",
            "from eventsh.protocol.frame import Kind\nfrom eventsh.core.broker.state import Slot",
        ),
        ("core/broker/router.py", "if TYPE_CHECKING:\n    import socket\n    from eventsh.api import Events"),
        ("core/broker/router.py", "import typing\nif typing.TYPE_CHECKING:\n    import socket"),
        ("core/broker/router.py", "import timeit, osmotic"),
        ("plugins.py", "def f():\n    from eventsh.transports.unix import UnixTransport"),
        ("transports/unix.py", "import asyncio, os\nfrom eventsh.transport import Transport"),
        ("recording/format.py", "import zlib\nfrom eventsh.protocol.frame import Header"),
        ("recording/recorder.py", "import os\nfrom eventsh.recording.format import Writer"),
        ("cli/app.py", "import eventsh\nfrom eventsh import post\nfrom eventsh.commands import tail"),
        ("__init__.py", "from eventsh.api import Events"),
        ("testing/conformance.py", "from eventsh.transports.inproc import InprocTransport\nimport eventsh"),
    ],
)
def test_an_import_by_the_rules_is_let_be(file, source):
    assert violations(file, source) == []


def test_a_file_in_no_block_is_named_with_what_to_do():
    (found,) = violations("misc/things.py", "")
    assert found == "eventsh/misc/things.py is in no block: add 'misc' to BLOCKS, where it belongs by its imports"
