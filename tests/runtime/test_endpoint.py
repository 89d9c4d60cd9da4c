from __future__ import annotations

import pytest

from eventsh.errors import ConfigureError
from eventsh.options import Options
from eventsh.plugins import plugins
from eventsh.runtime.endpoint import find_endpoint
from eventsh.transport import Transport
from eventsh.transports.inproc import InprocTransport


@pytest.fixture
def asked(monkeypatch):
    """What the transport of the scheme inproc is asked to be used with."""
    asked: list[Options] = []

    class Particular(InprocTransport):
        def with_options(self, options: Options) -> Transport:
            asked.append(options)
            return Other()

    class Other(InprocTransport):
        pass

    monkeypatch.setattr(plugins(), "find_transport", lambda scheme: Particular())
    yield asked
    assert asked


def test_the_transport_is_one_for_the_options(asked):
    options = Options(timeout=7.0)
    transport, address = find_endpoint("inproc:x", options)
    assert (type(transport).__name__, str(address)) == ("Other", "inproc:x")
    assert asked == [options]


def test_without_options_it_is_one_for_the_defaults(asked):
    find_endpoint("inproc:x")
    assert asked == [Options()]


def test_what_is_no_text_is_refused():
    with pytest.raises(ConfigureError) as caught:
        find_endpoint(7)  # type: ignore[arg-type]  # this is what is tested
    assert caught.value.option == "address"
