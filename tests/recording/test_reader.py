"""Reading a recording: what each item says, damage in its place, files that are missing or packed, and where it begins."""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from pathlib import Path
from zlib import crc32

import pytest

from eventsh.errors import RecordingError
from eventsh.protocol.frame import HEADER
from eventsh.recording import reader as reader_module
from eventsh.recording import segments
from eventsh.recording.format import FILE_HEADER_BYTES, RECORD_BYTES, RECORD_REST, RecordKind
from eventsh.recording.frames import Frame
from eventsh.recording.reader import Damage, Note, Reader, Start
from eventsh.recording.segments import zstandard
from eventsh.recording.writer import Writer
from tests.recording.sample import EPOCH, SECOND, damages, datas, events, frame, items, notes, small_file, write


def raw_record(kind, payload):
    rest = RECORD_REST.pack(len(payload), kind, 0, -1)
    return crc32(rest + payload).to_bytes(4, "little") + rest + payload


def segmented(path, counts=(2, 2, 2), *, epoch=5, finish=True, **options):
    """Files with so many events each, of one frame an event."""
    writer = Writer(str(path), fsync="never", **options)
    writer.start({"epoch": epoch})
    seq = 0
    for number, count in enumerate(counts):
        if number:
            writer.rotate()
        for _ in range(count):
            seq += 1
            writer.write([(frame(seq, seq), -1)])
    if finish:
        writer.finish()
    writer.close()
    return [str(path.with_name(f"a.{number:04}.evlog")) for number in range(len(counts) - 1)] + [str(path)]


def pack(path):
    packed = zstandard().ZstdCompressor(write_checksum=True).compress(Path(path).read_bytes())
    Path(path + ".zst").write_bytes(packed)
    os.unlink(path)


# --- items ---


def test_the_records_between_frames_say_how_many_events_came_before_and_when(tmp_path):
    path = tmp_path / "a.evlog"
    path.write_bytes(small_file())
    found = [item for item in items(path) if isinstance(item, Note)]
    assert [(note.kind, note.events, note.time_ns - EPOCH) for note in found if note.time_ns] == [
        (RecordKind.MARKER, 4, 4 * SECOND),
        (RecordKind.HOLE, 6, 5 * SECOND),
        (RecordKind.END, 27, 10 * SECOND),
    ]
    assert [(note.kind, note.events, note.time_ns) for note in found if not note.time_ns] == [(RecordKind.START, 0, 0)]
    frames = [item for item in items(path) if isinstance(item, Frame)]
    assert [(each.first, each.worker, each.epoch) for each in frames] == [
        (1, -1, 5), (4, 3, 5), (5, -1, 5), (7, -1, 5), (8, -1, 5),
    ]  # fmt: skip


def test_frames_before_any_start_are_of_epoch_0_and_any_time(tmp_path):
    path = tmp_path / "a.evlog"
    writer = Writer(str(path), fsync="never")
    writer.write([(frame(1, "x", time_ns=0), -1)])
    writer.add(RecordKind.MARKER, {"name": "m"})
    writer.close()
    found = items(path)
    assert [item.epoch for item in found if isinstance(item, Frame)] == [0]
    assert [(item.events, item.time_ns) for item in found if isinstance(item, Note)] == [(1, 0)]


def test_a_frame_with_flags_of_a_later_version_is_a_hole_and_counts(tmp_path):
    path = tmp_path / "a.evlog"
    write(path, [frame(1, "a"), frame(2, "b", "c", flags=64), frame(4, "d")])
    (hole,) = [item for item in items(path) if isinstance(item, Note) and item.kind is RecordKind.HOLE]
    assert (hole.events, hole.time_ns) == (3, EPOCH + 2 * SECOND)
    assert (hole.facts["missed"], hole.facts["ended_ns"], hole.facts["unreadable"]) == (2, EPOCH + 2 * SECOND, True)
    assert [item.first for item in items(path) if isinstance(item, Frame)] == [1, 4]


def test_the_time_never_goes_down(tmp_path):
    path = tmp_path / "a.evlog"
    writer = Writer(str(path), fsync="never", checkpoint_bytes=100)
    writer.start({"epoch": 5})
    for seq, seconds in ((1, 5), (2, 3), (3, 6)):
        writer.write([(frame(seq, seq, time_ns=EPOCH + seconds), -1)])
        writer.add(RecordKind.MARKER, {"name": str(seq)})
    writer.close()
    assert [item.time_ns for item in items(path) if isinstance(item, Note)] == [0, EPOCH + 5, EPOCH + 5, EPOCH + 6]


