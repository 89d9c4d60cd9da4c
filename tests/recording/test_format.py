"""Bytes in, records out: whole, cut at every byte, changed at every byte, by pieces."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventsh.errors import RecordingError
from eventsh.recording.format import (
    FILE_HEADER_BYTES,
    MAX_RECORD_BYTES,
    RECORD_BYTES,
    RECORD_REST,
    Record,
    RecordDecoder,
    RecordKind,
    decode_checkpoint,
    decode_file_header,
)
from eventsh.recording.frames import Frame
from tests.recording.sample import EPOCH, SECOND, damages, datas, frame, items, notes, small_file, write

WHOLE = small_file()


def decode(data: bytes) -> tuple[list[Record], RecordDecoder]:
    decoder = RecordDecoder()
    return decoder.receive_data(data[FILE_HEADER_BYTES:]), decoder


RECORDS = decode(WHOLE)[0]
ENDS = [record.offset + RECORD_BYTES + len(record.payload) for record in RECORDS]


def test_a_whole_file_gives_all_its_records_and_their_places():
    records, decoder = decode(WHOLE)
    assert decoder.error is None
    assert decoder.buffered_bytes == 0
    assert decoder.offset == len(WHOLE)
    kinds = {RecordKind(record.kind) for record in records}
    assert kinds == set(RecordKind)
    assert records[0].offset == FILE_HEADER_BYTES
    for record in records:
        if record.kind == RecordKind.CHECKPOINT:
            assert decode_checkpoint(record).offset == record.offset


def test_cut_at_every_byte_the_longest_row_of_whole_records_is_read(tmp_path):
    path = tmp_path / "cut.evlog"
    for size in range(len(WHOLE)):
        path.write_bytes(WHOLE[:size])
        found = items(path, one_file=True)
        whole = sum(end <= size for end in ENDS)
        if size < FILE_HEADER_BYTES:
            assert [each.is_cut for each in damages(found)] == [True]
            continue
        records, decoder = decode(WHOLE[:size])
        assert records == RECORDS[:whole]
        assert decoder.error is None
        is_cut = size not in (FILE_HEADER_BYTES, *ENDS)
        assert bool(decoder.buffered_bytes) == is_cut
        assert [each.is_cut for each in damages(found)] == [True] * is_cut
        # What ends in good order says so: a cut between two records is seen by that.
        assert not notes(found, RecordKind.END)


def test_every_byte_changed_is_noticed_and_nothing_is_invented(tmp_path):
    path = tmp_path / "changed.evlog"
    path.write_bytes(WHOLE)
    before = datas(items(path))
    for place in range(len(WHOLE)):
        for change in (0x01, 0xFF):
            data = bytearray(WHOLE)
            data[place] ^= change
            path.write_bytes(data)
            found = items(path, one_file=True)
            assert len(damages(found)) == 1, place
            if place < FILE_HEADER_BYTES:
                assert len(found) == 1
                continue
            damaged = next(number for number, end in enumerate(ENDS) if place < end)
            records, decoder = decode(bytes(data))
            assert records == RECORDS[:damaged]
            assert decoder.offset == RECORDS[damaged].offset
            read = datas(found)
            assert read == before[: len(read)]


def test_a_length_over_the_limit_is_refused_before_anything_is_waited_for():
    decoder = RecordDecoder()
    assert decoder.receive_data(bytes(4) + RECORD_REST.pack(MAX_RECORD_BYTES + 1, 1, 0, -1)) == []
    assert decoder.error is not None
    assert decoder.receive_data(WHOLE) == []


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, len(WHOLE)), max_size=20))
def test_it_does_not_matter_in_which_pieces_it_comes(cuts):
    decoder = RecordDecoder()
    places = [FILE_HEADER_BYTES, *sorted(max(cut, FILE_HEADER_BYTES) for cut in cuts), len(WHOLE)]
    records = [record for start, end in pairwise(places) for record in decoder.receive_data(WHOLE[start:end])]
    assert records == RECORDS


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400))
def test_noise_gives_no_record_and_no_other_error(noise):
    decoder = RecordDecoder()
    assert decoder.receive_data(noise) == []
    try:
        decode_file_header(noise)
    except RecordingError:
        return
    raise AssertionError("noise was taken for a header")


def test_a_record_of_a_later_kind_is_passed_over(tmp_path):
    from zlib import crc32

    rest = RECORD_REST.pack(3, 99, 0, -1)
    record = crc32(rest + b"new").to_bytes(4, "little") + rest + b"new"
    path = tmp_path / "later.evlog"
    path.write_bytes(WHOLE[: ENDS[0]] + record + WHOLE[ENDS[0] : ENDS[1]])
    found = items(path)
    assert not damages(found)
    assert datas(found) == [{"k": "v"}, [1, 2], None]


def test_a_frame_with_flags_of_a_later_version_is_a_hole_in_its_place(tmp_path):
    path = tmp_path / "later.evlog"
    write(path, [frame(1, "a"), frame(2, "b", "c", flags=64), frame(4, "d", flags=192), frame(5, "e")])
    found = items(path)
    assert not damages(found)
    assert [item.first for item in found if isinstance(item, Frame)] == [1, 5]
    assert [isinstance(item, Frame) for item in found] == [False, True, False, False, True, False]
    assert datas(found) == ["a", "e"]
    first, second = notes(found, RecordKind.HOLE)
    assert first == {
        "missed": 2, "first_seq": 2, "last_seq": 3, "epoch": 5, "began_ns": EPOCH + 2 * SECOND, "ended_ns": EPOCH + 2 * SECOND,
        "unreadable": True, "reason": "flag 64 (metadata) not known here: read it with a newer eventsh",
    }  # fmt: skip
    assert second["reason"].startswith("flag 64 (metadata) and flag 128 (flat-names) not known here")


def test_a_later_version_says_what_to_do(tmp_path):
    from zlib import crc32

    data = bytearray(WHOLE[:FILE_HEADER_BYTES])
    data[8] = 2
    data[-4:] = crc32(data[:-4]).to_bytes(4, "little")
    with pytest.raises(RecordingError, match="version 2"):
        decode_file_header(bytes(data))


def test_what_was_recorded_by_the_first_version_stays_readable():
    """The file is never to be made again: it is what users have."""
    sample = Path(__file__).parent / "version1.evlog"
    assert sample.read_bytes()[8:10] == b"\x01\x00"
    found = items(sample)
    assert not damages(found)
    assert datas(found) == [{"k": "v"}, [1, 2], None, "only one", "ä", 1.5, True, *range(20)]
    assert notes(found, RecordKind.MARKER)[0]["name"] == "here"
    assert notes(found, RecordKind.HOLE)[0]["missed"] == 2
