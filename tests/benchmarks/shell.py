"""How long the shell takes until its prompt is there, and until the first key is answered.

    python tests/benchmarks/shell.py [--rounds 15] [--limit 0.5]

A shell in a pseudo-terminal, attached to a pool of its own; fresh processes, medians of the wall time from the start of
the process to the prompt on the screen. Ends with status 1 when that median is over the limit, in seconds. A first
round, which fills caches, is not counted.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time

import pexpect  # type: ignore[import-untyped, unused-ignore]

START_S = 30.0


def environment(directory: str) -> dict[str, str]:
    left_out = ("EVENTSH_", "PYTHONDONTWRITEBYTECODE")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
    shown = {"TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1", "XDG_STATE_HOME": directory}
    return {**kept, **shown, "EVENTSH_ADDRESS": f"unix:{directory}/e.sock"}


@contextlib.contextmanager
def pool(env: dict[str, str]):
    command = [sys.executable, "-m", "eventsh", "serve", "--workers=4"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if b"Ctrl-C stops it" in line:
                    break
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(START_S)


def measure(env: dict[str, str]) -> tuple[float, float]:
    """Seconds to the prompt, and from a key to its echo."""
    began = time.perf_counter()
    shell = pexpect.spawn(sys.executable, ["-m", "eventsh"], env=env, dimensions=(24, 80), timeout=START_S)
    shell.delaybeforesend = None
    try:
        shell.expect_exact("eventsh>")
        to_prompt = time.perf_counter() - began
        began = time.perf_counter()
        shell.send("#")
        shell.expect_exact("#")
        to_echo = time.perf_counter() - began
        shell.send("\x03\x04")
        shell.expect(pexpect.EOF)
    finally:
        shell.close(force=True)
    return to_prompt, to_echo


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--limit", type=float, default=0.5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        env = environment(directory)
        with pool(env):
            times = [measure(env) for _ in range(options.rounds + 1)][1:]
    prompts, echoes = zip(*times, strict=True)
    print(f"to the prompt       {statistics.median(prompts) * 1e3:6.0f} ms  (least {min(prompts) * 1e3:.0f})")
    print(f"from key to screen  {statistics.median(echoes) * 1e3:6.0f} ms  (least {min(echoes) * 1e3:.0f})")
    sys.exit(statistics.median(prompts) > options.limit)


if __name__ == "__main__":
    main()
