from __future__ import annotations

import gc
import signal
import subprocess
import weakref

import pytest

from eventsh.options import Options
from eventsh.testing import remote
from eventsh.testing.broker import BrokerProcess, HostedBroker, broker_status, start_broker


@pytest.mark.parametrize("way", ["stop", "kill"])
def test_a_broker_in_a_thread_is_let_go_at_its_end(way):
    handle = start_broker("inproc:let-go", log=None)  # type: ignore[arg-type]  # it needs none
    assert isinstance(handle, HostedBroker)
    assert broker_status("inproc:let-go")["workers"] == []
    getattr(handle, way)()
    gone = weakref.ref(handle)
    del handle
    gc.collect()
    assert gone() is None


def test_a_broker_that_does_not_end_is_killed(tmp_path, monkeypatch):
    handle = BrokerProcess(f"unix:{tmp_path}/s", Options.from_values(linger=None), tmp_path / "log")
    monkeypatch.setattr(remote, "DEADLINE_S", 0.2)
    handle.process.send_signal(signal.SIGSTOP)
    with pytest.raises(subprocess.TimeoutExpired):
        handle.stop()
    assert handle.process.returncode == -signal.SIGKILL
