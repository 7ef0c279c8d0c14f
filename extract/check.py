"""Look at an experiment's data before training: everything that is wrong or unwise, at once.

    python extract/check.py --config FILE [--out FOLDER] [--data.videos FOLDER …]

Prints what was found and what to do, and leaves check.json (all of it) and check.png in the folder
(default: <config's out>/check). Exit code: 0 nothing to mend, 1 errors (training would stop or be
wrong; also if the config or the annotations cannot be read), 2 warnings only.
"""

import argparse
import json
import sys
import textwrap
from dataclasses import asdict
from itertools import chain
from pathlib import Path

from configs import cli
from configs.atomic import write_text
from configs.loader import load
from evaluate.reports.figures import draw_dataset
from train.config import Experiment
from train.dataset_check import annotations, files, lengths
from train.dataset_check.findings import Finding, counts, document, exit_code, table
from train.dataset_check.lengths import Suggestion, suggest
from train.dataset_check.survey import Survey, subsets, survey
from train.modeling.points import regression_ranges

CHECKS = (
    files.absent,
    files.unreadable,
    files.duplicates,
    files.measures,
    files.readers,
    annotations.entries,
    annotations.used_subsets,
    annotations.classes,
    annotations.flips,
    lengths.actions,
    lengths.windows,
    lengths.frame_rates,
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--config", required=True, help="YAML file of the experiment")
    parser.add_argument("--out", type=Path, help="folder for check.json and check.png")
    try:
        args, overrides = parser.parse_known_args()
    except SystemExit as error:
        sys.exit(min(int(error.code or 0), 1))  # argparse's own 2 would mean "warnings only"
    config = load(Experiment, args.config, overrides)
    sys.exit(check(config, args.out or Path(config.out) / "check"))


def check(config: Experiment, out: Path) -> int:
    """Print and write all that is found; return the exit code.

    Raises:
        ValueError: the annotations cannot be read at all, or the folder of videos is absent.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out: {out} is a file; choose a folder")
    out.mkdir(parents=True, exist_ok=True)  # before the work, which may take long
    seen = survey(config)
    findings = judge(seen)
    proposal = suggest(seen)
    content = document(findings) | {"suggestion": asdict(proposal) if proposal else None}
    write_text(out / "check.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    draw(seen, out / "check.png")
    tell(seen, findings, proposal, out)
    return exit_code(findings)


def judge(seen: Survey) -> list[Finding]:
    """Return what all checks find."""
    return list(chain.from_iterable(look(seen) for look in CHECKS))


def draw(seen: Survey, path: Path) -> None:
    """Draw classes, lengths of actions and videos."""
    config = seen.config
    examples = {subset: annotations.examples(seen, subset) for subset in subsets(config)}
    draw_dataset(
        {
            subset: {name: count[name] for name in seen.annotations.classes}
            for subset, count in examples.items()
        },
        [
            float(length)
            for item in seen.items(config.data.train_subset)
            for length in lengths.lengths(item, seen)
        ],
        regression_ranges(config.head.levels),
        config.sampling.window_size,
        [(file.frames / file.index.fps, file.index.fps) for file in seen.files.values()],
        path,
    )


def tell(seen: Survey, findings: list[Finding], proposal: Suggestion | None, out: Path) -> None:
    """Print the table, the proposal and where the rest is."""
    actions = sum(len(video.segments) for video in seen.used)
    print(
        f"{len(seen.used)} videos of {', '.join(map(repr, subsets(seen.config)))}: "
        f"{actions} actions of {len(seen.annotations.classes)} classes"
    )
    if findings:
        print(table(findings))
    if proposal:
        now = seen.config.sampling
        print(
            f"suggested: sampling.window_size {proposal.window_size} and sampling.snippet_stride "
            f"{proposal.snippet_stride} (now {now.window_size} and {now.snippet_stride}):"
        )
        print(textwrap.fill(proposal.reason, 96, initial_indent="  ", subsequent_indent="  "))
    told = ", ".join(f"{severity}: {count}" for severity, count in counts(findings).items())
    print(f"{told}; everything is in {out / 'check.json'}, pictures in {out / 'check.png'}")


if __name__ == "__main__":
    cli.run(main)
