"""Whether this process takes code that operators bring from their shells, and the way of what it prints back to them.

Compiling and running it is done in `scripts`.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Protocol

from eventsh.core.questions import ADD_SCRIPT
from eventsh.escape import expressible

if TYPE_CHECKING:
    from eventsh.address import Address
    from eventsh.core.registry import Registry
    from eventsh.core.session import Session
    from eventsh.options import Options
    from eventsh.protocol.messages import Ask
    from eventsh.runtime.scripts import Scripts
    from eventsh.runtime.sender import Sender

__all__ = ["ScriptIntake"]

_log = logging.getLogger("eventsh")


class Owner(Protocol):
    """The client that the code comes to."""

    address: Address
    options: Options
    sender: Sender

    def release(self) -> None: ...


class ScriptIntake:
    """The door of one client for scripts, in its loop."""

    def __init__(self, session: Session, registry: Registry, owner: Owner) -> None:
        self._session = session
        self._registry = registry
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        # Made when the first comes.
        self._scripts: Scripts | None = None

    def take(self, ask: Ask, *, is_trusted: bool) -> None:
        """The broker, which `is_trusted` or not, passes on code of an operator, or the end of it."""
        answer: dict[str, Any]
        if ask.what != ADD_SCRIPT and self._scripts is None:
            # What never came here is not missed.
            answer = {"error": None, "handlers": 0}
        elif not self._owner.options.allow_scripts:
            answer = {"error": "this worker takes no code: allow_scripts is off", "handlers": 0}
        elif not is_trusted:
            answer = {"error": "this worker takes code only over a unix socket", "handlers": 0}
        else:
            answer = self._take_trusted(ask)
            if ask.what == ADD_SCRIPT and answer["error"] is None:
                self._owner.release()
        if answer["error"] is not None:
            answer["error"] = expressible(answer["error"])
            _log.warning("%s: script %s: %s", self._owner.address, ask.arguments.get("name"), answer["error"])
        self._session.answer(ask.id, answer)
        self._owner.sender.schedule_flush()

    def _take_trusted(self, ask: Ask) -> dict[str, Any]:
        if self._scripts is None:
            try:
                from eventsh.runtime.scripts import Scripts
            except (ImportError, OSError) as error:
                # The process has no descriptor left. To raise would end the connection, and the broker would ask again.
                return {"error": f"this worker can't load what runs scripts: {error}", "handlers": 0}
            self._scripts = Scripts(self._registry, self._write_output)
        return self._scripts.take(ask.what, ask.arguments)

    def clear(self) -> None:
        """The connection is gone. The broker gives scripts again; nobody could end them while it is away."""
        if self._scripts is not None:
            self._scripts.clear()

    def _write_output(self, script: str, text: str) -> None:
        """A script printed; it may have done so in a thread of its own."""
        told = expressible(text)

        def write() -> None:
            if self._session.write_output(script, told):
                self._owner.sender.schedule_flush()

        # In place where that is possible: what a handler that prints without end prints must not pile up.
        if asyncio._get_running_loop() is self._loop:
            write()
        else:
            self._loop.call_soon_threadsafe(write)
