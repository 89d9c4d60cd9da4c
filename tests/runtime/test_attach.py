"""What a bus logs while it has posts and no broker, and what its waits raise: the reason that a person can mend."""

from __future__ import annotations

import itertools
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from eventsh.api import Events
from eventsh.errors import AuthenticationError, NotConnected
from eventsh.runtime.attach import Overdue
from eventsh.testing.broker import start_broker

DEADLINE_S = 30.0
OTHER_UID = 65534
ROOT = str(Path(__file__).parents[2])
TIMEOUT_S = 0.2
_WARNING = re.compile(r"not attached for (?P<seconds>[\d.]+) s, (?P<posts>\d+) posts? waits?: (?P<reason>.*)")


@pytest.fixture
def path() -> Iterator[Path]:
    # Not tmp_path: a socket's path has to be short.
    with tempfile.TemporaryDirectory(prefix="evsh-", dir="/tmp", ignore_cleanup_errors=True) as directory:
        yield Path(directory)


@pytest.fixture
def make_events() -> Iterator[Callable[..., Events]]:
    made: list[Events] = []

    def make(address: str, **options: Any) -> Events:
        made.append(Events(address, **{"timeout": TIMEOUT_S, "linger": 0.2, **options}))
        return made[-1].configure()

    yield make
    for events in made:
        events.close(timeout=0.1)


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[re.Match[str]]:
    records = [record for record in caplog.records if record.levelno >= logging.WARNING]
    return [found for record in records if (found := _WARNING.search(record.getMessage()))]


def infos_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if ": not attached: " in record.getMessage()]


# --- when ---


def test_a_warning_is_due_after_1_2_4_times_the_timeout_and_then_every_5_minutes() -> None:
    overdue = Overdue(1000.0)
    due = [second for second in range(3600) if overdue.check(1000.0 + second, 5.0) is not None]
    assert due == [5, 10, 20, 40, 80, 160, 320, *range(620, 3600, 300)]


def test_a_timeout_that_is_made_longer_meanwhile_counts() -> None:
    overdue = Overdue(0.0)
    assert overdue.check(4.0, 5.0) is None
    assert overdue.check(6.0, 30.0) is None
    assert overdue.check(31.0, 30.0) == 31.0


def test_the_warnings_of_a_bus_with_posts_become_rarer(
    path: Path, make_events: Callable[..., Events], caplog: pytest.LogCaptureFixture
) -> None:
    events = make_events(f"unix:{path}/a.sock", broker="never")
    events.post("app", "e")
    events.post("app", "e")
    wait_until(lambda: len(warnings_in(caplog)) >= 4)
    seconds = [float(found["seconds"]) for found in warnings_in(caplog)]
    assert seconds[0] >= TIMEOUT_S
    assert all(later >= 2 * earlier - 0.02 for earlier, later in itertools.pairwise(seconds))
    assert {found["posts"] for found in warnings_in(caplog)} == {"2"}


def test_a_bus_without_posts_warns_only_once_it_has_some(
    path: Path, make_events: Callable[..., Events], caplog: pytest.LogCaptureFixture
) -> None:
    idle = make_events(f"unix:{path}/a.sock", broker="never")
    busy = make_events(f"unix:{path}/b.sock", broker="never")
    busy.post("app", "e")
    # The other one has waited as long by then.
    wait_until(lambda: len(warnings_in(caplog)) >= 3)
    assert all(f"{path}/b.sock: not attached" in found.string for found in warnings_in(caplog))
    idle.post("app", "e")
    wait_until(lambda: any(f"{path}/a.sock: not attached" in found.string for found in warnings_in(caplog)))


def test_an_attached_bus_is_silent_and_warns_again_after_it_lost_its_broker(
    path: Path, make_events: Callable[..., Events], caplog: pytest.LogCaptureFixture
) -> None:
    address = f"unix:{path}/a.sock"
    events = make_events(address, broker="never")
    events.post("app", "e")
    wait_until(lambda: warnings_in(caplog))
    broker = start_broker(address, path / "broker.log")
    try:
        events.wait_ready(DEADLINE_S)
        events.flush(DEADLINE_S)
        began = time.monotonic()
        # An attachment that ends sooner does not count as one.
        wait_until(lambda: time.monotonic() - began > 1.1)
    finally:
        broker.stop()
    caplog.clear()
    events.post("app", "e")
    wait_until(lambda: warnings_in(caplog))
    assert float(warnings_in(caplog)[0]["seconds"]) <= time.monotonic() - began - 1.1


# --- why ---


def check_reason(
    events: Events, caplog: pytest.LogCaptureFixture, reason: str, *, error: type[Exception] = NotConnected
) -> str:
    """Check that the warnings and a wait say `reason`, and that nothing else is said; return the first warning."""
    wait_until(lambda: infos_in(caplog))
    events.post("app", "e")
    wait_until(lambda: len(warnings_in(caplog)) >= 3)
    found = warnings_in(caplog)
    assert all(re.match(reason, each["reason"]) for each in found), [each.string for each in found]
    # Said once when it is new, and never in turns with another.
    (said,) = infos_in(caplog)
    assert re.search(reason, said)
    with pytest.raises(error, match=reason):
        # Long enough for the loop of the bus to have a turn on a busy machine: else that it had none is the reason.
        events.flush(2)
    return found[0].string


