"""`kvmkit completion`: verbs, options and names of VMs, completed by a shell."""

from __future__ import annotations

import argparse
import sys

from kvmkit.cli.verbs import VERBS

SUMMARY = VERBS["completion"].summary

EPILOG = """\
examples:
  eval "$(kvmkit completion bash)"                                           in ~/.bashrc
  kvmkit completion zsh > ~/.zfunc/_kvmkit                                   a directory of $fpath
  kvmkit completion fish > ~/.config/fish/completions/kvmkit.fish
"""

BASH = """\
# bash completion for kvmkit
_kvmkit() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} verb=${{COMP_WORDS[1]}}
    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ]; then
        mapfile -t COMPREPLY < <(compgen -W "{verbs}" -- "$word")
        return
    fi
    case $verb in
{options}
    *) local options= ;;
    esac
    if [[ $word == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$options" -- "$word")
        return
    fi
    if [ "$COMP_CWORD" -eq 2 ]; then
        case $verb in
{topics}
        *) local topics= ;;
        esac
        if [ -n "$topics" ]; then
            mapfile -t COMPREPLY < <(compgen -W "$topics" -- "$word")
            return
        fi
    fi
    case $verb in
    {named})
        mapfile -t COMPREPLY < <(compgen -W "$(kvmkit ps -aq 2>/dev/null)" -- "$word")
        ;;
    esac
}}
complete -o default -F _kvmkit kvmkit
"""

ZSH = """\
#compdef kvmkit
# zsh completion for kvmkit
_kvmkit() {{
    local -a verbs options
    verbs=(
{verbs}
    )
    if (( CURRENT == 2 )); then
        _describe verb verbs
        return
    fi
    case $words[2] in
{options}
    esac
    if [[ $PREFIX == -* ]]; then
        compadd -- $options
        return
    fi
    if (( CURRENT == 3 )); then
        case $words[2] in
{topics}
        esac
    fi
    case $words[2] in
    {named}) compadd -- ${{(f)"$(kvmkit ps -aq 2>/dev/null)"}} ;;
    *) _files ;;
    esac
}}
if [ "$funcstack[1]" = _kvmkit ]; then _kvmkit "$@"; else compdef _kvmkit kvmkit; fi
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), metavar="SHELL", help="bash, zsh or fish")


def run(args: argparse.Namespace) -> int:
    sys.stdout.write({"bash": _bash, "zsh": _zsh, "fish": _fish}[args.shell]())
    return 0


def _options() -> dict[str, dict[str, str]]:
    """The long options of each verb, with their help."""
    from kvmkit.cli.main import parser_of

    found: dict[str, dict[str, str]] = {}
    for verb in VERBS:
        options = {}
        for action in parser_of(verb)._actions:
            long = [option for option in action.option_strings if option.startswith("--")]
            if long:
                options[long[0]] = (action.help or "").replace("%%", "%")
        found[verb] = options
    return found


def _topics() -> dict[str, list[str]]:
    """What may come first after a verb, where that is one of a few words, as in `kvmkit image ls`."""
    from kvmkit.cli.main import parser_of

    found: dict[str, list[str]] = {}
    for verb in VERBS:
        first = next((action for action in parser_of(verb)._actions if not action.option_strings), None)
        if first is not None and first.choices:
            found[verb] = [str(choice) for choice in first.choices]
    return found


def _named() -> list[str]:
    return [name for name, verb in VERBS.items() if verb.names]


def _bash() -> str:
    options = "\n".join(f"    {verb}) local options='{' '.join(names)}' ;;" for verb, names in _options().items())
    topics = "\n".join(f"        {verb}) local topics='{' '.join(words)}' ;;" for verb, words in _topics().items())
    return BASH.format(verbs=" ".join(VERBS), options=options, topics=topics, named=" | ".join(_named()))


def _zsh() -> str:
    def quoted(text: str) -> str:
        return "'" + text.replace("'", "'\\''") + "'"

    verbs = "\n".join(f"        {quoted(f'{name}:{verb.summary}')}" for name, verb in VERBS.items())
    options = "\n".join(f"    {verb}) options=({' '.join(names)}) ;;" for verb, names in _options().items())
    topics = "\n".join(f"        {verb}) compadd -- {' '.join(words)}; return ;;" for verb, words in _topics().items())
    return ZSH.format(verbs=verbs, options=options, topics=topics, named="|".join(_named()))


def _fish() -> str:
    def quoted(text: str) -> str:
        return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"

    lines = ["# fish completion for kvmkit", "complete -c kvmkit -f -n __fish_use_subcommand"]
    for name, verb in VERBS.items():
        lines.append(f"complete -c kvmkit -f -n __fish_use_subcommand -a {name} -d {quoted(verb.summary)}")
    for name, options in _options().items():
        for option, help_text in options.items():
            seen = f"'__fish_seen_subcommand_from {name}'"
            lines.append(f"complete -c kvmkit -n {seen} -l {option[2:]} -d {quoted(help_text)}")
    for name, words in _topics().items():
        first = f"__fish_seen_subcommand_from {name}; and test (count (commandline -opc)) -eq 2"
        lines.append(f"complete -c kvmkit -f -n {quoted(first)} -a '{' '.join(words)}'")
    named = " ".join(_named())
    lines.append(f"complete -c kvmkit -f -n '__fish_seen_subcommand_from {named}' -a '(kvmkit ps -aq 2>/dev/null)'")
    return "\n".join(lines) + "\n"
