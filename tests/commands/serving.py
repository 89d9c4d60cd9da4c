"""`eventsh serve` without its command line. Usage: serving.py ADDRESS WORKERS STOP_TIMEOUT [HANDLERS]..."""

from __future__ import annotations

import sys

from eventsh.address import parse_address
from eventsh.commands.serve import ServeArguments, serve
from eventsh.errors import EventError
from eventsh.options import Options

try:
    address, workers, stop_timeout_s, *handlers = sys.argv[1:]
    arguments = ServeArguments(
        parse_address(address),
        int(workers),
        tuple(handlers),
        # The place of a worker that is started again is kept for as long as that takes on a busy machine.
        Options(timeout=60.0),
        stop_timeout_s=float(stop_timeout_s),
        log_format="json",
    )
    sys.exit(serve(arguments, lambda line: print(line, flush=True)))
except EventError as error:
    print(f"error: {error}", flush=True)
    sys.exit(1)
