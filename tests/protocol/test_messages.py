from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, fields, replace
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventsh.errors import ProtocolError
from eventsh.protocol.frame import (
    PRE_HELLO_BODY_BYTES,
    PROTOCOL_VERSION,
    FrameDecoder,
    Kind,
    decode_header,
    encode_frame,
)
from eventsh.protocol.messages import (
    AUTHENTICATION_CODES,
    Answer,
    Ask,
    Challenge,
    Error,
    Features,
    Gap,
    Goodbye,
    Handled,
    Hello,
    Message,
    Output,
    Proof,
    Receipt,
    Reply,
    Report,
    Request,
    Taken,
    Welcome,
)

HELLO = Hello("id", 7, 42, "worker", 3, True, 10, 9, 8, [0, 1], True)
MESSAGES: list[Message] = [
    HELLO,
    Hello("id", 7, 42, "observer", None, False, 0, 0, 0, [], False),
    Welcome(1, 2, 3, True, 99, 5.0, 10240, 65536, [1, 2]),
    Welcome(1, 2, None, False, 99, 0.25, 1, 65536, []),
    Features(["all-know"]),
    Features([]),
    Gap(5, 1, 5, "slow"),
    Request(1, "status", {"deep": [1, {"a": None}]}),
    Reply(1, {"any": [1, "x"]}, None),
    Reply(1, None, "no"),
    Error("protocol", 'text with " and \n and é'),
    Goodbye(True),
    Report(2, {"handler": "h"}),
    Report(0, {}, 7),
    Taken([[7, 9, 1_700_000_000_000_000_000, "6b6579"]], [1500]),
    Receipt(4, [0, 1], [2], "given"),
    Receipt(4, [], [], None),
    Handled(
        7,
        4,
        [{"name": "h", "location": "f:1", "source": "s", "event": None, "seconds": 0.5, "error": None}],
        None,
        None,
    ),
    Handled(7, 4, [], 3, 42),
    Ask(1, "handlers", {}),
    Output("1.1", "text\n", 0),
    Answer(1, [{"name": "h"}]),
    Challenge("0f" * 32),
    Proof("f0" * 32),
]
WRONG: dict[str, list[Any]] = {
    "int": ["1", 1.5, None, True, [], {}],
    "int | None": ["1", 1.5, False, [], {}],
    "float": ["1", None, True, [], {}],
    "str": [1, None, True, [], {}],
    "str | None": [1, True, [], {}],
    "bool": [0, 1, "true", None, [], {}],
    "list[int]": [1, "1", None, {}, [1, "2"], [True], [None], [1.0]],
    "list[str]": [1, "a", None, {}, [1], ["a", None]],
    "list[list[int]]": [1, "1", None, {}],
    "dict[str, Any]": [1, "1", None, [], True],
}


def frame_of(kind, body):
    return encode_frame(kind, orjson.dumps(body))


@pytest.mark.parametrize("message", MESSAGES, ids=repr)
def test_a_message_reads_as_it_was_written(message):
    frame = message.encode(seq=12)
    assert type(message).decode(frame) == message
    assert type(message).decode(bytes(frame)) == message
    header = decode_header(frame)
    assert (header.kind, header.seq) == (type(message).kind, 12)
    assert FrameDecoder().receive_data(frame) == [frame]


def test_every_kind_that_has_a_body_has_one_message():
    # Events hold no object, and what else is left out is headers alone.
    kinds = [kind.kind for kind in {type(message) for message in MESSAGES}]
    assert sorted(kinds) == sorted(set(Kind) - {Kind.EVENTS, Kind.ACK, Kind.CONFIRM, Kind.PING, Kind.PONG})


def test_the_first_frames_carry_the_version():
    assert asdict(MESSAGES[0])["version"] == asdict(MESSAGES[2])["version"] == PROTOCOL_VERSION


