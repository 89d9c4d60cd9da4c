"""Names of a recording's files, and their compression."""

from __future__ import annotations

import os
import threading
import time

import pytest

from eventsh.errors import RecordingError
from eventsh.recording import segments
from eventsh.recording.segments import (
    ZSTD_SUFFIX,
    Compressor,
    finished_paths,
    open_file,
    segment_number,
    segment_path,
    segment_paths,
    zstandard,
)

DEADLINE_S = 30.0


def wait_until(condition, what):
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.005)


def touch(directory, *names):
    for name in names:
        (directory / name).write_bytes(b"")


def names(paths):
    return [os.path.basename(path) for path in paths]


def test_a_finished_file_has_its_number_before_the_extension():
    assert segment_path("/x/a.evlog", 0) == "/x/a.0000.evlog"
    assert segment_path("/x/a.b.evlog", 123_456) == "/x/a.b.123456.evlog"
    for path in ("/x/a.b.123456.evlog", "/x/a.b.123456.evlog.zst"):
        assert segment_number(path) == 123_456


def test_the_files_of_a_recording_are_those_of_its_name_in_order(tmp_path):
    path = str(tmp_path / "a.evlog")
    touch(tmp_path, "a.0010.evlog", "a.0009.evlog.zst", "a.10000.evlog", "a.evlog")
    touch(
        tmp_path, "a.009.evlog", "a.0001.other", "b.0001.evlog", "a.0001.evlog.zst.part", "xa.0002.evlog", "a.x.evlog"
    )
    expected = ["a.0009.evlog.zst", "a.0010.evlog", "a.10000.evlog"]
    assert names(segment_paths(path)) == [*expected, "a.evlog"]
    assert names(finished_paths(path)) == expected
    (tmp_path / "a.evlog").unlink()
    assert names(segment_paths(path)) == expected
    assert all(os.path.dirname(each) == str(tmp_path) for each in segment_paths(path))


def test_a_recording_without_any_file_is_its_own_path(tmp_path):
    for path in (tmp_path / "a.evlog", tmp_path / "nowhere" / "a.evlog"):
        assert segment_paths(str(path)) == [str(path)]
        assert finished_paths(str(path)) == []


def test_a_recording_is_found_in_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, "a.0000.evlog", "a.evlog")
    assert segment_paths("a.evlog") == ["a.0000.evlog", "a.evlog"]


def test_the_plain_file_counts_until_its_compression_has_ended(tmp_path):
    touch(tmp_path, "a.0000.evlog", "a.0000.evlog.zst", "a.evlog")
    assert names(segment_paths(str(tmp_path / "a.evlog"))) == ["a.0000.evlog", "a.evlog"]


def test_without_the_library_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "zstandard", None)
    with pytest.raises(RecordingError, match=r"pip install 'eventsh\[zstd\]'"):
        zstandard()


def test_a_compressed_file_reads_as_what_it_holds_over_several_frames(tmp_path):
    path = tmp_path / "a.zst"
    compress = zstandard().ZstdCompressor().compress
    path.write_bytes(compress(b"one") + compress(b"two"))
    with open_file(str(path)) as file:
        assert file.read(100) + file.read(100) == b"onetwo"


def test_a_compressed_file_may_not_ask_for_any_amount_of_memory(tmp_path):
    library = zstandard()
    for window_log, fits in ((23, True), (24, False)):
        parameters = library.ZstdCompressionParameters.from_level(1, window_log=window_log)
        stream = library.ZstdCompressor(compression_params=parameters).compressobj()
        path = tmp_path / f"{window_log}.zst"
        path.write_bytes(stream.compress(b"x" * 100) + stream.flush())
        with open_file(str(path)) as file:
            if fits:
                assert file.read(100) == b"x" * 100
            else:
                with pytest.raises(library.ZstdError):
                    file.read(100)


def test_compression_keeps_the_content_and_a_checksum_for_the_owner_alone(tmp_path):
    content = os.urandom(3_000_000)
    path = tmp_path / "a.0000.evlog"
    path.write_bytes(content)
    compressor = Compressor()
    compressor.add(str(path))
    packed = tmp_path / ("a.0000.evlog" + ZSTD_SUFFIX)
    wait_until(lambda: not path.exists(), "it is compressed")
    compressor.close()
    assert compressor.error is None
    assert names([str(each) for each in tmp_path.iterdir()]) == [packed.name]
    assert packed.stat().st_mode & 0o777 == 0o600
    assert zstandard().get_frame_parameters(packed.read_bytes()).has_checksum
    pieces = []
    with open_file(str(packed)) as file:
        while piece := file.read(1 << 20):
            pieces.append(piece)
    assert b"".join(pieces) == content


