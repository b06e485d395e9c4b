"""``jaxcls completion bash``: print a script that completes verbs, flags and config keys.

The script holds the names themselves, so that no key press starts Python.
"""

import importlib
import re
from collections.abc import Callable, Mapping, Sequence

from jaxcls import commands
from jaxcls.commands import cli
from jaxcls.config.knobs import KNOBS
from jaxcls.errors import DONE, lookup

ABOUT = "Print a script that completes verbs, flags and config keys."
WHERE = """where each shell looks for it:
  bash  jaxcls completion bash > ~/.local/share/bash-completion/completions/jaxcls
  zsh   jaxcls completion zsh > DIR/_jaxcls, where DIR is in $fpath
  fish  jaxcls completion fish > ~/.config/fish/completions/jaxcls.fish
or, in this shell alone: source <(jaxcls completion bash)
"""
# {verb: {flag: (its help, whether it takes a value)}}
Flags = Mapping[str, Mapping[str, tuple[str, bool]]]


def parser() -> cli.Parser:
    """Returns the parser of the command's flags."""
    parser = cli.Parser("completion", ABOUT, WHERE)
    parser.add_argument("shell", metavar="|".join(SHELLS))
    return parser


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit status."""
    args = parser().parse_args(argv)
    script = lookup(SHELLS, args.shell, "shell")
    print(script(flags()), end="")
    return DONE


def flags() -> Flags:
    """Returns the flags of each verb, with its config keys as ``--config.KEY``."""
    found = {}
    for verb in commands.VERBS:
        own = importlib.import_module(f"{commands.__name__}.{verb}").parser()
        is_any = verb in ("train", "study", "prepare")
        keys = {
            f"--config.{key}": (knob.about, True)
            for key, knob in KNOBS.items()
            if is_any or not knob.identity
        }
        found[verb] = own.flags() | (keys if verb != "completion" else {})
    return found


def _bash(flags: Flags) -> str:
    cases = "".join(
        f"    {verb}) words='{' '.join(map(_spelled, of.items()))}' ;;\n"
        for verb, of in flags.items()
    )
    return f"""\
_jaxcls() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} words=''
  [ "$COMP_CWORD" = 1 ] && words='{" ".join(flags)}' || case ${{COMP_WORDS[1]}} in
{cases}  esac
  COMPREPLY=($(compgen -W "$words" -- "$word"))
  [[ ${{COMPREPLY[0]:-}} != *= ]] || compopt -o nospace 2>/dev/null
}}
complete -o default -F _jaxcls jaxcls
"""


def _zsh(flags: Flags) -> str:
    verbs = " ".join(f"'{verb}:{_words(commands.VERBS[verb])}'" for verb in flags)
    cases = "".join(
        f"    {verb}) flags=({' '.join(_zsh_flag(*flag) for flag in of.items())}) ;;\n"
        for verb, of in flags.items()
    )
    return f"""\
#compdef jaxcls
_jaxcls() {{
  local -a verbs flags
  verbs=({verbs})
  (( CURRENT == 2 )) && {{ _describe verb verbs; return }}
  case $words[2] in
{cases}  esac
  shift words
  (( CURRENT-- ))
  _arguments $flags '*:file:_files'
}}
if [[ $funcstack[1] = _jaxcls ]]; then _jaxcls "$@"; else compdef _jaxcls jaxcls; fi
"""


def _zsh_flag(flag: str, told: tuple[str, bool]) -> str:
    about, has_value = told
    ends = (f"{flag}=", ":value:_files") if has_value else (flag, "")
    return f"'{ends[0]}[{_words(about)}]{ends[1]}'"


def _fish(flags: Flags) -> str:
    rows = [
        f"complete -c jaxcls -f -n __fish_use_subcommand -a {verb}"
        f" -d '{_words(commands.VERBS[verb])}'"
        for verb in flags
    ]
    for verb, of in flags.items():
        begins = f"complete -c jaxcls -n '__fish_seen_subcommand_from {verb}' -l"
        rows += [
            f"{begins} {flag[2:]} {'-rF ' * has_value}-d '{_words(about)}'"
            for flag, (about, has_value) in of.items()
        ]
    return "\n".join(rows) + "\n"


def _spelled(item: tuple[str, tuple[str, bool]]) -> str:
    flag, (_, has_value) = item
    return f"{flag}=" if has_value else flag


def _words(text: str) -> str:
    """Returns a help's first words without what a shell would read."""
    return re.sub(r"[^\w ,.;|/()*+=-]", "", re.split("; |: ", text)[0])[:70]


SHELLS: dict[str, Callable[[Flags], str]] = {"bash": _bash, "zsh": _zsh, "fish": _fish}
