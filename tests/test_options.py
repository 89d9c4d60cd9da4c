from __future__ import annotations

import dataclasses
from typing import Any, Literal, get_args, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventsh.errors import ConfigureError
from eventsh.option import Option
from eventsh.options import (
    OPTIONS,
    Options,
    broker_arguments,
    format_option,
    option_arguments,
    parse_broker_arguments,
    parse_option,
)
from eventsh.protocol.frame import MAX_PAYLOAD_BYTES

TYPES_OF_KIND: dict[str, type] = {
    "seconds": float,
    "count": int,
    "bytes": int,
    "choice": str,
    "text": str,
    "flag": bool,
}


def values_of(option: Option) -> st.SearchStrategy[Any]:
    """Every value that `option` allows."""
    values: st.SearchStrategy[Any]
    match option.kind:
        case "flag":
            values = st.booleans()
        case "choice":
            values = st.sampled_from(option.choices)
        case "text":
            # The word "none" means that there is none.
            values = st.text(min_size=1).filter(lambda text: text.strip().lower() != "none")
        case "seconds":
            lowest = option.minimum if option.above is None else option.above
            values = st.floats(lowest, option.maximum, exclude_min=option.above is not None)
        case _:
            values = st.integers(int(option.minimum or 0), int(option.maximum or 10**12))
    return values | st.none() if option.optional else values


def broker_values() -> st.SearchStrategy[dict[str, Any]]:
    names = {name: values_of(option) for name, option in OPTIONS.items() if "broker" in option.scope}
    return st.fixed_dictionaries({}, optional=names)


# What an option is


def test_the_fields_of_options_are_the_options():
    assert list(OPTIONS) == [field.name for field in dataclasses.fields(Options)]
    assert {name: option.name for name, option in OPTIONS.items()} == {name: name for name in OPTIONS}


@pytest.mark.parametrize("name", OPTIONS)
def test_the_annotation_of_an_option_says_its_kind_and_whether_it_may_be_none(name):
    option, hint = OPTIONS[name], get_type_hints(Options)[name]
    members = [hint] if hint in TYPES_OF_KIND.values() or isinstance(hint, type(Literal["a"])) else list(get_args(hint))
    assert (type(None) in members) is option.optional
    (kind,) = (member for member in members if member is not type(None))
    if option.kind == "choice":
        assert get_args(kind) == option.choices
    else:
        assert kind is TYPES_OF_KIND[option.kind]


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_has_help_a_scope_and_a_default_that_it_allows(name):
    option = OPTIONS[name]
    assert option.help.endswith(".")
    assert option.scope
    assert option.scope <= {"client", "broker"}
    assert option.check(option.default) == option.default == getattr(Options(), name)


def test_the_names_of_flag_and_variable_derive_from_the_option_s():
    assert OPTIONS["max_queue_len"].flag == "--max-queue-len"
    assert OPTIONS["max_queue_len"].env == "EVENTSH_MAX_QUEUE_LEN"


def test_the_defaults_are_those_of_the_design():
    assert dataclasses.asdict(Options()) == {
        "timeout": 5.0,
        "unique_timeout": None,
        "max_queue_len": 10240,
        "max_payload_len": 65536,
        "max_queue_bytes": 64 * 1024 * 1024,
        "broker": "auto",
        "worker_id": None,
        "role": "worker",
        "take_unique": None,
        "allow_scripts": True,
        "linger": 5.0,
        "slots": 0,
        "max_slots": 1024,
        "max_connections": 1024,
        "max_unique_keys": 1_000_000,
        "max_deliveries": 3,
        "max_dead_letters": 100,
        "hello_timeout": 2.0,
        "heartbeat": 10.0,
        "ring_size": 64 * 1024 * 1024,
        "record": None,
        "record_fsync": "interval",
        "record_max_size": None,
        "record_max_age": None,
        "record_compress": False,
        "flight_recorder": None,
        "flight_dir": None,
        "token_file": None,
        "tls_cert": None,
        "tls_key": None,
        "tls_ca": None,
        "tls_name": None,
    }


def test_the_largest_payload_is_the_one_that_frames_allow():
    assert OPTIONS["max_payload_len"].maximum == MAX_PAYLOAD_BYTES


# What a value may be


