from __future__ import annotations

import pytest

from eventsh.notation import parse_bytes, parse_count, parse_flag, parse_seconds, show_value


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *[("5", 5.0), ("0.5", 0.5), (".5", 0.5), ("5.", 5.0), ("500ms", 0.5), ("9ms", 0.009), ("2s", 2.0)],
        *[("1m", 60.0), ("1h", 3600.0), (" 2 s ", 2.0), ("1M", 60.0), ("1e-07", 1e-07), ("-1", -1.0), ("+1", 1.0)],
    ],
)
def test_seconds_are_read_with_and_without_a_unit(text, seconds):
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("65536", 65536), ("64KiB", 65536), ("64kib", 65536), ("1MB", 10**6), ("2MiB", 2**21), ("1 GB", 10**9), ("7B", 7)],
)
def test_bytes_are_read_with_decimal_and_binary_units(text, size_bytes):
    assert parse_bytes(text) == size_bytes


@pytest.mark.parametrize("text", ["", "s", "5x", "1,5", "nan", "inf", "1 2", "0x10", "\u0665", "5 ms s", "--5"])
def test_what_is_no_length_of_time_gives_an_error_with_examples(text):
    with pytest.raises(ValueError, match=r" is no length of time: write for example 5, 0.5, 500ms, 2s or 1m$"):
        parse_seconds(text)


@pytest.mark.parametrize("text", ["", "KiB", "64K", "1.5MiB", "9" * 50, "\u0665", "1 2"])
def test_what_is_no_size_gives_an_error_with_examples(text):
    with pytest.raises(ValueError, match=r" is no size: write for example 65536, 64KiB or 2MiB$"):
        parse_bytes(text)


def test_a_whole_number_is_read():
    assert [parse_count(text) for text in ("0", "-1", "+5", " 1024 ")] == [0, -1, 5, 1024]


@pytest.mark.parametrize("text", ["", "a", "1.0", "1_000", "9" * 50, "\u0665"])
def test_what_is_no_whole_number_gives_an_error_with_an_example(text):
    with pytest.raises(ValueError, match=r" is no whole number: write for example 1024$"):
        parse_count(text)


def test_yes_and_no_are_read_from_the_usual_words_and_from_nothing_else():
    assert [parse_flag(text) for text in ("true", "YES", "on", "1")] == [True] * 4
    assert [parse_flag(text) for text in ("false", "No", "off", " 0 ")] == [False] * 4
    with pytest.raises(ValueError, match=r"^'maybe' is neither yes nor no: write true or false$"):
        parse_flag("maybe")


def test_a_wrong_value_is_shown_in_a_few_words():
    assert show_value("x") == "'x'"
    assert show_value("x" * 1000) == "'" + "x" * 59 + "… (str)"
    assert show_value(10**5000) == "a very long int"
