"""A grid's results for people, spreadsheets and programs."""

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from configs.atomic import write_text
from configs.messages import markdown_table
from evaluate.metrics.bootstrap import Estimate
from evaluate.reports.figures import draw_rows
from evaluate.reports.launches import FINISHED, new_launch
from train.ablation.grid import AVERAGE, Grid, Run
from train.ablation.records import table_inputs
from train.ablation.report import write_grid_report
from train.ablation.results import (
    STREAMS,
    Results,
    RowResult,
    Spread,
    gather_results,
    table_sources,
)
from train.engine.stopwatch import Stopwatch

STRICT = ("0.8", "0.9")  # overlaps whose differences are printed


def write_table(grid: Grid, failed: Mapping[Run, str], watch: Stopwatch) -> None:
    """Write the table of all runs that are done as text, CSV, picture, report and JSON.

    Args:
        failed: why the others are not done.
        watch: has counted the time that they took.

    Raises:
        ValueError: their results are malformed or cannot be compared.
    """
    # Before anything is read: what changes meanwhile makes another table.
    stamp = table_inputs(
        grid, failed, table_sources(grid, [r for r in grid.runs() if r not in failed])
    )
    results = gather_results(grid, failed)
    write_text(grid.root / "table.txt", format_text(grid, results) + "\n")
    write_text(grid.root / "table.csv", format_rows_as_csv(grid, results))
    draw_rows(
        {row.row: row.interval for row in results.rows},
        {
            row.row: {float(tiou): row.differences[tiou] for tiou in row.per_tiou}
            for row in results.rows
            if row.differences
        },
        results.best_single,
        grid.root / "table.png",
    )
    launch = replace(new_launch(), outcome=FINISHED, seconds=watch.seconds())
    write_grid_report(
        grid, results, table_cells(grid, results), describe_results(grid, results), launch
    )
    # Last: it says that all of them are there.
    content = json.dumps({"made_from": stamp} | asdict(results), indent=1)
    write_text(grid.root / "table.json", content + "\n")


def format_text(grid: Grid, results: Results) -> str:
    """Return the table in Markdown, aligned, with what has failed and which fusion is best."""
    lines = [markdown_table(table_cells(grid, results)), "", describe_results(grid, results)]
    lines += [f"note: {note}" for note in results.notes]
    lines += [f"failed: {run}: {cause}" for run, cause in results.failed.items()]
    return "\n".join(lines)


def table_cells(grid: Grid, results: Results) -> list[list[str]]:
    """Return the table as people read it, the heads of its columns first."""
    found = {row.row: _cells(grid, results.best_single, row) for row in results.rows}
    columns = list(next(iter(found.values())))
    rows = [found.get(name, {"row": name, "seeds": "0"}) for name in grid.rows]
    return [columns, *([row.get(column, "") for column in columns] for row in rows)]


def _cells(grid: Grid, single: str | None, row: RowResult) -> dict[str, str]:
    """Return a row of the table by column; `single` is the row that it is compared with."""
    cells = {"row": row.row, "seeds": str(len(row.seeds))}
    cells |= {f"@{tiou}": _spread(spread) for tiou, spread in row.per_tiou.items()}
    cells |= {AVERAGE: _spread(row.average), f"on {grid.selection}": _spread(row.selection)}
    cells |= {f"{stream} stream": _number(row.streams.get(stream)) for stream in STREAMS}
    if single:
        heads = {AVERAGE: AVERAGE} | {tiou: f"@{tiou}" for tiou in STRICT if tiou in grid.overlaps}
        for what, head in heads.items():
            cells[f"{head} − {single}"] = _estimate(row.differences.get(what))
    learning = "" if row.parameters is None else f"{row.parameters:,}"
    return cells | {"learning": learning, "s a run": f"{row.seconds:.0f}"}


def describe_results(grid: Grid, results: Results) -> str:
    """Return what the table shows, and which fusion is best: the answer to the study's question."""
    average = ", ".join(f"{tiou:g}" for tiou in grid.average)
    lines = [
        f"mAP on '{grid.subset}', mean ± standard deviation over seeds; average: tIoU {average};",
        "differences: of means over seeds, with 95 % bootstrap intervals over videos",
    ]
    for row in results.rows:
        if row.row == results.best_fusion:
            lines.append(
                f"best fusion on '{grid.selection}': {row.row} ({_spread(row.selection)}); on "
                f"'{grid.subset}' {_spread(row.average)}"
            )
    for name, found in results.to_singles_and_controls.items():
        kind = "single stream" if name in grid.singles else "control"
        strict = "".join(f"; @{tiou} {_estimate(found[tiou])}" for tiou in STRICT if tiou in found)
        lines.append(f"  {_estimate(found[AVERAGE])} to {name} ({kind}){strict}")
    return "\n".join(lines)


def format_rows_as_csv(grid: Grid, results: Results) -> str:
    """Return one line a row with every number; where there is none the cell is empty."""
    lines = {name: {"row": name, "failed": ""} for name in grid.rows}
    for run, cause in results.failed.items():
        line = lines[run.rpartition("/")[0]]
        line["failed"] += f"{'; ' if line['failed'] else ''}{run}: {cause}"
    for row in results.rows:
        lines[row.row] |= _csv_row(row)
    columns = dict.fromkeys(name for line in lines.values() for name in line)
    file = io.StringIO()
    writer = csv.DictWriter(file, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines.values())
    return file.getvalue()


def _csv_row(row: RowResult) -> dict[str, Any]:
    flat: dict[str, Any] = {"kind": row.kind, "seeds": " ".join(map(str, row.seeds))}
    spreads = {f"mAP@{tiou}": spread for tiou, spread in row.per_tiou.items()}
    for name, spread in (spreads | {AVERAGE: row.average, "selection": row.selection}).items():
        flat |= {name: spread.mean, f"{name} sd": spread.deviation}
    flat |= {f"{AVERAGE} low": row.interval.low, f"{AVERAGE} high": row.interval.high}
    flat |= {f"{stream} stream": average for stream, average in row.streams.items()}
    for what, (mean, low, high) in row.differences.items():
        name = f"difference {what}"
        flat |= {name: mean, f"{name} low": low, f"{name} high": high}
    return flat | {"parameters": row.parameters, "seconds": row.seconds}


def _number(value: float | None, sign: str = "") -> str:
    """Return three digits without the zero before the point."""
    return "" if value is None else f"{value:{sign}.3f}".replace("0.", ".", 1)


def _spread(spread: Spread) -> str:
    deviation = "" if spread.deviation is None else f" ± {_number(spread.deviation)}"
    return _number(spread.mean) + deviation


def _estimate(estimate: Estimate | None) -> str:
    if estimate is None:
        return ""
    mean, low, high = (_number(value, "+") for value in estimate)
    return f"{mean} [{low}, {high}]"
