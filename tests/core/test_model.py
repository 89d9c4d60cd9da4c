"""The rules of delivery against a model: random lives of processes, connections and brokers, checked as they go."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from eventsh.core.epochs import encode_epoch
from eventsh.errors import QueueOverflow
from eventsh.protocol.frame import decode_header
from tests.core.net import Net, Process, error_codes

QUEUE = 12
TIMEOUT_S = 5.0
SLOTS = (1, 2, 3)
# Posts nothing and is never slow: what it has handled is the order of all broadcasts.
WITNESS = 0

slots = st.sampled_from(SLOTS)
few = st.integers(1, 4)


class Delivering(RuleBasedStateMachine):
    """What both models share: processes in slots, posts with numbers, and the order in which they may be handled."""

    first_epoch = 1

    def __init__(self) -> None:
        super().__init__()
        self.net = Net(epoch=self.first_epoch, timeout=TIMEOUT_S, max_queue_len=QUEUE, unique_timeout=1000.0)
        self.everybody: list[Process] = []
        self.holders: dict[int, Process] = {}
        self.began: dict[int, int] = {}
        self.witness = self.new_process(WITNESS)
        # Posts by poster, in order; a post's data is (the poster's number, its own number).
        self.posted: dict[int, list[tuple[int, int]]] = defaultdict(list)
        self.uniques: dict[int, list[tuple[int, int]]] = defaultdict(list)
        self.local: dict[int, list[int]] = defaultdict(list)
        # What is at each place of each epoch.
        self.order: dict[tuple[int, int], Any] = {}
        self.looked_at: dict[int, int] = defaultdict(int)
        self.last_place: dict[int, tuple[int, int]] = defaultdict(lambda: (0, 0))
        self.last_number: dict[tuple[int, int], int] = defaultdict(int)
        self.had: dict[int, set[Any]] = defaultdict(set)
        self.number = 0

    def new_process(self, slot: int) -> Process:
        process = Process(len(self.everybody) + 1, max_queue_len=QUEUE, worker_id=slot, take_unique=slot != WITNESS)
        process.slot = slot  # type: ignore[attr-defined]
        self.everybody.append(process)
        self.holders[slot] = process
        self.net.attach(process)
        # The first process of a slot begins with what is posted after it came.
        self.began.setdefault(slot, process.session.received + 1)
        return process

    @initialize()
    def begin(self) -> None:
        for slot in SLOTS:
            self.new_process(slot)
        self.net.run()

    # --- what happens ---

    @rule(slot=slots, events=few)
    def post(self, slot: int, events: int) -> None:
        process = self.holders[slot]
        for _ in range(events if process.is_alive else 0):
            self.number += 1
            data = (process.number, self.number)
            try:
                process.outbox.post("app", "broadcast", list(data))
            except QueueOverflow:
                assert process.outbox.queued >= QUEUE
                return
            self.posted[process.number].append(data)

    @rule(slot=slots)
    def post_local(self, slot: int) -> None:
        process = self.holders[slot]
        if process.is_alive:
            self.number += 1
            try:
                process.session.inbox.post_local("app", "local", self.number)
            except QueueOverflow:
                return
            self.local[process.number].append(self.number)

    @rule(slot=slots, ack=st.booleans())
    def flush(self, slot: int, ack: bool) -> None:
        self.net.flush(self.holders[slot], ack=ack)

    @rule(data=st.data(), frames=few)
    def arrive_at_broker(self, data: st.DataObject, frames: int) -> None:
        if waiting := [channel for channel in self.net.channels if channel.up]:
            self.net.up(data.draw(st.sampled_from(waiting)), frames)

    @rule(data=st.data(), frames=few)
    def arrive_at_process(self, data: st.DataObject, frames: int) -> None:
        if waiting := [channel for channel in self.net.channels if channel.down]:
            self.net.down(data.draw(st.sampled_from(waiting)), frames)

    @rule(slot=slots, deliveries=few)
    def begin_to_handle(self, slot: int, deliveries: int) -> None:
        if self.holders[slot].is_alive:
            for _ in range(deliveries):
                self.net.take(self.holders[slot])

    @rule(slot=slots, data=st.data())
    def handlers_return(self, slot: int, data: st.DataObject) -> None:
        process = self.holders[slot]
        if process.is_alive and process.busy:
            self.net.complete(process, data.draw(st.integers(0, len(process.busy) - 1)))

    @rule(slot=slots, events=few)
    def post_and_be_heard(self, slot: int, events: int) -> None:
        self.post(slot, events)
        self.talk(slot)

    @rule(slot=slots)
    def talk(self, slot: int) -> None:
        """Everything arrives both ways, and nothing is handled."""
        process = self.holders[slot]
        for _ in range(2):
            if process.channel is not None:
                self.net.flush(process)
                self.net.up(process.channel)
            if process.channel is not None:
                self.net.down(process.channel)

    @rule()
    def talk_all(self) -> None:
        for slot in SLOTS:
            self.talk(slot)

    @rule(slot=slots)
    def run(self, slot: int) -> None:
        if self.holders[slot].is_alive:
            self.net.run(self.holders[slot])

    @rule(slot=slots)
    def lose_connection(self, slot: int) -> None:
        if self.holders[slot].channel is not None:
            self.net.cut(self.holders[slot])

    @rule(data=st.data())
    def broker_notices(self, data: st.DataObject) -> None:
        if gone := [channel for channel in self.net.channels if channel.process.channel is not channel]:
            self.net.notice(data.draw(st.sampled_from(gone)))

    @rule(slot=slots)
    def reconnect(self, slot: int) -> None:
        process = self.holders[slot]
        if process.is_alive and process.channel is None:
            self.net.connect(process)

    # --- what must hold ---

    @invariant()
    def everything_holds(self) -> None:
        self.witness_keeps_up()
        self.assert_nobody_breaks_the_protocol()
        self.assert_queues_are_bounded()
        self.assert_handled_in_order_and_once()

    def witness_keeps_up(self) -> None:
        if self.witness.channel is None:
            self.net.connect(self.witness)
        self.net.run(self.witness)

    def assert_nobody_breaks_the_protocol(self) -> None:
        for process in self.everybody:
            assert set(error_codes(process)) <= {"slot_taken", "slow_hello"}, process.messages

    def assert_queues_are_bounded(self) -> None:
        for process in self.everybody:
            assert process.outbox.queued <= QUEUE

    def assert_handled_in_order_and_once(self) -> None:
        for process in self.everybody:
            for delivery in process.handled[self.looked_at[process.number] :]:
                self.look_at(process, delivery)
            self.looked_at[process.number] = len(process.handled)

    def look_at(self, process: Process, delivery: Any) -> None:
        events = [(source, event, data) for source, event, several in delivery.runs for data in several]
        assert len(events) == delivery.count or not delivery.first_seq
        if not delivery.last_seq:
            assert delivery.pid is None
            (event,) = events
            assert event == ("app", "local", self.local[process.number].pop(0))
            return
        if not delivery.first_seq:
            return
        life = self.net.epochs.index(delivery.epoch)
        assert (life, delivery.first_seq) > self.last_place[process.number]
        self.last_place[process.number] = (life, delivery.last_seq)
        for seq, event in enumerate(events, delivery.first_seq):
            at_place = self.order.setdefault((delivery.epoch, seq), event)
            assert at_place == event, "two workers see two orders"
            if event[0] == "app":
                identity = tuple(event[2])
                assert identity not in self.had[process.number], "handled twice"
                self.had[process.number].add(identity)
                if event[1] == "broadcast":
                    poster, number = identity
                    assert number > self.last_number[process.number, poster], "the poster's order is broken"
                    self.last_number[process.number, poster] = number

    def bring_everybody_back(self) -> None:
        for channel in [channel for channel in self.net.channels if channel.process.channel is not channel]:
            self.net.notice(channel)
        for slot in SLOTS:
            if not self.holders[slot].is_alive:
                self.new_process(slot)
        for _ in range(3):
            for process in self.holders.values():
                while process.busy:
                    self.net.complete(process)
                if process.channel is None:
                    self.net.connect(process)
            self.net.run()
        self.assert_handled_in_order_and_once()

    def assert_everything_was_handled_or_confirmed(self) -> None:
        for process in self.holders.values():
            assert process.is_attached
            assert process.session.inbox.is_idle
            assert process.outbox.queued == 0, process
            assert self.local[process.number] == []


class OneBroker(Delivering):
    """One broker, and workers that come, go, die, and are slow."""

    def __init__(self) -> None:
        self.confirmed: dict[int, int] = defaultdict(int)
        self.was_away: set[int] = set()
        self.ends: list[Any] = []
        # Slots whose processes died with events that they had handled and not acknowledged.
        self.handled_in_vain: set[int] = set()
        super().__init__()

    @rule(slot=slots)
    def post_unique(self, slot: int) -> None:
        # One of the workers posts unique events only after it got one from another, the first posts none: see below.
        process = self.holders[slot]
        if not process.is_alive or slot == SLOTS[0]:
            return
        self.number += 1
        data = (process.number, self.number)
        try:
            process.outbox.post_unique("app", "unique", list(data), f"key {self.number}")
        except QueueOverflow:
            return
        self.uniques[process.number].append(data)

    @rule(slot=slots)
    def kill(self, slot: int) -> None:
        process = self.holders[slot]
        if not process.is_alive:
            return
        process.is_alive = False
        self.was_away.add(process.number)
        self.handled_in_vain.add(slot)
        self.local[process.number].clear()
        if process.channel is not None:
            ended = self.net.disconnect(process)
            if ended is not None:
                self.ends.append((ended, process.session.identity))

    @rule()
    def end_is_noticed(self) -> None:
        for slot, identity in self.ends:
            if slot.identity == identity:
                self.net.router.end_process(slot, self.net.now)
        self.ends.clear()
        self.net.collect()

    @rule(slot=slots)
    def respawn(self, slot: int) -> None:
        if not self.holders[slot].is_alive:
            self.new_process(slot)

    @rule(slot=slots, noticed=st.booleans())
    def replace(self, slot: int, noticed: bool) -> None:
        self.kill(slot)
        if noticed:
            self.end_is_noticed()
        self.respawn(slot)

    @rule(seconds=st.sampled_from([1.0, 2.0, 6.0]))
    def time_passes(self, seconds: float) -> None:
        for _ in range(int(seconds * 2)):
            self.net.advance(0.5)
            self.witness_keeps_up()
        if seconds > TIMEOUT_S:
            self.was_away |= {p.number for p in self.everybody if not p.is_attached}

    def assert_queues_are_bounded(self) -> None:
        super().assert_queues_are_bounded()
        # The limit, one frame more, and the broker's own events, which are not held.
        for slot in self.net.router.slots:
            own = sum(entry.events for entry in slot.queue if not decode_header(entry.frame).origin)
            assert slot.queue.events - own <= QUEUE + QUEUE

    def teardown(self) -> None:
        self.end_is_noticed()
        self.bring_everybody_back()
        self.net.advance(TIMEOUT_S + 1)
        self.bring_everybody_back()
        self.assert_everything_was_handled_or_confirmed()
        self.assert_posts_reached_the_broker()
        self.assert_uniques_ran_once()
        self.assert_nothing_is_unaccounted()

    def assert_posts_reached_the_broker(self) -> None:
        reached = self.had[self.witness.number]
        for process in self.everybody:
            posted = self.posted[process.number]
            if process.is_alive:
                assert set(posted) <= reached
            else:
                # Of one that died, the first ones.
                came = [post in reached for post in posted]
                assert came == sorted(came, reverse=True)

    def assert_uniques_ran_once(self) -> None:
        for poster in self.everybody:
            for post in self.uniques[poster.number]:
                ran_in = [p for p in self.everybody if post in self.had[p.number]]
                assert ran_in or not poster.is_alive, f"{post} was lost"
                # More than one only where the others died or were given up.
                assert sum(p.number not in self.was_away for p in ran_in) <= 1
                assert len(ran_in) <= 1 or any(p.number in self.was_away for p in ran_in)

    def assert_nothing_is_unaccounted(self) -> None:
        broadcast = {
            seq
            for delivery in self.witness.handled
            if delivery.first_seq
            for seq in range(delivery.first_seq, delivery.last_seq + 1)
        }
        for slot in SLOTS:
            processes = [p for p in self.everybody if p.slot == slot]  # type: ignore[attr-defined]
            handled = {
                seq
                for process in processes
                for delivery in process.handled
                if delivery.first_seq
                for seq in range(delivery.first_seq, delivery.last_seq + 1)
            }
            gaps = [gap for process in processes for gap in process.gaps]
            told = {seq for gap in gaps for seq in range(gap["first_seq"], gap["last_seq"] + 1)}
            missing = {seq for seq in broadcast if seq >= self.began[slot]} - handled
            assert missing <= told, f"slot {slot} was not told of {missing - told}"
            missed = sum(gap["missed"] for gap in gaps)
            assert missed >= len(missing)
            if slot not in self.handled_in_vain:
                assert missed == len(missing)


class BrokersThatDie(Delivering):
    """Brokers die, processes do not: all get everything, once."""

    @rule()
    def kill_broker(self) -> None:
        self.net.replace_broker()

    @rule(data=st.data())
    def come_back(self, data: st.DataObject) -> None:
        for slot in data.draw(st.permutations(SLOTS)):
            self.reconnect(slot)
            self.talk(slot)

    def teardown(self) -> None:
        self.bring_everybody_back()
        self.assert_everything_was_handled_or_confirmed()
        posted = {post for posts in self.posted.values() for post in posts}
        for process in self.everybody:
            assert process.gaps == []
            assert self.had[process.number] == posted


class BrokersThatDieBesideTheSlow(Delivering):
    """Brokers die while some are slow or away, for whom nobody waits: all get everything once, or are told of it."""

    @rule(seconds=st.sampled_from([1.0, 6.0]))
    def time_passes(self, seconds: float) -> None:
        for _ in range(int(seconds * 2)):
            self.net.advance(0.5)
            self.witness_keeps_up()

    @rule(slot=slots)
    def go_on_alone(self, slot: int) -> None:
        """Nobody waits for the others any more, and all that one posts is confirmed."""
        self.reconnect(slot)
        for _ in range(14):
            self.talk(slot)
            self.run(slot)
            self.witness_keeps_up()
            self.net.advance(0.5)

    @rule()
    def kill_broker(self) -> None:
        self.net.replace_broker()

    def teardown(self) -> None:
        self.bring_everybody_back()
        self.net.advance(TIMEOUT_S + 1)
        self.bring_everybody_back()
        self.assert_everything_was_handled_or_confirmed()
        posted = {post for posts in self.posted.values() for post in posts}
        # It always keeps up, so nothing is ever told to it.
        assert self.witness.gaps == []
        assert self.had[self.witness.number] == posted
        for process in self.everybody:
            told = sum(gap["missed"] for gap in process.gaps)
            missing = posted - self.had[process.number]
            assert len(missing) <= told, f"{process} was told {told}, and misses {missing}"


class HostsThatRestart(BrokersThatDieBesideTheSlow):
    """The same, and at times the host of the broker restarts too: a gap that is not exact says so to all, once a boot."""

    first_epoch = encode_epoch(b"", 0)

    def __init__(self) -> None:
        super().__init__()
        self.boots = 0

    @rule(boot=st.binary(min_size=16, max_size=16), uptime_s=st.integers(0, 1000))
    def restart_host(self, boot: bytes, uptime_s: int) -> None:
        self.boots += 1
        self.net.replace_broker(encode_epoch(boot + bytes([self.boots]), uptime_s * 1_000_000_000))

    @rule(set_s=st.sampled_from([60.0, -3600.0, -31_536_000.0]))
    def set_clock(self, set_s: float) -> None:
        self.net.clock_set_s = set_s

    def teardown(self) -> None:
        self.bring_everybody_back()
        self.net.advance(TIMEOUT_S + 1)
        self.bring_everybody_back()
        self.assert_everything_was_handled_or_confirmed()
        posted = {post for posts in self.posted.values() for post in posts}
        assert self.had[self.witness.number] == posted
        assert [gap for gap in self.witness.gaps if gap["missed"] or gap["exact"]] == []
        for process in self.everybody:
            unsure = [gap for gap in process.gaps if not gap["exact"]]
            missing = posted - self.had[process.number]
            assert len(missing) <= sum(gap["missed"] for gap in process.gaps) or unsure, f"{process} misses {missing}"
            # All were attached before the first restart, and are attached now.
            assert bool(unsure) == bool(self.boots)


class BrokersThatDieWithTheirWorkers(Delivering):
    """Brokers and workers die, together or one by one, under unique events of a poster that lives: none is lost, and each runs
    again only where the process that ran it died before a broker knew that it had returned."""

    def __init__(self) -> None:
        super().__init__()
        self.poster = Process(99, max_queue_len=QUEUE, role="poster", take_unique=False)
        self.everybody.append(self.poster)

    @rule(events=few)
    def post_uniques(self, events: int) -> None:
        for _ in range(events):
            self.number += 1
            try:
                self.poster.outbox.post_unique("app", "unique", [99, self.number], f"key {self.number}")
            except QueueOverflow:
                return
            self.uniques[99].append((99, self.number))

    @rule(slot=slots)
    def post(self, slot: int, events: int = 1) -> None:
        """Post between the unique events: their order must stay."""
        self.number += 1
        try:
            self.poster.outbox.post("app", "broadcast", [99, self.number])
        except QueueOverflow:
            return
        self.posted[99].append((99, self.number))

    @rule()
    def lose_poster(self) -> None:
        if self.poster.channel is not None:
            self.net.cut(self.poster)

    @rule()
    def poster_talks(self) -> None:
        poster, net = self.poster, self.net
        if poster.channel is None:
            net.connect(poster)
        for _ in range(2):
            net.flush(poster)
            if poster.channel is not None:
                net.up(poster.channel)
            if poster.channel is not None:
                net.down(poster.channel)

    @rule(events=few)
    def post_uniques_and_have_them_confirmed(self, events: int) -> None:
        self.post_uniques(events)
        self.poster_talks()
        self.talk_all()
        self.poster_talks()

    @rule(data=st.data())
    def everybody_comes_back(self, data: st.DataObject) -> None:
        for slot in data.draw(st.permutations((*SLOTS, 99))):
            if slot == 99:
                self.poster_talks()
            else:
                self.respawn(slot)
                self.reconnect(slot)
                self.talk(slot)

    @rule(data=st.data(), with_broker=st.booleans())
    def kill(self, data: st.DataObject, with_broker: bool) -> None:
        victims = data.draw(st.lists(slots, unique=True, min_size=0 if with_broker else 1))
        if with_broker:
            self.net.replace_broker()
        for slot in victims:
            process = self.holders[slot]
            if process.is_alive:
                process.is_alive = False
                ended = self.net.disconnect(process) if process.channel is not None else None
                if ended is not None:
                    self.net.router.end_process(ended, self.net.now)
                    self.net.collect()

    @rule(slot=slots)
    def respawn(self, slot: int) -> None:
        if not self.holders[slot].is_alive:
            self.new_process(slot)

    @rule(seconds=st.sampled_from([1.0, 6.0]))
    def time_passes(self, seconds: float) -> None:
        # Not longer than a process is waited for, while one lives without a connection: it would be given up.
        away = any(process.is_alive and not process.is_attached for process in self.holders.values())
        for _ in range(1 if away else int(seconds * 2)):
            self.net.advance(0.5)
            self.witness_keeps_up()

    def teardown(self) -> None:
        self.poster_comes_back()
        self.bring_everybody_back()
        self.net.advance(TIMEOUT_S + 1)
        self.poster_comes_back()
        self.bring_everybody_back()
        self.assert_everything_was_handled_or_confirmed()
        assert (self.poster.outbox.queued, self.poster.outbox.kept) == (0, 0)
        for post in self.uniques[99]:
            ran_in = [process for process in self.everybody if post in self.had[process.number]]
            # A dead process may not have come to the end of its handlers.
            assert any(post in self.done(process) for process in ran_in), f"{post} was lost"
            assert sum(process.is_alive for process in ran_in) <= 1, f"{post} ran in {ran_in}"

    def poster_comes_back(self) -> None:
        if self.poster.channel is None:
            self.net.connect(self.poster)

    def done(self, process: Process) -> set[Any]:
        """The events whose handlers have returned in a process."""
        over = [delivery for delivery in process.handled if not any(busy is delivery for busy in process.busy)]
        runs = [run for delivery in over for run in delivery.runs if run[0] == "app" and run[1] == "unique"]
        return {tuple(data) for _, _, several in runs for data in several}


# How many examples: see tests/conftest.py.
PROFILE = settings(
    settings.get_profile("models"),
    deadline=None,
    stateful_step_count=50,
    suppress_health_check=list(HealthCheck),
)

TestOneBroker = OneBroker.TestCase
TestOneBroker.settings = PROFILE
TestBrokersThatDie = BrokersThatDie.TestCase
TestBrokersThatDie.settings = PROFILE
TestBrokersThatDieBesideTheSlow = BrokersThatDieBesideTheSlow.TestCase
TestBrokersThatDieBesideTheSlow.settings = PROFILE
TestHostsThatRestart = HostsThatRestart.TestCase
TestHostsThatRestart.settings = PROFILE
TestBrokersThatDieWithTheirWorkers = BrokersThatDieWithTheirWorkers.TestCase
TestBrokersThatDieWithTheirWorkers.settings = PROFILE