@pytest.mark.parametrize(
    ("message", "name"),
    [(message, field.name) for message in MESSAGES for field in fields(message) if not field.metadata.get("later")],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_missing_member_is_refused_by_its_name(message, name):
    body = asdict(message)
    del body[name]
    with pytest.raises(ProtocolError, match=rf"a {type(message).__name__.lower()} frame has no '{name}'"):
        type(message).decode(frame_of(message.kind, body))


def test_what_an_earlier_version_does_not_say_is_not_known():
    hello, welcome, gap = MESSAGES[0], MESSAGES[2], MESSAGES[4]
    for message, later in ((hello, ("places", "vacant")), (welcome, ("posts",)), (gap, ("epoch", "posts", "exact"))):
        body = {name: value for name, value in asdict(message).items() if name not in later}
        assert type(message).decode(frame_of(message.kind, body)) == message


@pytest.mark.parametrize(
    "changes",
    [
        {name: [row]}
        for name in ("places", "vacant")
        for row in ([1, 2], [1, 2, 3, 4], [1, 2, "3"], 1, [1, -2, 3], [1 << 64, 0, 0])
    ],
    ids=repr,
)
def test_a_hello_with_what_is_no_place_in_an_epoch_is_refused(changes):
    with pytest.raises(ProtocolError, match="no place in an epoch"):
        replace(HELLO, **changes).check()


@pytest.mark.parametrize("ages_ms", [[1], [1, 2, 3], [1, -2]])
def test_unique_events_with_ages_for_some_or_of_the_future_are_refused(ages_ms):
    events: list[list[Any]] = [[7, number, 0, "6b"] for number in (1, 2)]
    Taken(events, [1, 2]).check()
    with pytest.raises(ProtocolError, match="2 events and"):
        Taken(events, ages_ms).check()


@pytest.mark.parametrize(
    ("message", "name", "value"),
    [
        (message, field.name, value)
        for message in MESSAGES
        for field in fields(message)
        for value in WRONG.get(str(field.type), ())
    ],
    ids=repr,
)
def test_a_member_of_another_type_is_refused_by_its_name(message, name, value):
    with pytest.raises(ProtocolError, match=rf"'{name}' of a {type(message).__name__.lower()} frame"):
        type(message).decode(frame_of(message.kind, asdict(message) | {name: value}))


def test_a_whole_number_of_seconds_is_taken():
    body = asdict(MESSAGES[2]) | {"timeout": 5}
    assert Welcome.decode(frame_of(Kind.WELCOME, body)).timeout == 5


@pytest.mark.parametrize("message", MESSAGES, ids=repr)
def test_unknown_members_are_ignored(message):
    body = asdict(message) | {"of a later version": [1, 2]}
    assert type(message).decode(frame_of(message.kind, body)) == message


@pytest.mark.parametrize("body", [b"", b"{", b"nonsense", b"\xff", b'{"id":NaN}', b"{} {}", b'"\\ud800"'])
def test_a_body_that_is_not_json_is_refused(body):
    with pytest.raises(ProtocolError, match="the body of a goodbye frame is not JSON"):
        Goodbye.decode(encode_frame(Kind.GOODBYE, body))


@pytest.mark.parametrize("body", [[], [True], 1, "leave", None, True])
def test_a_body_that_is_no_object_is_refused(body):
    with pytest.raises(ProtocolError, match="not an object"):
        Goodbye.decode(frame_of(Kind.GOODBYE, body))


def test_a_body_nested_a_million_deep_is_refused():
    with pytest.raises(ProtocolError):
        Request.decode(encode_frame(Kind.REQUEST, b"[" * 1_000_000))


def test_a_hello_that_knows_as_much_as_is_told_fits_into_what_a_broker_accepts_before_it():
    hello = Hello(
        "x" * 100, 2**32 - 1, 2**31, "observer", 65535, True, 2**63, 2**63, 2**63, [65535] * 4096, False,
        assigned=True, assigned_slots=[65535] * 4096, left_slots=[65535] * 128,
        places=[[2**63] * 3] * 16, vacant=[[65535, 2**63, 2**63]] * 128,
    )  # fmt: skip
    assert decode_header(hello.encode()).length < PRE_HELLO_BODY_BYTES


@settings(deadline=None, derandomize=True, max_examples=200)
@given(st.sampled_from(MESSAGES), st.binary(max_size=40), st.data())
def test_any_body_is_read_or_refused(message, junk, data):
    body = orjson.dumps(asdict(message))
    start = data.draw(st.integers(0, len(body)))
    end = data.draw(st.integers(start, len(body)))
    with suppress(ProtocolError):
        type(message).decode(encode_frame(message.kind, body[:start] + junk + body[end:]))


# --- what is checked beyond the types ---


@pytest.mark.parametrize(
    ("message", "sender"),
    [
        (replace(HELLO, features=["x" * 65]), "a hello names a feature of 65 characters"),
        (replace(HELLO, features=["x"] * 257), "a hello names 257 features"),
        (Welcome(1, 2, 3, True, 99, 5.0, 10240, 65536, [], features=["x" * 65]), "a welcome names a feature"),
        (Features(["x" * 65]), "a features frame names a feature"),
    ],
    ids=["hello", "many", "welcome", "features"],
)
def test_features_over_the_limits_are_refused(message, sender):
    with pytest.raises(ProtocolError, match=sender):
        message.check()


@pytest.mark.parametrize("message", MESSAGES, ids=repr)
def test_a_message_within_the_limits_is_accepted(message):
    if hasattr(message, "check"):
        message.check()


def test_places_are_three_numbers():
    rows = [[0, 0, 0], [1, 2**53 - 1, 2**53 - 1]]
    replace(HELLO, places=[*rows, [2**64 - 1, 0, 0]], vacant=rows).check()
    bads: list[Any] = [[2**64, 0, 0], [0, 0, 2**64], [0, -1, 0], [0.0, 0, 0], ["0", 0, 0], [None, 0, 0], [0], []]
    for bad in bads:
        for name in ("places", "vacant"):
            for listed in ([bad], [*rows, bad], [bad, *rows]):
                with pytest.raises(ProtocolError, match="a hello with what is no place in an epoch"):
                    replace(HELLO, **dict[str, Any]({name: listed})).check()


@pytest.mark.parametrize(
    "event",
    [
        [7, 9, 1],
        [7, 9, 1, "6b", 0],
        ["7", 9, 1, "6b"],
        [7, None, 1, "6b"],
        [7, 9, 1.0, "6b"],
        [7, 9, 1, ""],
        [7, 9, 1, "6"],
        [7, 9, 1, "6B"],
        [7, 9, 1, "6g"],
        [7, 9, 1, "6b "],
        [7, 9, 1, 6],
    ],
    ids=repr,
)
def test_a_taken_event_is_three_numbers_and_a_key_in_hexadecimal(event):
    good = [7, 9, 1, "6b6c"]
    Taken([good, good]).check()
    for events in ([event], [good, event], [event, good]):
        with pytest.raises(ProtocolError, match="a taken frame holds what is no "):
            Taken(events).check()


RUN = {"name": "h", "location": "f:1", "source": "s", "event": None, "seconds": 0.5, "error": None}


@pytest.mark.parametrize(
    "changes",
    [
        {"name": None},
        {"location": 1},
        {"source": 1},
        {"event": 1.5},
        {"seconds": "1"},
        {"seconds": None},
        {"error": 1},
    ],
    ids=repr,
)
def test_a_call_of_a_handler_has_members_of_their_types(changes):
    for good in ({"source": None}, {"event": "e"}, {"seconds": 1}, {"error": "E"}, {"later": 1}):
        Handled(7, 4, [{**RUN, **good}, RUN], 3, 42).check()
    for name in RUN:
        short = {key: value for key, value in RUN.items() if key != name}
        with pytest.raises(ProtocolError, match="a handled frame holds what is no call of a handler"):
            Handled(7, 4, [short], 3, 42).check()
    for runs in ([{**RUN, **changes}], [RUN, {**RUN, **changes}], [{**RUN, **changes}, RUN]):
        with pytest.raises(ProtocolError, match="a handled frame holds what is no call of a handler"):
            Handled(7, 4, runs, 3, 42).check()


@pytest.mark.parametrize("text", ["", "0f" * 31, "0f" * 33, "0F" * 32, "0g" * 32, "0f" * 32 + "\n"], ids=repr)
def test_a_nonce_and_a_proof_are_32_bytes_in_hexadecimal(text):
    value = bytes(range(32))
    assert Challenge.of(value).nonce == Proof.of(value).mac == value.hex()
    assert Challenge.of(value).nonce_bytes() == Proof.of(value).mac_bytes() == value
    with pytest.raises(ProtocolError, match="a challenge without a nonce"):
        Challenge(text).nonce_bytes()
    with pytest.raises(ProtocolError, match="a proof without an HMAC"):
        Proof(text).mac_bytes()


def test_members_that_came_later_mean_nothing_when_they_are_not_sent():
    body = {name: value for name, value in asdict(HELLO).items() if name not in ("places", "vacant", "features")}
    hello = Hello.decode(frame_of(Kind.HELLO, body))
    assert (hello.places, hello.vacant, hello.features) == ([], [], [])
    gap = Gap.decode(frame_of(Kind.GAP, {"missed": 1, "first_seq": 2, "last_seq": 3, "reason": "r"}))
    assert (gap.epoch, gap.posts, gap.exact) == (0, 0, True)
    assert Report.decode(frame_of(Kind.REPORT, {"failed": 1, "last": {}})).unread == 0
    body = {name: value for name, value in asdict(MESSAGES[2]).items() if name not in ("posts", "features")}
    welcome = Welcome.decode(frame_of(Kind.WELCOME, body))
    assert (welcome.posts, welcome.features) == (0, [])
    assert (HELLO.told, HELLO.host, HELLO.version) == (0, "", 1)


def test_a_message_has_no_place_among_the_events_unless_it_is_given_one():
    assert decode_header(Goodbye(True).encode()).seq == 0
    assert decode_header(Goodbye(True).encode(seq=9)).seq == 9


def test_the_codes_of_a_refused_authentication_never_change():
    assert {"token_needed", "token_unknown", "token_wrong", "tls_needed"} == AUTHENTICATION_CODES
