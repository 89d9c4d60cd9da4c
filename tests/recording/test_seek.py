"""Checkpoints as they are searched for: the first one after a place, the last one before it, the last that is early enough."""

from __future__ import annotations

from functools import partial

import pytest

from eventsh.recording.format import (
    CHECKPOINT_BYTES,
    FILE_HEADER_BYTES,
    RECORD_BYTES,
    SYNC,
    Checkpoint,
    FileHeader,
    RecordDecoder,
    RecordEncoder,
    RecordKind,
    decode_checkpoint,
    encode_file_header,
)
from eventsh.recording.seek import _PIECE_BYTES, find_checkpoint, first_checkpoint, last_checkpoint
from tests.recording.sample import frame

RECORD = RECORD_BYTES + 64


def file_of(count: int, *, checkpoint_bytes: int = 700, data: str = "x" * 100) -> tuple[bytes, list[Checkpoint]]:
    encoder = RecordEncoder(FILE_HEADER_BYTES, checkpoint_bytes=checkpoint_bytes)
    encoder.add_facts(RecordKind.START, {"epoch": 5})
    for number in range(1, count + 1):
        encoder.add_events(frame(number, data))
    whole = encode_file_header(FileHeader(0, 1, 0)) + b"".join(encoder.take())
    records = RecordDecoder().receive_data(whole[FILE_HEADER_BYTES:])
    return whole, [decode_checkpoint(record) for record in records if record.kind == RecordKind.CHECKPOINT]


def reader(whole: bytes):
    return lambda offset, count: whole[offset : offset + count]


WHOLE, CHECKPOINTS = file_of(60)


def test_checkpoints_know_the_one_before_and_the_events_before():
    assert len(CHECKPOINTS) >= 10
    assert [each.previous for each in CHECKPOINTS] == [0, *(each.offset for each in CHECKPOINTS[:-1])]
    for each in CHECKPOINTS:
        assert (each.events, each.epoch) == (each.seq, 5)


def test_the_first_one_after_a_place_is_found_from_every_byte():
    read = reader(WHOLE)
    for start in range(FILE_HEADER_BYTES, len(WHOLE)):
        expected = next((each for each in CHECKPOINTS if each.offset >= start), None)
        assert first_checkpoint(read, start, len(WHOLE)) == expected, start


def test_the_first_one_has_to_begin_before_the_end():
    read = reader(WHOLE)
    for each in CHECKPOINTS:
        assert first_checkpoint(read, each.offset, each.offset + 1) == each
        assert first_checkpoint(read, each.offset - 5, each.offset) is None


def test_the_last_one_has_to_be_whole_before_the_end():
    read = reader(WHOLE)
    for end in range(len(WHOLE) + 1):
        expected = next((each for each in reversed(CHECKPOINTS) if each.offset + RECORD <= end), None)
        assert last_checkpoint(read, end) == expected, end


def test_a_sync_that_straddles_two_pieces_is_found():
    for shift in range(-len(SYNC) - 2, 3):
        encoder = RecordEncoder(FILE_HEADER_BYTES)
        # The search starts behind a record's head, and reads a piece and an overlap.
        wanted = FILE_HEADER_BYTES + RECORD_BYTES + _PIECE_BYTES + shift
        encoder.add_events(frame(1, ""))
        frame_bytes = wanted - encoder.offset - 2 * RECORD_BYTES - len(frame(2, ""))
        encoder.add_events(frame(2, "x" * frame_bytes))
        place = encoder.offset
        encoder.add_checkpoint()
        encoder.add_events(frame(3, ""))
        whole = encode_file_header(FileHeader(0, 1, 0)) + b"".join(encoder.take())
        found = first_checkpoint(reader(whole), FILE_HEADER_BYTES, len(whole))
        assert found is not None, shift
        assert found.offset == place


def test_a_last_checkpoint_far_before_the_end_is_found():
    for shift in range(-len(SYNC) - 2, 3):
        encoder = RecordEncoder(FILE_HEADER_BYTES, checkpoint_bytes=1 << 30)
        encoder.add_events(frame(1, "x" * 3 * CHECKPOINT_BYTES))
        place = encoder.offset
        encoder.add_checkpoint()
        behind = 2 * CHECKPOINT_BYTES - RECORD_BYTES - RECORD - len(frame(2, "")) + shift
        encoder.add_events(frame(2, "x" * behind))
        whole = encode_file_header(FileHeader(0, 1, 0)) + b"".join(encoder.take())
        found = last_checkpoint(reader(whole), len(whole))
        assert found is not None, shift
        assert found.offset == place


def test_a_sync_that_is_no_checkpoint_hides_none_behind_or_before_it():
    encoder = RecordEncoder(FILE_HEADER_BYTES, checkpoint_bytes=1 << 30)
    encoder.add_events(frame(1, "a"))
    places = []
    for _ in range(2):
        hostile = bytearray(frame(2, "x" * 100))
        hostile[-40 : -40 + len(SYNC)] = SYNC
        hostile[-20 : -20 + len(SYNC)] = SYNC
        encoder.add_events(bytes(hostile))
        places.append(encoder.offset)
        encoder.add_checkpoint()
        encoder.add_events(bytes(hostile))
    whole = encode_file_header(FileHeader(0, 1, 0)) + b"".join(encoder.take())
    read = reader(whole)
    first = first_checkpoint(read, FILE_HEADER_BYTES, len(whole))
    last = last_checkpoint(read, len(whole))
    assert first is not None
    assert last is not None
    assert [first.offset, last.offset] == places
    # A damaged one is none.
    damaged = bytearray(whole)
    damaged[places[0] + RECORD - 1] ^= 1
    found = first_checkpoint(reader(bytes(damaged)), FILE_HEADER_BYTES, len(whole))
    assert found is not None
    assert found.offset == places[1]


def test_a_sync_at_the_start_of_a_file_is_none():
    whole = SYNC * 10
    assert first_checkpoint(reader(whole), 0, len(whole)) is None
    assert last_checkpoint(reader(whole), len(whole)) is None


def is_before(wanted: int, here: Checkpoint) -> bool:
    return here.seq < wanted


@pytest.mark.parametrize("checkpoint_bytes", [400, 5000])
def test_the_last_one_that_is_early_enough_is_found_for_every_place(checkpoint_bytes):
    whole, checkpoints = file_of(200, checkpoint_bytes=checkpoint_bytes)
    for wanted in range(202):
        expected = next((each for each in reversed(checkpoints) if each.seq < wanted), None)
        found = find_checkpoint(reader(whole), len(whole), partial(is_before, wanted))
        assert found == expected, wanted


def test_a_long_file_is_halved_and_not_read():
    whole, checkpoints = file_of(3000, checkpoint_bytes=CHECKPOINT_BYTES, data="x" * 4000)
    taken = 0

    def read(offset: int, count: int) -> bytes:
        nonlocal taken
        data = whole[offset : offset + count]
        taken += len(data)
        return data

    wanted = checkpoints[len(checkpoints) // 3]
    found = find_checkpoint(read, len(whole), lambda here: here.seq <= wanted.seq)
    assert found == wanted
    # log2 of 46 distances is below 6; each step reads one at most, and pieces of a quarter.
    assert taken < 8 * 1.5 * CHECKPOINT_BYTES
    assert find_checkpoint(read, len(whole), lambda here: False) is None
    assert find_checkpoint(read, FILE_HEADER_BYTES, lambda here: True) is None
