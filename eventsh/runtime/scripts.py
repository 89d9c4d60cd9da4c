"""Handlers that an operator wrote in a shell, at work in this process: compiled, registered, and what they print caught.

Whether code may come here at all is decided before it gets here: by the broker, and by the client that asks this.
"""

from __future__ import annotations

import ast
import functools
import inspect
import linecache
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from eventsh.core.questions import ADD_SCRIPT
from eventsh.core.scripts import script_file
from eventsh.errors import EventError, UsageError
from eventsh.runtime.capture import redirect_output
from eventsh.runtime.code import CodeError, parse_code, plain_code

if TYPE_CHECKING:
    from types import CodeType

    from eventsh.core.registry import Handler, Registry

__all__ = ["Scripts", "compile_handler"]

_PARAMETERS = ("data", "event", "source", "pid")


def compile_handler(code: str, name: str) -> Callable[..., Any]:
    """A handler of code as it was typed: its body. Raises CodeError.

    The value of a single expression is what it returns; with an `await` in it, it is async.
    """
    file = script_file(name)
    body = parse_code(code)
    if len(body) == 1 and isinstance(body[0], ast.Expr):
        body = [ast.copy_location(ast.Return(body[0].value), body[0])]
    kind: Any = ast.AsyncFunctionDef if _awaits(body) else ast.FunctionDef
    arguments = ast.arguments([], [ast.arg(word) for word in _PARAMETERS], None, [], [], None, [])
    function = kind(name="script", args=arguments, body=body, decorator_list=[], returns=None, type_params=[])
    function.lineno, function.col_offset = 1, 0
    module = ast.fix_missing_locations(ast.Module([function], []))
    try:
        compiled = compile(module, file, "exec")
    except (SyntaxError, ValueError, RecursionError) as error:
        line = getattr(error, "lineno", None) or 1
        raise CodeError(str(getattr(error, "msg", error)), 0, line, is_incomplete=False) from None
    namespace = _run(compiled, file, plain_code(code))
    handler: Callable[..., Any] = namespace["script"]
    if inspect.isgeneratorfunction(handler) or inspect.isasyncgenfunction(handler):
        raise CodeError("a handler can't yield", 0, 1, is_incomplete=False)
    handler.__qualname__ = f"script {name}"
    return handler


def _awaits(body: list[ast.stmt]) -> bool:
    """Whether this code itself waits, and not only a function in it."""
    found: list[ast.AST] = list(body)
    while found:
        node = found.pop()
        if isinstance(node, ast.Await | ast.AsyncFor | ast.AsyncWith):
            return True
        if isinstance(node, ast.comprehension) and node.is_async:
            return True
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            found += ast.iter_child_nodes(node)
    return False


def _run(compiled: CodeType, file: str, text: str) -> dict[str, Any]:
    """Run a script's module. Its lines are kept, so that tracebacks can show them."""
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    namespace = {"__name__": "eventsh_script", "__file__": file, "eventsh": sys.modules["eventsh"]}
    exec(compiled, namespace)
    return namespace


class _Lines:
    """Takes what a handler prints; hands on whole lines, and the rest when the handler returns."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._rest = ""

    def write(self, text: str) -> None:
        self._rest += text
        if "\n" in text:
            lines, _, self._rest = self._rest.rpartition("\n")
            self._write(lines + "\n")

    def flush(self) -> None:
        if self._rest:
            self._write(self._rest + "\n")
            self._rest = ""


class Scripts:
    """The scripts of this process, by name. `write` gets what one prints, in the thread that prints."""

    def __init__(self, registry: Registry, write: Callable[[str, str], None]) -> None:
        self._registry = registry
        self._write = write
        self._handlers: dict[str, list[Handler]] = {}
        # A module whose functions are held weakly lives as long as its script.
        self._modules: dict[str, dict[str, Any]] = {}

    def take(self, what: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Do what a shell asked for; gives `error` (None: done) and how many `handlers` are registered by it. Nothing has
        changed after an error."""
        try:
            if what == ADD_SCRIPT:
                self.add(arguments)
            else:
                self.remove(arguments["name"])
        except EventError as error:
            return {"error": str(error), "handlers": 0}
        return {"error": None, "handlers": len(self._handlers.get(arguments["name"], []))}

    def add(self, arguments: dict[str, Any]) -> None:
        """Register a script. Raises UsageError."""
        name, levels = arguments["name"], (arguments["source"], *arguments["events"])
        self.remove(name)
        before = set(self._registry.handlers())
        try:
            if arguments["file"] is None:
                callback: Any = compile_handler(arguments["code"], name)
            else:
                namespace = _run_file(arguments["code"], arguments["file"])
                self._modules[name] = namespace
                callback = None
                if arguments["function"] is not None:
                    callback = _function(namespace, arguments)
                    # Only that was asked for, and not what the file registers by itself.
                    self._registry.remove(self._added(before))
            if callback is not None:
                self._registry.register(callback, *levels, weak=arguments["weak"])
        except CodeError as error:
            self._undo(name, before)
            raise UsageError(f"line {error.line}: {error.message}") from None
        # Whatever the code of a file does while it runs.
        except (Exception, SystemExit) as error:
            self._undo(name, before)
            if isinstance(error, UsageError):
                raise
            raise UsageError(f"{arguments['file']}: {type(error).__name__}: {error}") from None
        added = self._added(before)
        if not added:
            self._undo(name, before)
            raise UsageError("it registers no handler with this process's bus")
        self._handlers[name] = added
        for handler in added:
            handler.script = name
            if not arguments["keep"]:
                handler.call = self._caught(name, handler.call, is_async=handler.is_async)

    def remove(self, name: str) -> None:
        """Unregister a script, if it is there."""
        self._registry.remove(self._handlers.pop(name, []))
        self._modules.pop(name, None)

    def clear(self) -> None:
        """Unregister all."""
        for name in list(self._handlers):
            self.remove(name)

    def _added(self, before: set[Handler]) -> list[Handler]:
        return [handler for handler in self._registry.handlers() if handler not in before]

    def _undo(self, name: str, before: set[Handler]) -> None:
        self._registry.remove(self._added(before))
        self._modules.pop(name, None)

    def _caught(self, name: str, call: Callable[..., Any], *, is_async: bool) -> Callable[..., Any]:
        """The same call, with what it prints going to the shell."""

        async def later(*event: Any) -> Any:
            lines = _Lines(functools.partial(self._write, name))
            try:
                with redirect_output(lines):
                    return await call(*event)
            finally:
                lines.flush()

        def now(*event: Any) -> Any:
            lines = _Lines(functools.partial(self._write, name))
            try:
                with redirect_output(lines):
                    return call(*event)
            finally:
                lines.flush()

        return later if is_async else now


def _run_file(code: str, file: str) -> dict[str, Any]:
    try:
        compiled = compile(code, file, "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None) or 1
        raise UsageError(f"{file}:{line}: {getattr(error, 'msg', error)}") from None
    return _run(compiled, file, code)


def _function(namespace: dict[str, Any], arguments: dict[str, Any]) -> Any:
    callback = namespace.get(arguments["function"])
    if not callable(callback):
        raise UsageError(f"{arguments['file']} has no function {arguments['function']}")
    return callback
