"""Train and score a grid of runs, several at a time, and compare them in one table.

    python train/ablate.py GRID.yaml [--processes 2] [--plan]
    accelerate launch train/ablate.py GRID.yaml     # each process takes runs that remain
    python train/ablate.py GRID.yaml --on slurm --resources gpus_per_node=1 timeout_min=240

A grid lists the rows of the table; each is trained once for every seed, into <out>/<row>/<seed>:

    out: runs/study
    cache: runs/study/cache           # shared by all; the default
    seeds: [0, 1, 2]
    subset: test                      # what the table shows
    selection: validation             # scored, too: says which fusion is best; default: `subset`
    tious: [0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]    # default: 0.3 to 0.7
    average: [0.3, 0.4, 0.5, 0.6, 0.7]            # default: all of them
    overrides: {data.annotations: data/study/annotations.json}
    rows:
      forward:  {script: train/e2e.py, config: configs/e2e/demo/forward.yaml}
      reversed: {script: train/e2e.py, config: configs/e2e/demo/forward.yaml,
                 overrides: {direction: reversed}}
      average:  {script: train/heads.py, config: FILE, checkpoint: [forward, reversed]}
      control:  {script: train/heads.py, config: FILE, checkpoint: [forward, forward+1]}
      tuned:    {script: train/e2e.py, config: FILE, forward_from: forward, reversed_from: reversed,
                 resources: {timeout_min: 600}}      # of its jobs, over --resources
      single:   {script: train/heads.py, config: FILE, checkpoint: forward, teacher: average}
    singles: [forward, reversed]      # differences are to the best of them on `subset`
    controls: [control]               # neither single streams nor candidates for the best fusion

`forward` stands for last.pt of that row's run with the same seed, `forward+1` with the next seed.
What is done stays done until its settings, the content of its config or of a file that an override
names, or the weights it builds on change; then it is done again into a cleaned folder. Runs that
fail are listed in the table, and tried again by the next call. Writes table.txt, table.csv,
table.json, table.png and report.html into `out`; each run's output is in its log.txt.

--on makes a job of each run as soon as what it builds on is done (submitit: slurm, or processes of
this machine). One that is preempted, lost or out of time goes on from its last checkpoint, in three
jobs at most. Should this command end before them, the next one waits for the jobs it finds.
"""

import sys
from pathlib import Path

if __package__ is None:  # run as a file: its neighbours must not hide modules of their names
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import os
import signal
from collections.abc import Sequence
from uuid import uuid4

from configs import cli
from configs.options import ScriptParser
from extract.parallel.jobs import ENGINES, Engine, open_executor, parse_resources
from train.ablation.grid import Grid, read_grid
from train.ablation.records import check_own_run, is_current, status
from train.ablation.runner import Scheduler
from train.engine.stopwatch import Stopwatch

AFTER_INTERRUPT = "the same command goes on; jobs of a cluster run on, and it waits for them"


def main() -> None:
    parser = ScriptParser(__doc__)
    parser.add_argument("grid", type=Path, help="YAML file of the runs")
    parser.add_argument(
        "--processes", type=int, metavar="N", help="runs at a time (default: 1; on slurm: all)"
    )
    parser.add_argument("--plan", action="store_true", help="print what would be done and stop")
    parser.add_argument("--on", choices=ENGINES, help="make a job of each run")
    parser.add_argument(
        "--resources",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="what each job of --on gets",
    )
    args, _ = parser.parse()
    if args.processes is not None and args.processes < 1:
        parser.error("--processes must be at least 1")
    if args.resources and not args.on:
        parser.error("--resources are for jobs; add --on")
    signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # launchers send it, and runs must not outlive us
    grid = read_grid(args.grid)
    if args.plan:
        print_plan(grid)
        return
    engine = open_engine(args.on, grid, args.resources) if args.on else None
    at_a_time = args.processes or (len(grid.runs()) if args.on == "slurm" else 1)
    if not ablate(grid, at_a_time, engine):
        sys.exit(1)


def print_plan(grid: Grid) -> None:
    """Print the runs in order and what each still needs."""
    remaining = status(grid, grid.runs())
    if any(remaining.values()):
        _check_settings(grid)
    width = max(len(str(run)) for run in remaining)
    for run, what in remaining.items():
        print(f"{run!s:<{width}}  {what or 'done'}")
    print(f"{sum(not what for what in remaining.values())} of {len(remaining)} runs are done")


def open_engine(name: str, grid: Grid, resources: Sequence[str]) -> Engine:
    """Return an engine that makes jobs of a grid's runs.

    Args:
        name: one of `ENGINES`.
        resources: `name=value`, for all rows.

    Raises:
        ValueError: a resource is wrong; says in which row, if rows have their own.
    """
    shared, logs = parse_resources(resources), grid.root / ".jobs"  # no row has this name
    executors = {}
    for row, settings in grid.rows.items():
        own = settings.resources
        where = f"--resources with rows.{row}.resources" if own else "--resources"
        executors[row] = open_executor(name, shared | own, logs, where)
    return Engine(name, executors, logs)


def ablate(grid: Grid, processes: int, engine: Engine | None) -> bool:
    """Do the remaining runs, print the table, and return whether all runs are done."""
    watch = Stopwatch("runs")
    runs = grid.runs()
    main_process = os.environ.get("RANK", "0") == "0"
    check_own_run(grid, runs)
    unfinished = [run for run, work in status(grid, runs).items() if work]
    failed = {}
    if unfinished:
        _check_settings(grid)
        quiet = not main_process
        failed = Scheduler(grid, unfinished, processes, _session(), quiet, engine).carry_out()
    if not main_process:
        return True  # the first process reports what failed
    if len(failed) == len(runs):
        raise ValueError(f"no run is done; the first, {runs[0]}: {failed[runs[0]]}")
    if not is_current(grid, failed):
        from train.ablation.table import write_table  # only now: an unchanged table comes at once

        with watch.stage("comparing"):
            write_table(grid, failed, watch)
        print(f"report: {grid.root / 'report.html'}", file=sys.stderr)
    print((grid.root / "table.txt").read_text(), end="")
    return not failed


def _check_settings(grid: Grid) -> None:
    from train.ablation.settings import check_settings  # what is done comes at once, without it

    check_settings(grid)


def _session() -> str:
    """Return an identifier that the processes of this launch share with no others."""
    own = uuid4().hex
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return own
    from accelerate import PartialState  # brings torch, which nothing else here needs
    from accelerate.utils import broadcast_object_list

    state = PartialState(cpu=True)
    (shared,) = broadcast_object_list([own])
    # Nobody waits for anybody from here on: runs take hours.
    state.destroy_process_group()
    return str(shared)


if __name__ == "__main__":
    cli.run(main, AFTER_INTERRUPT)
