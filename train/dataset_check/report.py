"""The report of a dataset check, as one HTML file and as JSON."""

from collections.abc import Sequence
from pathlib import Path

from evaluate.reports.page import Fact, Figure, Report, Section, Table, write_report
from train.dataset_check.check import DatasetCheck
from train.dataset_check.findings import count_by_severity, group_by_kind
from train.dataset_check.survey import subsets
from train.dataset_check.updates import planned_updates

KIND = "Dataset check"
PICTURE = "check.png"
MOST_ROWS = 200  # of each kind; check.json has all
ABOUT_PICTURE = (
    "Above: the number of actions of each class. Below: how long the training actions are, beside "
    "the window and the levels of the pyramid that learn them; and the videos' lengths and frame "
    "rates."
)


def write_check_report(out: Path, check: DatasetCheck, more: Sequence[Section] = ()) -> None:
    """Write report.html and report.json into a folder that has check.png.

    Args:
        more: sections after the findings.
    """
    seen, counts = check.survey, count_by_severity(check.findings)
    actions = sum(len(video.segments) for video in seen.used)
    per_epoch, updates = planned_updates(seen)
    facts = [
        Fact("errors", counts["error"], "bad" if counts["error"] else "good"),
        Fact("warnings", counts["warning"], "bad" if counts["warning"] else "good"),
        Fact("videos", len(seen.used)),
        Fact("actions", actions),
        Fact("classes", len(seen.annotations.classes)),
        Fact("updates of a run", updates),
    ]
    names = ", ".join(f"'{subset}'" for subset in subsets(seen.config.data))
    report = Report(
        kind=KIND,
        title=f"{seen.config.data.annotations} and its videos",
        summary=(
            f"{_verdict(check)} {len(seen.used):,} videos of {names} have {actions:,} actions of "
            f"{len(seen.annotations.classes):,} classes; a run has {per_epoch:,} updates an epoch, "
            f"{updates:,} in all."
        ),
        facts=facts,
        sections=[
            *_findings(check),
            *_suggestion(check),
            Section("What the data are like", figures=[Figure(PICTURE, ABOUT_PICTURE)]),
            *more,
        ],
    )
    write_report(report, out)


def _verdict(check: DatasetCheck) -> str:
    return {
        0: "Nothing is to be mended.",
        1: "There are errors: training would stop, or be wrong.",
        2: "There are warnings, but no errors.",
    }[check.exit_code]


def _findings(check: DatasetCheck) -> list[Section]:
    kinds = group_by_kind(check.findings)
    if not kinds:
        return []
    rows = [(kind.name, kind.severity, len(found), kind.advice) for kind, found in kinds.items()]
    columns = ("what", "severity", "number", "what to do")
    strong = [number for number, kind in enumerate(kinds) if kind.severity == "error"]
    tables = [Table("kinds", columns, rows, strong=strong)]
    for kind, found in kinds.items():
        more = len(found) - MOST_ROWS
        tables.append(
            Table(
                f"{kind.severity}: {kind.name}",
                ("video", "what was found"),
                [(finding.video, finding.text) for finding in found[:MOST_ROWS]],
                f"{kind.severity.capitalize()}: {kind.name}",
                f"… and {more:,} more, which are in check.json." if more > 0 else "",
            )
        )
    return [Section("What was found", tables=tables)]


def _suggestion(check: DatasetCheck) -> list[Section]:
    better, now = check.suggestion, check.survey.config.sampling
    if better is None:
        return []
    rows = [
        ("sampling.window_size", now.window_size, better.window_size),
        (f"sampling.{better.setting}", getattr(now, better.setting), better.pace),
    ]
    reason = f"{better.reason[:1].upper()}{better.reason[1:]}."
    table = Table("suggestion", ("setting", "now", "suggested"), rows)
    return [Section("Windows that would suit the actions", reason, tables=[table])]
