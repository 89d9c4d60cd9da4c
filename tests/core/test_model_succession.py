"""Who succeeds whom, against a model: random lives of processes that ask for no number."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.core.net import TIMEOUT_S, Net, Process
from tests.core.test_model import PROFILE

# Processes without a number that live at once.
_MOST = 4
# Between two goodbyes or ends, so that one of them is the first.
_MOMENT_S = 0.001

few = st.integers(1, 4)


class WorkersWithoutNumbers(RuleBasedStateMachine):
    """Processes that ask for no number: each succeeds one that ended, or still drains, as long as its slot is kept.

    A line is the processes that succeed each other. What was posted since it began was handled in it, or reported to it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.net = Net(timeout=TIMEOUT_S)
        self.poster = self.net.attach(Process(1, role="poster", take_unique=False))
        self.posted: list[int] = []
        self.processes: list[Process] = []
        self.lines: list[list[Process]] = []
        # Of each line: what was posted when it began.
        self.began: list[int] = []
        # By line: since when it has no process, and whether the last one said goodbye.
        self.left: dict[int, tuple[float, bool]] = {}
        # The lines of which the last process drains, in the order of their goodbyes.
        self.draining: list[int] = []

    def line_of(self, process: Process) -> int:
        return next(number for number, line in enumerate(self.lines) if process in line)

    def of_state(self, *, draining: bool) -> list[Process]:
        return [
            p for p in self.processes if p.is_alive and (p.session.state.value in ("leaving", "drained")) == draining
        ]

    @rule()
    def join(self) -> None:
        if sum(process.is_alive for process in self.processes) == _MOST:
            return
        self.forget_lines()
        process = Process(len(self.processes) + 2)
        kept = {line: since for line, (since, _) in self.left.items() if self.net.now - since <= TIMEOUT_S}
        expired = {line: since for line, (since, _) in self.left.items() if line not in kept}
        ended = kept or expired
        self.net.attach(process)
        self.processes.append(process)
        if ended:
            line = min(ended, key=ended.__getitem__)
            del self.left[line]
            assert self.lines[line][-1].session.worker_id == process.session.worker_id
        elif self.draining:
            line = self.draining.pop(0)
        else:
            line = len(self.lines)
            self.lines.append([])
            self.began.append(len(self.posted))
        self.lines[line].append(process)

    def forget_lines(self) -> None:
        """A line whose last process said goodbye ends with its slot."""
        for line, (since, is_over) in list(self.left.items()):
            if is_over and self.net.now - since > TIMEOUT_S:
                del self.left[line]

    @rule(events=few)
    def post(self, events: int) -> None:
        for _ in range(events):
            self.posted.append(len(self.posted))
            self.poster.outbox.post("app", "e", self.posted[-1])
        self.net.flush(self.poster)
        assert self.poster.channel is not None
        self.net.up(self.poster.channel)

    @rule(data=st.data(), deliveries=few)
    def handle(self, data: st.DataObject, deliveries: int) -> None:
        if alive := [process for process in self.processes if process.is_alive]:
            process = data.draw(st.sampled_from(alive))
            assert process.channel is not None
            self.net.down(process.channel)
            for _ in range(deliveries):
                if self.net.take(process) is not None:
                    self.net.complete(process)
            self.net.flush(process)
            self.net.up(process.channel)

    @rule(data=st.data())
    def say_goodbye(self, data: st.DataObject) -> None:
        if attached := self.of_state(draining=False):
            process = data.draw(st.sampled_from(attached))
            process.session.leave(leave=False)
            self.net.flush(process)
            assert process.channel is not None
            self.net.up(process.channel)
            self.draining.append(self.line_of(process))
            self.net.now += _MOMENT_S

    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        if draining := self.of_state(draining=True):
            process = data.draw(st.sampled_from(draining))
            self.net.run(process)
            self.finish(process, said_goodbye=True)

    @rule(data=st.data())
    def kill(self, data: st.DataObject) -> None:
        if attached := self.of_state(draining=False):
            self.finish(data.draw(st.sampled_from(attached)), said_goodbye=False)

    def finish(self, process: Process, *, said_goodbye: bool) -> None:
        slot = self.net.kill(process)
        if slot is not None:
            self.net.router.end_process(slot, self.net.now)
        line = self.line_of(process)
        if self.lines[line][-1] is process:
            if said_goodbye:
                self.draining.remove(line)
            self.left[line] = (self.net.now, said_goodbye)
            self.net.now += _MOMENT_S

    @rule(seconds=st.sampled_from([0.5, 2.0, 6.0]))
    def time_passes(self, seconds: float) -> None:
        self.net.run()
        self.net.advance(seconds)

    @invariant()
    def the_table_has_the_lines(self) -> None:
        self.forget_lines()
        alive = sum(process.is_alive for process in self.processes)
        assert len(self.net.router.slots.workers) == alive + len(self.left)

    def teardown(self) -> None:
        self.net.run()
        for line, began in zip(self.lines, self.began, strict=True):
            # Without one that is attached, a successor was to get it.
            if line[-1] not in self.of_state(draining=False):
                continue
            handled = {data for process in line for data in process.data_of("app")}
            missing = set(self.posted[began:]) - handled
            assert len(missing) <= sum(gap["missed"] for process in line for gap in process.gaps), missing
        for process in self.processes:
            assert process.data_of("app") == sorted(set(process.data_of("app")))


TestWorkersWithoutNumbers = WorkersWithoutNumbers.TestCase
TestWorkersWithoutNumbers.settings = settings(PROFILE, max_examples=3 * PROFILE.max_examples)
