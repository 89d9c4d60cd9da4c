from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventsh.errors import ProtocolError
from eventsh.protocol import frame as frame_module
from eventsh.protocol.frame import (
    BATCH_BYTES,
    BATCH_CONTAINERS,
    BATCH_EVENTS,
    FIRST_FLAGS,
    FLAGS_OFFSET,
    FRAME_KINDS,
    HEADER_BYTES,
    MAX_BODY_BYTES,
    MAX_PAYLOAD_BYTES,
    ORIGIN,
    ORIGIN_OFFSET,
    PRE_HELLO_BODY_BYTES,
    PROTOCOL_VERSION,
    STAMP,
    STAMP_OFFSET,
    Flag,
    FrameDecoder,
    Header,
    Kind,
    decode_header,
    encode_frame,
    read_key,
)

settings.register_profile("frames", deadline=None, derandomize=True, max_examples=150)
PROFILE = settings.get_profile("frames")

u16, u32, u64 = (st.integers(0, 2**bits - 1) for bits in (16, 32, 64))
frames = st.builds(
    encode_frame,
    st.sampled_from(list(Kind)),
    st.binary(max_size=80),
    flags=st.integers(0, 255),
    count=u16,
    pid=u32,
    origin=u32,
    origin_seq=u64,
    seq=u64,
    time_ns=u64,
)

STREAM = [
    encode_frame(Kind.HELLO, b'{"a":1}'),
    encode_frame(Kind.ACK, seq=5, origin_seq=4),
    encode_frame(Kind.EVENTS, b'[["s","e",[1,2]]]', count=2, pid=9, origin_seq=1, flags=Flag.RESENT),
    encode_frame(Kind.CONFIRM, origin_seq=2),
    encode_frame(Kind.EVENTS, b"x" * 200, count=1, origin_seq=3),
]
WHOLE = b"".join(STREAM)


def feed(decoder, *pieces):
    return [frame for piece in pieces for frame in decoder.receive_data(piece)]


def test_the_header_is_40_little_endian_bytes_in_the_order_of_the_design():
    frame = encode_frame(Kind.EVENTS, b"body", flags=6, count=3, pid=4, origin=5, origin_seq=6, seq=7, time_ns=8)
    assert frame == struct.pack("<IBBHIIQQQ", 4, 3, 6, 3, 4, 5, 6, 7, 8) + b"body"
    assert HEADER_BYTES == 40


@settings(PROFILE)
@given(
    body=st.binary(max_size=50),
    kind=st.sampled_from(list(Kind)),
    fields=st.fixed_dictionaries(
        {
            "flags": st.integers(0, 255),
            "count": u16,
            "pid": u32,
            "origin": u32,
            "origin_seq": u64,
            "seq": u64,
            "time_ns": u64,
        }
    ),
)
def test_a_header_reads_as_it_was_written(body, kind, fields):
    frame = encode_frame(kind, body, **fields)
    assert decode_header(frame) == Header(length=len(body), kind=kind, **fields)
    assert frame[HEADER_BYTES:] == body


def test_stamps_written_in_place_change_their_fields_alone():
    frame = encode_frame(Kind.EVENTS, b"body", flags=1, count=2, pid=3, origin=99, origin_seq=4, seq=98, time_ns=97)
    ORIGIN.pack_into(frame, ORIGIN_OFFSET, 5)
    STAMP.pack_into(frame, STAMP_OFFSET, 6, 7)
    assert decode_header(frame) == Header(4, Kind.EVENTS, 1, 2, 3, 5, 4, 6, 7)
    assert frame[HEADER_BYTES:] == b"body"


@pytest.mark.parametrize("convert", [bytes, bytearray, memoryview])
def test_a_stream_that_comes_whole_is_cut_into_its_frames(convert):
    decoder = FrameDecoder()
    assert decoder.receive_data(convert(WHOLE)) == STREAM
    assert decoder.error is None
    assert decoder.buffered_bytes == 0


def test_a_stream_cut_at_any_byte_gives_the_same_frames():
    for cut in range(len(WHOLE) + 1):
        decoder = FrameDecoder()
        assert feed(decoder, WHOLE[:cut], WHOLE[cut:]) == STREAM, cut
        assert decoder.buffered_bytes == 0


