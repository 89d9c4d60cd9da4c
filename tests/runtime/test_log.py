"""What eventsh's own processes log stays in their log, whatever the handlers file does to logging."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import eventsh
from eventsh.runtime import log
from eventsh.testing.pool import ServedPool

HANDLERS = """
import logging, logging.config
import eventsh

CONFIGURATION = {configuration}

def configure():
    {call}

{when}

@eventsh.on("shop")
def handle(data, event, source, pid):
    if event == "configure":
        configure()
    else:
        raise ValueError("the handler broke")
"""

CONFIGURATIONS = {
    "bare": '{"version": 1}',
    "with a root logger": '{"version": 1, "handlers": {"null": {"class": "logging.NullHandler"}},'
    ' "root": {"handlers": ["null"], "level": "CRITICAL"}}',
    "with a logger of its own": '{"version": 1, "loggers": {"app": {"level": "INFO"}}}',
}


@pytest.mark.parametrize(
    ("configuration", "when"),
    [("bare", "configure()"), ("with a root logger", "configure()"), ("with a logger of its own", "pass")],
)
def test_a_dict_config_does_not_silence_the_tracebacks_of_a_pool(tmp_path, configuration, when):
    file = tmp_path / "handlers.py"
    call = "logging.config.dictConfig(CONFIGURATION)"
    file.write_text(HANDLERS.format(configuration=CONFIGURATIONS[configuration], call=call, when=when))
    pool = ServedPool(f"unix:{tmp_path}/s", [file], 1, tmp_path / "log")
    try:
        pool.wait_ready()
        pool.post("shop", "configure")
        pool.post("shop", "order")
    finally:
        pool.process.terminate()
        pool.process.wait(30)
    assert "ValueError: the handler broke" in pool.output
    assert "in handle" in pool.output
    # Once, and in the pool's own format.
    assert pool.output.count("handler handle (") == 1


def test_a_file_config_and_a_disabled_logging_library_leave_eventsh_enabled(tmp_path):
    config = tmp_path / "logging.ini"
    config.write_text(
        "[loggers]\nkeys=root\n[handlers]\nkeys=null\n[formatters]\nkeys=\n"
        "[logger_root]\nlevel=ERROR\nhandlers=null\n[handler_null]\nclass=NullHandler\nargs=()\n"
    )
    program = (
        "import logging, logging.config\n"
        "from eventsh.runtime.log import configure_logging\n"
        "configure_logging()\n"
        f"logging.config.fileConfig({str(config)!r})\n"
        "logging.getLogger('eventsh.worker').warning('still here')\n"
        "configure_logging('json')\n"
        "logging.getLogger('eventsh').info('in another format')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True)
    first, second = done.stderr.splitlines()
    assert first.endswith("still here")
    assert '"message":"in another format"' in second


def test_every_logger_of_eventsh_is_kept_enabled():
    root = Path(eventsh.__file__).parent
    names = {
        node.args[0].value
        for path in root.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and getattr(node.func, "attr", "") == "getLogger"
        and node.args
        and isinstance(node.args[0], ast.Constant)
    }
    assert names == set(log._OWN)
