"""`eventsh post`: hand events over, and wait until every live worker has them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eventsh.commands.arguments import check_utf8, parse_line, refuse_long
from eventsh.commands.outcome import Exit, Interrupted, NobodyAttached
from eventsh.errors import NotConnected, UsageError
from eventsh.event import check_name
from eventsh.runtime.blocking import BlockingClient
from eventsh.runtime.endpoint import find_endpoint

if TYPE_CHECKING:
    from eventsh.protocol.messages import Receipt
    from eventsh.receipt import Receipt as Traced

__all__ = ["DEFAULT_TIMEOUT_S", "Posted", "post_and_wait", "post_data", "post_lines"]

# A worker that takes nothing for the broker's `timeout` (5 s) is no longer waited for; this is a little more, so that
# the broker's answer, and not the end of our patience, is what a user sees.
DEFAULT_TIMEOUT_S = 10.0
# At most so often is progress told.
_PROGRESS_S = 0.5


@dataclass(frozen=True, slots=True)
class Posted:
    """What became of the posts.

    `posted` counts those that were taken, `repeats` those that were ignored because their unique key was. `workers`
    have the last event and all before it; `missing` are those that did not take it and are no longer waited for.
    `unique` is None, "given" or "repeat".
    """

    posted: int
    repeats: int
    workers: list[int]
    missing: list[int]
    unique: str | None
    seconds: float


class _Sender:
    """Posts events of one source and name, and keeps count."""

    def __init__(self, client: BlockingClient, source: str, event: str, unique: str | None) -> None:
        self.posted = 0
        self.started = time.monotonic()
        self._client = client
        self._source = source
        self._event = event
        self._unique = unique
        self._repeats = 0
        self._receipt: Receipt | None = None
        self._awaited = 0

    def post(self, data: Any, *, receipt: bool) -> None:
        """Post one event; ask for a receipt with the last one, it speaks for all before."""
        if self._unique is not None:
            # Each may be a repeat, and only its own receipt tells.
            self._receipt = self._client.post_and_confirm(self._source, self._event, data, unique=self._unique)
            if self._receipt.unique == "repeat":
                self._repeats += 1
                return
            _check_attached(self._receipt)
        else:
            number = self._client.post(self._source, self._event, data, receipt=receipt)
            self._awaited = number if receipt else self._awaited
        self.posted += 1

    def finish(self) -> Posted:
        """Wait for what was posted. Raises NotConnected, which tells how much is confirmed, and NobodyAttached."""
        if self._awaited:
            try:
                self._receipt = self._client.receipt(self._awaited)
            except NotConnected as error:
                raise self.incomplete(error) from error
            _check_attached(self._receipt)
        receipt, seconds = self._receipt, time.monotonic() - self.started
        if receipt is None:
            return Posted(0, 0, [], [], None, seconds)
        return Posted(self.posted, self._repeats, receipt.workers, receipt.missing, receipt.unique, seconds)

    def interrupted(self) -> Interrupted:
        """For a Ctrl-C: what is known of what was posted."""
        # A unique event counts once it is confirmed.
        confirmed = self.posted if self._unique is not None else self._client.confirmed
        events = f"{self.posted} event{'' if self.posted == 1 else 's'}"
        return Interrupted(f"interrupted: {events} posted, {confirmed} of them confirmed")

    def incomplete(self, error: NotConnected) -> NotConnected:
        """The same error, with what is known of the many that were posted."""
        if self.posted < 2:
            return error
        return NotConnected(f"{error}; {self._client.confirmed} of {self.posted} posted events are confirmed")


def _check_attached(receipt: Receipt) -> None:
    if not receipt.workers:
        raise _nobody(receipt.unique, receipt.missing)


def _nobody(unique: str | None, missing: list[int]) -> NobodyAttached:
    if unique == "nobody":
        return NobodyAttached("no worker is attached that takes unique events: nothing was posted")
    if missing:
        slots = ", ".join(str(number) for number in missing)
        return NobodyAttached(f"no worker took it (slot {slots} did not): see 'eventsh status'")
    return NobodyAttached("no worker is attached, so nobody got it: start some with 'eventsh serve --workers 4'")


def _check_names(source: str, event: str, unique: str | None) -> None:
    """Before a broker is looked for: a wrong name is wrong with any."""
    for word, name in (("source", source), ("event", event), ("unique key", unique)):
        if name is not None:
            check_name(name, word)
            check_utf8(name, word)


def post_data(
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
    _check_names(source, event, unique)
    with BlockingClient(*find_endpoint(address), timeout_s=timeout_s) as client:
        sender = _Sender(client, source, event, unique)
        try:
            for left in range(count - 1, -1, -1):
                sender.post(data, receipt=not left)
            return sender.finish()
        except NotConnected as error:
            raise sender.incomplete(error) from error
        except KeyboardInterrupt as error:
            raise sender.interrupted() from error


def post_and_wait(
    address: str | None,
    source: str,
    event: str,
    data: Any,
    *,
    unique: str | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
) -> tuple[Traced, Exit]:
    """Post one event and wait until all its handlers have returned. Raises as `post_data` does; but who has it and does
    not answer in time is in the receipt, and in the status."""
    _check_names(source, event, unique)
    with BlockingClient(*find_endpoint(address), timeout_s=timeout_s) as client:
        receipt = client.post_and_wait(source, event, data, unique=unique)
    if receipt.unique != "repeat" and not any(worker.received for worker in receipt.workers):
        missing = [worker.worker_id for worker in receipt.workers if worker.worker_id is not None]
        raise _nobody(receipt.unique, missing)
    if receipt.failures:
        return receipt, Exit.HANDLER_FAILED
    return receipt, Exit.OK if receipt.is_complete else Exit.TIMEOUT


def post_lines(
    address: str | None,
    source: str,
    event: str,
    read: Callable[[], bytes],
    *,
    unique: str | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    on_progress: Callable[[int, float], None] | None = None,
) -> Posted:
    """Post one event for each line of JSON that `read` gives, a piece at a time and nothing at the end. What came with
    one piece is sent before the next is read. An empty line is passed over.

    Raises as `post_data` does. A line that can't be posted ends it: what came before is confirmed first, and the error
    tells how many that were. `on_progress` gets the count and the seconds now and then.
    """
    _check_names(source, event, unique)
    with BlockingClient(*find_endpoint(address), timeout_s=timeout_s) as client:
        sender = _Sender(client, source, event, unique)
        told = sender.started
        try:
            for lines in _lines(read):
                for number, line in lines:
                    _post_line(sender, line, number, receipt=number == lines[-1][0])
                client.flush()
                now = time.monotonic()
                if on_progress is not None and now - told >= _PROGRESS_S:
                    told = now
                    on_progress(sender.posted, now - sender.started)
            return sender.finish()
        except UsageError as error:
            client.confirm()
            raise UsageError(f"{error} ({sender.posted} posted before it)") from error
        except NotConnected as error:
            raise sender.incomplete(error) from error
        except KeyboardInterrupt as error:
            raise sender.interrupted() from error


def _post_line(sender: _Sender, line: bytes, number: int, *, receipt: bool) -> None:
    data = parse_line(line, number)
    try:
        sender.post(data, receipt=receipt)
    except UsageError as error:
        raise UsageError(f"line {number}: {error}") from error


def _lines(read: Callable[[], bytes]) -> Iterator[list[tuple[int, bytes]]]:
    """The lines that are complete after each piece, with their numbers, without those that are empty."""
    rest = bytearray()
    number = 0
    while piece := read():
        rest += piece
        if b"\n" in piece:
            *whole, rest = rest.split(b"\n")
            lines = [(number + place, bytes(line)) for place, line in enumerate(whole, 1) if line.strip()]
            number += len(whole)
            if lines:
                yield lines
        refuse_long(len(rest), f"line {number + 1}")
    if rest.strip():
        yield [(number + 1, bytes(rest))]
