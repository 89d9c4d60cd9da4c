"""Links that are cut under load, and come back: nothing lost, nothing handled twice.

The links are those of plugins/eventsh-chaos, which breaks connections and never the contract of transports.
"""

from __future__ import annotations

import tempfile
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from eventsh.testing.peer import register_plugin
from tests.conformance.harness import FACES, Pool, Worker, start_broker, start_workers

CHAOS = Path(__file__).parents[2] / "plugins" / "eventsh-chaos"
WORKERS = 3
# Of each worker in one round; there are rounds until the links were cut so often, on a fast machine as on a slow one.
POSTS = 500
KEYS = 20
CUTS = 15
MOST_ROUNDS = 200
# Long enough for every reconnect on a slow machine: a worker that is given up would be told of a gap, which is no fault.
PATIENCE_S = 30


@pytest.fixture
def directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A short path, and the plugin known to this process and those that it starts as an editable install makes it: by an
    entry point and a path."""
    with tempfile.TemporaryDirectory(prefix="evsh-", dir="/tmp") as name:
        path = Path(name)
        project = tomllib.loads((CHAOS / "pyproject.toml").read_text())["project"]
        info = path / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
        )
        points = "".join(f"{point} = {module}\n" for point, module in project["entry-points"]["eventsh"].items())
        (info / "entry_points.txt").write_text(f"[eventsh]\n{points}")
        monkeypatch.syspath_prepend(path)
        monkeypatch.setenv("PYTHONPATH", f"{path}:{CHAOS}")
        register_plugin("eventsh_chaos")
        yield path


def post(worker: Worker, number: int, round_: int) -> None:
    worker.post_many("load", f"of {number}", round_ * POSTS, POSTS)
    worker.call("post_unique_keys", f"keys of {number} in {round_}", "once", KEYS)


def cuts(log: Path) -> int:
    return log.read_text().count("chaos: cut")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("face", FACES)
def test_what_is_posted_over_links_that_are_cut_is_handled_by_all_once_and_in_order(face: str, directory: Path) -> None:
    log = directory / "log"
    broker = start_broker(
        f"chaos+unix:{directory}/e.sock?cut=0.004&jitter=2ms&split=0.1&life=1s",
        log,
        slots=WORKERS,
        timeout=PATIENCE_S,
        unique_timeout=600,
    )
    pool = Pool(broker, [])
    try:
        pool.workers += start_workers(face, broker.address, log, WORKERS, timeout=PATIENCE_S)
        rounds = 0
        with ThreadPoolExecutor(WORKERS) as threads:
            while cuts(log) < CUTS:
                assert rounds < MOST_ROUNDS, "the links are hardly cut: this proves nothing"
                for done in [threads.submit(post, worker, n, rounds) for n, worker in enumerate(pool.workers)]:
                    done.result()
                rounds += 1
        for seen in pool.settle("load", posters=pool.workers):
            for number in range(WORKERS):
                posted = list(range(rounds * POSTS))
                assert [one.data for one in seen if one.event == f"of {number}"] == posted
        for worker in pool.workers:
            worker.flush()
        # Every key has its worker; what is posted now comes behind all of them.
        pool.settle("end")
        for number in range(WORKERS):
            for round_ in range(rounds):
                source = f"keys of {number} in {round_}"
                ran = [seen.data for other in pool.workers for seen in other.seen(source)]
                assert sorted(ran) == list(range(KEYS)), source
        assert "gap" not in {event for worker in pool.workers for event in worker.call("count", "eventsh")}
    finally:
        pool.stop()
