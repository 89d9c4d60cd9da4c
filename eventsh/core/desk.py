"""What people and workers say to each other by way of the broker: requests, questions to all workers, handlers written
in a shell and their output, and failures. Events and their delivery are none of its business."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from eventsh.core.questions import ADD_SCRIPT, REMOVE_SCRIPT, SCRIPT_REQUESTS, WORKERS_ANSWER, Questions
from eventsh.core.scripts import SCRIPT_OUTPUT, Scripts
from eventsh.errors import EventError, NotSerializable, ProtocolError, UsageError
from eventsh.protocol.messages import Answer, Ask, Output, Reply, Report, Request

if TYPE_CHECKING:
    from eventsh.core.fanout import Fanout
    from eventsh.core.link import Link
    from eventsh.core.outlet import Outlet
    from eventsh.core.roster import Roster
    from eventsh.core.slot import Slot
    from eventsh.core.tap import Tap

__all__ = ["HAND_OVER", "Desk"]

# What a broker asks that finds another one at its address.
HAND_OVER = "hand_over"


class Desk:
    """`status` tells of the broker at a time; `allow_scripts`: whether code may go into the workers; `on_rival` answers
    another broker of the same address."""

    def __init__(
        self,
        roster: Roster,
        fanout: Fanout,
        outlet: Outlet,
        *,
        status: Callable[[float], dict[str, Any]],
        allow_scripts: bool,
        on_rival: Callable[[dict[str, Any]], dict[str, Any]] | None,
    ) -> None:
        self._roster = roster
        self._fanout = fanout
        self._outlet = outlet
        self._status = status
        self._allow_scripts = allow_scripts
        self._on_rival = on_rival
        self._questions = Questions()
        self._scripts = Scripts()

    # --- what the router reports ---

    def welcome(self, link: Link, slot: Slot) -> None:
        """A worker attaches: it is told of the scripts that it is to run."""
        if not slot.is_observer and self._allow_scripts:
            for script in self._scripts.for_worker(slot.worker_id):
                self._outlet.send(link, Ask(0, ADD_SCRIPT, script.arguments).encode())

    def lose(self, link: Link) -> None:
        """A connection is gone, with its questions, its answers and its scripts."""
        self._reply(self._questions.lose(link))
        for script in self._scripts.lose(link):
            for slot in self._roster.ordered_workers:
                if slot.link is not None and script.is_for(slot.worker_id):
                    self._outlet.send(slot.link, Ask(0, REMOVE_SCRIPT, {"name": script.name}).encode())

    def tick(self, now: float) -> None:
        """Time has passed."""
        self._reply(self._questions.tick(now))

    # --- what clients ask ---

    def take_request(self, link: Link, frame: bytearray, now: float) -> None:
        if not link.is_greeted:
            raise ProtocolError("a request before the hello")
        request = Request.decode(frame)
        tap = self._fanout.tap
        reply: Reply | None
        if request.what == "status":
            reply = Reply(request.id, self._status(now), None)
        elif request.what == HAND_OVER and self._on_rival is not None:
            reply = _answer_rival(self._on_rival, link, request)
        elif tap is not None and (told := _ask_tap(tap, request)) is not None:
            reply = told
        elif request.what in SCRIPT_REQUESTS:
            reply = self._take_script(link, request, now)
        elif request.what in WORKERS_ANSWER:
            reply = self._ask_workers(link, request, self._roster.ordered_workers, now)
        else:
            reply = Reply(request.id, None, f"this broker can't answer {request.what!r}")
        if reply is not None:
            self._outlet.send(link, reply.encode())

    def _ask_workers(self, link: Link, request: Request, slots: list[Slot], now: float) -> Reply | None:
        reply, asked = self._questions.ask(link, request, slots, now)
        for other, ask in asked:
            self._outlet.send(other, ask.encode())
        return reply

    def _take_script(self, link: Link, request: Request, now: float) -> Reply | None:
        """An operator brings code for the workers, or takes it back."""
        try:
            self._scripts.check_trust(link, allowed=self._allow_scripts)
            # Before anything changes: workers that can't be told must not run something else than is kept here.
            self._questions.check_room()
            is_new = request.what == ADD_SCRIPT
            script = self._scripts.add(link, request.arguments) if is_new else self._scripts.remove(request.arguments)
        except UsageError as error:
            return Reply(request.id, None, str(error))
        slots = [slot for slot in self._roster.ordered_workers if script.is_for(slot.worker_id)]
        return self._ask_workers(link, request, slots, now)

    # --- what workers say ---

    def take_answer(self, link: Link, frame: bytearray, now: float) -> None:
        if link.slot is None:
            raise ProtocolError("an answer from one who is asked nothing")
        ended = self._questions.take(link, Answer.decode(frame), len(frame))
        if ended is not None:
            self._reply([ended])

    def take_output(self, link: Link, frame: bytearray, now: float) -> None:
        """A script wrote something: its owner is told."""
        slot = link.slot
        if slot is None:
            raise ProtocolError("output of one who runs nothing")
        output = Output.decode(frame)
        owner = self._scripts.owner_of(output.script)
        if owner is None or owner.slot is None:
            return
        data = {"script": output.script, "text": output.text, "lost": output.lost}
        try:
            self._fanout.place_own(
                SCRIPT_OUTPUT, {**data, "worker_id": slot.worker_id, "pid": slot.pid}, [owner.slot], now
            )
        except NotSerializable as error:
            raise ProtocolError(f"output that can't be passed on: {error}") from None

    def take_report(self, link: Link, frame: bytearray, now: float) -> None:
        """Handlers failed: observers are told. Or events could not be read: they are counted."""
        if link.slot is None:
            raise ProtocolError("a report from one who gets no events")
        report = Report.decode(frame)
        # All that passed can't be more than the numbers of events.
        if not (0 <= report.failed < 1 << 32 and 0 <= report.unread < 1 << 64 and report.failed + report.unread):
            raise ProtocolError(f"a report of {report.failed} failures and {report.unread} unread events")
        link.slot.unread += report.unread
        if not report.failed:
            return
        link.slot.failed += report.failed
        data = {**report.last, "worker_id": link.slot.worker_id, "failed": report.failed}
        try:
            self._fanout.place_own("handler_error", data, self._roster.observers, now)
        except NotSerializable as error:
            raise ProtocolError(f"a report that can't be passed on: {error}") from None

    def _reply(self, ended: list[tuple[Link, Reply]]) -> None:
        for link, reply in ended:
            self._outlet.send(link, reply.encode())


def _answer_rival(answer: Callable[[dict[str, Any]], dict[str, Any]], link: Link, request: Request) -> Reply:
    if not link.is_trusted:
        return Reply(request.id, None, f"{request.what!r} is for a broker of this user alone, over a unix socket")
    try:
        return Reply(request.id, answer(request.arguments), None)
    except UsageError as error:
        return Reply(request.id, None, str(error))


def _ask_tap(tap: Tap, request: Request) -> Reply | None:
    try:
        data = tap.answer(request.what, request.arguments)
    except EventError as error:
        return Reply(request.id, None, str(error))
    return None if data is None else Reply(request.id, data, None)
