"""`eventsh log`, as people run it. No broker is needed."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import orjson
import pytest

from eventsh.protocol.frame import HEADER_BYTES, Flag
from eventsh.recording.format import FILE_HEADER_BYTES, FileHeader, RecordEncoder, RecordKind, encode_file_header
from eventsh.recording.writer import Limits, Writer
from tests.cli.pool import COMMAND, DEADLINE_S, Done, environment, run
from tests.recording.sample import EPOCH, SECOND, damages, datas, events, frame, items, notes, small_file, write

NASTY = "\x1b[2J\u202e\x07"


def log(*arguments: object, stdin: bytes = b"") -> Done:
    done = subprocess.run(
        [*COMMAND, "log", *map(str, arguments)],
        input=stdin,
        capture_output=True,
        env=environment("unix:/nowhere/e.sock"),
        timeout=DEADLINE_S,
        check=False,
    )
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.evlog"
    path.write_bytes(small_file())
    return path


def test_show_is_a_line_for_each_event_and_nothing_of_it_reaches_the_terminal_raw(tmp_path):
    path = tmp_path / "a.evlog"
    writer = Writer(str(path), fsync="never")
    writer.start({"epoch": 5, NASTY: NASTY})
    writer.add(RecordKind.MARKER, {"name": NASTY, "time_ns": 1})
    writer.write([(frame(1, NASTY, {NASTY: 1}, source="s" + NASTY, event="e" + NASTY), -1)])
    writer.write([(frame(3, 1, key="k" + NASTY), 2)])
    writer.finish()
    writer.close()
    for action in (["show", path], ["show", path, "--json"], ["stats", path], ["verify", path], ["diff", path, path]):
        done = log(*action)
        assert (done.status, done.err) == (0, "")
        assert not set(NASTY[0] + NASTY[-2:]) & set(done.out)
    lines = log("show", path).out.splitlines()
    assert len(lines) == 6
    assert lines[4].endswith(" worker=2")
    assert len(log("show", path, "--count", 2).out.splitlines()) == 2
    assert len(log("show", path, "--source", "app").out.splitlines()) == 4


def test_stats_counts_and_draws(small):
    facts = json.loads(log("stats", small, "--json").out)
    assert (facts["events"], facts["unique"], facts["frames"]) == (27, 1, 5)
    assert facts["by_event"][0][:3] == ["app", "e", 26]
    assert facts["holes"][0]["missed"] == 2
    assert facts["markers"][0]["name"] == "here"
    assert facts["seq_gaps"] == 2
    assert sum(facts["rates"]) == 27
    text = log("stats", small).out
    assert "27 (1 unique, 0 replayed) in 5 batches" in text
    assert "1 holes with 2 events; 2 numbers that were not seen" in text
    assert "|" in text


def test_verify_tells_whole_damaged_and_not_closed(small, tmp_path):
    done = log("verify", small)
    assert (done.status, done.out) == (0, f"{small}: whole, 27 events, 1 holes\n")
    small.write_bytes(small_file(closed=False))
    assert "not closed" in log("verify", small).out
    data = bytearray(small_file())
    data[len(data) // 2] ^= 1
    small.write_bytes(data)
    done = log("verify", small, "--json")
    verdict = json.loads(done.out)
    assert (done.status, verdict["is_whole"], len(verdict["damages"])) == (1, False, 1)
    assert log("verify", small, small).status == 1


def test_repair_gives_all_that_can_be_read_and_says_what_is_lost(tmp_path):
    path, mended = tmp_path / "a.evlog", tmp_path / "mended.evlog"
    write(path, [frame(number, number) for number in range(1, 101)], checkpoint_bytes=500)
    done = log("repair", path, mended)
    assert (done.status, "nothing was lost" in done.out) == (0, True)
    assert datas(items(mended)) == list(range(1, 101))
    mended.unlink()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data[:-5])
    done = log("repair", path, mended, "--json")
    assert done.status == 3
    found = items(mended)
    assert not damages(found)
    left = datas(found)
    (hole,) = notes(found, RecordKind.HOLE)
    assert 80 < len(left) < 100
    assert hole["missed"] == 100 - len(left)
    assert left == sorted(left)
    assert json.loads(done.out)["lost_bytes"] > 0
    assert log("verify", mended).status == 0
    # What is there is never written over.
    assert log("repair", path, mended).status == 1


def test_repair_of_a_file_whose_header_is_damaged_finds_what_is_behind(tmp_path):
    path, mended = tmp_path / "a.evlog", tmp_path / "mended.evlog"
    write(path, [frame(number, number) for number in range(1, 101)], checkpoint_bytes=500)
    data = bytearray(path.read_bytes())
    data[0] ^= 0xFF
    path.write_bytes(data)
    assert log("repair", path, mended).status == 3
    assert datas(items(mended)) == list(range(1, 101))


def test_repair_counts_what_is_lost_by_each_damage_and_not_what_earlier_files_hold(tmp_path):
    path, mended = tmp_path / "a.evlog", tmp_path / "mended.evlog"
    writer = Writer(str(path), fsync="never", checkpoint_bytes=500)
    writer.start({"epoch": 5})
    for begin in (1, 101):
        writer.write((frame(number, number), -1) for number in range(begin, begin + 100))
        if begin == 1:
            writer.rotate()
    writer.close()
    whole = path.read_bytes()
    for is_header_damaged in (False, True):
        data = bytearray(whole)
        for place in (len(data) // 3, len(data) * 2 // 3, *([0] if is_header_damaged else [])):
            data[place] ^= 0xFF
        path.write_bytes(data)
        assert log("repair", path, mended).status == 3
        found = items(mended)
        holes = notes(found, RecordKind.HOLE)
        assert len(holes) == 2
        assert all(hole["missed"] > 0 for hole in holes)
        assert len(datas(found)) + sum(hole["missed"] for hole in holes) == 100
        mended.unlink()


def test_text_and_recordings_turn_into_each_other_without_loss(small, tmp_path):
    text = log("cat", small, "--json").out
    copy = tmp_path / "copy.evlog"
    assert log("import", "-", copy, stdin=text.encode()).status == 0
    assert log("cat", copy).out == text
    assert copy.read_bytes()[36:] != b""
    assert list(events(items(copy))) == list(events(items(small)))
    assert log("diff", small, copy, "--strict").out == "no difference\n"
    lines = tmp_path / "lines.ndjson"
    assert log("export", small, lines).status == 0
    assert lines.read_text() == text
    assert lines.stat().st_mode & 0o777 == 0o600


def test_data_of_all_kinds_survives(tmp_path):
    values: list[Any] = [None, 0, -1, 2**63, 1.5, 1e300, "", "\u2028\x00ä😀", [], {}, {"k": [{"": None}]}, [[[[1]]]]]
    path, copy = tmp_path / "a.evlog", tmp_path / "copy.evlog"
    write(path, [frame(1, *values), frame(100, "u", key="ke\u0000y")])
    text = log("cat", path).out
    assert log("import", "-", copy, stdin=text.encode()).status == 0
    assert datas(items(copy)) == [*values, "u"]
    assert log("cat", copy).out == text


def test_what_was_sent_again_is_known_as_such_in_every_form(tmp_path):
    path, copy, part = (tmp_path / f"{name}.evlog" for name in "abc")
    again = frame(5, 1, 2, 3, number=1, flags=Flag.RESENT | Flag.REPLAYED)
    write(path, [frame(1, 1, 2, 3, number=1), again])
    assert log("import", "-", copy, stdin=log("cat", path).out.encode()).status == 0
    assert log("filter", path, part, "--where", "data > `1`").status == 0
    for found in (path, copy, part):
        assert {(event.resent, event.replayed) for event in events(items(found))} == {(False, False), (True, True)}


def hostile(path: Path, kind: RecordKind, facts: object) -> Path:
    """A recording whose checksums are right, and what they are of is not what it should be."""
    encoder = RecordEncoder(FILE_HEADER_BYTES)
    encoder._add(kind, orjson.dumps(facts))
    encoder.add_events(frame(1, 1))
    path.write_bytes(encode_file_header(FileHeader(0, 1, 0)) + b"".join(encoder.take()))
    return path


@pytest.mark.parametrize(
    ("kind", "facts"),
    [
        (RecordKind.START, {}),
        (RecordKind.START, {"epoch": "x"}),
        (RecordKind.START, []),
        (RecordKind.HOLE, {"missed": "many", "reason": [1]}),
        (RecordKind.HOLE, 5),
        (RecordKind.MARKER, {"name": {}}),
        (RecordKind.END, None),
    ],
)
def test_a_recording_that_lies_ends_in_no_traceback(tmp_path, kind, facts):
    path = hostile(tmp_path / "a.evlog", kind, facts)
    for number, arguments in enumerate((["show"], ["stats"], ["verify"], ["repair", "{}"])):
        done = log(arguments[0], path, *(each.format(tmp_path / f"new{number}") for each in arguments[1:]))
        assert done.status in (0, 1)
        assert "Traceback" not in done.err


def test_what_a_later_version_wrote_is_a_hole_that_every_command_tells_of(tmp_path):
    path, part = tmp_path / "later.evlog", tmp_path / "part.evlog"
    write(path, [frame(1, "a"), frame(2, "b", "c", flags=64), frame(4, "d")])
    reason = "flag 64 (metadata) not known here"
    for action in ("show", "stats"):
        done = log(action, path)
        assert (done.status, done.err, reason in done.out) == (0, "", True)
    assert log("verify", path).out.endswith("whole, 2 events, 1 holes\n")
    holes = [
        item for line in log("cat", path, "--json").out.splitlines() if (item := json.loads(line)).get("unreadable")
    ]
    assert [hole["missed"] for hole in holes] == [2]
    for made in (("filter", path, part), ("repair", path, tmp_path / "repaired.evlog")):
        assert log(*made).status == 0
        assert notes(items(made[2]), RecordKind.HOLE)[0]["missed"] == 2
        assert datas(items(made[2])) == ["a", "d"]
    # A repair keeps it as it was written, for a later version to read.
    assert frame(2, "b", "c", flags=64) in (tmp_path / "repaired.evlog").read_bytes()
    replayed = run("unix:/nowhere/e.sock", "replay", str(path), "--dry-run")
    assert "would post 2 events" in replayed.out
    assert replayed.err == f"eventsh: 2 events are not replayed: {reason}: read it with a newer eventsh\n"


def test_lines_written_by_hand_need_only_source_event_and_data(tmp_path):
    path = tmp_path / "a.evlog"
    lines = b'{"source":"a","event":"b","data":1}\n\n{"source":"a","event":"c","data":{"k":2},"unique":"key"}\n'
    assert log("import", "-", path, stdin=lines).status == 0
    found = list(events(items(path)))
    assert [(event.event, event.data, event.seq, event.unique) for event in found] == [
        ("b", 1, 1, None),
        ("c", {"k": 2}, 2, "key"),
    ]


def test_a_key_that_is_no_text_survives_in_every_form(tmp_path):
    key = b"name-\xff".decode(errors="surrogateescape")
    path, copy = tmp_path / "a.evlog", tmp_path / "copy.evlog"
    whole = frame(1, "u", key="name-x")
    coded = key.encode("utf-8", "surrogatepass")
    body = len(coded).to_bytes(2, "little") + coded + whole[whole.index(b"[[") :]
    write(
        path,
        [
            whole[:HEADER_BYTES].replace(
                len(whole[HEADER_BYTES:]).to_bytes(4, "little"), len(body).to_bytes(4, "little"), 1
            )
            + body
        ],
    )
    text = log("cat", path).out
    assert json.loads(text.splitlines()[1])["unique_hex"] == coded.hex()
    assert json.loads(log("show", path, "--json").out.splitlines()[1])["unique_hex"] == coded.hex()
    assert log("import", "-", copy, stdin=text.encode()).status == 0
    assert [event.unique for event in events(items(copy))] == [key]
    assert log("diff", path, copy).out == log("diff", path, copy, "--strict").out == "no difference\n"
    assert r"name-\udcff" in log("export", path, "-", "--csv").out


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ('{"source":"a","event":"b","unique_hex":"xy"}', "line 2: unique_hex must be the bytes of a key"),
        ('{"source":"a","event":"b","unique_hex":7}', "line 2: unique_hex must be the bytes of a key"),
        ("{", "line 2: not JSON"),
        ("[]", "line 2: not an object"),
        ("{}", "line 2: source must be a string"),
        ('{"source":"a","event":""}', "line 2: event must not be empty"),
        ('{"source":"a","event":"b","seq":-1}', "line 2: seq must be a whole number"),
        ('{"source":"a","event":"b","pid":4294967296}', "line 2: pid must be a whole number"),
        ('{"source":"a","event":"b","unique":""}', "line 2: unique must be a key"),
        ('{"source":"a","event":"b","worker":70000}', "line 2: worker must be"),
        ('{"record":"import os"}', "line 2: no record is called"),
        ('{"record":"start"}', "line 2: a start needs an epoch"),
        ('{"source":"a","event":"b","data":[18446744073709551616]}', "line 2: an integer beyond 64 bits"),
        (f'{{"source":"a","event":"b","data":{"[" * 201}{"]" * 201}}}', "is nested deeper than 200 levels"),
    ],
)
def test_a_line_that_is_no_event_is_named(tmp_path, line, text):
    done = log("import", "-", tmp_path / "a.evlog", stdin=b'{"source":"a","event":"b"}\n' + line.encode())
    assert done.status == 2
    assert text in done.err
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--source", "app"], 26),
        (["--event", "worker_*"], 1),
        (["--worker", "3"], 1),
        (["--pid", "4711"], 27),
        (["--pid", "1"], 0),
        (["--from", "seq:5", "--until", "seq:9"], 3),
        (["--until", "marker:here"], 4),
        (["--where", "data.k == 'v'"], 1),
        (["--where", "data > `10`"], 9),
        (["--where", "unique"], 1),
    ],
)
def test_filter_makes_a_recording_of_a_part(small, tmp_path, arguments, expected):
    path = tmp_path / "part.evlog"
    done = log("filter", small, path, *arguments)
    assert done.status == 0, done.err
    assert len(datas(items(path))) == expected
    assert set(map(repr, events(items(path)))) <= set(map(repr, events(items(small))))
    assert log("verify", path).status == 0


def test_merge_is_by_time_and_keeps_each_ones_order_and_epoch(tmp_path):
    paths = [tmp_path / "a.evlog", tmp_path / "b.evlog"]
    for number, path in enumerate(paths):
        times = range(1 + number, 20, 2)
        write(path, [frame(i, t, time_ns=EPOCH + t * SECOND) for i, t in enumerate(times, 1)], epoch=5 + number)
    merged = tmp_path / "m.evlog"
    assert log("merge", *paths, merged).status == 0
    found = list(events(items(merged)))
    assert [event.data for event in found] == list(range(1, 20))
    assert {event.epoch for event in found if event.data % 2} == {5}


def test_diff_finds_what_only_one_has(tmp_path):
    first, second = tmp_path / "a.evlog", tmp_path / "b.evlog"
    write(first, [frame(number, number) for number in range(1, 50)])
    write(second, [frame(number, number) for number in range(1, 50) if number not in (10, 11)] + [frame(99, "new")])
    done = log("diff", first, second)
    lines = done.out.splitlines()
    assert done.status == 1
    assert [line[0] for line in lines[:-1]] == ["-", "-", "+"]
    assert lines[-1] == "2 only in the first, 1 only in the second"
    assert log("diff", first, first).out == "no difference\n"


def test_what_is_damaged_is_never_alike_and_never_copied_with_status_0(tmp_path):
    path, broken, new = (tmp_path / f"{name}.evlog" for name in ("a", "broken", "new"))
    write(path, [frame(number, number) for number in range(1, 101)])
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    broken.write_bytes(data)
    done = log("diff", broken, broken)
    assert (done.status, done.out) == (1, "no difference in what can be read\n")
    assert "damaged at byte" in done.err
    for arguments in (["filter", broken, new], ["merge", path, broken, new]):
        done = log(*arguments)
        assert done.status == 1
        assert "damaged at byte" in done.err
        assert log("verify", new).status == 0
        new.unlink()


@pytest.mark.parametrize(
    ("arguments", "stdin"),
    [
        (["filter", "{small}", "{new}", "--where", "[["], b""),
        (["filter", "{small}", "{new}", "--where", "nope(data)"], b""),
        (["filter", "{small}", "{new}", "--from", "marker:x"], b""),
        (["export", "{small}", "{new}", "--where", "[["], b""),
        (["export", "nowhere.evlog", "{new}"], b""),
        (["merge", "{small}", "nowhere.evlog", "{new}"], b""),
        (["import", "-", "{new}"], b'{"source":"a","event":"b"}\n{'),
        (["repair", "{hostile}", "{new}"], b""),
    ],
)
def test_what_is_refused_leaves_nothing_behind(small, tmp_path, arguments, stdin):
    new = tmp_path / "new.evlog"
    facts = {"small": small, "new": new, "hostile": hostile(tmp_path / "h.evlog", RecordKind.START, {})}
    assert log(*(each.format(**facts) for each in arguments), stdin=stdin).status in (1, 2)
    assert not new.exists()
    # What was there before is not touched.
    new.write_bytes(b"mine")
    assert log(*(each.format(**facts) for each in arguments), stdin=stdin).status in (1, 2)
    assert new.read_bytes() == b"mine"


def test_a_path_that_is_no_text_is_told_as_json(small, tmp_path):
    path = tmp_path / b"b\xff.evlog".decode(errors="surrogateescape")
    path.write_bytes(small.read_bytes())
    for action in ("stats", "verify"):
        assert json.loads(log(action, path, "--json").out)["path"] == str(tmp_path / r"b\udcff.evlog")


def test_csv_is_safe_for_a_spreadsheet(tmp_path):
    path = tmp_path / "a.evlog"
    write(path, [frame(1, 'say "hi", you', source="=cmd()", event="@x")])
    lines = log("export", path, "-", "--csv").out.splitlines()
    assert lines[0] == "time_ns,epoch,seq,pid,source,event,unique,worker,data"
    assert lines[1].endswith(""",'=cmd(),'@x,,,"\"\"say \\\"\"hi\\\"\", you\"\"\"""")