def test_with_never_the_warning_says_how_to_start_a_broker(
    path: Path, make_events: Callable[..., Events], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    address = f"unix:{path}/a b.sock"
    warning = check_reason(make_events(address, broker="never"), caplog, "nobody listens at unix:")
    command = f"eventsh serve --workers 0 --listen '{address}'"
    assert warning.endswith(f"; start a broker with '{command}', or configure broker=\"auto\"")


def test_a_path_below_a_file_is_the_reason(
    path: Path, make_events: Callable[..., Events], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    (path / "file").touch()
    check_reason(make_events(f"unix:{path}/file/a.sock"), caplog, "can't connect to .*Not a directory")


def test_a_directory_that_can_not_be_made_is_the_reason_and_not_that_nobody_listens(
    path: Path, make_events: Callable[..., Events], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    check_reason(make_events(f"unix:{path}/no/such/a.sock"), caplog, "unix:.*the directory .* can't be used or made")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_directory_of_another_user_is_the_reason(
    path: Path, make_events: Callable[..., Events], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    (path / "run").mkdir(0o700)
    os.chown(path / "run", OTHER_UID, OTHER_UID)
    check_reason(make_events(f"unix:{path}/run/a.sock"), caplog, f"unix:.* belongs to user {OTHER_UID}")


def test_a_broker_that_can_not_record_is_the_reason(
    path: Path, make_events: Callable[..., Events], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    events = make_events(f"unix:{path}/a.sock", record=str(path / "no" / "such.evlog"))
    check_reason(events, caplog, "the broker at unix:.* did not start: .*No such file or directory")


def test_a_log_that_is_not_ours_is_the_reason(
    path: Path, make_events: Callable[..., Events], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    os.mkfifo(path / "a.sock.log")
    check_reason(make_events(f"unix:{path}/a.sock"), caplog, "can't start a broker at unix:")


def test_a_wrong_token_is_the_reason_and_is_said_at_once(
    path: Path, make_events: Callable[..., Events], caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("right", "wrong"):
        (path / name).write_text(name * 10)
        (path / name).chmod(0o600)
    address = f"unix:{path}/a.sock"
    broker = start_broker(address, path / "broker.log", token_file=str(path / "right"))
    try:
        events = make_events(address, token_file=str(path / "wrong"))
        warning = check_reason(events, caplog, ".*token", error=AuthenticationError)
        assert warning.endswith("; give both sides the same token (token_file)")
    finally:
        broker.stop()


def test_a_table_of_workers_that_is_full_is_the_reason(
    path: Path, make_events: Callable[..., Events], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    address = f"unix:{path}/a.sock"
    broker = start_broker(address, path / "broker.log", max_slots=1)
    try:
        make_events(address).wait_ready(DEADLINE_S)
        caplog.clear()
        check_reason(make_events(address), caplog, "the broker at .* refused: 1 workers and observers .* max_slots")
    finally:
        broker.stop()


def test_of_two_that_start_a_broker_in_turns_both_say_why_they_can_not(
    path: Path, make_events: Callable[..., Events], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    record = str(path / "no" / "such.evlog")
    pair = [make_events(f"unix:{path}/a.sock", record=record) for _ in range(2)]
    # While one of them has the lock, the other finds that nobody listens, or a broker that does not answer.
    wait_until(lambda: sum("did not start: " in line for line in infos_in(caplog)) == 2)
    caplog.clear()
    for events in pair:
        events.post("app", "e")
    wait_until(lambda: len(warnings_in(caplog)) >= 6)
    reasons = [found["reason"] for found in warnings_in(caplog)]
    assert all("did not start: " in reason for reason in reasons), reasons
    assert not infos_in(caplog)


READ_ONLY = """
import logging, sys
logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
import eventsh
eventsh.configure(sys.argv[1], timeout=0.2)
eventsh.post("app", "e")
try:
    eventsh.wait_ready(1.5)
except eventsh.NotConnected as error:
    print(error)
eventsh.close(timeout=0.0)
"""
UNSHARED = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["-Ur"])]


def _can_mount() -> bool:
    return (
        shutil.which("unshare") is not None
        and subprocess.run([*UNSHARED, "true"], check=False, timeout=30).returncode == 0
    )


@pytest.mark.skipif(not _can_mount(), reason="this system gives us no mount namespace")
def test_a_read_only_file_system_is_the_reason_and_is_said_once(path: Path) -> None:
    (path / "run").mkdir()
    # Read-only holds for root too, unlike a directory's mode.
    script = f'mount -t tmpfs -o ro tmpfs {path}/run && exec "$@"'
    command = [sys.executable, "-c", READ_ONLY, f"unix:{path}/run/a.sock"]
    done = subprocess.run(
        [*UNSHARED, "sh", "-c", script, "sh", *command],
        env={**os.environ, "PYTHONPATH": ROOT},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=True,
    )
    reason = f"can't lock unix:{path}/run/a.sock: {path}/run/a.sock.lock: Read-only file system"
    assert done.stdout.rstrip().endswith(f"within 1.5 s: {reason}")
    assert "nobody listens" not in done.stderr
    assert done.stderr.count(": not attached: ") == 1
    assert f"1 post waits: {reason}; mend that or configure another address" in done.stderr
