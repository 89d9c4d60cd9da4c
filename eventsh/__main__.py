"""`python -m eventsh` is the command line."""

from __future__ import annotations

from eventsh.cli.app import main

main()
