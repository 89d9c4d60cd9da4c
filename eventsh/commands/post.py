"""`eventsh post`: hand events over, and wait until every live worker has them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eventsh.commands.arguments import parse_line
from eventsh.commands.outcome import NobodyAttached
from eventsh.errors import UsageError
from eventsh.runtime.blocking import BlockingClient
from eventsh.runtime.endpoint import find_endpoint

if TYPE_CHECKING:
    from eventsh.protocol.messages import Receipt

__all__ = ["DEFAULT_TIMEOUT_S", "Posted", "post", "post_lines"]

# A worker that takes nothing for the broker's `timeout` (5 s) is no longer waited for; this is a little more, so that
# the broker's answer, and not the end of our patience, is what a user sees.
DEFAULT_TIMEOUT_S = 10.0
# At most so often is progress told.
_PROGRESS_S = 0.5


@dataclass(frozen=True, slots=True)
class Posted:
    """What became of the posts. `workers` have the last event and all before it; `missing` are attached or awaited
    workers that do not have it, for whom it is queued. `unique`: None, "given" or "repeat"."""

    posted: int
    workers: list[int]
    missing: list[int]
    unique: str | None
    seconds: float


def post(
    address: str | None,
    source: str,
    event: str,
    data: Any,
    *,
    unique: str | None = None,
    count: int = 1,
    timeout_s: float = DEFAULT_TIMEOUT_S,
) -> Posted:
    """Post one event `count` times. Raises UsageError, TransportError when no broker answers, NotConnected when it was
    not confirmed in time, NobodyAttached when no worker has it."""
    if count < 1:
        raise UsageError(f"--count must be at least 1, not {count}")
    started = time.monotonic()
    with BlockingClient(*find_endpoint(address), timeout_s=timeout_s) as client:
        for _ in range(count - 1):
            client.post(source, event, data, unique=unique)
        receipt = client.post_and_confirm(source, event, data, unique=unique)
    return _posted(receipt, count, started)


def post_lines(
    address: str | None,
    source: str,
    event: str,
    lines: Iterable[bytes],
    *,
    unique: str | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    on_progress: Callable[[int, float], None] | None = None,
) -> Posted:
    """Post one event for each line of JSON. An empty line is passed over.

    Raises as `post` does. A line that can't be posted ends it; what came before is confirmed first, and the error
    says how many that were. `on_progress` gets the count and the seconds now and then.
    """
    started = told = time.monotonic()
    count = 0
    with BlockingClient(*find_endpoint(address), timeout_s=timeout_s) as client:
        # The last line carries the receipt, so each is posted when the next one is there.
        last: list[Any] = []
        try:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                data = parse_line(line, number)
                if last:
                    client.post(source, event, last.pop(), unique=unique)
                    count += 1
                last.append(data)
                now = time.monotonic()
                if on_progress is not None and now - told >= _PROGRESS_S:
                    told = now
                    on_progress(count, now - started)
        except UsageError as error:
            if last:
                client.post_and_confirm(source, event, last.pop(), unique=unique)
                count += 1
            raise type(error)(f"{error} ({count} posted before it)") from error if isinstance(error, UsageError) else None
        if not last:
            return Posted(0, [], [], None, time.monotonic() - started)
        receipt = client.post_and_confirm(source, event, last.pop(), unique=unique)
    return _posted(receipt, count + 1, started)


def _posted(receipt: Receipt, count: int, started: float) -> Posted:
    if receipt.unique == "repeat":
        return Posted(count, [], [], receipt.unique, time.monotonic() - started)
    if not receipt.workers:
        if receipt.unique == "nobody":
            raise NobodyAttached("no worker is attached that takes unique events: nothing was posted")
        if receipt.missing:
            slots = ", ".join(str(number) for number in receipt.missing)
            raise NobodyAttached(f"no worker has it: it is queued for slot {slots}, for whoever attaches in time")
        raise NobodyAttached("no worker is attached: nobody got it (start some with 'eventsh serve --workers 4')")
    return Posted(count, receipt.workers, receipt.missing, receipt.unique, time.monotonic() - started)
