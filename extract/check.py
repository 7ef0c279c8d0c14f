"""Look at an experiment's data before training: everything that is wrong or unwise, at once.

    python extract/check.py --config FILE [--out FOLDER] [--data.videos FOLDER …]

Prints what was found and what to do, and leaves report.html, report.json, check.json (all of it)
and check.png in the folder (default: <config's out>/check). Exit code: 0 nothing to mend,
1 errors (training would stop or be wrong; also if the config or the annotations cannot be read),
2 warnings only.
"""

import sys
from pathlib import Path

if __package__ is None:  # run as a file: its neighbours must not hide modules of their names
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import json
from dataclasses import replace

from configs import cli
from configs.atomic import write_text
from configs.loader import load
from configs.options import ScriptParser
from train.config import Experiment
from train.engine.stopwatch import Stopwatch


def main() -> None:
    parser = ScriptParser(__doc__, Experiment)
    parser.add_argument("--config", required=True, help="YAML file of the experiment")
    parser.add_argument("--out", type=Path, help="folder for report.html and check.json")
    try:
        args, overrides = parser.parse()
    except SystemExit as error:
        sys.exit(min(int(error.code or 0), 1))  # argparse's own 2 would mean "warnings only"
    config = load(Experiment, args.config, overrides)
    sys.exit(write_check(config, args.out or Path(config.out) / "check"))


def write_check(config: Experiment, out: Path) -> int:
    """Print and write all that is found; return the exit code.

    Raises:
        ValueError: the annotations cannot be read at all, or the folder of videos is absent.
    """
    from evaluate.reports.launches import FINISHED, new_launch
    from evaluate.reports.page import REPORT
    from evaluate.reports.sections import files_section, repeat_section, time_section
    from evaluate.reports.training import update_training_report
    from train.dataset_check.check import check_dataset
    from train.dataset_check.report import PICTURE, write_check_report

    if out.exists() and not out.is_dir():
        raise ValueError(f"--out: {out} is a file; choose a folder")
    out.mkdir(parents=True, exist_ok=True)  # before the work, which may take long
    watch, launch = Stopwatch("checking"), new_launch()
    found = check_dataset(config)
    content = json.dumps(found.to_dict(), indent=1, ensure_ascii=False)
    write_text(out / "check.json", content + "\n")
    found.draw_figure(out / PICTURE)
    launch = replace(launch, outcome=FINISHED, seconds=watch.seconds())
    more = time_section([launch]), repeat_section([launch]), files_section(out)
    write_check_report(out, found, more)
    print(found.text())
    print(f"{found.totals()}; everything is in {out / 'check.json'}; report: {out / REPORT}")
    if problem := update_training_report(Path(config.out), out):
        print(f"warning: {problem}")
    return found.exit_code


if __name__ == "__main__":
    cli.run(main)
