"""`eventsh serve` without its command line. Usage: serving.py ADDRESS WORKERS [HANDLERS]..."""

from __future__ import annotations

import sys

from eventsh.address import parse_address
from eventsh.commands.serve import ServeArguments, serve
from eventsh.errors import EventError

try:
    arguments = ServeArguments(
        parse_address(sys.argv[1]), int(sys.argv[2]), tuple(sys.argv[3:]), stop_timeout_s=3.0, log_format="json"
    )
    sys.exit(serve(arguments, lambda line: print(line, flush=True)))
except EventError as error:
    print(f"error: {error}", flush=True)
    sys.exit(1)
