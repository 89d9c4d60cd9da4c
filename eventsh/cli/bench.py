"""`eventsh bench`: a bar on standard error while it measures, then tables or JSON on standard output.

What can take long to import is imported when it is used: the help of all commands needs none of it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from eventsh.cli.report import columns, say
from eventsh.errors import UsageError
from eventsh.escape import escape, render_data

if TYPE_CHECKING:
    from eventsh.commands.bench import BenchArguments, BenchResult, LoadResult, Tell
    from eventsh.commands.latency import Latency

__all__ = ["EXAMPLES", "bench"]

EXAMPLES = """\
eventsh bench
eventsh bench --latency --rate 500 --events 5000 --api thread
eventsh bench --address tcp --workers 8 --size 1KiB --json | jq .throughput.posts_per_s"""

# 80 columns are not exceeded.
_BAR_WIDTH = 38
_MIB = 1024 * 1024


def bench(
    workers: Annotated[
        str | None, typer.Option("--workers", "-w", metavar="N", help="How many workers.  [default: 4]")
    ] = None,
    posters: Annotated[
        str | None, typer.Option("--posters", metavar="N", help="How many of the workers post.  [default: 1]")
    ] = None,
    events: Annotated[
        str | None, typer.Option("--events", "-n", metavar="N", help="How many events in all.  [default: 500000]")
    ] = None,
    size: Annotated[
        str | None, typer.Option("--size", metavar="SIZE", help="Bytes of an event's data: 65, 4KiB.  [default: 65]")
    ] = None,
    sources: Annotated[
        str | None,
        typer.Option("--sources", metavar="N", help="Of how many sources, in random order.  [default: 1]"),
    ] = None,
    rate: Annotated[
        str | None,
        typer.Option("--rate", metavar="N", help="Post so many a second, and measure latencies; else all it can."),
    ] = None,
    latency: Annotated[
        bool, typer.Option("--latency", help="Measure latencies too, at --rate or 1000 a second.")
    ] = False,
    address: Annotated[
        str,
        typer.Option(
            "--address",
            "-a",
            metavar="ADDRESS",
            help="Where its broker listens; of a scheme alone it makes one up.",
        ),
    ] = "unix",
    api: Annotated[str, typer.Option("--api", metavar="async|thread", help="Through AsyncEvents or Events.")] = "async",
    json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> int:
    """Measure how fast eventsh is on this machine.

    Starts a broker and workers of its own, which end with it, and shows what part it reaches of the ceiling: one
    process that only encodes such events, and workers that only decode them and call a handler.

    Exit status: 0 every event came once and in order, 1 not so, or a process failed, 2 refused, by SIGINT after Ctrl-C.
    """
    from eventsh.commands.bench import BenchArguments
    from eventsh.commands.bench import bench as measure

    whole = {"workers": workers, "posters": posters, "events": events, "sources": sources}
    numbers = {name: _whole(f"--{name}", text) for name, text in whole.items() if text is not None}
    if size is not None:
        numbers["size"] = _size(size)
    per_second = 0.0 if rate is None else _rate(rate)
    arguments = BenchArguments(**numbers, rate=per_second, address=address, api=api, latency=latency)
    with _progress(sys.stderr.isatty() and not json) as tell:
        result = measure(arguments, tell)
    say(render_data({**asdict(result), "sound": result.is_sound}) if json else "\n".join(_lines(result)))
    return 0 if result.is_sound else 1


def _whole(flag: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise UsageError(f"{flag} must be a whole number, not {text[:40]!r}")
    return int(text)


def _size(text: str) -> int:
    from eventsh.options import parse_option

    size = parse_option("max_payload_len", text, label="--size")
    assert isinstance(size, int)
    return size


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0.1 <= rate <= 1e7:
        raise UsageError(f"--rate must be a number of events a second, from 0.1 to 10000000, not {text[:40]!r}")
    return rate


@contextmanager
def _progress(shown: bool) -> Iterator[Tell]:
    """What is told of the progress: a bar, taken away in the end, or nothing."""
    if not shown:
        yield lambda _name, _part: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=1.0)
        yield lambda name, part: bar.update(task, description=name, completed=part)


def _lines(result: BenchResult) -> Iterator[str]:
    arguments = result.arguments
    posters, workers = _count(arguments.posters, "poster"), _count(arguments.workers, "worker")
    part = result.throughput or result.latency
    assert part is not None
    yield f"{arguments.size} bytes an event, {posters} among {workers}, {arguments.api}, {_count(result.cpus, 'core')}"
    yield f"over {escape(part.address)}"
    if result.throughput is not None:
        yield ""
        yield from _throughput(result, result.throughput)
    for run in (result.throughput, result.latency):
        if run is not None:
            yield ""
            yield from _cost(arguments, run)
    if result.latency is not None:
        yield ""
        yield from _latency(result.latency)


def _throughput(result: BenchResult, run: LoadResult) -> Iterator[str]:
    workers = result.arguments.workers
    rows = [
        ("as fast as can be", "posts/s", "deliveries/s", "of the ceiling"),
        ("eventsh", f"{run.posts_per_s:,.0f}", f"{run.deliveries_per_s:,.0f}", f"{result.share or 0:.2f}"),
    ]
    if result.ceiling is not None:
        ceiling = result.ceiling.posts_per_s
        rows.append(("ceiling of Python", f"{ceiling:,.0f}", f"{ceiling * workers:,.0f}", "1.00"))
    yield from columns(rows, left=(rows[0][0],))


def _cost(arguments: BenchArguments, run: LoadResult) -> Iterator[str]:
    rows = [(f"{run.events:,} events in {run.seconds:.2f} s", "CPU s", "peak MiB")]
    others = arguments.workers - arguments.posters
    for name, part in (
        (_count(arguments.posters, "poster"), "posters"),
        ("broker", "broker"),
        (_count(others, "other worker"), "workers"),
    ):
        cpu_s, memory = run.cpu_s[part], run.peak_bytes[part]
        cells = "-" if cpu_s is None else f"{cpu_s:.2f}", "-" if memory is None else f"{memory / _MIB:.1f}"
        if part != "workers" or others:
            rows.append((name, *cells))
    yield from columns(rows, left=(rows[0][0],))
    yield f"{run.lost:,} lost, {run.out_of_order:,} out of order"


def _latency(run: LoadResult) -> Iterator[str]:
    assert run.to_handler is not None
    assert run.to_last is not None
    rows: list[tuple[str, ...]] = [("microseconds", "p50", "p90", "p99", "p99.9", "max")]
    for name, latency in (("from post to handler", run.to_handler), ("until the last worker has it", run.to_last)):
        values = (latency.p50, latency.p90, latency.p99, latency.p99_9, latency.max)
        rows.append((name, *(f"{value:,.0f}" for value in values)))
    yield from columns(rows, left=(rows[0][0],))
    yield ""
    yield from _histogram(run.to_handler)


def _histogram(latency: Latency) -> Iterator[str]:
    most = max(count for _, count in latency.bars)
    rows = [("from post to handler, up to", "deliveries", "")]
    for end, count in latency.bars:
        bar = "#" * max(round(count / most * _BAR_WIDTH), count > 0)
        rows.append((_time(end), f"{count:,}", bar))
    yield from (line.rstrip() for line in columns(rows, left=("",)))


def _time(microseconds: int) -> str:
    for unit, size in (("s", 1_000_000), ("ms", 1000)):
        if microseconds >= size:
            return f"{microseconds // size} {unit}"
    return f"{microseconds} us"


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"
