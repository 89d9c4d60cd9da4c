"""A real shell in a pseudo-terminal, with `eventsh` and its completions where that shell looks for them."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pexpect  # type: ignore[import-untyped, unused-ignore]
import pyte  # type: ignore[import-untyped, unused-ignore]

from tests.cli.pool import ROOT, environment

# A key starts a process, which is slow where many others run.
DEADLINE_S = 40.0
# A broker that does not answer in time leaves the line as it was: then the key is pressed again.
_AGAIN_S = 4.0
_BASH_COMPLETION = "/usr/share/bash-completion/bash_completion"

# What starts each shell, without the user's files.
COMMANDS = {
    "bash": ["bash", "--norc", "--noprofile", "-i"],
    "bash-completion": ["bash", "--norc", "--noprofile", "-i"],
    "zsh": ["zsh", "-f", "-i"],
    "fish": ["fish", "-i"],
}
# And what has it find what a package has installed below $PREFIX.
_SETTINGS = {
    "bash": "source $PREFIX/share/bash-completion/completions/eventsh",
    "bash-completion": f"source {_BASH_COMPLETION}",
    "zsh": "fpath=($PREFIX/share/zsh/site-functions $fpath); autoload -Uz compinit; compinit -u -D; PROMPT='> '",
    "fish": "function fish_prompt; echo '> '; end",
}


def why_not(shell: str) -> str | None:
    """Why this shell can't be tried here; None if it can."""
    if shutil.which(COMMANDS[shell][0]) is None:
        return f"{COMMANDS[shell][0]} is not installed"
    if shell == "bash-completion" and not os.path.exists(_BASH_COMPLETION):
        return "bash-completion is not installed"
    return None


def install(prefix: Path) -> None:
    """Put the scripts to where the wheel has them, and a program `eventsh`."""
    settings = tomllib.loads(Path(ROOT, "pyproject.toml").read_text())
    for name, place in settings["tool"]["hatch"]["build"]["targets"]["wheel"]["shared-data"].items():
        target = prefix / place
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(ROOT, name), target)
    program = prefix / "bin" / "eventsh"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m eventsh "$@"\n')
    program.chmod(0o755)


class Typist:
    """Somebody at the keys of a shell, who looks at its screen."""

    def __init__(self, shell: str, prefix: Path, address: str) -> None:
        env = {name: value for name, value in environment(address).items() if name not in ("COLUMNS", "INPUTRC")}
        env |= {"HOME": str(prefix), "PREFIX": str(prefix), "TERM": "xterm", "PATH": f"{prefix}/bin:{env['PATH']}"}
        env |= {"XDG_CONFIG_HOME": f"{prefix}/config", "XDG_DATA_HOME": f"{prefix}/data", "PS1": "> "}
        env["XDG_DATA_DIRS"] = f"{prefix}/share:/usr/share"
        # Where this is missing, fish reads all of the system's manual pages in a process that outlives it.
        (prefix / "data" / "fish" / "generated_completions").mkdir(parents=True, exist_ok=True)
        command, *flags = COMMANDS[shell]
        self.child: Any = pexpect.spawn(
            command, flags, env=env, cwd=str(prefix), dimensions=(50, 200), encoding="utf-8", codec_errors="replace"
        )
        self._screen = pyte.Screen(200, 50)
        # A terminal answers where its cursor is.
        self._screen.write_process_input = self.child.send  # type: ignore[method-assign, unused-ignore]
        self._stream = pyte.Stream(self._screen)
        self.enter(_SETTINGS[shell])
        self.enter("clear; echo rea''dy")
        self.see("ready")

    @property
    def text(self) -> str:
        return "\n".join(row.rstrip() for row in self._screen.display)

    def see(self, *wanted: str) -> None:
        """Wait until all of these stand on the screen."""
        self._wait(lambda: all(one in self.text for one in wanted), repr(wanted))

    def complete(self, begun: str, whole: str) -> None:
        """Type the beginning of a word, press Tab, and wait until the screen has the whole one."""
        self.child.send(begun)
        end = time.monotonic() + DEADLINE_S
        while True:
            self.child.send("\t")
            again = min(time.monotonic() + _AGAIN_S, end)
            while whole not in self.text and time.monotonic() < again:
                self._read()
            if whole in self.text:
                return
            assert time.monotonic() < end, f"no {whole!r} on the screen:\n{self.text}"

    def type(self, text: str) -> None:
        self.child.send(text)

    def enter(self, line: str = "") -> None:
        self.child.send(f"{line}\r")

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < end, f"no {what} on the screen:\n{self.text}"
            self._read()

    def _read(self) -> None:
        try:
            self._stream.feed(self.child.read_nonblocking(65536, timeout=0.2))
        except pexpect.TIMEOUT:
            return

    def close(self) -> None:
        self.child.close(force=True)
