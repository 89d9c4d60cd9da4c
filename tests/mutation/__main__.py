"""Mutation testing: `python -m tests.mutation --package recording --count 50 --seed 7`.

Draws mutants of the packages by the seed, runs the tests beside each mutated file, and prints the mutants that survive.
`equivalent.toml` lists mutants that were judged equivalent; a draw leaves them out. The exit status is 0 if the share of
killed mutants is at least --least, else 1.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
import tempfile
import tomllib
from pathlib import Path

from tests.mutation.campaign import Campaign, Outcome, copy_tree
from tests.mutation.mutants import Mutant, find_mutants

ROOT = Path(__file__).resolve().parents[2]
EQUIVALENT = Path(__file__).with_name("equivalent.toml")


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("--package", action="append", required=True, help="protocol, core/outbox.py, ...; repeatable")
    parser.add_argument("--count", type=int, default=50, help="mutants to draw from all packages together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--match", default="", help="draw only mutants whose printed form contains this text")
    parser.add_argument("--list", action="store_true", help="print the drawn mutants and run none")
    parser.add_argument("--own", action="store_true", help="run only the tests named after the mutated file, if any")
    parser.add_argument("--least", type=float, default=0.95, help="share that must be killed")
    parser.add_argument("--least-timeout", type=float, default=10.0, help="time limit in seconds of a short run")
    parser.add_argument("--root", type=Path, default=ROOT, help="tree to copy")
    parser.add_argument("--equivalent", type=Path, default=EQUIVALENT, help="file of the mutants judged equivalent")
    return parser.parse_args(arguments)


def files_of(root: Path, package: str) -> list[str]:
    """Return the source files of a package, or the one file that it names."""
    path = root / "eventsh" / package
    files = [path] if path.is_file() else sorted(path.glob("*.py"))
    if not files:
        raise SystemExit(f"--package {package}: {path} is neither a source file nor a directory of source files")
    return [str(each.relative_to(root)) for each in files]


class Judged:
    """Mutants judged equivalent. A row names a file and a qualified name; a member that it leaves out matches any."""

    def __init__(self, path: Path) -> None:
        self._rows = tomllib.loads(path.read_text())["equivalent"] if path.exists() else []
        for row in self._rows:
            if not row.get("reason") or not {"file", "where"} <= row.keys():
                raise SystemExit(f"{path}: a row needs file, where and reason: {row}")

    def has(self, mutant: Mutant) -> bool:
        return any(all(row.get(name, value) == value for name, value in mutant.key.items()) for row in self._rows)


def draw(options: argparse.Namespace) -> list[Mutant]:
    """Draw mutants, and leave out those judged equivalent."""
    files = dict.fromkeys(file for package in options.package for file in files_of(options.root, package))
    mutants = [mutant for file in files for mutant in find_mutants(options.root, file) if options.match in str(mutant)]
    judged = Judged(options.equivalent)
    # Drawn before they are judged: a new judgement leaves the rest of the draw as it was.
    random.Random(options.seed).shuffle(mutants)
    return [mutant for mutant in mutants[: options.count] if not judged.has(mutant)]


def run(options: argparse.Namespace) -> Outcome:
    mutants = draw(options)
    if options.list:
        for mutant in mutants:
            print(mutant)
        return Outcome()
    directory = Path(tempfile.mkdtemp(prefix="eventsh-mutation-"))
    try:
        copy_tree(options.root, directory / "tree")
        campaign = Campaign(directory / "tree", print_now, least_timeout_s=options.least_timeout, own=options.own)
        outcome = campaign.run(sorted(mutants, key=str))
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    for mutant in outcome.survivors:
        print(
            f"\n{mutant.file}:{mutant.line} in {mutant.where}: {mutant.text}\n  - {mutant.before}\n  + {mutant.after}"
        )
    print(
        f"\nseed {options.seed}: {len(mutants)} mutants, {outcome.killed} killed, {outcome.timeouts} timeouts,"
        f" {len(outcome.survivors)} survived: {outcome.share:.1%}"
    )
    return outcome


def print_now(text: str) -> None:
    print(text, flush=True)


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    # Ends the running tests and removes the copy.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    outcome = run(options)
    return 0 if options.list or outcome.share >= options.least else 1


if __name__ == "__main__":
    sys.exit(main())
