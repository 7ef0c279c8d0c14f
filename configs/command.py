"""The installed command `palindrome`: `palindrome train …` is `python train/e2e.py …`."""

import ast
import difflib
import importlib
import sys
from importlib.metadata import version
from pathlib import Path

from configs import cli

SCRIPTS = {
    "demo": "extract.demo",
    "init": "extract.init",
    "check": "extract.check",
    "train": "train.e2e",
    "evaluate": "evaluate.run",
    "detect": "evaluate.detect",
    "diagnose": "evaluate.diagnose",
    "extract": "extract.run",
    "heads": "train.heads",
    "soup": "train.soup",
    "ablate": "train.ablate",
    "cache": "cache.show",
    "transcode": "extract.transcode",
    "features": "extract.features",
    "weights": "extract.weights",
    "recognise": "evaluate.recognise",
    "train-recogniser": "train.recognise",
    "pretrain": "train.pretrain",
}
PREFIX = __name__.removesuffix("configs.command")  # `palindrome.`, where it is installed
ROOT = Path(__file__).resolve().parents[1]

ZSH = """\
autoload -U +X compinit bashcompinit
whence compdef >/dev/null || compinit
bashcompinit
"""  # then as for bash; indirect names are written with eval, which both shells know
BASH = """\
_palindrome() {
    local word=${COMP_WORDS[COMP_CWORD]} name=${COMP_WORDS[1]} options
    local known=_palindrome_${name//[^a-z]/_}
    COMPREPLY=()
    if ((COMP_CWORD == 1)); then
        COMPREPLY=($(compgen -W "COMMANDS --help --version" -- "$word"))
    elif [[ $word == -* ]]; then
        eval "options=\\$$known"
        if [[ -z $options ]]; then
            options=$("${COMP_WORDS[0]}" "$name" --help 2>/dev/null |
                sed -nE 's/^  (-h[^,]*, )?(--[a-zA-Z0-9_.-]+).*/\\2/p')
            eval "$known=\\$options"
        fi
        COMPREPLY=($(compgen -W "$options" -- "$word"))
    fi
}
complete -o default -F _palindrome palindrome
"""


def run_command() -> None:
    """Run the script that the first argument names."""
    if sys.argv[1:2] in (["-h"], ["--help"]) and sys.argv[2:]:  # `--help train`
        sys.argv[1:3] = [sys.argv[2], sys.argv[1]]
    if len(sys.argv) < 2 or sys.argv[1] not in SCRIPTS:
        cli.run(_answer)
        return
    name = sys.argv[1]
    sys.argv[:2] = [f"palindrome {name}"]
    # Imported, not run as a file, so that processes that the script starts can import it, too.
    script = importlib.import_module(PREFIX + SCRIPTS[name])
    cli.run(script.main, getattr(script, "AFTER_INTERRUPT", ""))


def _answer() -> None:
    """Print what is asked for without a script's name."""
    given = sys.argv[1:] or ["--help"]
    match given:
        case ["-h" | "--help"]:
            print(format_overview())
        case ["--version"]:
            print(f"palindrome {version('palindrome')}")
        case ["--completion", "bash" | "zsh" as shell]:
            print(ZSH if shell == "zsh" else "", end="")
            print(BASH.replace("COMMANDS", " ".join(SCRIPTS)), end="")
        case ["--completion", *_]:
            raise ValueError("--completion: give bash or zsh")
        case _:
            near = difflib.get_close_matches(given[0], [*SCRIPTS, "--help", "--version"], n=1)
            hint = f"did you mean {near[0]}?" if near else "palindrome --help lists them"
            raise ValueError(f"palindrome: there is no command {given[0]}; {hint}")


def format_overview() -> str:
    """Return the list of commands, each with its script and the first line of its text."""
    width = max(map(len, SCRIPTS))
    lines = [f"  {name:<{width}}  {_summarise(script)}" for name, script in SCRIPTS.items()]
    return "\n".join(
        [
            "usage: palindrome COMMAND … | --version | --completion bash|zsh",
            "",
            *lines,
            "",
            "palindrome COMMAND --help says more. For several GPUs: accelerate launch -m "
            f"{PREFIX}{SCRIPTS['train']} …",
        ]
    )


def _summarise(script: str) -> str:
    """Return the first line of a script's text, without importing it."""
    source = (ROOT / script.replace(".", "/")).with_suffix(".py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").splitlines()[0]
