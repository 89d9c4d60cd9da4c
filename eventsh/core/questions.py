"""Questions that a client asks all workers by way of the broker, such as which handlers they have.

The broker's part knows no clock: it is told the time. A question is over when all have answered or been lost, or after
`ANSWER_TIMEOUT_S`: whoever asks would rather see who is stuck than be stuck too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from eventsh.errors import UsageError
from eventsh.escape import expressible
from eventsh.protocol.messages import Answer, Ask, Reply, Request

if TYPE_CHECKING:
    from collections.abc import Iterable

    from eventsh.core.broker.state import ClientConnection, Slot
    from eventsh.core.registry import Handler, Registry

__all__ = [
    "ADD_SCRIPT",
    "ANSWER_TIMEOUT_S",
    "REMOVE_SCRIPT",
    "SCRIPT_REQUESTS",
    "WORKERS_ANSWER",
    "Questions",
    "answer_question",
]

ANSWER_TIMEOUT_S = 1.0
WORKERS_ANSWER = frozenset({"handlers"})
# What an operator's shell asks of the broker, and the broker of the workers: see core/scripts.py.
ADD_SCRIPT = "add_script"
REMOVE_SCRIPT = "remove_script"
SCRIPT_REQUESTS = frozenset({ADD_SCRIPT, REMOVE_SCRIPT})

# At once, of all clients. People ask, and seldom.
_MAX_OPEN = 64
# All answers to one question travel in one frame of at most 16 MiB; one worker's are at most 1000 handlers of 1.5 KiB.
_MAX_REPLY_BYTES = 8 * 1024 * 1024
# And the answers to all open questions: clients that ask again and again must not add up to 64 times that.
_MAX_OPEN_BYTES = 32 * 1024 * 1024
_MAX_HANDLERS = 1000
_MAX_CHARS = 500


class _Question:
    """One request, and who has still to answer."""

    __slots__ = ("asker", "bytes", "number", "rows", "until", "waiting")

    def __init__(self, asker: ClientConnection, number: int, until: float) -> None:
        self.asker = asker
        self.number = number
        self.until = until
        self.bytes = 0
        self.rows: list[dict[str, Any]] = []
        self.waiting: dict[ClientConnection, dict[str, Any]] = {}

    def expect(self, connection: ClientConnection, slot: Slot) -> None:
        """Wait for the answer of this slot's process."""
        row = {"worker_id": slot.worker_id, "pid": slot.pid, "data": None, "error": "no answer"}
        self.rows.append(row)
        self.waiting[connection] = row

    def count(self, size_bytes: int) -> int:
        """Count an answer, and return the bytes of all so far."""
        self.bytes += size_bytes
        return self.bytes

    def reply(self) -> Reply:
        return Reply(self.number, {"workers": self.rows}, None)


class Questions:
    """In the broker: the questions whose answers are not complete."""

    def __init__(self) -> None:
        self._open: dict[int, _Question] = {}
        self._last = 0

    def check_room(self) -> None:
        """Raise UsageError when no further question can be asked now."""
        if len(self._open) >= _MAX_OPEN:
            raise UsageError(f"{_MAX_OPEN} questions are open already: ask again later")

    def ask(
        self, asker: ClientConnection, request: Request, slots: Iterable[Slot], now: float
    ) -> tuple[Reply | None, list[tuple[ClientConnection, Ask]]]:
        """Begin with a question. Gives what to send to whom, and the reply if there is no need to wait for it."""
        try:
            self.check_room()
        except UsageError as error:
            return Reply(request.id, None, str(error)), []
        question = _Question(asker, request.id, now + ANSWER_TIMEOUT_S)
        for slot in slots:
            if slot.connection is not None and slot.goodbye is None:
                question.expect(slot.connection, slot)
        if not question.waiting:
            return question.reply(), []
        self._last += 1
        self._open[self._last] = question
        return None, [(connection, Ask(self._last, request.what, request.arguments)) for connection in question.waiting]

    def take(
        self, connection: ClientConnection, answer: Answer, size_bytes: int
    ) -> tuple[ClientConnection, Reply] | None:
        """A worker answers. Gives the reply if it was the last. What comes too late, or was not asked, is ignored."""
        question = self._open.get(answer.id)
        row = question.waiting.pop(connection, None) if question is not None else None
        if question is None or row is None:
            return None
        together = question.count(size_bytes)
        if together > _MAX_REPLY_BYTES or sum(other.bytes for other in self._open.values()) > _MAX_OPEN_BYTES:
            row["error"] = "the answers together are too large"
        else:
            row["data"], row["error"] = answer.data, None
        return self._end(answer.id) if not question.waiting else None

    def lose(self, connection: ClientConnection) -> list[tuple[ClientConnection, Reply]]:
        """A connection is gone: nobody waits for its answers, and what it asked is forgotten."""
        for number, question in list(self._open.items()):
            if question.asker is connection:
                del self._open[number]
        return self.excuse(connection)

    def excuse(self, connection: ClientConnection) -> list[tuple[ClientConnection, Reply]]:
        """Wait no longer for the answers of this connection; return the replies for which it was the last one."""
        ended = []
        for number, question in list(self._open.items()):
            if question.waiting.pop(connection, None) is not None and not question.waiting:
                ended.append(self._end(number))
        return ended

    def tick(self, now: float) -> list[tuple[ClientConnection, Reply]]:
        """Time has passed: the replies to those who have waited long enough."""
        return [self._end(number) for number, question in list(self._open.items()) if now >= question.until]

    def _end(self, number: int) -> tuple[ClientConnection, Reply]:
        question = self._open.pop(number)
        return question.asker, question.reply()


def answer_question(what: str, registry: Registry) -> Any:
    """In a worker: what it has to say; None to a question of a later version."""
    if what == "handlers":
        return [_describe(handler) for handler in registry.handlers()[:_MAX_HANDLERS]]
    return None


def _describe(handler: Handler) -> dict[str, Any]:
    return {
        "source": _plain(handler.source),
        "event": _plain(handler.event),
        "name": _plain(handler.name),
        "location": _plain(handler.location),
        "script": handler.script,
        "weak": handler.weak,
        "async": handler.is_async,
        "calls": handler.calls,
        "errors": handler.errors,
        "p99_s": handler.p99_s,
    }


def _plain(text: str | None) -> str | None:
    # A file name can hold what JSON can't express.
    return None if text is None else expressible(text[:_MAX_CHARS])
