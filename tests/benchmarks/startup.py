"""How long `eventsh post` takes, as a multiple of `python -c "import typer"`.

    python tests/benchmarks/startup.py [--rounds 40] [--workers 4] [--limit 1.6]

Fresh processes, interleaved, medians of the wall time. The post goes to a pool of its own, which is stopped in the end,
and every one must be confirmed by all workers. Ends with status 1 when the ratio is over the limit.

Bytecode is cached, as it is where pip has installed a package: PYTHONDONTWRITEBYTECODE is taken out of the environment,
and a first round is not counted.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time

TIMED = {
    "python -c pass": ["-c", "pass"],
    "import typer": ["-c", "import typer"],
    "eventsh --version": ["-m", "eventsh", "--version"],
    "eventsh status": ["-m", "eventsh", "status"],
    "eventsh post": ["-m", "eventsh", "post", "source", "event", '<"k":1>'],
}
START_S = 30.0


def environment(directory: str) -> dict[str, str]:
    left_out = ("EVENTSH_", "PYTHONDONTWRITEBYTECODE", "PYTHONPROFILEIMPORTTIME")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
    return {**kept, "EVENTSH_ADDRESS": f"unix:{directory}/e.sock"}


def start_pool(workers: int, env: dict[str, str], directory: str) -> subprocess.Popen[bytes]:
    path = f"{directory}/out"
    with open(path, "wb") as out:
        pool = subprocess.Popen([sys.executable, "-m", "eventsh", "serve", f"--workers={workers}"], stdout=out, env=env)
    deadline = time.monotonic() + START_S
    while True:
        with open(path, "rb") as out:
            if b"Ctrl-C stops it" in out.read():
                return pool
        if pool.poll() is not None or time.monotonic() > deadline:
            pool.kill()
            sys.exit("the pool did not start")
        time.sleep(0.01)


def measure(arguments: list[str], env: dict[str, str], expected: str) -> float:
    began = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], stdout=subprocess.PIPE, env=env, check=True, text=True)
    took = time.perf_counter() - began
    if expected not in done.stdout:
        sys.exit(f"{arguments} gave {done.stdout!r}")
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--limit", type=float, default=1.6)
    options = parser.parse_args()
    times: dict[str, list[float]] = {name: [] for name in TIMED}
    with tempfile.TemporaryDirectory() as directory:
        env = environment(directory)
        pool = start_pool(options.workers, env, directory)
        try:
            for number in range(options.rounds + 1):
                for name, arguments in TIMED.items():
                    expected = f"to {options.workers} worker" if name == "eventsh post" else ""
                    took = measure(arguments, env, expected)
                    if number:
                        times[name].append(took)
        finally:
            pool.send_signal(signal.SIGTERM)
            pool.wait(START_S)
    base = statistics.median(times["import typer"])
    for name, all_times in times.items():
        median = statistics.median(all_times)
        print(f"{name:20} {median * 1e3:7.1f} ms  (least {min(all_times) * 1e3:6.1f})  {median / base:5.2f}")
    ratio = statistics.median(times["eventsh post"]) / base
    print(f"eventsh post takes {ratio:.2f} times what import typer takes (limit {options.limit:g})")
    sys.exit(ratio > options.limit)


if __name__ == "__main__":
    main()
