"""Look at your videos and labels, and write a short config for them.

    python extract/init.py VIDEOS LABELS [--out own.yaml]

VIDEOS is a folder of video files. LABELS is a table with the columns video, start, end and label,
an annotation tool's export, or a file or folder in a dataset's layout. The config is
configs/e2e/own.yaml with your paths, subsets and windows that fit the lengths of your actions; all
is explained where it is written. Where labels put all videos into one subset, a table of the same
labels, of which one video in five is for testing, is written beside the config. Nothing is
overwritten.
"""

import os
import shlex
import sys
from pathlib import Path

if __package__ is None:  # run as a file: its neighbours must not hide modules of their names
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import textwrap

import yaml

from configs import cli
from configs.atomic import write_text
from configs.command import SCRIPTS
from configs.options import ScriptParser


def main() -> None:
    parser = ScriptParser(__doc__)
    parser.add_argument("videos", type=Path, help="folder of video files")
    parser.add_argument("labels", type=Path, help="file or folder with their actions")
    parser.add_argument("--classes", type=Path, help="file with one class a line, in their order")
    parser.add_argument(
        "--out", type=Path, default=Path("own.yaml"), help="config to write (default: %(default)s)"
    )
    args, _ = parser.parse()
    write_config(args.videos, args.labels, args.classes, args.out)


def write_config(videos: Path, labels: Path, classes: Path | None, out: Path) -> None:
    """Write a config for videos and labels, and say what was chosen and what comes next.

    Raises:
        ValueError: a file is missing or cannot be used, or one would be overwritten.
    """
    new_labels = out.with_name(f"{out.stem}-labels.csv")
    if out.suffix not in (".yaml", ".yml"):
        raise ValueError(f"--out: {out} must end in .yaml")
    for path in (out, new_labels):
        if path.exists():
            raise ValueError(f"--out: {path} is there already; choose another name, or remove it")
    if not videos.is_dir():
        raise ValueError(f"VIDEOS: there is no folder {videos}")
    for name, given in (("LABELS", labels), ("--classes", classes)):
        if given is not None and not given.exists():
            raise ValueError(f"{name}: there is no {given}")
    import torch

    from train.dataset_check.first_config import propose_config

    has_gpu = torch.cuda.is_available()
    found = propose_config(videos, labels, classes, f"runs/{out.stem}", new_labels, has_gpu)
    out.parent.mkdir(parents=True, exist_ok=True)
    if found.labels is not None:
        write_text(new_labels, found.labels)
    comments = [
        textwrap.fill(reason, 98, initial_indent="# - ", subsequent_indent="#   ")
        for reason in found.reasons
    ]
    settings = yaml.safe_dump(found.content, sort_keys=False, allow_unicode=True)
    why = "\n".join(["# Written after a look at the data:", *comments])
    write_text(out, f"{why}\n{settings}")
    print("\n".join(f"- {reason}" for reason in found.reasons))
    if found.labels is not None:
        print(f"labels with subsets: {new_labels}")
    weights = found.content["backbone"]["weights"]
    if not Path(weights).exists():
        print(
            f"the pretrained weights are not at {weights} yet: docs/weights.md says where they "
            "are; or set backbone.weights to videomae-small, which is downloaded"
        )
    print(f"config: {out}\n\nnext:")
    for name, option, value in (
        ("check", "--config", str(out)),
        ("train", "--config", str(out)),
        ("evaluate", "--checkpoint", f"{found.content['out']}/last.pt"),
    ):
        print(f"  {shlex.join([*name_command(name), option, value])}")


def name_command(name: str) -> list[str]:
    """Return the words of a script's call, as this process's user calls scripts."""
    if sys.argv[0].startswith("palindrome "):
        return ["palindrome", name]
    checkout = os.path.normpath(Path(sys.argv[0]).parent / "..")
    return ["python", str(Path(checkout, f"{SCRIPTS[name].replace('.', '/')}.py"))]


if __name__ == "__main__":
    cli.run(main)