def test_an_iteration_begins_anew_each_time(tmp_path):
    path = tmp_path / "a.evlog"
    segmented(path)
    reader = Reader(str(path))
    assert [list(events(reader)) for _ in range(2)] == [list(events(items(path)))] * 2
    assert reader.size_bytes == sum(each.stat().st_size for each in tmp_path.iterdir())


def test_the_header_is_that_of_the_first_file(tmp_path):
    path = tmp_path / "a.evlog"
    first, second, third = segmented(path)
    assert [Reader(str(path)).header().segment, Reader(third, one_file=True).header().segment] == [0, 2]
    assert Reader(second, one_file=True).header().events == 2
    with open(first, "r+b") as file:
        file.write(b"x")
    with pytest.raises(RecordingError) as caught:
        Reader(str(path)).header()
    assert str(caught.value) == f"{first}: it is no recording, or its first bytes are damaged"


# --- damage ---


@pytest.mark.parametrize(
    ("content", "reason", "is_cut"),
    [
        (b"", "it is empty", True),
        (small_file()[:20], "it is cut off within its header", True),
        (b"x" * 50, "it is no recording, or its first bytes are damaged", False),
    ],
)
def test_a_file_without_a_header_is_damage_at_its_start(tmp_path, content, reason, is_cut):
    path = tmp_path / "a.evlog"
    path.write_bytes(content)
    assert items(path) == [Damage(str(path), 0, reason, is_cut, len(content))]


def test_damage_says_where_and_how_much_is_behind_it(tmp_path):
    path = tmp_path / "a.evlog"
    whole = small_file()
    bad = bytearray(whole)
    bad[-1] ^= 1
    path.write_bytes(bad)
    (damage,) = damages(items(path))
    place = whole.rindex(b'{"events"') - RECORD_BYTES
    assert damage == Damage(
        str(path), place, f"damaged at byte {place}: the record's checksum is wrong", False, len(whole) - place
    )
    path.write_bytes(whole[:-1])
    (damage,) = damages(items(path))
    assert damage == Damage(
        str(path), place, f"cut off at byte {place}: the last record is not whole", True, len(whole) - 1 - place
    )


@pytest.mark.parametrize(
    ("kind", "payload", "reason"),
    [
        (RecordKind.START, b"{}", "damaged: the start at byte {} names no epoch"),
        (RecordKind.MARKER, b"[]", "damaged: the record at byte {} is no object"),
        (RecordKind.CHECKPOINT, b"x", "damaged: the checkpoint at byte {} has 1 bytes"),
    ],
)
def test_a_whole_record_that_says_nothing_sensible_ends_its_file(tmp_path, kind, payload, reason):
    first, second = segmented(tmp_path / "a.evlog", (1, 1))
    data = Path(first).read_bytes()
    record = raw_record(kind, payload)
    with open(first, "ab") as file:
        file.write(record + raw_record(RecordKind.EVENTS, frame(9, "behind")))
    found = items(tmp_path / "a.evlog")
    (damage,) = damages(found)
    size = os.path.getsize(first)
    assert damage == Damage(first, len(data), reason.format(len(data)), False, size - len(data))
    # The next file follows.
    assert datas(found) == [1, 2]
    assert second == str(tmp_path / "a.evlog")


def test_a_missing_file_is_damage_before_the_next_one_and_costs_no_numbers(tmp_path):
    path = tmp_path / "a.evlog"
    first, second, third, last = segmented(path, (2, 2, 2, 2))
    os.unlink(second)
    found = items(path)
    assert damages(found) == [Damage(third, 0, "segment 1 is missing before this one", False, None)]
    assert [item.first for item in found if isinstance(item, Frame)] == [1, 2, 5, 6, 7, 8]
    # The first ones may be gone: that is no damage.
    os.unlink(first)
    found = items(path)
    assert not damages(found)
    assert [item.first for item in found if isinstance(item, Frame)] == [5, 6, 7, 8]
    assert damages(items(tmp_path / last, one_file=True)) == []


def test_a_file_of_several_without_a_header_leaves_the_others(tmp_path):
    path = tmp_path / "a.evlog"
    _, second, third = segmented(path)
    with open(second, "r+b") as file:
        file.write(b"x")
    found = items(path)
    assert [(each.path, each.offset) for each in damages(found)] == [(second, 0), (third, 0)]
    assert datas(found) == [1, 2, 5, 6]


