"""How eventsh's own processes log: to stderr, as lines for people or as one JSON object a line.

Knows nothing of who logs what. A library never calls this: it is for processes that eventsh itself started.
"""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime
from typing import Literal

import orjson

from eventsh.escape import escape, expressible

__all__ = ["JsonFormatter", "LogFormat", "TextFormatter", "configure_logging"]

LogFormat = Literal["text", "json"]

# Every logger of eventsh's own processes: some of their modules are imported late.
_OWN = ("eventsh", "eventsh.broker", "eventsh.pool", "eventsh.recording", "eventsh.worker")


def _time_of(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class TextFormatter(logging.Formatter):
    """`time LEVEL logger[pid] message`, then the traceback where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        head = f"{_time_of(record)} {record.levelname} {record.name}[{record.process}] "
        lines = [head + escape(record.getMessage())]
        if record.exc_info:
            # A traceback's text holds what the exception says, and that may come from an event.
            lines += [escape(line) for line in self.formatException(record.exc_info).split("\n")]
        return "\n".join(lines)


class JsonFormatter(logging.Formatter):
    """One JSON object: time, level, logger, message, pid, and traceback where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        facts: dict[str, object] = {
            "time": _time_of(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "pid": record.process,
        }
        if record.exc_info:
            facts["traceback"] = self.formatException(record.exc_info)
        try:
            return orjson.dumps(facts).decode()
        except orjson.JSONEncodeError:
            # Lone surrogates, as in file names that are not UTF-8.
            texts = {key: expressible(value) if isinstance(value, str) else value for key, value in facts.items()}
            return orjson.dumps(texts).decode()


class _OwnLogger(logging.Logger):
    """A logger that stays enabled. `logging.config` disables every logger that a configuration does not name, unless it says
    `disable_existing_loggers: False`: a file of handlers that configures its own logging would silence the tracebacks of
    its handlers."""

    @property
    def disabled(self) -> bool:
        return False

    @disabled.setter
    def disabled(self, disabled: bool) -> None:
        pass


def configure_logging(log_format: LogFormat = "text", level: int = logging.INFO) -> None:
    """Send everything that is logged in this process to stderr. Calling it again replaces the format.

    A later configuration of the program's own leaves the lines of eventsh there, unless it names the logger `eventsh`.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    for logger in (logging.getLogger(), logging.getLogger(_OWN[0])):
        for old in logger.handlers[:]:
            logger.removeHandler(old)
        logger.addHandler(handler)
        logger.setLevel(level)
    # By a handler of its own: a configuration replaces those of the root logger.
    logging.getLogger(_OWN[0]).propagate = False
    for name in _OWN:
        own = logging.getLogger(name)
        # In place: modules hold it already.
        own.__dict__.pop("disabled", None)
        own.__class__ = _OwnLogger
