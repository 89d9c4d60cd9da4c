"""The application of wsgi_app in uWSGI, with a post-fork hook of its own before and another one after."""

from __future__ import annotations

import os

import uwsgi

from eventsh.integrations.uwsgi import attach_workers
from tests.integrations import wsgi_app
from tests.integrations.journal import record


def before() -> None:
    record(None, "hook-before", "test", None)


def after() -> None:
    record(None, "hook-after", "test", None)


if not uwsgi.worker_id():
    uwsgi.post_fork_hook = before
attach_workers(os.environ["APP_ADDRESS"], timeout=30.0, linger=0.5)
if not uwsgi.worker_id():
    import uwsgidecorators

    uwsgidecorators.postfork(after)

application = wsgi_app.app