def test_all_files_of_a_rotated_recording_are_one(tmp_path):
    path = tmp_path / "a.evlog"
    write(path, [frame(number, "x" * 300) for number in range(1, 41)], limits=Limits(max_bytes=4096))
    stats = json.loads(log("stats", path, "--json").out)
    assert (stats["events"], stats["seq_gaps"]) == (40, 0)
    assert stats["files"] > 2


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["show", "none.evlog"], 1, "there is no file 'none.evlog'"),
        (["show", __file__], 1, "it is no recording"),
        (["fly", "x"], 2, "log can't 'fly': it can show, stats"),
        (["merge", "x"], 2, "log merge takes 3 or more files, not 1"),
        (["show", "x", "y"], 2, "log show takes 1 file, not 2"),
        (["show", "{small}", "--where", "[["], 2, "--where: "),
        (["show", "{small}", "--where", "nope(data)"], 2, "--where: "),
        (["show", "{small}", "--from", "marker:x"], 2, "there is no marker 'x'; there is 'here'"),
        (["export", "{small}", "/nowhere/x"], 2, "can't write /nowhere/x"),
        (["import", "/nowhere/x", "y"], 2, "can't read /nowhere/x"),
        (["filter", "{small}", "{small}"], 1, "can't record to"),
        (["show", "{small}", "--from", "1e400"], 2, "'1e400' is no place in a recording"),
        (["show", "{small}", "--until", "1e305h"], 2, "'1e305h' is no place in a recording"),
        (["merge", "{small}", "{small}", "x", "--source", "a"], 2, "--source has no meaning for log merge"),
        (["verify", "{small}", "--from", "1s"], 2, "--from has no meaning for log verify"),
        (["show", "{small}", "--strict"], 2, "--strict has no meaning for log show"),
        (["stats", "{small}", "--count", "1"], 2, "--count has no meaning for log stats"),
        (["filter", "{small}", "x", "--csv"], 2, "--csv has no meaning for log filter"),
        (["export", "{small}", "x", "--json"], 2, "--json has no meaning for log export"),
    ],
)
def test_what_can_not_be_done_is_one_line(small, arguments, status, text):
    done = log(*(each.format(small=small) for each in arguments))
    assert done.status == status
    assert text in done.err
    assert done.err.count("\n") == 1


def test_a_pager_is_used_on_a_terminal(small, tmp_path, monkeypatch):
    import pty

    monkeypatch.setenv("PAGER", f"tee {tmp_path}/paged")
    primary, secondary = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "log", "show", str(small)],
        stdin=subprocess.DEVNULL,
        stdout=secondary,
        env=environment("unix:/nowhere/e.sock"),
    )
    os.close(secondary)
    try:
        assert process.wait(DEADLINE_S) == 0
    finally:
        os.close(primary)
    assert len((tmp_path / "paged").read_text().splitlines()) == 27 + 4
