"""Control plane: requests of people, queries to workers, handlers written in a shell and their output, reports of failures.

Events and their delivery are decided elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from eventsh.core.broker.deaths import DEAD_REQUESTS
from eventsh.core.questions import ADD_SCRIPT, REMOVE_SCRIPT, SCRIPT_REQUESTS, WORKERS_ANSWER, Questions
from eventsh.core.scripts import SCRIPT_OUTPUT, Scripts
from eventsh.errors import EventError, NotSerializable, ProtocolError, UsageError
from eventsh.protocol.messages import Answer, Ask, Output, Reply, Report, Request

if TYPE_CHECKING:
    from eventsh.core.broker.deaths import Deaths
    from eventsh.core.broker.sequencer import Sequencer
    from eventsh.core.broker.sink import EventSink
    from eventsh.core.broker.state import BrokerState, ClientConnection, Slot

__all__ = ["Control"]


class Control:
    """`status` describes the broker at a time."""

    def __init__(
        self,
        state: BrokerState,
        sequencer: Sequencer,
        deaths: Deaths,
        *,
        status: Callable[[float], dict[str, Any]],
    ) -> None:
        self._slots = state.slots
        self._sequencer = sequencer
        self._outgoing = state.outgoing
        self._deaths = deaths
        self._status = status
        self._allow_scripts = state.options.allow_scripts
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
        # All that passed can't be more than the numbers of events.
        if not (0 <= report.failed < 1 << 32 and 0 <= report.unread < 1 << 64 and report.failed + report.unread):
            raise ProtocolError(f"a report of {report.failed} failures and {report.unread} unread events")
        slot.count_report(report.failed, report.unread)
        if not report.failed:
            return
        data = {**report.last, "worker_id": slot.worker_id, "failed": report.failed}
        try:
            self._sequencer.enqueue_own("handler_error", data, self._slots.observers, now)
        except NotSerializable as error:
            raise ProtocolError(f"a report that can't be passed on: {error}") from None

    def _reply(self, ended: list[tuple[ClientConnection, Reply]]) -> None:
        for connection, reply in ended:
            self._outgoing.send(connection, reply.encode())


def _ask_sink(sink: EventSink, request: Request) -> Reply | None:
    try:
        data = sink.answer(request.what, request.arguments)
    except EventError as error:
        return Reply(request.id, None, str(error))
    return None if data is None else Reply(request.id, data, None)
