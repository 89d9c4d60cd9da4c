"""A program that takes calls: a line of JSON for each, and one for its answer. Both ends of that."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from eventsh.testing.recorder import DEADLINE_S

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import IO

__all__ = ["Remote", "answer_to", "wait_ended"]


def wait_ended(process: subprocess.Popen[Any]) -> None:
    """Wait for a process that was told to end. If it does not, kill it, and raise TimeoutExpired."""
    try:
        process.wait(DEADLINE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(DEADLINE_S)
        raise


class Remote:
    """The program, as the test that started it sees it. Its input ends with this process."""

    def __init__(self, arguments: Sequence[str], *, stderr: IO[bytes] | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            # It finds all modules where this process did.
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            text=True,
        )
        self.pid = self.process.pid

    def call(self, name: str, *arguments: Any) -> Any:
        """Have it done, and give what it gave; arguments and results are JSON. Raises RuntimeError with its error."""
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps([name, *arguments]) + "\n")
        stdin.flush()
        line = stdout.readline()
        if not line:
            raise RuntimeError(f"process {self.pid} ended at {name!r} with status {self.process.wait(DEADLINE_S)}")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"process {self.pid} at {name!r}: {answer['error']}")
        return answer["result"]

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.process.kill()
        self.process.wait(DEADLINE_S)

    def end(self) -> None:
        """End its input, so that it ends by itself; kill it if it does not. Raises TimeoutExpired then."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        try:
            wait_ended(self.process)
        finally:
            self.process.stdout.close()


def answer_to(result: Any = None, error: Exception | None = None) -> None:
    """In the program: answer a call."""
    answer = {"result": result} if error is None else {"error": f"{type(error).__name__}: {error}"}
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()
