# fish completion for eventsh. Written by python -m eventsh.cli.completions; don't edit.
# Have it in ~/.config/fish/completions, or load it with: source FILE

function __eventsh_complete
    set -l words (commandline -opc)
    set -l word (commandline -ct)
    set -l plain (string unescape -- "$word")
    or set plain "$word"
    set -l program (string replace -r '^~/' "$HOME/" -- $words[1])
    $program __complete fish $words[2..-1] "$plain" 2>/dev/null </dev/null
end

complete -c eventsh -f -a '(__eventsh_complete)'