def test_a_compressed_file_is_on_disk_before_it_replaces_the_plain_one(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace", "unlink"):
        real = getattr(os, name)

        def call(*args, name=name, real=real):
            calls.append(name)
            return real(*args)

        monkeypatch.setattr(os, name, call)
    path = tmp_path / "a.0000.evlog"
    path.write_bytes(b"x" * 100)
    compressor = Compressor()
    compressor.add(str(path))
    wait_until(lambda: not path.exists(), "it is compressed")
    compressor.close()
    assert calls[:3] == ["fsync", "replace", "unlink"]


class Noted(Compressor):
    """Notes the files that it is to compress."""

    def __init__(self) -> None:
        self.noted: list[str] = []
        super().__init__()

    def _compress(self, path: str) -> None:
        self.noted.append(path)


def test_files_are_compressed_in_their_order():
    compressor = Noted()
    for number in range(20):
        compressor.add(str(number))
    wait_until(lambda: len(compressor.noted) == 20, "all are compressed")
    compressor.close()
    assert compressor.noted == [str(number) for number in range(20)]


def test_an_error_is_forgotten_once_a_file_is_compressed(tmp_path):
    compressor = Compressor()
    missing, path = tmp_path / "gone.evlog", tmp_path / "a.evlog"
    compressor.add(str(missing))
    wait_until(lambda: compressor.error is not None, "it fails")
    assert compressor.error == f"{missing} is not compressed: No such file or directory"
    assert not list(tmp_path.iterdir())
    path.write_bytes(b"x")
    compressor.add(str(path))
    wait_until(lambda: compressor.error is None, "it works again")
    compressor.close()


def test_an_unfinished_compression_is_given_up_when_closed_and_taken_up_later(tmp_path, monkeypatch):
    path = tmp_path / "a.0000.evlog"
    path.write_bytes(b"x" * 100)
    reached, go_on = threading.Event(), threading.Event()
    library = zstandard()

    class Slow:
        def __init__(self, **options: object) -> None:
            reached.set()
            assert go_on.wait(DEADLINE_S)
            self._real = library.ZstdCompressor(**options)

        def stream_writer(self, *args: object, **options: object) -> object:
            return self._real.stream_writer(*args, **options)

    compressor = Compressor()
    monkeypatch.setattr(compressor, "_library", type("Library", (), {"ZstdCompressor": Slow}))
    compressor.add(str(path))
    assert reached.wait(DEADLINE_S)
    closing = threading.Thread(target=compressor.close)
    closing.start()
    wait_until(lambda: compressor._closing, "it is being closed")
    go_on.set()
    closing.join(DEADLINE_S)
    assert not closing.is_alive()
    assert names([str(each) for each in tmp_path.iterdir()]) == [path.name]
    following = Compressor()
    following.take_up(str(tmp_path / "a.evlog"))
    wait_until(lambda: not path.exists(), "it is compressed")
    following.close()


def test_a_file_that_is_compressed_already_is_not_taken_up(tmp_path):
    touch(tmp_path, "a.0000.evlog", "a.0000.evlog.zst", "a.0001.evlog.zst", "a.0001.evlog.zst.part", "a.evlog")
    compressor = Noted()
    compressor.take_up(str(tmp_path / "a.evlog"))
    compressor.add("the last one")
    wait_until(lambda: "the last one" in compressor.noted, "all before it are done")
    compressor.close()
    assert compressor.noted == ["the last one"]
    left = sorted(names([str(each) for each in tmp_path.iterdir()]))
    assert left == ["a.0000.evlog", "a.0000.evlog.zst", "a.0001.evlog.zst", "a.evlog"]


def test_nothing_waits_for_a_compressor_that_is_closed(tmp_path):
    compressor = Compressor()
    thread = compressor._thread
    compressor.close()
    assert not thread.is_alive()
    assert (thread.name, thread.daemon) == ("eventsh-compress", True)
    assert segments.ZSTD_SUFFIX == ".zst"