def test_a_frame_is_given_as_soon_as_its_last_byte_is_there_and_not_earlier():
    decoder = FrameDecoder()
    given_after = []
    for position in range(len(WHOLE)):
        if decoder.receive_data(WHOLE[position : position + 1]):
            given_after.append(position + 1)
    ends, end = [], 0
    for frame in STREAM:
        end += len(frame)
        ends.append(end)
    assert given_after == ends


@pytest.mark.parametrize("behind", [1, 4, 5, 39, 40, 100])
def test_bytes_behind_a_frame_wait_for_their_own(behind):
    decoder = FrameDecoder()
    assert decoder.receive_data(STREAM[0] + STREAM[4][:behind]) == [STREAM[0]]
    assert decoder.buffered_bytes == behind
    assert decoder.receive_data(STREAM[4][behind:]) == [STREAM[4]]


@settings(PROFILE)
@given(sent=st.lists(frames, max_size=8), data=st.data())
def test_frames_survive_any_cutting_and_joining(sent, data):
    whole = b"".join(sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=12)))
    decoder = FrameDecoder()
    pieces = [whole[start:end] for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    assert feed(decoder, *pieces) == sent
    assert decoder.error is None
    assert decoder.buffered_bytes == 0


def test_frames_are_the_receivers_own_to_write_into():
    data = bytearray(WHOLE)
    taken = FrameDecoder().receive_data(data)
    taken[2][HEADER_BYTES:] = b"changed"
    data.clear()
    assert taken[0] == STREAM[0]
    assert [type(frame) for frame in taken] == [bytearray] * len(STREAM)


def test_a_body_at_the_limit_is_taken_and_one_byte_more_is_refused():
    assert len(FrameDecoder(100).receive_data(encode_frame(Kind.EVENTS, b"x" * 100))) == 1
    decoder = FrameDecoder(100)
    assert decoder.receive_data(encode_frame(Kind.EVENTS, b"x" * 101)) == []
    assert isinstance(decoder.error, ProtocolError)
    assert "101" in str(decoder.error)
    assert "100" in str(decoder.error)


@pytest.mark.parametrize("length", [PRE_HELLO_BODY_BYTES + 1, 2**31, 2**32 - 1])
def test_a_length_over_the_limit_is_refused_before_its_body_comes(length):
    decoder = FrameDecoder()
    decoder.receive_data(struct.pack("<I", length))
    assert not decoder.error
    assert decoder.receive_data(bytes([Kind.EVENTS])) == []
    assert isinstance(decoder.error, ProtocolError)
    assert decoder.buffered_bytes == 0


@pytest.mark.parametrize("kind", [0, max(Kind) + 1, 255])
def test_an_unknown_kind_is_refused_with_its_number(kind):
    decoder = FrameDecoder()
    assert decoder.receive_data(encode_frame(kind, b"body")) == []
    assert str(kind) in str(decoder.error)


def test_good_frames_before_a_bad_one_are_given_and_then_nothing_more():
    for bad in (encode_frame(200), struct.pack("<IB", 2**32 - 1, 1)):
        for cut in range(len(WHOLE) + len(bad)):
            stream = WHOLE + bad + WHOLE
            decoder = FrameDecoder()
            assert feed(decoder, stream[:cut], stream[cut:]) == STREAM
            error = decoder.error
            assert error is not None
            assert decoder.receive_data(WHOLE) == []
            assert decoder.error is error
            assert decoder.buffered_bytes == 0


def test_the_limit_can_be_raised_between_frames():
    decoder = FrameDecoder()
    large = encode_frame(Kind.EVENTS, b"x" * (PRE_HELLO_BODY_BYTES + 1))
    assert decoder.receive_data(STREAM[0]) == [STREAM[0]]
    decoder.max_body_bytes = MAX_BODY_BYTES
    assert feed(decoder, large[:70_000], large[70_000:]) == [large]
    assert decoder.error is None


@settings(PROFILE)
@given(st.lists(st.binary(max_size=60), max_size=6))
def test_garbage_never_raises_and_never_makes_the_decoder_hold_more_than_one_frame(pieces):
    decoder = FrameDecoder(64)
    for piece in pieces:
        for frame in decoder.receive_data(piece):
            assert decode_header(frame).length == len(frame) - HEADER_BYTES <= 64
        assert decoder.buffered_bytes < HEADER_BYTES + 64


# --- the wire as it is: a change breaks processes of another version ---


def test_the_numbers_on_the_wire_never_change():
    assert [kind.name for kind in sorted(Kind)] == [
        "HELLO",
        "WELCOME",
        "EVENTS",
        "ACK",
        "CONFIRM",
        "GAP",
        "REQUEST",
        "REPLY",
        "ERROR",
        "GOODBYE",
        "REPORT",
        "RECEIPT",
        "TAKEN",
        "HANDLED",
        "ASK",
        "ANSWER",
        "CHALLENGE",
        "PROOF",
        "PING",
        "PONG",
        "OUTPUT",
        "FEATURES",
        "SETTLED",
    ]
    assert [int(kind) for kind in sorted(Kind)] == list(range(1, 24))
    assert frozenset(range(1, 24)) == FRAME_KINDS
    flags = (Flag.UNIQUE, Flag.RESENT, Flag.RECEIPT, Flag.TRACE, Flag.REPLAYED, Flag.DIRECTED)
    assert flags == (1, 2, 4, 8, 16, 32)
    assert sum(flags) == FIRST_FLAGS
    assert PROTOCOL_VERSION == 1
    assert (frame_module.KIND_OFFSET, FLAGS_OFFSET, ORIGIN_OFFSET, STAMP_OFFSET) == (4, 5, 12, 24)


def test_the_limits_of_a_frame():
    assert MAX_PAYLOAD_BYTES == 16 * 1024 * 1024
    assert PRE_HELLO_BODY_BYTES == 64 * 1024
    assert BATCH_BYTES == 32 * 1024
    assert (BATCH_CONTAINERS, BATCH_EVENTS) == (600, 150)
    # The largest event on top of a batch, its key with the key's length, and brackets.
    assert MAX_BODY_BYTES == MAX_PAYLOAD_BYTES + BATCH_BYTES + 65536 + 64


def test_a_frame_of_a_kind_alone_is_zeros():
    assert encode_frame(Kind.PING) == struct.pack("<IBBHIIQQQ", 0, 19, 0, 0, 0, 0, 0, 0, 0)
    assert FrameDecoder().max_body_bytes == PRE_HELLO_BODY_BYTES
    # The flags, as the broker changes them in place.
    frame = encode_frame(Kind.EVENTS, flags=1)
    frame[FLAGS_OFFSET] |= Flag.RESENT
    assert decode_header(frame).flags == 3


@pytest.mark.parametrize("size", [1, 255, 256, 65535])
def test_a_key_is_read_with_its_length(size):
    body = size.to_bytes(2, "little") + b"k" * size + b"[behind]"
    for convert in (bytes, bytearray, memoryview):
        assert read_key(convert(encode_frame(Kind.EVENTS, body))) == b"k" * size


@pytest.mark.parametrize("body", [b"", b"\1", b"\0\0", b"\0\0[]", b"\1\0", b"\3\0kk", b"\0\1" + b"k" * 255])
def test_a_key_that_is_empty_or_not_whole_is_refused(body):
    with pytest.raises(ProtocolError, match="a unique event without its key"):
        read_key(encode_frame(Kind.EVENTS, body))


def test_only_the_kinds_of_a_decoder_are_let_through():
    decoder = FrameDecoder(100, frozenset({Kind.PING, 200}))
    assert decoder.receive_data(encode_frame(200, b"x") + encode_frame(Kind.PING)) != []
    assert decoder.receive_data(encode_frame(Kind.HELLO)) == []
    assert str(decoder.error) == "unknown kind of frame: 1"


def test_a_refusal_names_the_kind_before_the_length():
    decoder = FrameDecoder(10)
    decoder.receive_data(struct.pack("<IB", 11, 99))
    assert str(decoder.error) == "unknown kind of frame: 99"
    decoder = FrameDecoder(10)
    decoder.receive_data(struct.pack("<IB", 11, 1))
    assert str(decoder.error) == "a frame with a body of 11 bytes is over the limit of 10"


def test_data_that_completes_nothing_is_not_the_callers_any_more():
    decoder = FrameDecoder()
    data = bytearray(STREAM[4][:100])
    for _ in range(2):
        decoder.receive_data(data)
        data.clear()  # BufferError if it were still exported
        assert decoder.buffered_bytes == 100
        data = bytearray()
    assert decoder.receive_data(STREAM[4][100:]) == [STREAM[4]]
