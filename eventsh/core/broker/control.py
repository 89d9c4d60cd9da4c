"""Control plane: requests of people, queries to workers, handlers written in a shell and their output, reports of failures.

Events and their delivery are decided elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from eventsh.core.broker.deaths import DEAD_REQUESTS
from eventsh.core.questions import ADD_SCRIPT, REMOVE_SCRIPT, SCRIPT_REQUESTS, WORKERS_ANSWER, Questions
from eventsh.core.scripts import SCRIPT_OUTPUT, Scripts
from eventsh.errors import EventError, NotSerializable, ProtocolError, UsageError
from eventsh.escape import escape
from eventsh.protocol.messages import Answer, Ask, Output, Reply, Report, Request

if TYPE_CHECKING:
    from eventsh.core.broker.deaths import Deaths
    from eventsh.core.broker.sequencer import Sequencer
    from eventsh.core.broker.sink import EventSink
    from eventsh.core.broker.state import BrokerState, ClientConnection, Slot

__all__ = ["HAND_OVER", "Control"]

# What a broker asks that finds another one at its address.
HAND_OVER = "hand_over"


class Control:
    """`status` describes the broker at a time; `on_rival` answers another broker of the same address."""

    def __init__(
        self,
        state: BrokerState,
        sequencer: Sequencer,
        deaths: Deaths,
        *,
        status: Callable[[float], dict[str, Any]],
        on_rival: Callable[[dict[str, Any]], dict[str, Any]] | None,
    ) -> None:
        self._slots = state.slots
        self._posters = state.posters
        self._sequencer = sequencer
        self._outgoing = state.outgoing
        self._deaths = deaths
        self._status = status
        self._allow_scripts = state.options.allow_scripts
        self._on_rival = on_rival
        self._questions = Questions()
        self._scripts = Scripts()

    # --- what the router reports ---

    def welcome(self, connection: ClientConnection, slot: Slot) -> None:
        """Send a worker that attaches the scripts that it is to run."""
        if not slot.is_observer and self._allow_scripts:
            for script in self._scripts.for_worker(slot.worker_id):
                self._outgoing.send(connection, Ask(0, ADD_SCRIPT, script.arguments).encode())

    def lose(self, connection: ClientConnection) -> None:
        """Forget a connection that has ended, with its questions, its answers and its scripts."""
        self._reply(self._questions.lose(connection))
        for script in self._scripts.lose(connection):
            for slot in self._slots.ordered_workers:
                if slot.connection is not None and script.is_for(slot.worker_id):
                    self._outgoing.send(slot.connection, Ask(0, REMOVE_SCRIPT, {"name": script.name}).encode())

    def excuse(self, connection: ClientConnection) -> None:
        """Wait no longer for the answers of a process that said goodbye."""
        self._reply(self._questions.excuse(connection))

    def tick(self, now: float) -> None:
        """End the questions that have waited long enough."""
        self._reply(self._questions.tick(now))

    # --- what clients ask ---

    def take_request(self, connection: ClientConnection, frame: bytearray, now: float) -> None:
        if not connection.is_greeted:
            raise ProtocolError("a request before the hello")
        request = Request.decode(frame)
        sink = self._sequencer.sink
        reply: Reply | None
        if request.what == "status":
            reply = Reply(request.id, self._status(now), None)
        elif request.what == HAND_OVER and self._on_rival is not None:
            reply = _answer_rival(self._on_rival, connection, request)
        elif sink is not None and (answer := _ask_sink(sink, request)) is not None:
            reply = answer
        elif request.what in DEAD_REQUESTS:
            reply = self._take_dead(request, now)
        elif request.what in SCRIPT_REQUESTS:
            reply = self._take_script(connection, request, now)
        elif request.what in WORKERS_ANSWER:
            reply = self._ask_workers(connection, request, self._slots.ordered_workers, now)
        else:
            reply = Reply(request.id, None, f"this broker can't answer {request.what!r}")
        if reply is not None:
            self._outgoing.send(connection, reply.encode())

    def _take_dead(self, request: Request, now: float) -> Reply:
        try:
            return Reply(request.id, self._deaths.answer(request.what, request.arguments, now), None)
        except UsageError as error:
            return Reply(request.id, None, str(error))

    def _ask_workers(
        self, connection: ClientConnection, request: Request, slots: list[Slot], now: float
    ) -> Reply | None:
        reply, asked = self._questions.ask(connection, request, slots, now)
        for other, ask in asked:
            self._outgoing.send(other, ask.encode())
        return reply

    def _take_script(self, connection: ClientConnection, request: Request, now: float) -> Reply | None:
        """Accept code of an operator for the workers, or remove it."""
        try:
            self._scripts.check_trust(connection, allowed=self._allow_scripts)
            # Before anything changes: workers that can't be told must not run something else than is kept here.
            self._questions.check_room()
            is_new = request.what == ADD_SCRIPT
            script = (
                self._scripts.add(connection, request.arguments) if is_new else self._scripts.remove(request.arguments)
            )
        except UsageError as error:
            return Reply(request.id, None, str(error))
        slots = [slot for slot in self._slots.ordered_workers if script.is_for(slot.worker_id)]
        return self._ask_workers(connection, request, slots, now)

    # --- what workers say ---

    def take_answer(self, connection: ClientConnection, frame: bytearray, now: float) -> None:
        if connection.slot is None:
            raise ProtocolError("an answer of a client that is not subscribed")
        ended = self._questions.take(connection, Answer.decode(frame), len(frame))
        if ended is not None:
            self._reply([ended])

    def take_output(self, connection: ClientConnection, frame: bytearray, now: float) -> None:
        """Pass what a script wrote on to its owner."""
        slot = connection.slot
        if slot is None:
            raise ProtocolError("output of a client that is not subscribed")
        output = Output.decode(frame)
        owner = self._scripts.owner_of(output.script)
        if owner is None or owner.slot is None:
            return
        data = {"script": output.script, "text": output.text, "lost": output.lost}
        try:
            self._sequencer.enqueue_own(
                SCRIPT_OUTPUT, {**data, "worker_id": slot.worker_id, "pid": slot.pid}, [owner.slot], now
            )
        except NotSerializable as error:
            raise ProtocolError(f"output that can't be passed on: {error}") from None

    def take_report(self, connection: ClientConnection, frame: bytearray, now: float) -> None:
        """Count failed handlers, and report them to observers; count events that could not be read."""
        slot = connection.slot
        if slot is None:
            raise ProtocolError("a report of a client that is not subscribed")
        report = Report.decode(frame)
        report.check()
        slot.count_report(report.failed, report.unread)
        for origin, number, reason in report.bad:
            self._end_poster(origin, number, f"{slot.label} can't read it: {reason}")
        if not report.failed:
            return
        data = {**report.last, "worker_id": slot.worker_id, "failed": report.failed}
        try:
            self._sequencer.enqueue_own("handler_error", data, self._slots.observers, now)
        except NotSerializable as error:
            raise ProtocolError(f"a report that can't be passed on: {error}") from None

    def _end_poster(self, origin: int, number: int, reason: str) -> None:
        """End the connection of a process that posted an unreadable batch. It may attach again."""
        connection = self._posters.connection_of(origin)
        poster = None if connection is None else connection.poster
        # Each worker reports the batch, some of them after the poster is back: one end of the connection for each batch.
        if connection is None or poster is None or not poster.unreadable < number <= poster.number:
            return
        if not poster.unreadable:
            self._outgoing.warn(
                f"{connection.peer} posted a bad batch, number {number}: {escape(reason)}: its connection is ended"
            )
        poster.note_unreadable(number)
        self._outgoing.refuse(connection, "protocol", f"bad batch, number {number}: {reason}")

    def _reply(self, ended: list[tuple[ClientConnection, Reply]]) -> None:
        for connection, reply in ended:
            self._outgoing.send(connection, reply.encode())


def _answer_rival(
    answer: Callable[[dict[str, Any]], dict[str, Any]], connection: ClientConnection, request: Request
) -> Reply:
    if not connection.is_trusted:
        return Reply(request.id, None, f"{request.what!r} is for a broker of this user alone, over a unix socket")
    try:
        return Reply(request.id, answer(request.arguments), None)
    except UsageError as error:
        return Reply(request.id, None, str(error))


def _ask_sink(sink: EventSink, request: Request) -> Reply | None:
    try:
        data = sink.answer(request.what, request.arguments)
    except EventError as error:
        return Reply(request.id, None, str(error))
    return None if data is None else Reply(request.id, data, None)
