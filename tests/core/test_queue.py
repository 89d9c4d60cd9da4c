from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from eventsh.core.queue import Entry, Queue


def entry(last, events=1):
    return Entry(last, events, bytearray())


def drain(queue):
    return [queue.popleft().last for _ in range(len(queue))]


def test_first_in_comes_first_out():
    queue = Queue(10)
    for last in (1, 2, 3):
        queue.append(entry(last))
    assert queue.peek().last == 1
    assert drain(queue) == [1, 2, 3]
    assert queue.events == 0


def test_what_is_put_back_in_front_comes_first_and_in_its_order():
    queue = Queue(10)
    for last in (1, 2, 3):
        queue.append(entry(last))
    taken = [queue.popleft(), queue.popleft()]
    queue.append(entry(4))
    queue.put_back(taken)
    assert drain(queue) == [1, 2, 3, 4]


def test_what_is_put_back_counts_towards_the_limit():
    queue = Queue(3)
    for last in (1, 2, 3):
        queue.append(entry(last))
    taken = [queue.popleft()]
    assert (queue.is_full, queue.events) == (False, 2)
    queue.put_back(taken)
    assert (queue.is_full, queue.events) == (True, 3)


def test_the_limit_counts_events_and_not_frames():
    queue = Queue(10)
    queue.append(entry(9, events=9))
    assert (queue.is_full, queue.events, len(queue)) == (False, 9, 1)
    queue.append(entry(14, events=5))
    assert (queue.is_full, queue.events, len(queue)) == (True, 14, 2)


def test_release_drops_whole_frames_up_to_a_number_and_tells_how_many_events():
    queue = Queue(10)
    for last in (2, 4, 6):
        queue.append(entry(last, events=2))
    assert queue.release(1) == 0
    assert queue.release(5) == 4
    assert drain(queue) == [6]


def test_an_entry_that_stands_for_no_event_takes_no_room():
    queue = Queue(1)
    queue.append(entry(5, events=0))
    assert not queue.is_full
    assert queue.release(5) == 0
    assert len(queue) == 0


def test_entries_that_stand_for_no_event_are_bounded_too():
    queue = Queue(3)
    for last in range(1, 4):
        queue.append(entry(last, events=0))
        assert not queue.is_full
    queue.append(entry(4, events=0))
    assert queue.is_full
    assert queue.events == 0


def test_discard_takes_out_what_is_named_wherever_it_is():
    queue = Queue(10)
    for last in (1, 2, 3, 4):
        queue.append(entry(last))
    queue.discard({2, 4, 99})
    assert queue.events == 2
    assert [e.last for e in queue] == [1, 3]


def test_clear_tells_how_many_events_it_dropped():
    queue = Queue(10)
    queue.append(entry(3, events=3))
    assert queue.clear() == 3
    assert (queue.events, len(queue)) == (0, 0)


def test_an_empty_queue_has_nothing_to_give():
    with pytest.raises(IndexError):
        Queue(1).peek()
    with pytest.raises(IndexError):
        Queue(1).popleft()


class AgainstAList(RuleBasedStateMachine):
    """Whatever is done, in whatever order, the count of events is that of the entries."""

    def __init__(self):
        super().__init__()
        self.queue = Queue(20)
        self.model: list[Entry] = []
        self.taken: list[Entry] = []
        self.last = 0

    @rule(events=st.integers(0, 6))
    def append(self, events):
        self.last += max(events, 1)
        self.queue.append(entry(self.last, events))
        self.model.append(entry(self.last, events))

    @rule()
    def take(self):
        if self.model:
            assert self.queue.popleft() == self.model[0]
            self.taken.append(self.model.pop(0))

    @rule()
    def put_back(self):
        self.queue.put_back(self.taken)
        self.model[:0] = self.taken
        self.taken = []

    @rule(back=st.integers(0, 12))
    def release(self, back):
        gone = [e for e in self.model if e.last <= self.last - back]
        self.model = self.model[len(gone) :]
        self.taken = []
        assert self.queue.release(self.last - back) == sum(e.events for e in gone)

    @rule(back=st.integers(0, 12))
    def discard(self, back):
        self.queue.discard({self.last - back})
        self.model = [e for e in self.model if e.last != self.last - back]

    @invariant()
    def counts_are_right(self):
        events = sum(e.events for e in self.model)
        assert list(self.queue) == self.model
        assert (len(self.queue), self.queue.events) == (len(self.model), events)
        assert self.queue.is_full == (events >= 20)


TestAgainstAList = AgainstAList.TestCase
TestAgainstAList.settings = settings(deadline=None, derandomize=True, max_examples=60, stateful_step_count=30)
