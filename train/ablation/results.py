"""Results of a grid of runs: means over seeds, and differences with bootstrap intervals."""

import json
import zipfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import torch

from configs.loader import load
from configs.progress import ProgressBar
from evaluate.annotations import Segment, select_videos
from evaluate.datasets.read import annotation_files
from evaluate.files.predictions import read_predictions
from evaluate.mean_ap import Floats
from evaluate.metrics.bootstrap import Estimate, difference, estimate, resample
from train.ablation.grid import AVERAGE, Grid, Run
from train.ablation.records import RECORD, read_record
from train.config import DataConfig, Experiment
from train.data.truth import load_annotations

Truth = dict[str, tuple[Segment, ...]]

RESAMPLES = 1000
SEED = 0  # of the draws
STREAMS = ("forward", "reversed")
TOLERANCE = 1e-6  # between two ways to the same mAP


class Spread(NamedTuple):
    """Mean and standard deviation over seeds; of one seed there is no deviation."""

    mean: float
    deviation: float | None


@dataclass(frozen=True)
class RowResult:
    """Results of the runs of one row, over the seeds that are done; mAP in [0, 1].

    Args:
        kind: single, fusion or control.
        selection: average mAP on the subset that chooses; all others are on the scored one.
        per_tiou: by text of the overlap.
        interval: of the average, over videos.
        streams: average mAP of single streams inside, where all runs have them.
        differences: to the best single, of the average and by text of the overlap.
        parameters: how many weights learn; `seconds`: that training took, mean.
    """

    row: str
    kind: str
    seeds: tuple[int, ...]
    per_tiou: dict[str, Spread]
    average: Spread
    selection: Spread
    interval: Estimate
    streams: dict[str, float]
    differences: dict[str, Estimate]
    parameters: int | None
    seconds: float


@dataclass(frozen=True)
class Results:
    """A whole table.

    Args:
        best_single: the row that is hardest to beat: the best on the scored subset.
        best_fusion: the row that is the best on the subset that chooses.
        to_singles_and_controls: how much better the best fusion is than each of these rows, of the
            average and by text of the overlap.
        failed: why runs are not done, by row and seed; `notes`: what else is to be considered.
    """

    rows: list[RowResult]
    best_single: str | None
    best_fusion: str | None
    to_singles_and_controls: dict[str, dict[str, Estimate]]
    failed: dict[str, str]
    notes: list[str]


def gather_results(grid: Grid, failed: Mapping[Run, str]) -> Results:
    """Return the results of all runs that are done, with their rows compared.

    Raises:
        ValueError: results are malformed, or of runs that cannot be compared.
    """
    runs = [run for run in grid.runs() if run not in failed]
    scores = {
        (run, subset): read_scores(grid, run, subset) for run in runs for subset in grid.subsets
    }
    drawn, notes = _resample_runs(grid, {run: scores[run, grid.subset] for run in runs})
    found = _Scores(grid, scores, drawn)
    single = found.best(grid.singles, grid.subset)
    fusion = found.best(grid.fusions, grid.selection)
    return Results(
        rows=[found.row(name, single) for name in grid.rows if found.runs(name)],
        best_single=single,
        best_fusion=fusion,
        to_singles_and_controls={
            name: differences
            for name in (*grid.singles, *grid.controls)
            if fusion and (differences := found.differences(fusion, name))
        },
        failed={str(run): cause for run, cause in failed.items()},
        notes=notes,
    )


@dataclass(frozen=True)
class _Scores:
    """The scores of all runs that are done, by run and subset, and their bootstrap by run.

    Args:
        drawn: of every run, by name of a measure (`Grid.measures`), [1 + RESAMPLES].
    """

    grid: Grid
    scores: dict[tuple[Run, str], dict[str, Any]]
    drawn: dict[Run, dict[str, Floats]]

    def runs(self, name: str) -> list[Run]:
        """Return the runs of a row that are done."""
        return [run for seed in self.grid.seeds if (run := Run(name, seed)) in self.drawn]

    def averages(self, name: str, subset: str, seeds: Collection[int] = ()) -> list[float]:
        """Return the average mAP of each of a row's runs, or of those with some seeds."""
        runs = [run for run in self.runs(name) if not seeds or run.seed in seeds]
        return [average_map(self.scores[run, subset], self.grid) for run in runs]

    def best(self, names: Sequence[str], subset: str) -> str | None:
        """Return the row with the highest average on a subset.

        Only seeds that all the rows have count, for a row must not win by a seed that failed;
        without any each row's own do.
        """
        done = [name for name in names if self.runs(name)]
        seeds = [{run.seed for run in self.runs(name)} for name in done]
        all_have = set.intersection(*seeds) if seeds else set[int]()
        return max(done, key=lambda name: mean(self.averages(name, subset, all_have)), default=None)

    def differences(self, name: str, other: str) -> dict[str, Estimate]:
        """Return how much higher a row's average and its mAP at every overlap are than another's.

        Only seeds that both rows have count; without any there are no differences.
        """
        theirs = {run.seed: self.drawn[run] for run in self.runs(other)}
        pairs = [(self.drawn[r], theirs[r.seed]) for r in self.runs(name) if r.seed in theirs]
        return {
            what: difference([a[what] for a, _ in pairs], [b[what] for _, b in pairs])
            for what in self.grid.measures
            if pairs
        }

    def row(self, name: str, single: str | None) -> RowResult:
        """Return a row's results, with the differences to the best single stream."""
        grid, runs = self.grid, self.runs(name)
        measured = [self.scores[run, grid.subset] for run in runs]
        records = [record for run in runs if (record := read_record(grid.folder(run)))]
        return RowResult(
            row=name,
            kind=grid.kind(name),
            seeds=tuple(run.seed for run in runs),
            per_tiou={t: _spread([m[f"mAP@{t}"] for m in measured]) for t in grid.overlaps},
            average=_spread(self.averages(name, grid.subset)),
            selection=_spread(self.averages(name, grid.selection)),
            interval=estimate([self.drawn[run][AVERAGE] for run in runs]),
            streams={
                stream: mean(average_map(one["streams"][stream], grid) for one in measured)
                for stream in STREAMS
                if all(stream in one.get("streams", {}) for one in measured)
            },
            differences={} if single in (None, name) else self.differences(name, str(single)),
            parameters=count_learning(grid.folder(runs[0]) / "last.pt"),
            seconds=mean(record.seconds for record in records),
        )


