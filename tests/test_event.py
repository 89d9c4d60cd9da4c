"""Names of sources, events and keys."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from eventsh.api import Events
from eventsh.errors import UsageError
from eventsh.event import EventList, check_name
from tests.protocol.dresses import Markup, Text


class Name(enum.StrEnum):
    PURGE = "purge"


class Folded(str):
    """A string that ignores case."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str) and self.lower() == other.lower()

    def __hash__(self) -> int:
        return hash(self.lower())


@pytest.mark.parametrize("own", [str, Text, Markup, Folded])
def test_a_name_is_the_plain_string_whatever_its_type_overrides(own):
    name = check_name(own("Purge"), "event")
    assert type(name) is str
    assert name == "Purge"
    with pytest.raises(UsageError, match="event must not be empty"):
        check_name(own(""), "event")


def test_a_member_of_an_enum_of_strings_is_its_string():
    assert type(check_name(Name.PURGE, "event")) is str
    assert EventList("cache", Name.PURGE).purge == "purge"


def test_what_is_not_a_string_is_refused_though_it_claims_to_be_one():
    for value in (None, 1, b"purge", ["purge"], mock.Mock(spec=str), mock.MagicMock(spec=Name)):
        with pytest.raises(UsageError, match=f"source must be a string, not {type(value).__name__}"):
            check_name(value, "source")


def test_local_events_reach_the_handlers_of_the_plain_name(tmp_path: Path):
    got: list[Any] = []
    with Events(f"inproc:{tmp_path.name}") as events:
        events.register(lambda data, event, source, pid: got.append((source, event, data)), "Cache", "purge")
        events.wait_ready(10.0)
        events.post_local(Folded("Cache"), Name.PURGE, 1)
        events.post_local(Markup("Cache"), "purge", 2)
        events.post_and_wait("Cache", "purge", 3, timeout=10.0)
    assert got == [("Cache", "purge", 1), ("Cache", "purge", 2), ("Cache", "purge", 3)]
    assert {type(name) for *names, _ in got for name in names} == {str}
