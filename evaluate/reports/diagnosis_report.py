"""The report of a diagnosis: what costs the score, which actions are missed, what scores mean."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from evaluate.diagnosis.diagnosis import Diagnosis
from evaluate.diagnosis.false_positives import BACKGROUND_TIOU, KINDS
from evaluate.diagnosis.sensitivity import LOWEST_PRECISION
from evaluate.reports.diagnosis import Diagnoses, format_bin
from evaluate.reports.page import Cell, Fact, Figure, Report, Section, Table, write_report

KIND = "Diagnosis"
MEANING = {
    "duplicate": "a second detection of an action that a better scored one has found",
    "wrong label": "at the right time, with another class",
    "localisation": "the right class, but too far off in time",
    "confusion": "another class, and too far off in time",
    "background": "where no action is",
}
ABOUT_COSTS = (
    "Above: what is lacking to an mAP of 1, divided among the kinds of mistakes; the parts and the "
    "mAP add up to 1. Below: what the mAP would gain if one kind alone were gone."
)
ABOUT_PROFILES = (
    "What the best detections are. The first bar holds as many of a class as it has actions (G), "
    "the second one the next as many."
)
ABOUT_SENSITIVITY = (
    "Actions in five groups, as equal in number as can be, by what they are like. Above: the share "
    "that is missed. Below: mAP as if all groups and classes had the same number of actions."
)
ABOUT_CLASSES = "Average precision of each class, the hardest on top."
ABOUT_RELIABILITY = (
    "Left: how many detections of a score are right; on the grey line scores are what they say. "
    "Right: how many detections have such a score."
)


def write_diagnosis_report(
    out: Path,
    title: str,
    diagnoses: Diagnoses,
    videos: int,
    notes: Sequence[str] = (),
    more: Sequence[Section] = (),
) -> None:
    """Write report.html and report.json into a folder that has the figures.

    Args:
        videos: their number.
        notes: what is unknown, in sentences.
        more: sections after the diagnosis.
    """
    name, one = next(iter(diagnoses.items()))
    facts = [Fact(f"mAP, {each}", found.mean_ap) for each, found in diagnoses.items()]
    facts += [
        Fact("actions missed", f"{one.missed:.1%}"),
        Fact("costs most", _costliest(one)),
        Fact("videos", videos),
        Fact("actions", one.truths),
    ]
    report = Report(
        kind=KIND,
        title=title,
        summary=_summary(name, one),
        facts=facts,
        sections=[
            Section(
                "What costs the score",
                figures=[Figure("costs.png", ABOUT_COSTS)],
                tables=[_costs(diagnoses), _kinds()],
            ),
            Section(
                "The best detections",
                figures=[Figure("profiles.png", ABOUT_PROFILES)],
                tables=[_best(diagnoses)],
            ),
            Section(
                "Which actions are missed",
                figures=[Figure("sensitivity.png", ABOUT_SENSITIVITY)],
                tables=[_missed(diagnoses)],
            ),
            Section(
                "Classes",
                figures=[Figure("classes.png", ABOUT_CLASSES)],
                tables=[_classes(name, one)],
            ),
            *_reliability(diagnoses),
            *([Section("What is unknown", " ".join(notes))] if notes else []),
            *more,
        ],
    )
    write_report(report, out)


def _summary(name: str, one: Diagnosis) -> str:
    costliest = _costliest(one)
    what = (
        f"most of what is lacking ({one.cost.missed:.3f}) is actions that are never found"
        if costliest == "missed actions"
        else f"the costliest mistake is {costliest} ({one.cost.share[costliest]:.3f})"
    )
    return (
        f"{name}: mAP {one.mean_ap:.3f} at tIoU {one.tiou:g}; {what}. {one.missed:.1%} of "
        f"{one.truths:,} actions are missed."
    )


def _costliest(one: Diagnosis) -> str:
    parts = {**one.cost.share, "missed actions": one.cost.missed}
    return max(parts, key=lambda cause: parts[cause])


def _costs(diagnoses: Diagnoses) -> Table:
    columns = ["mistake"]
    for name in diagnoses:
        columns += [f"{name}: share", f"{name}: alone", f"{name}: number"]
    rows: list[list[Cell]] = []
    for kind in KINDS:
        row: list[Cell] = [kind]
        for each in diagnoses.values():
            row += [each.cost.share[kind], each.cost.alone[kind], each.false[kind]]
        rows.append(row)
    last: list[Cell] = ["never found"]
    for each in diagnoses.values():
        last += [each.cost.missed, None, None]
    note = (
        "share: its part of what is lacking to an mAP of 1; alone: gained if this kind alone were "
        "gone; number: of such detections, however low their scores."
    )
    return Table("costs", columns, [*rows, last], note=note)


def _kinds() -> Table:
    rows = [(kind, MEANING[kind]) for kind in KINDS]
    note = f"Off in time: the overlap is under the tIoU, but at least {BACKGROUND_TIOU:g}."
    return Table("kinds", ("mistake", "what it is"), rows, "The kinds of mistakes", note)


def _best(diagnoses: Diagnoses) -> Table:
    rows: list[list[Cell]] = []
    for kind in ("true", *KINDS):
        row: list[Cell] = ["right" if kind == "true" else kind]
        for each in diagnoses.values():
            first = sum(numbers[0] for numbers in each.top.values())
            row.append(100 * each.top[kind][0] / max(1, first))
        rows.append(row)
    note = "Of each class as many as it has actions."
    title = "The best detections, in percent"
    return Table("best detections", ("what they are", *diagnoses), rows, title, note, digits=1)


def _missed(diagnoses: Diagnoses) -> Table:
    columns = ["actions by", "from – to", "actions"]
    for name in diagnoses:
        columns += [f"{name}: missed, %", f"{name}: mAP"]
    one = next(iter(diagnoses.values()))
    rows: list[list[Cell]] = []
    for name, characteristic in one.characteristics.items():
        for place, each in enumerate(characteristic.bins):
            bins = [d.characteristics[name].bins[place] for d in diagnoses.values()]
            what = f"{name} ({characteristic.unit})"
            row: list[Cell] = [what, format_bin(each), each.truths]
            for found in bins:
                row += [100 * found.missed, found.mean_ap_n]
            rows.append(row)
    every: list[Cell] = ["all", "", one.truths]
    for found_in in diagnoses.values():
        every += [100 * found_in.missed, found_in.mean_ap_n]
    note = (
        "mAP is normalised: as if all groups and classes had the same number of actions. What is "
        f"found only at a precision under {LOWEST_PRECISION:.0%} counts as missed."
    )
    rows.append(every)
    return Table("missed", columns, rows, note=note, strong=[len(rows) - 1])


def _classes(name: str, one: Diagnosis) -> Table:
    order = sorted(one.classes.items(), key=lambda pair: pair[1].average_precision)
    rows = [
        (label, each.truths, each.predictions, 100 * each.found, each.average_precision)
        for label, each in order
    ]
    columns = ("class", "actions", "detections", "found, %", "average precision")
    return Table("classes", columns, rows, f"Classes of {name}, the hardest first")


def _reliability(diagnoses: Mapping[str, Diagnosis]) -> list[Section]:
    errors = [
        (name, each.reliability.error) for name, each in diagnoses.items() if each.reliability
    ]
    if not errors:
        return []
    table = Table(
        "calibration",
        ("detections of", "calibration error"),
        errors,
        note="How far scores are from the share that is right, on average; 0 is perfect.",
    )
    figure = Figure("reliability.png", ABOUT_RELIABILITY)
    return [Section("What scores mean", figures=[figure], tables=[table])]
