"""Handlers that an operator writes in a shell, and that run in the workers: the broker's part.

The broker keeps each for as long as the connection that registered it lives (or until it is removed, where the operator
asked for that), and gives them to every worker that attaches, also to one that takes another's place. It never looks at
the code. Whether a connection may bring code at all is the connection's `is_trusted`, which its transport vouches for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eventsh.errors import UsageError

if TYPE_CHECKING:
    from eventsh.core.broker.state import ClientConnection

__all__ = [
    "SCRIPT_OUTPUT",
    "Script",
    "Scripts",
    "is_script_location",
    "script_file",
]

# The event by which an operator is told what a script wrote.
SCRIPT_OUTPUT = "script_output"

# People write them by hand, or load a file of handlers.
_MAX_SCRIPTS = 256
_MAX_CODE_CHARS = 256 * 1024
# All together: a worker that attaches is told of all of them at once.
_MAX_ALL_BYTES = 8 * 1024 * 1024
_MAX_NAME_CHARS = 100
_PREFIX = "<script "


def script_file(name: str) -> str:
    """What a traceback calls the file of a script that was typed."""
    return f"{_PREFIX}{name}>"


def is_script_location(location: str) -> str | None:
    """The name of the script that a handler's location is in; None for any other handler."""
    name, end, _ = location.removeprefix(_PREFIX).partition(">")
    return name if location.startswith(_PREFIX) and end else None


@dataclass(frozen=True, slots=True)
class Script:
    """One script. `arguments` is what workers are told of it; `owner` is None where it is kept without one."""

    name: str
    owner: ClientConnection | None
    workers: tuple[int, ...] | None
    arguments: dict[str, Any]

    def is_for(self, worker_id: int | None) -> bool:
        return self.workers is None or worker_id in self.workers


class Scripts:
    """All scripts at one broker."""

    def __init__(self) -> None:
        self._scripts: dict[str, Script] = {}

    def add(self, connection: ClientConnection, arguments: dict[str, Any]) -> Script:
        """Keep a script that a trusted connection brings. Raises UsageError, and nothing has changed."""
        match arguments:
            case {
                "name": str(name),
                "code": str(code),
                "file": str() | None,
                "function": str() | None,
                "source": str() | None,
                "events": list(events),
                "workers": None | list(),
                "keep": bool(keep),
                "weak": bool(),
            } if name and all(isinstance(event, str) for event in events):
                pass
            case _:
                raise UsageError("a script needs a name, code, and where it is to be registered")
        if len(name) > _MAX_NAME_CHARS:
            raise UsageError(f"a script's name may have {_MAX_NAME_CHARS} characters, not {len(name)}")
        if len(code) > _MAX_CODE_CHARS:
            raise UsageError(f"a script may have {_MAX_CODE_CHARS} characters: put it into a file for serve --handlers")
        if name in self._scripts:
            raise UsageError(f"there is a script {name} already")
        if len(self._scripts) >= _MAX_SCRIPTS:
            raise UsageError(f"{_MAX_SCRIPTS} scripts are registered already: unregister some")
        codes = [code, *(script.arguments["code"] for script in self._scripts.values())]
        if sum(len(each.encode("utf-8", "surrogatepass")) for each in codes) > _MAX_ALL_BYTES:
            raise UsageError(f"the scripts would have more than {_MAX_ALL_BYTES} bytes together: unregister some")
        workers = arguments["workers"]
        chosen = None if workers is None else tuple(number for number in workers if isinstance(number, int))
        script = Script(name, None if keep else connection, chosen, arguments)
        self._scripts[name] = script
        return script

    def remove(self, arguments: dict[str, Any]) -> Script:
        """Forget a script. Raises UsageError."""
        script = self._scripts.pop(str(arguments.get("name")), None)
        if script is None:
            raise UsageError(f"there is no script {arguments.get('name')}")
        return script

    def check_trust(self, connection: ClientConnection, *, allowed: bool) -> None:
        """Raise UsageError unless this connection may bring code."""
        if not allowed:
            raise UsageError("this broker takes no code for its workers: allow_scripts is off")
        if not connection.is_trusted:
            raise UsageError(
                "code goes into workers only over a unix socket, from a process of the same user or of root:"
                " attach at the broker's unix address"
            )

    def owner_of(self, name: str) -> ClientConnection | None:
        """Who is to be told what a script writes."""
        script = self._scripts.get(name)
        return None if script is None else script.owner

    def lose(self, connection: ClientConnection) -> list[Script]:
        """A connection is gone: the scripts that end with it."""
        lost = [script for script in self._scripts.values() if script.owner is connection]
        for script in lost:
            del self._scripts[script.name]
        return lost

    def for_worker(self, worker_id: int | None) -> list[Script]:
        """What a worker that attaches gets, in the order of registration."""
        return [script for script in self._scripts.values() if script.is_for(worker_id)]
