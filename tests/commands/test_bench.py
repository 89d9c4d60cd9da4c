"""What can be measured. The measuring itself is tested through the command, in tests/cli/test_bench.py."""

from __future__ import annotations

import pytest

from eventsh.commands.bench import BenchArguments
from eventsh.errors import ConfigureError


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"workers": 0}, "workers must be from 1 to"),
        ({"workers": 2, "posters": 3}, "posters must be from 1 to 2, not 3"),
        ({"events": 0}, "events must be from 1 to"),
        ({"events": 1, "posters": 2}, "events must be from 2 to"),
        ({"size": 10}, "size must be from"),
        ({"size": 16 * 1024 * 1024}, "size must be from"),
        ({"sources": 0}, "sources must be from 1 to"),
        ({"api": "sync"}, "api must be async or thread, not 'sync'"),
        ({"address": "carrier"}, "no transport has the scheme 'carrier'"),
        ({"address": "inproc"}, "inproc does not leave the process"),
        ({"address": "inproc:x"}, "inproc:x does not leave the process"),
        ({"address": "unix:"}, "the address is wrong"),
    ],
)
def test_what_can_not_be_measured_is_refused_before_anything_is_started(values, complaint):
    with pytest.raises(ConfigureError, match=complaint):
        BenchArguments(**values)
