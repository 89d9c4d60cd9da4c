from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from eventsh.errors import ProtocolError
from eventsh.transports.ring import ALIGN_BYTES, Lane, Ring, Span

SIZE = 16 * ALIGN_BYTES


def frame(places: int) -> bytearray:
    """A frame that takes so many places of ALIGN_BYTES."""
    return bytearray(places * ALIGN_BYTES - 1)


def lane(ring: Ring, *places: int) -> Lane:
    """A reader that was given frames of these sizes."""
    made = Lane(ring)
    for size in places:
        assert made.give(frame(size)) is not None
    return made


def offsets(*spans: Span | None) -> list[int | None]:
    return [None if span is None else span.offset // ALIGN_BYTES for span in spans]


def test_spans_follow_each_other_at_cache_lines():
    one = Lane(Ring(SIZE, is_shared=False))
    assert offsets(*(one.give(frame(size)) for size in (1, 3, 2))) == [0, 1, 4]
    assert one.give(bytearray(1)) is not None


def test_a_frame_may_be_as_long_as_the_ring_and_no_longer():
    assert Lane(Ring(SIZE, is_shared=False)).give(bytearray(SIZE)) is not None
    assert Lane(Ring(SIZE, is_shared=False)).give(bytearray(SIZE + 1)) is None
    assert Lane(Ring(SIZE, is_shared=False)).give(b"") is None


def test_it_goes_on_at_the_beginning_once_that_is_free():
    one = lane(Ring(SIZE, is_shared=False), 6, 6)
    assert one.give(frame(6)) is None
    one.release(1)
    assert offsets(one.give(frame(6))) == [0]
    assert offsets(one.give(frame(4))) == [12]
    assert one.give(frame(1)) is None


def test_a_ring_that_is_empty_begins_at_its_beginning():
    one = lane(Ring(SIZE, is_shared=False), 6, 3)
    one.release(2)
    assert offsets(one.give(frame(6))) == [0]


def test_a_span_is_free_only_when_its_last_reader_has_released_it():
    ring = Ring(SIZE, is_shared=True)
    sent = frame(6)
    first, second = Lane(ring), Lane(ring)
    assert first.give(sent) is second.give(sent)
    assert ring.used_bytes == 6 * ALIGN_BYTES
    first.release(1)
    assert ring.used_bytes == 6 * ALIGN_BYTES
    second.release(1)
    assert ring.used_bytes == 0


def test_only_the_same_object_is_the_same_frame_and_only_while_it_has_its_span():
    ring = Ring(SIZE, is_shared=True)
    sent = frame(2)
    one, other = Lane(ring), Lane(ring)
    assert offsets(one.give(sent), other.give(bytearray(sent)), other.give(sent)) == [0, 2, 0]
    one.release(1)
    other.release(2)
    assert ring.used_bytes == 0
    again = one.give(sent)
    assert again is not None
    assert not again.is_written


def test_in_a_ring_for_one_reader_a_frame_that_is_sent_again_may_have_changed():
    one = Lane(Ring(SIZE, is_shared=False))
    sent = frame(2)
    assert offsets(one.give(sent), one.give(sent)) == [0, 2]


def test_others_go_on_around_a_reader_that_stands_still():
    ring = Ring(SIZE, is_shared=True)
    still, moving = lane(ring, 3), Lane(ring)
    places = []
    for count in range(1, 20):
        places += offsets(moving.give(frame(4)))
        moving.release(count)
    assert set(places) == {3, 7, 11}
    assert still.held_bytes == 3 * ALIGN_BYTES


def test_one_of_several_readers_holds_at_most_three_quarters_or_one_frame():
    ring = Ring(SIZE, is_shared=True)
    one = lane(ring, 8, 4)
    assert one.give(frame(1)) is None
    one.release(2)
    assert one.give(frame(14)) is not None
    assert one.give(frame(1)) is None


def test_what_could_not_be_written_is_taken_back():
    ring = Ring(SIZE, is_shared=False)
    one = lane(ring, 2)
    one.give(frame(2))
    one.take_back()
    assert ring.used_bytes == 2 * ALIGN_BYTES
    with pytest.raises(ProtocolError):
        one.release(2)
    one.release(1)
    assert ring.used_bytes == 0


def test_a_ring_that_was_cut_uses_only_its_first_part():
    ring = Ring(SIZE, is_shared=False)
    one = lane(ring, 2, 8)
    ring.cut(4 * ALIGN_BYTES)
    assert offsets(one.give(frame(2)), one.give(frame(1))) == [None, None]
    one.release(2)
    assert offsets(one.give(frame(3)), one.give(frame(1)), one.give(frame(1))) == [0, 3, None]


@pytest.mark.parametrize("count", [0, -1, 1, 4, 2**64 - 1])
def test_a_release_of_what_was_not_given_or_was_released_is_refused(count):
    one = lane(Ring(SIZE, is_shared=False), 1, 1, 1)
    one.release(1)
    with pytest.raises(ProtocolError, match=f"released {count} frames"):
        one.release(count)
    one.release(3)


@given(st.lists(st.tuples(st.integers(1, 20), st.booleans()), max_size=200))
def test_one_reader_that_releases_in_order_always_finds_its_bytes(steps):
    ring, memory = Ring(SIZE, is_shared=False), bytearray(SIZE)
    one = Lane(ring)
    kept: list[tuple[Span, bytes]] = []
    released = 0
    for number, (places, releases) in enumerate(steps):
        sent = bytes([number % 256]) * (places * ALIGN_BYTES - number % ALIGN_BYTES)
        span = one.give(sent)
        if span is None:
            # Nothing is refused that an empty ring would take.
            assert kept or len(sent) > SIZE
        else:
            memory[span.offset : span.offset + span.length] = sent
            kept.append((span, sent))
        if releases and kept:
            span, sent = kept.pop(0)
            assert memory[span.offset : span.offset + span.length] == sent
            released += 1
            one.release(released)
    assert ring.used_bytes == one.held_bytes == sum(span.size for span, _ in kept)


class RingModel(RuleBasedStateMachine):
    """Readers that come, take, lag and leave, against the plain account of what each must still be able to read."""

    def __init__(self) -> None:
        super().__init__()
        self.ring = Ring(SIZE, is_shared=True)
        self.memory = bytearray(SIZE)
        self.number = 0
        # Each reader with what it was given and has not released, and how much it has released.
        self.readers: dict[Lane, list[tuple[Span, bytes]]] = {}
        self.released: dict[Lane, int] = {}
        self.alive: list[bytes] = []

    @precondition(lambda self: len(self.readers) < 4)
    @rule()
    def a_reader_comes(self) -> None:
        new = Lane(self.ring)
        self.readers[new] = []
        self.released[new] = 0

    @rule(size=st.integers(1, SIZE + 1))
    def a_frame_is_sent_to_all(self, size: int) -> None:
        self.number += 1
        self.send(bytes([self.number % 256]) * size)

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def an_earlier_frame_is_sent_again(self, data: st.DataObject) -> None:
        self.send(data.draw(st.sampled_from(self.alive)))

    def send(self, sent: bytes) -> None:
        self.alive = [*self.alive[-3:], sent]
        for reader, kept in self.readers.items():
            held = reader.held_bytes
            span = reader.give(sent)
            if span is None:
                assert reader.held_bytes == held
                continue
            assert span.length == len(sent)
            if not span.is_written:
                self.memory[span.offset : span.offset + span.length] = sent
                span.is_written = True
            kept.append((span, sent))

    @precondition(lambda self: any(self.readers.values()))
    @rule(data=st.data())
    def a_reader_releases(self, data: st.DataObject) -> None:
        reader = data.draw(st.sampled_from([reader for reader, kept in self.readers.items() if kept]))
        count = data.draw(st.integers(1, len(self.readers[reader])))
        del self.readers[reader][:count]
        self.released[reader] += count
        reader.release(self.released[reader])

    @precondition(lambda self: self.readers)
    @rule(data=st.data())
    def a_reader_leaves(self, data: st.DataObject) -> None:
        reader = data.draw(st.sampled_from(list(self.readers)))
        del self.readers[reader]
        reader.clear()

    @invariant()
    def every_reader_can_read_what_it_has_not_released(self) -> None:
        for kept in self.readers.values():
            for span, sent in kept:
                assert self.memory[span.offset : span.offset + span.length] == sent

    @invariant()
    def what_is_used_is_what_is_held(self) -> None:
        spans = {id(span): span.size for kept in self.readers.values() for span, _ in kept}
        assert self.ring.used_bytes == sum(spans.values()) <= SIZE
        for reader, kept in self.readers.items():
            assert reader.held_bytes == sum(span.size for span, _ in kept)
            assert reader.held_bytes <= SIZE * 3 // 4 or len(kept) == 1


TestRingModel = RingModel.TestCase
TestRingModel.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