def test_a_damaged_compressed_file_says_so_without_a_size(tmp_path):
    path = tmp_path / "a.evlog"
    first, _ = segmented(path, (300, 1))
    pack(first)
    data = bytearray(Path(first + ".zst").read_bytes())
    data[len(data) // 2] ^= 0xFF
    Path(first + ".zst").write_bytes(data)
    (damage,) = damages(items(path))
    assert (damage.path, damage.is_cut, damage.lost_bytes) == (first + ".zst", False, None)
    assert "what is compressed is damaged: " in damage.reason
    Path(first + ".zst").write_bytes(b"x" * 100)
    damage, *_ = damages(items(path))
    assert (damage.path, damage.offset) == (first + ".zst", 0)


def test_damage_inside_of_a_compressed_file_has_a_place_and_no_size(tmp_path):
    path = tmp_path / "a.evlog"
    first, _ = segmented(path, (1, 1))
    size = os.path.getsize(first)
    with open(first, "ab") as file:
        file.write(raw_record(RecordKind.MARKER, b"[]"))
    pack(first)
    (damage,) = damages(items(path))
    assert (damage.path, damage.offset, damage.lost_bytes) == (first + ".zst", size, None)


def test_a_disk_that_can_not_be_read_is_damage_and_a_file_that_can_not_be_opened_an_error(tmp_path, monkeypatch):
    path = tmp_path / "a.evlog"
    segmented(path, (1,))

    class Broken:
        def __init__(self, file, allowed):
            self._file, self._allowed = file, allowed

        def read(self, count):
            self._allowed -= 1
            if self._allowed < 0:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return self._file.read(count)

    allowed = 1
    real = segments.open_file

    @contextmanager
    def open_broken(path):
        with real(path) as file:
            yield Broken(file, allowed)

    monkeypatch.setattr(reader_module, "open_file", open_broken)
    reason = f"can't read {path}: Input/output error"
    assert items(path) == [Damage(str(path), FILE_HEADER_BYTES, reason, False, None)]
    allowed = 0
    size = path.stat().st_size
    assert items(path) == [Damage(str(path), 0, reason, False, size)]

    def refuse(path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(reader_module, "open_file", refuse)
    with pytest.raises(RecordingError, match=r"can't read .*a\.evlog: Permission denied"):
        items(path)


def test_an_error_that_is_not_of_the_disk_is_not_hidden(tmp_path, monkeypatch):
    path = tmp_path / "a.evlog"
    segmented(path, (1,))

    class Broken:
        def read(self, count):
            raise ZeroDivisionError

    @contextmanager
    def open_broken(path):
        yield Broken()

    monkeypatch.setattr(reader_module, "open_file", open_broken)
    with pytest.raises(ZeroDivisionError):
        items(path)


# --- files ---


def test_without_a_file_there_is_an_error_that_names_it(tmp_path):
    for one_file in (False, True):
        with pytest.raises(RecordingError, match=r"there is no file '.*a\.evlog'"):
            Reader(str(tmp_path / "a.evlog"), one_file=one_file)


def test_one_file_of_several_is_read_alone(tmp_path):
    path = tmp_path / "a.evlog"
    first, second, third = segmented(path)
    for name, expected in ((first, [1, 2]), (second, [3, 4]), (third, [5, 6])):
        found = items(tmp_path / os.path.basename(name), one_file=True)
        assert datas(found) == expected
        assert [item.first for item in found if isinstance(item, Frame)] == expected
        assert not damages(found)


def test_a_file_is_read_by_the_name_that_it_has_when_it_is_opened(tmp_path):
    path = tmp_path / "a.evlog"
    first, second, _ = segmented(path)
    alone = Reader(second, one_file=True)
    reader = Reader(str(path))
    pack(first)
    pack(second)
    assert datas(alone) == [3, 4]
    assert datas(reader) == [1, 2, 3, 4, 5, 6]
    assert reader.paths == [first + ".zst", second + ".zst", str(path)]
    assert reader.size_bytes == sum(os.path.getsize(each) for each in reader.paths)
    # One whose name is gone for good.
    os.unlink(second + ".zst")
    with pytest.raises(RecordingError, match=r"can't read .*a\.0001\.evlog\.zst: No such file"):
        list(reader)
    assert reader.size_bytes == sum(os.path.getsize(each) for each in (first + ".zst", str(path)))


def test_a_packed_file_is_found_by_its_plain_name(tmp_path):
    path = tmp_path / "a.evlog"
    first, _ = segmented(path, (2, 1))
    pack(first)
    assert datas(Reader(first, one_file=True)) == [1, 2]


def test_files_that_were_begun_meanwhile_are_read_too(tmp_path):
    path = tmp_path / "a.evlog"
    writer = Writer(str(path), fsync="never")
    writer.start({"epoch": 5})
    writer.write([(frame(1, 1), -1)])
    readers = [Reader(str(path)), Reader(str(path), one_file=True)]
    for seq in (2, 3):
        writer.rotate()
        writer.write([(frame(seq, seq), -1)])
    assert [datas(reader) for reader in readers] == [[1, 2, 3], [3]]
    assert not damages(readers[0])
    assert [len(reader.paths) for reader in readers] == [3, 1]
    writer.close()


def test_a_last_file_that_has_been_renamed_is_found(tmp_path):
    path = tmp_path / "a.evlog"
    segmented(path, (2,))
    readers = [Reader(str(path)), Reader(str(path))]
    path.rename(tmp_path / "a.0000.evlog")
    # Between the two steps of a rotation, and after it.
    assert datas(readers[0]) == [1, 2]
    segmented(path, (1,))
    assert datas(readers[1]) == [1, 2, 1]


# --- a start in the middle ---


@pytest.mark.parametrize("packed", [(), (0,), (1,), (0, 1), (0, 1, 2)])
@pytest.mark.parametrize("wanted", range(0, 42, 3))
def test_a_reader_begins_near_the_place_and_never_behind_it(tmp_path, packed, wanted):
    path = tmp_path / "a.evlog"
    files = segmented(path, (10, 10, 10, 10), checkpoint_bytes=300)
    for number in packed:
        pack(files[number])
    reader = Reader(str(path), start=Start(lambda here: here.seq < wanted))
    found = list(reader)
    assert not damages(found)
    seqs = [HEADER.unpack_from(item.data)[7] for item in found if isinstance(item, Frame)]
    assert seqs == list(range(seqs[0], 41))
    assert seqs[0] <= max(wanted, 1)
    # At most a distance of checkpoints before it, or the start of the file that the event before it is in.
    in_file = max(wanted - 2, 0) // 10
    if in_file not in packed and 0 < wanted <= 40:
        assert seqs[0] > wanted - 6 or seqs[0] == 10 * in_file + 1
    else:
        assert seqs[0] >= 10 * min(in_file, 3) + 1
    assert [item.first for item in found if isinstance(item, Frame)] == seqs
    assert {item.epoch for item in found if isinstance(item, Frame)} == {5}


def test_a_start_hands_the_state_of_the_checkpoint_on(tmp_path):
    path = tmp_path / "a.evlog"
    writer = Writer(str(path), fsync="never", checkpoint_bytes=200)
    writer.start({"epoch": 5})
    for seq in range(1, 11):
        writer.write([(frame(seq, seq), -1)])
    writer.add(RecordKind.MARKER, {"name": "x"})
    writer.close()
    found = items(path, start=Start(lambda here: here.seq < 9))
    assert len(list(events(found))) < 5
    (marker,) = [item for item in found if isinstance(item, Note) and item.kind is RecordKind.MARKER]
    assert (marker.events, marker.time_ns) == (10, EPOCH + 10 * SECOND)
    assert not notes(found, RecordKind.START)


@pytest.mark.parametrize("damaged", [0, 1])
def test_a_start_passes_a_file_whose_header_is_damaged(tmp_path, damaged):
    path = tmp_path / "a.evlog"
    files = segmented(path)
    with open(files[damaged], "r+b") as file:
        file.write(b"x")
    reader = Reader(str(path), start=Start(lambda here: here.seq < 6))
    # Without a checkpoint, the last file whose first event is before the place.
    assert datas(reader) == [5, 6]
    expected = {0: [3, 4, 5, 6], 1: [1, 2, 5, 6]}[damaged]
    assert datas(Reader(str(path), start=Start(lambda here: here.seq < 4))) == expected


def test_a_start_before_everything_reads_everything(tmp_path):
    path = tmp_path / "a.evlog"
    segmented(path, (3, 0, 3), checkpoint_bytes=100)
    for is_before in (lambda here: False, lambda here: here.seq < 1):
        assert datas(Reader(str(path), start=Start(is_before))) == [1, 2, 3, 4, 5, 6]
    assert datas(Reader(str(path), start=Start(lambda here: True))) == [6]
