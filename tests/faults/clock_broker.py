"""A broker on a host of our own making: `python -m tests.faults.clock_broker BOOT UPTIME_S ARGUMENT...`."""

from __future__ import annotations

import sys

from eventsh.core.epochs import encode_epoch
from eventsh.runtime import broker


def main() -> int:
    boot, uptime_s, *arguments = sys.argv[1:]
    broker.new_epoch = lambda: encode_epoch(boot.encode(), int(uptime_s) * 1_000_000_000)  # type: ignore[attr-defined]
    return broker.main(arguments)


if __name__ == "__main__":
    sys.exit(main())
