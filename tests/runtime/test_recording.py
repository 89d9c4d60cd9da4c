"""When the broker's flight recorder is written out."""

from __future__ import annotations

import asyncio

from eventsh.core.questions import ADD_SCRIPT
from eventsh.options import Options
from eventsh.protocol.messages import Output
from eventsh.runtime.recording import BrokerRecording
from tests.core.net import Net, observer, workers
from tests.core.test_scripts import script


def test_what_a_script_writes_is_no_failure_of_a_handler(tmp_path):
    async def run() -> list[int]:
        options = Options(flight_recorder=1 << 20, flight_dir=str(tmp_path))
        recording = BrokerRecording(options, epoch=1, pid=1, address="inproc:x", on_synced=lambda: None)
        net = Net()
        net.router.sink = recording
        (first,) = workers(net, 1)
        operator = observer(net)
        operator.channel.link.is_trusted = True
        operator.session.request(ADD_SCRIPT, script())
        net.run()
        net.router.receive(first.channel.link, [bytearray(Output("7.1", "hello", 0).encode())], net.now)
        net.collect()
        net.run()
        assert [event for _, event, _ in operator.events][-1] == "script_output"
        await asyncio.sleep(0)
        dumped = [len(recording._dumps)]
        first.session.report_failure({"handler": "h", "error": "boom"})
        net.run()
        await asyncio.sleep(0)
        dumped.append(len(recording._dumps))
        await recording.close()
        return dumped

    assert asyncio.run(run()) == [0, 1]
