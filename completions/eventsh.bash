# bash completion for eventsh. Written by python -m eventsh.cli.completions; don't edit.
# Load it with: source FILE

_eventsh() {
    local program=${1/#\~\//$HOME/} reply
    COMPREPLY=()
    while IFS= read -r reply; do
        COMPREPLY+=("$reply")
    done < <("$program" __complete bash "$COMP_WORDBREAKS" "${COMP_LINE:0:COMP_POINT}" 2>/dev/null </dev/null)
    case ${COMPREPLY[0]-} in
        */ | *: | *=) compopt -o nospace 2>/dev/null ;;
    esac
}

complete -F _eventsh eventsh
