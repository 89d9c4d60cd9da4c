"""A supervisor's decisions: when a child is started, started again, replaced or ended, and when to give up.

Knows no broker and no events: a Plan says what to run. Signals only put a message into the inbox; everything is done
by the tasks here, one for each slot, and one that reads the inbox.

    starting -> running -> (died) -> backoff -> starting
        any of them -> stopping -> stopped
    running -> handed over to a successor -> running, with nothing in between
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

from eventsh.runtime.backoff import MAX_RESTARTS, Backoff
from eventsh.runtime.child import EXIT_FAILED, EXIT_OK
from eventsh.runtime.process import Process, Program, describe_status, name_end

__all__ = ["Plan", "Pool", "Slot", "SlotState"]

# A successor that imports for longer than this at a reload is taken for hung, and the old workers are kept.
STANDBY_TIMEOUT_S = 60.0

# A start that fails with one of these is tried again for ever: the host has no room for it now.
_SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN})

_STOPPING = (signal.SIGTERM, signal.SIGINT)
# As gunicorn has it. A terminal sends them only to those who read from it in the background, which no supervisor does.
_STEPS = {signal.SIGTTIN: 1, signal.SIGTTOU: -1}

_log = logging.getLogger("eventsh.pool")


class Plan(Protocol):
    """What a pool runs, and who is told how it goes. Programs are asked for anew at each start."""

    def broker_program(self, workers: int) -> Program:
        """The broker of a pool with this many workers, which is not the same number at each start."""

    def worker_program(self, worker_id: int) -> Program: ...

    def broker_ready(self, facts: Mapping[str, Any]) -> None:
        """A broker is ready, the first or another one; `facts` is its report. No worker is started before the first."""

    def pool_ready(self) -> None:
        """Everything is running for the first time."""

    async def clean_up(self, broker_status: int | None) -> None:
        """Every process has ended; the broker with this status (None: there was none). Remove what it left behind."""


class SlotState(Enum):
    STARTING = "starting"
    RUNNING = "running"
    BACKOFF = "backoff"
    STOPPING = "stopping"
    STOPPED = "stopped"


class Slot:
    """One place of the pool. It keeps a process in it until it is stopped."""

    def __init__(
        self,
        name: str,
        program: Callable[[], Program],
        on_ready: Callable[[Process], None],
        on_exhausted: Callable[[Slot, str], bool],
        on_end: Callable[[Process, bool], None] = lambda process, meant: None,
    ) -> None:
        self.name = name
        self.state = SlotState.STARTING
        self.process: Process | None = None
        self.was_ready = asyncio.Event()
        self._program = program
        self._on_ready = on_ready
        # Told when every restart has failed; gives True if the slot is to go on trying.
        self._on_exhausted = on_exhausted
        # Told of the end of each process, and whether it was meant.
        self._on_end = on_end
        self._backoff = Backoff()
        self._is_short = False  # the last start failed because the host had no room for a process
        self._applicant: Process | None = None  # imports its handlers; not yet sure that it can
        self._successor: Process | None = None  # stands by; takes over when the present process has ended
        self._wake = asyncio.Event()
        # Of the process that died last, and of one that an event killed.
        self._died_pid: int | None = None
        self._excused_pid: int | None = None
        self._shown_detail: str | None = None
        self.task = asyncio.create_task(self._keep(), name=f"keep {name}")

    def is_stopping(self) -> bool:
        return self.state in (SlotState.STOPPING, SlotState.STOPPED)

    async def stop(self, timeout_s: float) -> None:
        """End what runs here and leave it empty: SIGTERM, after `timeout_s` SIGKILL."""
        if self.state is not SlotState.STOPPED:
            self.state = SlotState.STOPPING
        self._wake.set()
        processes = self._processes()
        for process in processes:
            process.terminate()
        await asyncio.gather(*(process.end_within(timeout_s) for process in processes))
        await asyncio.wait((self.task,))

    def excuse(self, pid: int) -> None:
        """Forgive a death: an event killed the process with this pid, so it did not fail to start. Before its end or after it."""
        if pid == self._died_pid:
            self._backoff.forgive()
        elif self.process is not None and self.process.pid == pid:
            self._excused_pid = pid

    def kill(self) -> None:
        for process in self._processes():
            process.kill()

    async def renew(self, stop_timeout_s: float) -> bool:
        """Put a fresh process here in place of the present one, or change nothing and give False."""
        try:
            self._applicant = applicant = await Process.start(self.name, self._program(), standby=True)
        except OSError as error:
            _log.error("%s can't be started: %s", self.name, error)
            return False
        if self.is_stopping():
            applicant.kill()
        await asyncio.wait((applicant.standby,), timeout=STANDBY_TIMEOUT_S)
        self._applicant = None
        if not (applicant.standby.done() and applicant.standby.result()):
            if not self.is_stopping():
                _log.error("new %s (pid %d) can't take over: %s", self.name, applicant.pid, self._reason(applicant))
            await applicant.end_within(0)
            return False
        self._successor = applicant
        self._wake.set()
        if self.process is not None:
            self.process.tell("hand_over")
            await self.process.end_within(stop_timeout_s)
        await asyncio.wait((applicant.ready,))
        return applicant.ready.result()

    def _processes(self) -> list[Process]:
        return [each for each in (self.process, self._applicant, self._successor) if each and not each.ended.done()]

    async def _keep(self) -> None:
        while not self.is_stopping():
            self.state = SlotState.STARTING
            if await self._run_one():
                continue
            delay_s = self._after_death()
            if delay_s is None:
                break
            self.state = SlotState.BACKOFF
            self._wake.clear()
            if self._successor is None:
                await _wait_for(self._wake, delay_s)
        self.state = SlotState.STOPPED

    async def _run_one(self) -> bool:
        """Have one process here until its end. True if that was as it should be."""
        process = self._take_successor()
        if process is not None:
            process.tell("attach")
        else:
            try:
                process = await Process.start(self.name, self._program())
            except OSError as error:
                self.process = None
                self._is_short = error.errno in _SHORTAGES
                _log.error("%s can't be started: %s", self.name, error)
                return self.is_stopping()
            self._is_short = False
        self.process = process
        # What was asked of this slot while the process was being made.
        if self.is_stopping():
            process.terminate()
        elif self._successor is not None:
            process.tell("hand_over")
        if await asyncio.shield(process.ready) and not self.is_stopping():
            self.state = SlotState.RUNNING
            self._on_ready(process)
            self.was_ready.set()
        status = await asyncio.shield(process.ended)
        was_meant = self.is_stopping() or self._successor is not None
        self._on_end(process, was_meant)
        if not was_meant:
            return False
        # By SIGTERM before it could take signals, or by SIGKILL, which was told when it was sent.
        if status not in (EXIT_OK, -signal.SIGTERM, -signal.SIGKILL):
            _log.warning("%s (pid %d) did not end in good order: %s", self.name, process.pid, self._reason(process))
        return True

    def _take_successor(self) -> Process | None:
        successor, self._successor = self._successor, None
        return successor

    def _after_death(self) -> float | None:
        """Say what happened and give the delay before the next start, or None to leave the slot empty."""
        process = self.process
        now, ready_at = asyncio.get_running_loop().time(), process.ready_at if process else None
        delay_s = self._backoff.delay_s(now, ready_at, is_short=self._is_short)
        reason = self._reason(process) if process else "it can't be started"
        self._died_pid = process.pid if process else None
        if process is not None and process.pid == self._excused_pid:
            self._backoff.forgive()
        # The same handlers fail the same way at each attempt. After a good start, an edit of them may mend it.
        unloadable = process is not None and "unloadable" in process.facts and not self.was_ready.is_set()
        if unloadable and not self._on_exhausted(self, f"can't load its handlers: {reason}"):
            return None
        attempts = f"did not start in {MAX_RESTARTS + 1} attempts: {reason}"
        if self._backoff.exhausted and not self._on_exhausted(self, attempts):
            return None
        if process is not None:
            when = "ended" if process.ready_at is not None else "ended before it was ready"
            _log.warning("%s (pid %d) %s: %s; next start in %.1f s", self.name, process.pid, when, reason, delay_s)
        return delay_s

    def _reason(self, process: Process) -> str:
        """Why `process` ended. Logs the traceback that came with it, once and not at each restart."""
        detail = process.facts.get("detail")
        if isinstance(detail, str) and detail != self._shown_detail:
            self._shown_detail = detail
            for line in detail.splitlines():
                _log.error("%s: %s", self.name, line)
        return process.error or (
            describe_status(process.ended.result()) if process.ended.done() else "it takes too long"
        )


@dataclass(frozen=True, slots=True)
class _GiveUp:
    reason: str


class Pool:
    """A broker and `workers` workers, kept alive until a signal says stop. Use: `status = await Pool(...).run()`.

    SIGHUP replaces the workers one by one, SIGTTIN adds one (up to `max_workers`), SIGTTOU has one leave (not the last).
    """

    def __init__(self, plan: Plan, workers: int, *, max_workers: int, stop_timeout_s: float = 10.0) -> None:
        self._plan = plan
        self._count = workers
        self._max_count = max_workers
        self._stop_timeout_s = stop_timeout_s
        self._inbox: asyncio.Queue[signal.Signals | _GiveUp] = asyncio.Queue()
        self._broker: Slot | None = None
        self._workers: dict[int, Slot] = {}
        self._leaving: set[Slot] = set()
        self._is_up = False  # every worker of the start has been ready
        self._resize_task: asyncio.Task[None] | None = None
        self._reload_task: asyncio.Task[None] | None = None
        self._reload_again = False
        # `nohup` asks to outlive the terminal; otherwise its end is told by the signal that also means reload.
        self._on_terminal = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN and _has_terminal()

    @property
    def broker(self) -> Slot | None:
        return self._broker

    @property
    def workers(self) -> Mapping[int, Slot]:
        return self._workers

    async def run(self) -> int:
        """Run until stopped; the exit status. 0 after SIGTERM, SIGINT and the end of the terminal, 1 when a process
        could not be kept running, 128 + the signal when a second one cut the stop short. Main thread only."""
        loop = asyncio.get_running_loop()
        # nohup, and a shell that starts a background command, ignore SIGINT so that the terminal's Ctrl-C does not reach it.
        stops = [number for number in _STOPPING if signal.getsignal(number) is not signal.SIG_IGN]
        numbers = (*stops, signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU)
        for number in numbers:
            loop.add_signal_handler(number, self._inbox.put_nowait, number)
        loop.add_signal_handler(signal.SIGUSR2, self._dump)
        starting = self._watched(asyncio.create_task(self._start(), name="start"))
        try:
            status = await self._until_stop()
            starting.cancel()
            stopping = asyncio.create_task(self._stop(), name="stop")
            status = await self._until_stopped(stopping, status)
            broker = self._broker.process if self._broker is not None else None
            await self._plan.clean_up(broker.ended.result() if broker is not None else None)
            return status
        finally:
            for number in (*numbers, signal.SIGUSR2):
                loop.remove_signal_handler(number)

    def _dump(self) -> None:
        """Have the broker write out what it recorded in memory."""
        if self._broker is not None and self._broker.process is not None:
            self._broker.process.tell("dump")

    async def _until_stop(self) -> int:
        while True:
            message = await self._inbox.get()
            if isinstance(message, _GiveUp):
                _log.error("giving up: %s", message.reason)
                return EXIT_FAILED
            if message in _STOPPING:
                _log.info("%s: stopping", message.name)
                return EXIT_OK
            if message in _STEPS:
                self._step(_STEPS[message])
                continue
            if self._on_terminal and not _has_terminal():
                _log.info("the terminal is gone: stopping")
                return EXIT_OK
            self._reload_again = True
            if self._reload_task is None or self._reload_task.done():
                self._reload_task = self._watched(asyncio.create_task(self._reload(), name="reload"))

    async def _until_stopped(self, stopping: asyncio.Task[None], status: int) -> int:
        while not stopping.done():
            getting = asyncio.create_task(self._inbox.get())
            await asyncio.wait((stopping, getting), return_when=asyncio.FIRST_COMPLETED)
            if not getting.done():
                getting.cancel()
                continue
            message = getting.result()
            if isinstance(message, signal.Signals) and message in _STOPPING:
                _log.warning("%s again: killing what still runs", message.name)
                status = 128 + message
                self._kill()
        stopping.result()
        return status

    async def _start(self) -> None:
        self._broker = Slot("broker", lambda: self._plan.broker_program(self._count), self._broker_ready, self._go_on)
        self._watched(self._broker.task)
        await self._broker.was_ready.wait()
        # The first worker alone, so that a handlers file that can't be imported is told once and not by every worker.
        if self._count:
            await self._add_worker(0).was_ready.wait()
        await self._resize()
        await asyncio.gather(*(slot.was_ready.wait() for slot in self._workers.values()))
        self._plan.pool_ready()
        self._is_up = True
        # Signals may have asked for another number meanwhile.
        self._follow_count()

    def _step(self, step: int) -> None:
        """Have one worker more, or one less."""
        wanted = self._count + step
        if not 1 <= wanted <= self._max_count:
            _log.warning("the number of workers stays %d: from 1 to %d are allowed", self._count, self._max_count)
            return
        self._count = wanted
        _log.info("%d worker%s wanted", wanted, " is" if wanted == 1 else "s are")
        if self._is_up:
            self._follow_count()

    def _follow_count(self) -> None:
        if self._resize_task is None or self._resize_task.done():
            self._resize_task = self._watched(asyncio.create_task(self._resize(), name="resize"))

    async def _resize(self) -> None:
        while len(self._workers) != self._count:
            for worker_id in range(len(self._workers), self._count):
                self._add_worker(worker_id)
            self._leaving = {self._workers.pop(worker_id) for worker_id in range(self._count, len(self._workers))}
            # Waited for before anything else: the slot of one that still drains can't be given to another.
            await asyncio.gather(*(slot.stop(self._stop_timeout_s) for slot in self._leaving))
            self._leaving.clear()

    def _add_worker(self, worker_id: int) -> Slot:
        slot = Slot(
            f"worker {worker_id}",
            lambda: self._plan.worker_program(worker_id),
            lambda process: _log.info("worker %d (pid %d) is ready", worker_id, process.pid),
            self._go_on,
            self._worker_ended,
        )
        self._workers[worker_id] = slot
        self._watched(slot.task)
        return slot

    def _watched(self, task: asyncio.Task[None]) -> asyncio.Task[None]:
        """Have an unexpected error in `task` stop the pool: a slot that nobody looks after would stay empty."""

        def look(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and (error := task.exception()) is not None:
                _log.error("%s failed", task.get_name(), exc_info=error)
                self._inbox.put_nowait(_GiveUp(f"{task.get_name()}: {error}"))

        task.add_done_callback(look)
        return task

    def _broker_ready(self, process: Process) -> None:
        _log.info("broker (pid %d) is ready", process.pid)
        process.handed_over.add_done_callback(lambda reason: self._inbox.put_nowait(_GiveUp(reason.result())))
        self._plan.broker_ready(process.facts)
        process.on_in_hand = self._excuse

    def _worker_ended(self, process: Process, was_meant: bool) -> None:
        """Report to the broker how a worker ended: it knows which event the worker had in hand."""
        if self._broker is not None and self._broker.process is not None:
            ended = name_end(process.ended.result())
            self._broker.process.tell("ended", pid=process.pid, ended=ended, meant=was_meant)

    def _excuse(self, pid: int) -> None:
        for slot in self._workers.values():
            slot.excuse(pid)

    def _go_on(self, slot: Slot, reason: str) -> bool:
        # One worker that can't start again must not end those that work: after a bad edit of the handlers, say.
        others = [each for each in self._workers.values() if each is not slot and each.state is SlotState.RUNNING]
        # One that has never been ready, in a pool that is up, was added to it.
        if slot is not self._broker and (others if slot.was_ready.is_set() else self._is_up):
            return True
        self._inbox.put_nowait(_GiveUp(f"{slot.name} {reason}"))
        return False

    async def _reload(self) -> None:
        while self._reload_again:
            self._reload_again = False
            _log.info("reloading the workers")
            for slot in list(self._workers.values()):
                if not slot.is_stopping() and not await slot.renew(self._stop_timeout_s) and not slot.is_stopping():
                    _log.error("the reload was given up at %s; workers not yet replaced go on as they are", slot.name)
                    break
            else:
                _log.info("all workers are reloaded")

    async def _stop(self) -> None:
        # The broker last: workers still handle and post while they drain.
        self._reload_again = False
        self._count = len(self._workers)
        await asyncio.gather(*(slot.stop(self._stop_timeout_s) for slot in self._workers.values()))
        for task in (self._reload_task, self._resize_task):
            if task is not None:
                await task
        if self._broker is not None:
            await self._broker.stop(self._stop_timeout_s)

    def _kill(self) -> None:
        for slot in (*self._workers.values(), *self._leaving, self._broker):
            if slot is not None:
                slot.kill()


async def _wait_for(event: asyncio.Event, timeout_s: float) -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), timeout_s)


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True