REFUSED: dict[str, tuple[object, ...]] = {
    "timeout": ("5", None, True, 0, 0.0, -1, float("nan"), float("inf"), [], 10**400, 1.1e9),
    "unique_timeout": ("5", False, 0, -0.5),
    "max_queue_len": ("5", None, True, 0, -1, 5.0, 10_000_001),
    "max_payload_len": ("5", None, True, 0, -1, 65536.0, 16 * 1024 * 1024 + 1),
    "max_queue_bytes": ("5", None, True, 0, -1, 1e6),
    "broker": ("", "AUTO", None, True, 1, b"auto", "always", "x" * 1000),
    "worker_id": ("0", True, -1, 65536, 0.0),
    "role": ("", "poster", None, 0),
    "take_unique": (0, 1, "true", ""),
    "allow_scripts": (0, None, "yes"),
    "linger": (-0.001, "5", True, float("inf")),
    "slots": (-1, 65537, None, True),
    "max_slots": (0, 65537, None),
    "max_connections": (0, None, 1.5),
    "max_unique_keys": (0, None, "many"),
    "max_deliveries": (0, None, "many"),
    "max_dead_letters": (0, None, "many"),
    "hello_timeout": (0, None, "2"),
    "heartbeat": (0, None, "1", True),
    "ring_size": (0, None, "32MiB", 256 * 1024 - 1, 1024**3 + 1),
    "record": ("", 1, b"x", False),
    "record_fsync": ("", None, "sometimes", 1),
    "record_max_size": (4095, "1", True, 5000.0),
    "record_max_age": (0, "1", True),
    "record_compress": (None, 1, "yes"),
    "flight_recorder": (0, 4095, "1", True),
    "flight_dir": ("", 1, False),
    **dict.fromkeys(("token_file", "tls_cert", "tls_key", "tls_ca", "tls_name"), ("", 1, b"x", True)),
}


def test_refused_values_are_listed_for_every_option():
    assert list(REFUSED) == list(OPTIONS)


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in REFUSED.items() for value in values])
def test_a_value_of_the_wrong_type_or_out_of_range_gives_an_error_that_names_the_option(name, value):
    for attempt in (Options, Options.from_values, Options().replace):
        with pytest.raises(ConfigureError) as caught:
            attempt(**{name: value})
        assert caught.value.option == name
        assert str(caught.value).startswith(f"{name} must be ")
        assert len(str(caught.value)) < 250


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("timeout", -1, "timeout must be a number of seconds above 0 and at most 1000000000, not -1"),
        (
            "max_payload_len",
            16777217,
            "max_payload_len must be a whole number of bytes from 1 to 16777216, not 16777217",
        ),
        ("worker_id", "0", "worker_id must be a whole number from 0 to 65535, or None, not '0'"),
        ("max_unique_keys", 0, "max_unique_keys must be a whole number of at least 1, not 0"),
        ("role", "poster", "role must be 'worker' or 'observer', not 'poster'"),
        ("take_unique", 1, "take_unique must be True or False, or None, not 1"),
    ],
)
def test_the_message_names_option_limit_and_value(name, value, message):
    with pytest.raises(ConfigureError) as caught:
        Options.from_values(**{name: value})
    assert str(caught.value) == message


def test_a_number_too_long_to_be_printed_is_refused_as_others_are():
    with pytest.raises(ConfigureError, match=r"max_queue_len must be .*, not a very long int"):
        Options(max_queue_len=10**5000)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("timeout", value) for value in (1e-9, 1, 1e9)],
        *[("max_queue_len", value) for value in (1, 10_000_000)],
        *[("max_payload_len", value) for value in (1, 16 * 1024 * 1024)],
        *[("worker_id", value) for value in (None, 0, 65535)],
        *[("take_unique", value) for value in (None, True, False)],
        *[("linger", value) for value in (None, 0, 60)],
        *[("slots", value) for value in (0, 1024)],
        *[("max_slots", value) for value in (1, 65536)],
    ],
)
def test_the_ends_of_a_range_are_allowed(name, value):
    assert getattr(Options.from_values(**{name: value}), name) == value


def test_seconds_are_kept_as_floats_whatever_number_they_are_given_as():
    assert type(Options(timeout=5).timeout) is float


def test_an_unknown_option_is_named_together_with_those_that_exist():
    for attempt in (Options.from_values, Options().replace):
        with pytest.raises(ConfigureError, match=r"no option 'timeuot'; the options are timeout, ") as caught:
            attempt(timeuot=5)
        assert caught.value.option == "timeuot"


def test_more_slots_from_the_start_than_there_may_be_are_refused():
    with pytest.raises(ConfigureError, match=r"slots is 5, over max_slots \(4\)") as caught:
        Options.from_values(slots=5, max_slots=4)
    assert caught.value.option == "slots"
    assert Options.from_values(slots=4, max_slots=4).slots == 4


def test_a_key_without_its_certificate_is_refused():
    with pytest.raises(ConfigureError, match="tls_key is the key of a certificate: give tls_cert too") as caught:
        Options(tls_key="/etc/key.pem")
    assert caught.value.option == "tls_key"
    assert Options(tls_cert="/etc/cert.pem", tls_key="/etc/key.pem").tls_key == "/etc/key.pem"


def test_replace_changes_what_it_is_given_and_nothing_else():
    options = Options(timeout=7.0, role="observer")
    assert options.replace(role="worker") == Options(timeout=7.0)
    assert options.role == "observer"


def test_options_can_not_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Options().timeout = 1.0  # type: ignore[misc]  # this is what is tested


