"""The report of a grid of runs: its table, and the way to every run's own report."""

from collections.abc import Sequence
from urllib.parse import quote

from configs.loader import dump
from evaluate.reports.launches import Launch
from evaluate.reports.page import REPORT, Cell, Fact, Figure, Report, Section, Table, write_report
from evaluate.reports.sections import files_section, format_duration, repeat_section, time_section
from train.ablation.grid import Grid
from train.ablation.records import read_record
from train.ablation.results import Results, average_map, read_scores
from train.ablation.runner import LOG

ABOUT = (
    "Left: average mAP of each row's runs, with the interval that holds 95 % of its values when "
    "the videos are drawn again. Right: how much higher (blue) or lower (red) mAP is than that of "
    "the best single stream, at each tIoU, the overlap from which on a detection counts as right."
)


def write_grid_report(
    grid: Grid, results: Results, cells: Sequence[Sequence[str]], text: str, launch: Launch
) -> None:
    """Write report.html and report.json beside a grid's table and its picture.

    Args:
        cells: of the table, the heads of its columns first; `text`: stands below it.
    """
    done = sum(len(row.seeds) for row in results.rows)
    best = results.best_fusion or results.best_single
    chosen = next((row for row in results.rows if row.row == best), None)
    strong = [number for number, row in enumerate(cells[1:]) if row[0] == best]
    facts = [Fact("runs done", f"{done} of {len(grid.runs())}", "bad" if results.failed else "")]
    facts += [Fact(f"best row on {grid.selection}", chosen.row)] if chosen else []
    facts += [Fact(f"its average mAP on {grid.subset}", chosen.average.mean)] if chosen else []
    failed = Table("failed", ("run", "why"), list(results.failed.items()))
    sections = [
        Section("Rows compared", figures=[Figure("table.png", ABOUT)]),
        Section(
            "The table",
            tables=[Table("rows", cells[0], cells[1:], strong=strong)],
            texts={"What it says": text},
        ),
        *([Section("Runs that are not done", tables=[failed])] if results.failed else []),
        Section("Runs", tables=[_runs_table(grid, results)]),
        time_section([launch]),
        repeat_section([launch]),
        Section("Settings", texts={"The resolved grid": dump(grid)}, folded=True),
        files_section(grid.root),
    ]
    report = Report(
        kind="Grid of runs",
        title=str(grid.root),
        summary=(
            f"{len(grid.rows)} rows, each trained with seeds {', '.join(map(str, grid.seeds))}, "
            f"scored on '{grid.subset}'."
        ),
        facts=facts,
        sections=sections,
        warnings=[*results.notes, *(f"{run}: {why}" for run, why in results.failed.items())],
    )
    write_report(report, grid.root)


def _runs_table(grid: Grid, results: Results) -> Table:
    rows: list[list[Cell]] = []
    links = {}
    for run in grid.runs():
        if str(run) in results.failed:
            continue
        record = read_record(grid.folder(run))
        took = format_duration(record.seconds) if record else ""
        rows.append([str(run), average_map(read_scores(grid, run, grid.subset), grid), took])
        own = [file for name in (REPORT, LOG) if (file := grid.folder(run) / name).is_file()]
        if own:
            links[str(run)] = quote(str(own[0].relative_to(grid.root)))
    note = "Each run's own report opens with a click; runs without one open their log."
    columns = ("row/seed", f"average mAP on {grid.subset}", "training took")
    return Table("runs", columns, rows, note=note, links=links)
