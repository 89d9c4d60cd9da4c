from __future__ import annotations

import pytest

from eventsh.errors import ProtocolError
from eventsh.protocol import features
from eventsh.protocol.features import (
    FEATURES,
    FLAG_FEATURES,
    MAX_FEATURE_CHARS,
    MAX_FEATURES,
    check_features,
    name_flags,
    readable_flags,
)
from eventsh.protocol.frame import FIRST_FLAGS


def test_the_names_on_the_wire_never_change():
    assert {"all-know", "unreadable-gap"} <= FEATURES
    assert (features.ALL_KNOW, features.UNREADABLE_GAP) == ("all-know", "unreadable-gap")
    assert FLAG_FEATURES == {64: "metadata", 128: "flat-names"}
    assert FIRST_FLAGS == 0b111111


@pytest.mark.parametrize(
    ("known", "flags"),
    [
        ([], 63),
        (["all-know"], 63),
        (["metadata"], 63 + 64),
        (["flat-names"], 63 + 128),
        (["flat-names", "x", "metadata"], 255),
    ],
)
def test_a_reader_knows_the_first_flags_and_those_of_its_features(known, flags):
    assert readable_flags(known) == readable_flags(iter(known)) == flags


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (0, ""),
        (63, ""),
        (64, "flag 64 (metadata)"),
        (129, "flag 128 (flat-names)"),
        (255, "flag 64 (metadata) and flag 128 (flat-names)"),
    ],
)
def test_the_flags_of_later_versions_are_named(flags, text):
    assert name_flags(flags) == text


def test_features_are_limited_in_number_and_length():
    check_features([], "hello")
    check_features(["x" * 64] * 256, "hello")
    with pytest.raises(ProtocolError) as caught:
        check_features(["x"] * 257, "hello")
    assert str(caught.value) == "a hello names 257 features, over the limit of 256"
    with pytest.raises(ProtocolError) as caught:
        check_features(["x", "x" * 65, "y"], "welcome")
    assert str(caught.value) == "a welcome names a feature of 65 characters, over the limit of 64"
    assert (MAX_FEATURES, MAX_FEATURE_CHARS) == (256, 64)
