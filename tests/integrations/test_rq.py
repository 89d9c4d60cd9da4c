"""RQ's workers with the mixin: no post of a job is lost at the end of its process."""

from __future__ import annotations

from pathlib import Path

import pytest

from eventsh.errors import ConfigureError
from tests.integrations.servers import DEADLINE_S, Start, redis, redis_url, require, rq, witness

POSTS = 12_000
JOBS = 4


@pytest.mark.parametrize("worker_class", ["Forking", "Spawning", "Simple"])
def test_every_post_of_every_job_arrives(start: Start, directory: Path, worker_class: str):
    require("rq")
    start(redis)
    from redis import Redis
    from rq import Queue

    with witness(directory, timeout=4.0) as seen, Redis.from_url(redis_url(directory)) as connection:
        queue = Queue(connection=connection)
        for job in range(JOBS):
            queue.enqueue("tests.integrations.rq_jobs.post_many", job * POSTS // JOBS, POSTS // JOBS)
        server = start(rq, worker_class, "--burst")
        seen.wait_all("e", range(POSTS), server)
        assert (server.process.pid in seen.posters) == (worker_class == "Simple")
        assert server.process.wait(DEADLINE_S) == 0, server.log.read_text()
        # Processes that ended in order hold nobody up, and their places are soon gone.
        seen.events.post("app", "after")
        seen.events.flush(5)
        server.wait_only(0)


def test_a_wrong_configuration_is_refused_where_the_class_is_made():
    require("rq")
    from eventsh.integrations.rq import EventsMixin

    with pytest.raises(ConfigureError, match="tiemout"):
        type("Wrong", (EventsMixin,), {"events_options": {"tiemout": 1}})
