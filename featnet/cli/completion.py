"""``featnet completion``: scripts that let a shell complete commands, options and models."""

from __future__ import annotations

from .parser import make_parser, options_of

# The names of models come from `featnet list`, which needs no torch: a tenth of a second
_BASH = """\
_featnet() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}"
    local command="${{COMP_WORDS[1]}}" words=""
    if [ "$COMP_CWORD" -eq 1 ]; then
        words="{commands} --help --version"
    elif [ "$before" = --model ] ||
        {{ [[ "$word" != -* ]] && [[ " info prefetch export " == *" $command "* ]]; }}; then
        words="$(featnet list 2>/dev/null)"
    else
        case "$command" in
{cases}
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$word"))
    [ ${{#COMPREPLY[@]}} -gt 0 ] || COMPREPLY=($(compgen -f -- "$word"))
}}
complete -o filenames -F _featnet featnet
"""
_FISH_HEAD = """\
complete -c featnet -f -n __fish_use_subcommand -a "{commands}"
complete -c featnet -n "__fish_seen_subcommand_from extract convert" -l model -x -a "(featnet list)"
complete -c featnet -f -n "__fish_seen_subcommand_from info prefetch export" -a "(featnet list)"
"""


def script(shell: str) -> str:
    """The script for ``bash``, ``zsh`` or ``fish``."""
    commands = options_of(make_parser(""))
    names = " ".join(commands)
    if shell == "fish":
        lines = [
            f'complete -c featnet -n "__fish_seen_subcommand_from {name}" -l {option[2:]}'
            for name, options in commands.items()
            for option in options
            if option != "--model"
        ]
        return _FISH_HEAD.format(commands=names) + "\n".join(lines)
    cases = "\n".join(
        f'            {name}) words="{" ".join(options)}" ;;' for name, options in commands.items()
    )
    bash = _BASH.format(commands=names, cases=cases)
    return f"autoload -U +X bashcompinit && bashcompinit\n{bash}" if shell == "zsh" else bash
