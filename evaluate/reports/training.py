"""The report of a training run, made from the files in its folder."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml

from evaluate.reports.figures import draw_curves
from evaluate.reports.launches import FINISHED, LAUNCHES, RUNNING, Launch, read_launches
from evaluate.reports.metrics_file import METRICS, read_metrics
from evaluate.reports.page import (
    REPORT,
    TABLES,
    Fact,
    Figure,
    Report,
    Section,
    Table,
    write_report,
)
from evaluate.reports.sections import (
    activations_section,
    describe_outcome,
    files_section,
    find_report,
    format_duration,
    repeat_section,
    settings_section,
    skipped_section,
    time_section,
)

CURVES = "curves.png"
# The kinds of the reports that a run's page links to.
EVALUATION = "Evaluation"
OTHERS = ("Diagnosis", "Dataset check")
ABOUT_CURVES = (
    "Over the steps of training. Above: the loss and its parts, which training lowers, and the "
    "score on the validation videos, which it never learns from; the thick line decides which "
    "checkpoint is the best. Below: how far a step moves the weights, and how long it takes."
)
TERMS = (
    (
        "tIoU",
        "how well a detection covers an action: the time both share divided by the time either "
        "takes; 1 is perfect",
    ),
    (
        "mAP@0.5",
        "mean average precision: detections count as right from a tIoU of 0.5 on; the area under "
        "precision over recall, averaged over classes; 1 is perfect",
    ),
    ("average mAP", "the mean over the tIoUs of the experiment"),
    (
        "recall@0.5@5",
        "the share of actions that one of the 5·n best detections of the video and class covers "
        "with that tIoU, n being the number of actions there",
    ),
)


def write_training_report(out: Path) -> None:
    """Draw curves.png, and write report.html and report.json, for the run in a folder.

    Raises:
        OSError, ValueError: its files cannot be read or written.
    """
    metrics = read_metrics(out / METRICS) if (out / METRICS).exists() else []
    config = (out / "config.yaml").read_text()
    if metrics:
        draw_curves(metrics, _rates(yaml.safe_load(config).get("training", {})), out / CURVES)
    write_report(_report(out, metrics, config), out)


def update_training_report(run: Path, out: Path) -> str | None:
    """Let the report of a training run, if there is one, show a score that is in its folder.

    Returns:
        Why that failed; None if it did not.
    """
    if (run / LAUNCHES).exists() and out.resolve().is_relative_to(run.resolve()):
        try:
            write_training_report(run)
        except (OSError, ValueError) as error:
            return f"{run / REPORT} does not show this score: {error}"
    return None


def _report(out: Path, metrics: Sequence[Mapping[str, Any]], config: str) -> Report:
    launches = read_launches(out)
    lines = [line for line in metrics if "loss" in line]
    checks = [line for line in metrics if "validation" in line]
    measure = next(iter(checks[0]["validation"])) if checks else ""
    best = max(checks, key=lambda line: line["validation"][measure], default=None)
    skipped = json.loads((out / "skipped_videos.json").read_text())
    scores = _scores(out)
    curves = Section("How it went", figures=[Figure(CURVES, ABOUT_CURVES)])
    sections = [
        curves if metrics else None,
        _validations(checks, best, _epochs(lines)) if best else None,
        scores,
        _others(out),
        time_section(launches) if launches else None,
        activations_section(launches),
        _network(out, launches),
        skipped_section(skipped),
        repeat_section(launches) if launches else None,
        settings_section(config),
        files_section(out),
        Section("Terms", tables=[Table("terms", ("term", "meaning"), TERMS)]),
    ]
    last = launches[-1] if launches else None
    return Report(
        kind="Training run",
        title=str(out),
        summary=_summary(last, lines, best, measure, _epochs(lines), config),
        facts=_facts(launches, lines, best, measure, scores),
        sections=[section for section in sections if section],
        warnings=_warnings(last, lines, skipped),
    )


def _rates(training: Mapping[str, Any]) -> dict[str, str]:
    """Return what learns with each learning rate, by its peak."""
    names: dict[str, list[str]] = {}
    for setting, what in (("lr", "heads"), ("backbone_lr", "adapters, backbone")):
        if setting in training:
            names.setdefault(f"{training[setting]:g}", []).append(what)
    return {rate: "all that learns" if len(what) > 1 else what[0] for rate, what in names.items()}


def _epochs(lines: Sequence[Mapping[str, Any]]) -> dict[int, int]:
    """Return which epoch a step belongs to."""
    return {line["step"]: line["epoch"] for line in lines}


def _summary(
    last: Launch | None,
    lines: Sequence[Mapping[str, Any]],
    best: Mapping[str, Any] | None,
    measure: str,
    epochs: Mapping[int, int],
    config: str,
) -> str:
    if not lines:
        return "Nothing was trained by gradients: the checkpoint is composed of others."
    about = last.about if last else {}
    settings = yaml.safe_load(config)["training"]
    # Runs of earlier versions have it in their config alone.
    wanted = about.get("epochs") or settings["stop_epoch"] or settings["epochs"]
    text = f"Trained for {lines[-1]['epoch']} of {wanted} epochs"
    if "training videos" in about and "classes" in about:
        text += f" on {about['training videos']:,} videos with {about['classes']:,} classes"
    if best is None:
        return f"{text}; nothing was validated."
    epoch = epochs.get(best["step"])
    score = best["validation"][measure]
    when = f"after epoch {epoch}" if epoch else f"at step {best['step']}"
    return (
        f"{text}. The best validation score, {_name(measure)} {score:.3f}, came {when}: best.pt "
        "has those weights, last.pt the last ones."
    )


def _facts(
    launches: Sequence[Launch],
    lines: Sequence[Mapping[str, Any]],
    best: Mapping[str, Any] | None,
    measure: str,
    scores: Section | None,
) -> list[Fact]:
    facts = []
    if launches:
        end = launches[-1].outcome
        moods = {FINISHED: "good", RUNNING: ""}
        word = "failed" if end.startswith("failed") else describe_outcome(launches[-1])
        facts.append(Fact("how it ended", word, moods.get(end, "bad")))  # type: ignore[arg-type]
    if best is not None:
        facts.append(Fact(f"best validation {_name(measure)}", best["validation"][measure]))
    if scores:
        for name, average, *_ in scores.tables[0].rows:
            facts.append(Fact(f"average mAP, {name}", average))
    if lines:
        facts.append(Fact("last loss", lines[-1]["loss"]))
    if launches:
        facts.append(
            Fact("took", format_duration(sum(sum(one.seconds.values()) for one in launches)))
        )
    return facts


def _warnings(
    last: Launch | None, lines: Sequence[Mapping[str, Any]], skipped: Mapping[str, str]
) -> list[str]:
    found = []
    if last and last.outcome.startswith("failed"):
        found.append(f"The run {last.outcome}")
    if last and last.outcome == "interrupted":
        found.append("The run was interrupted. Its command with --resume continues from last.pt.")
    if skipped:
        found.append(f"{len(skipped)} videos could not be read and do not count; see below.")
    stand_ins = sum(line.get("stand_ins", 0) for line in lines)
    if stand_ins:
        found.append(
            f"{stand_ins} training windows came from other videos, because theirs broke during the "
            "run."
        )
    return found


def _validations(
    checks: Sequence[Mapping[str, Any]], best: Mapping[str, Any], epochs: Mapping[int, int]
) -> Section:
    names = list(checks[0]["validation"])
    recalls: dict[str, list[str]] = {}  # by k, a table each: one of all would be too wide
    for name in names:
        if name.startswith("recall"):
            recalls.setdefault(name.rpartition("@")[2], []).append(name)
    strong = [next(n for n, line in enumerate(checks) if line is best)]

    def build_table(name: str, some: Mapping[str, str], title: str, note: str) -> Table:
        rows = [
            [epochs.get(line["step"]), line["step"], *(line["validation"].get(n) for n in some)]
            for line in checks
        ]
        columns = ("epoch", "step", *some.values())
        return Table(name, columns, rows, title, note, strong=strong)

    note = "Bold: the best, which is best.pt. The terms are explained at the end."
    scores = {name: _name(name) for name in names if not name.startswith("recall")}
    tables = [build_table("validations", scores, "", note)]
    for k, some in recalls.items():
        tious = {name: f"tIoU {name.split('@')[1]}" for name in some}
        tables.append(build_table(f"validation recall@{k}x", tious, f"Recall@{k}x", ""))
    return Section("Validation scores", tables=tables)


def _scores(out: Path) -> Section | None:
    """Return the evaluations whose reports are in a run's folder."""
    rows, links = [], {}
    for file in sorted([*out.glob(f"evaluation/*/{TABLES}"), *out.glob(f"*/{TABLES}")]):
        content = _read_report(file)
        report = find_report(file.parent, out)
        if content is None or content["kind"] != EVALUATION or not report:
            continue
        facts = content["facts"]
        rows.append((file.parent.name, facts.get("average mAP"), facts.get("videos")))
        links[file.parent.name] = quote(report)
    if not rows:
        return None
    table = Table("evaluations", ("evaluation", "average mAP", "videos"), rows, links=links)
    text = "Made with evaluate/run.py; each has a report of its own."
    return Section("Scores on whole subsets", text, tables=[table])


