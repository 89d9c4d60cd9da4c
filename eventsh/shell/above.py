"""What other threads show while there is a prompt: whole lines above it, each once."""

from __future__ import annotations

import threading
import time
from asyncio import AbstractEventLoop
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress

from prompt_toolkit.application import run_in_terminal
from prompt_toolkit.patch_stdout import StdoutProxy

__all__ = ["Above"]

# Between two looks for the loop of a prompt that is about to begin.
_LOOK_S = 0.01


class Above(StdoutProxy):
    """Takes the place of the standard streams, and shows what is written to them above the prompt.

    prompt-toolkit's own one looks whether a prompt is there, and writes by itself if there is none: into the midst of one
    that begins just then, or into the loop of one that has just ended, where it is lost. Here a prompt begins and ends
    under the lock under which is written, and what waits at its end is written then.
    """

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._is_prompting = False
        self._waiting: list[str] = []
        super().__init__(raw=True)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Be the standard streams, until all that was written to them is shown."""
        with self, redirect_stdout(self), redirect_stderr(self):
            try:
                yield
            finally:
                # What has no end of line yet: closing alone forgets it.
                self.flush()

    @contextmanager
    def prompting(self) -> Iterator[None]:
        """A prompt has the terminal meanwhile."""
        with self._turn:
            self._is_prompting = True
        try:
            yield
        finally:
            with self._turn:
                self._is_prompting = False
                self._write_waiting()

    def _write_and_flush(self, loop: AbstractEventLoop | None, text: str) -> None:
        """Called in the thread of the proxy, with what is to be shown next."""
        with self._turn:
            self._waiting.append(text)
        while not self._hand_over():
            time.sleep(_LOOK_S)

    def _hand_over(self) -> bool:
        """Write what waits, or have the prompt do so. False while that is about to begin."""
        with self._turn:
            if not self._is_prompting:
                self._write_waiting()
                return True
            prompt = self.app_session.app
            if prompt is None or prompt.loop is None:
                return False
            # Closed: the prompt has ended, and what waits is written in a moment.
            with suppress(RuntimeError):
                prompt.loop.call_soon_threadsafe(
                    lambda: run_in_terminal(self._write_above),
                    context=prompt.context and prompt.context.copy(),
                )
            return True

    def _write_above(self) -> None:
        """Called in the loop of the prompt, which is off the screen."""
        with self._turn:
            self._write_waiting()

    def _write_waiting(self) -> None:
        if self._waiting:
            text = "".join(self._waiting)
            self._waiting.clear()
            self._output.enable_autowrap()
            self._output.write_raw(text)
            self._output.flush()