# Text


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("timeout", "5x", "--timeout: '5x' is no length of time: write for example 5, 0.5, 500ms, 2s or 1m"),
        ("linger", "5x", "--linger: '5x' is no length of time: write for example 5, 0.5, 500ms, 2s or 1m, or none"),
        ("max_payload_len", "1K", "--max-payload-len: '1K' is no size: write for example 65536, 64KiB or 2MiB"),
        ("max_queue_len", "1.0", "--max-queue-len: '1.0' is no whole number: write for example 1024"),
        ("take_unique", "maybe", "--take-unique: 'maybe' is neither yes nor no: write true or false, or none"),
    ],
)
def test_text_of_another_kind_gives_the_flag_and_an_example(name, text, message):
    with pytest.raises(ConfigureError) as caught:
        parse_option(name, text)
    assert (str(caught.value), caught.value.option) == (message, name)


def test_none_is_read_where_an_option_may_be_none_and_nowhere_else():
    assert parse_option("linger", "none") is None
    assert parse_option("worker_id", " None ") is None
    with pytest.raises(ConfigureError, match=r"^--timeout"):
        parse_option("timeout", "none")


@pytest.mark.parametrize("text", ["-1", "0", "1e999"])
def test_text_that_is_read_but_out_of_range_gives_the_limit_and_the_flag(text):
    with pytest.raises(ConfigureError, match=r"^--timeout must be a number of seconds above 0") as caught:
        parse_option("timeout", text)
    assert caught.value.option == "timeout"


def test_an_error_names_the_variable_that_the_text_came_from():
    with pytest.raises(ConfigureError, match=r"^\$EVENTSH_BROKER must be 'auto' or 'never', not 'on'$"):
        parse_option("broker", "on", label="$EVENTSH_BROKER")
    with pytest.raises(ConfigureError, match=r"^\$EVENTSH_SLOTS: 'x' is no whole number"):
        parse_option("slots", "x", label="$EVENTSH_SLOTS")


def test_text_for_an_unknown_option_is_refused():
    with pytest.raises(ConfigureError, match="no option 'nope'"):
        parse_option("nope", "1")
    with pytest.raises(ConfigureError, match="no option 'nope'"):
        format_option("nope", 1)


@pytest.mark.parametrize("name", OPTIONS)
def test_every_value_is_read_back_from_the_text_it_is_written_as(name):
    @given(values_of(OPTIONS[name]))
    def read_back(value):
        assert parse_option(name, format_option(name, value)) == value

    read_back()


@given(st.sampled_from(sorted(OPTIONS)), st.text())
def test_any_text_gives_an_allowed_value_or_a_configure_error(name, text):
    try:
        value = parse_option(name, text)
    except ConfigureError as error:
        assert error.option == name
    else:
        assert OPTIONS[name].check(value) == value


# The broker's command line


def test_a_broker_with_defaults_needs_no_arguments():
    assert broker_arguments(Options()) == []


def test_only_what_concerns_the_broker_and_differs_from_the_default_is_told_to_it():
    options = Options(timeout=2, linger=None, slots=4, role="observer", worker_id=3, broker="never", max_slots=1024)
    assert broker_arguments(options) == ["--timeout=2.0", "--linger=none", "--slots=4"]


def test_another_program_is_told_the_options_it_is_concerned_with():
    options = Options(timeout=2, take_unique=True, role="observer")
    assert option_arguments(options, ["take_unique", "timeout", "slots"]) == ["--take-unique=true", "--timeout=2.0"]


@given(broker_values())
def test_a_broker_reads_back_the_options_it_was_started_with(values):
    if values.get("slots", 0) > values.get("max_slots", 1024):
        values["slots"] = 0
    if values.get("tls_cert") is None:
        values["tls_key"] = None
    if values.get("max_queue_bytes", 1 << 30) < values.get("max_payload_len", 65536):
        values["max_queue_bytes"] = 16 * 1024 * 1024
    options = Options.from_values(**values)
    assert parse_broker_arguments(broker_arguments(options)) == options


@pytest.mark.parametrize("argument", ["--role=worker", "--timeout", "timeout=5", "x", "", "--=5", "--nope=1"])
def test_an_argument_that_is_no_option_of_the_broker_is_refused(argument):
    with pytest.raises(ConfigureError, match=r"is no option of the broker; they are --timeout="):
        parse_broker_arguments([argument])


def test_a_wrong_value_on_the_broker_s_command_line_names_the_flag():
    with pytest.raises(ConfigureError, match=r"^--max-slots must be a whole number from 1 to 65536, not 0"):
        parse_broker_arguments(["--max-slots=0"])


def test_a_queue_of_bytes_holds_the_largest_event():
    with pytest.raises(
        ConfigureError, match=r"max_queue_bytes is 65535, below max_payload_len \(65536\): raise it"
    ) as caught:
        Options(max_queue_bytes=65535)
    assert caught.value.option == "max_queue_bytes"
    assert Options(max_queue_bytes=65536).max_queue_bytes == 65536
