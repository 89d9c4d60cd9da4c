from __future__ import annotations

import io
import logging

import pytest

from eventsh.errors import ConfigureError
from eventsh.options import Options
from eventsh.runtime.worker import _parse_arguments, print_events, worker_arguments
from eventsh.testing.pool import ServedPool


def test_events_are_printed_a_line_each_and_escaped():
    stream = io.StringIO()
    handler = print_events(2, stream)
    handler({"k": 1}, "purge", "cache", 7)
    handler("\x1b[2J\n", "e\x1b", "s\n", None)
    assert stream.getvalue() == '[worker 2] cache purge {"k":1}\n[worker 2] s\\n e\\x1b "\\u001b[2J\\n"\n'


def test_printing_ends_with_one_warning_when_nobody_reads(caplog: pytest.LogCaptureFixture):
    class Closed(io.StringIO):
        def flush(self) -> None:
            raise BrokenPipeError(32, "Broken pipe")

    handler = print_events(0, Closed())
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            handler(None, "e", "s", None)
    assert caplog.messages == ["events are no longer printed: Broken pipe"]


def test_options_arrive_as_they_were_given():
    options = Options(timeout=0.25, max_queue_len=7, max_payload_len=1000, take_unique=False)
    _, values = _parse_arguments(["--address", "unix:/x", "--worker-id", "3", *worker_arguments(options)])
    assert values == {"timeout": 0.25, "max_queue_len": 7, "max_payload_len": 1000, "take_unique": False}
    assert worker_arguments(Options()) == []


def test_handlers_may_begin_with_a_dash():
    known, _ = _parse_arguments(["--address", "a", "--worker-id", "0", "--handlers=-x.py", "--handlers=y"])
    assert known.handlers == ["-x.py", "y"]


@pytest.mark.parametrize("argument", ["--linger=3", "--worker_id=3", "--nonsense", "rubbish"])
def test_what_is_no_option_of_a_worker_is_refused(argument):
    with pytest.raises(ConfigureError, match="is no option of a worker"):
        _parse_arguments(["--address", "a", "--worker-id", "0", argument])


def test_a_file_of_handlers_that_configures_is_attached_by_its_pool(tmp_path):
    """Such as the application itself, which configures where it runs in a server."""
    file = tmp_path / "app.py"
    file.write_text(
        "import eventsh\n"
        "@eventsh.on('app', 'purge')\n"
        "def purge(data, event, source, pid):\n"
        "    print('purged', data, flush=True)\n"
        "eventsh.configure('unix:/elsewhere/e.sock', worker_id=7)\n"
        "eventsh.post('app', 'purge', 'at import')\n"
    )
    pool = ServedPool(f"unix:{tmp_path}/s", [file], 2, tmp_path / "log")
    try:
        pool.wait_ready()
        receipt = pool.post("app", "purge", "later")
        assert [worker.worker_id for worker in receipt.workers] == [0, 1]
        assert all(run.error is None for worker in receipt.workers for run in worker.handlers)
        pool.process.terminate()
        assert pool.process.wait(30) == 0
    finally:
        pool.process.kill()
        pool.process.wait(30)
    assert pool.output.count("purged later") == 2
    # One post of each worker, to both; the second worker may have attached after the first one's.
    assert 2 <= pool.output.count("purged at import") <= 4
    assert "WARNING" not in pool.output
    assert "Traceback" not in pool.output