def table_sources(grid: Grid, runs: Sequence[Run]) -> list[Path]:
    """Return the files that a table of these runs is made from."""
    files: list[Path] = []
    for run in runs:
        folder = grid.folder(run)
        files += [folder / "config.yaml", folder / RECORD]
        files += [folder / grid.subset / "predictions.json"]
        files += [folder / subset / "metrics.json" for subset in grid.subsets]
        data = _data_config(folder)
        files += annotation_files(Path(data.annotations))
        files += [Path(file) for file in (data.classes, *data.info_csv) if file]
    return list(dict.fromkeys(files))


@lru_cache
def _data_config(folder: Path) -> DataConfig:
    """Return where a run's truth is from."""
    return load(Experiment, folder / "config.yaml").data


@lru_cache
def _truth(data: DataConfig, subset: str) -> Truth:
    return {video.name: video.segments for video in select_videos(load_annotations(data), subset)}


def _resample_runs(
    grid: Grid, measured: Mapping[Run, Mapping[str, Any]]
) -> tuple[dict[Run, dict[str, Floats]], list[str]]:
    """Return each run's measures [1 + RESAMPLES], over the same draws; and notes on them."""
    notes: list[str] = []
    truths = {run: _truth(_data_config(grid.folder(run)), grid.subset) for run in measured}
    (first, agreed), *others = truths.items()
    for run, truth in others:
        if truth != agreed:
            raise ValueError(
                f"{run} and {first} have different truth in subset '{grid.subset}', so they cannot "
                "be compared; give both rows annotations that agree there"
            )
    skipped = {name for metrics in measured.values() for name in metrics.get("skipped_videos", ())}
    if skipped:
        notes.append(f"{len(skipped)} videos that a run has skipped are left out of differences")
    truth = {name: each for name, each in agreed.items() if name not in skipped}
    drawn = {}
    for run in ProgressBar(measured, desc="bootstrap", unit="run", leave=False):
        found = read_predictions(grid.folder(run) / grid.subset / "predictions.json")
        found = {name: each for name, each in found.items() if name not in skipped}
        rows = resample(truth, found, grid.tious, RESAMPLES, SEED)
        drawn[run] = {
            what: rows[:, [grid.tious.index(tiou) for tiou in tious]].mean(axis=1)
            for what, tious in grid.measures.items()
        }
        scored, again = average_map(measured[run], grid), float(drawn[run][AVERAGE][0])
        if not skipped and abs(scored - again) > TOLERANCE:
            notes.append(
                f"{run} scored {scored:.4f}, but {again:.4f} on its annotation file: durations "
                "that are not in the file may have clipped its truth; differences are by the file"
            )
    return drawn, notes


def read_scores(grid: Grid, run: Run, subset: str) -> dict[str, Any]:
    """Return the scores of a run that is done; ValueError if they lack an overlap."""
    file = grid.folder(run) / subset / "metrics.json"
    metrics: dict[str, Any] = json.loads(file.read_text())
    if missing := [tiou for tiou in grid.overlaps if f"mAP@{tiou}" not in metrics]:
        raise ValueError(f"{file} has no mAP@{missing[0]}; delete the file to score again")
    return metrics


def average_map(metrics: Mapping[str, float], grid: Grid) -> float:
    """Return the mean mAP over the grid's overlaps."""
    return mean(metrics[f"mAP@{tiou:g}"] for tiou in grid.average)


def _spread(values: Sequence[float]) -> Spread:
    return Spread(mean(values), stdev(values) if len(values) > 1 else None)


def count_learning(checkpoint: Path) -> int | None:
    """Return how many weights a run's optimizer moved; None if the file does not say."""
    if not zipfile.is_zipfile(checkpoint):
        return None
    fields = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    state = fields["training"].get("optimizer", {}).get("state")
    return None if state is None else sum(each["exp_avg"].numel() for each in state.values())