def _read_report(file: Path) -> dict[str, Any] | None:
    """Return the content of a report.json; None if it is another program's."""
    with suppress(ValueError):
        content = json.loads(file.read_text())
        if isinstance(content, dict) and {"kind", "facts", "summary"} <= content.keys():
            return content
    return None


def _others(out: Path) -> Section | None:
    """Return the diagnoses and the check of the dataset whose reports are in a run's folder."""
    rows, links = [], {}
    for pattern in ("*", "*/*", "*/*/*"):
        for file in sorted(out.glob(f"{pattern}/{TABLES}")):
            content = _read_report(file)
            report = find_report(file.parent, out)
            if content is not None and content["kind"] in OTHERS and report:
                name = str(file.parent.relative_to(out))
                rows.append((name, content["kind"].lower(), content["summary"]))
                links[name] = quote(report)
    if not rows:
        return None
    table = Table("other reports", ("report", "kind", "summary"), rows, links=links)
    text = "What goes wrong in detections (evaluate/diagnose.py), and in data (extract/check.py)."
    return Section("Diagnoses and checks", text, tables=[table])


def _network(out: Path, launches: Sequence[Launch]) -> Section | None:
    """Return the number of weights, and the source of those that were not initialised at random."""
    counts = launches[-1].about.get("weights", {}) if launches else {}
    tables = []
    if counts:
        note = "learning: how many of all are trained; the others stay as they are."
        tables.append(Table("weights", ("part", "weights"), list(counts.items()), note=note))
    file = out / "weights.json"
    if file.exists():
        taken = json.loads(file.read_text())
        rows = [
            ("source", taken["source"]),
            ("layout", f"{taken['layout']}; {taken['size']}"),
            ("taken from it", f"{len(taken['loaded'])} tensors"),
            ("computed", f"{len(taken['computed'])} tensors"),
            ("in it, but not taken", f"{len(taken['dropped'])} tensors"),
            ("new, drawn at random", f"{len(taken['new'])} tensors"),
        ]
        tables.append(Table("pretrained weights", ("what", "which"), rows, "Pretrained weights"))
    return Section("Network", tables=tables) if tables else None


def _name(measure: str) -> str:
    return measure.replace("_", " ")
