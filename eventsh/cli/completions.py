"""The scripts that have bash, zsh and fish complete command lines of `eventsh`.

    python -m eventsh.cli.completions [DIRECTORY]

writes them to `completions/`, from where the package installs them. They know the name of the program and how to ask it;
cli/complete.py has the answers.
"""

from __future__ import annotations

import sys
from pathlib import Path

from eventsh.cli.verbs import COMPLETE, PROGRAM

__all__ = ["scripts", "write_scripts"]

# Each asks the very program that is typed, so that the one of a virtual environment answers for itself. A tilde is still
# a tilde there. Candidates that end in a slash, a colon or an equals sign are to be typed on: no space follows.

_BASH = r"""# bash completion for PROGRAM. Written by python -m eventsh.cli.completions; don't edit.
# Load it with: source FILE

_PROGRAM() {
    local program=${1/#\~\//$HOME/} reply
    COMPREPLY=()
    while IFS= read -r reply; do
        COMPREPLY+=("$reply")
    done < <("$program" COMPLETE bash "$COMP_WORDBREAKS" "${COMP_LINE:0:COMP_POINT}" 2>/dev/null </dev/null)
    case ${COMPREPLY[0]-} in
        */ | *: | *=) compopt -o nospace 2>/dev/null ;;
    esac
}

complete -F _PROGRAM PROGRAM
"""

_ZSH = r"""#compdef PROGRAM
# zsh completion for PROGRAM. Written by python -m eventsh.cli.completions; don't edit.
# Have it in a directory of $fpath, or load it after compinit with: source FILE

_PROGRAM() {
    local program=${${(Q)words[1]}/#\~\//$HOME/} value about
    local -a whole begun
    if [[ $PREFIX == \~* ]]; then
        _files
        return
    fi
    while IFS=$'\t' read -r value about; do
        # _describe parts a value from what is said about it at the first plain colon.
        value=${${value//\\/\\\\}//:/\\:}
        if [[ $value == *[/:=] ]]; then
            begun+=("$value${about:+:$about}")
        else
            whole+=("$value${about:+:$about}")
        fi
    done < <("$program" COMPLETE zsh "${(@Q)words[2,CURRENT-1]}" "${(Q)PREFIX}" 2>/dev/null </dev/null)
    _describe -t PROGRAM PROGRAM whole -- begun -S ''
}

if [[ ${funcstack[1]} == _PROGRAM ]]; then
    _PROGRAM "$@"
else
    compdef _PROGRAM PROGRAM
fi
"""

_FISH = r"""# fish completion for PROGRAM. Written by python -m eventsh.cli.completions; don't edit.
# Have it in ~/.config/fish/completions, or load it with: source FILE

function __PROGRAM_complete
    set -l words (commandline -opc)
    set -l word (commandline -ct)
    set -l plain (string unescape -- "$word")
    or set plain "$word"
    set -l program (string replace -r '^~/' "$HOME/" -- $words[1])
    $program COMPLETE fish $words[2..-1] "$plain" 2>/dev/null </dev/null
end

complete -c PROGRAM -f -a '(__PROGRAM_complete)'
"""

# The names that the shells look for.
_TEMPLATES = {f"{PROGRAM}.bash": _BASH, f"_{PROGRAM}": _ZSH, f"{PROGRAM}.fish": _FISH}


def scripts() -> dict[str, str]:
    """The text of each script, by the name of its file."""
    return {name: text.replace("PROGRAM", PROGRAM).replace("COMPLETE", COMPLETE) for name, text in _TEMPLATES.items()}


def write_scripts(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in scripts().items():
        (directory / name).write_text(text)


if __name__ == "__main__":
    write_scripts(Path(sys.argv[1] if len(sys.argv) > 1 else "completions"))
