"""Reports: what stands in them, that it is true, and that the page needs nothing else."""

import json
import math
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from jinja2 import UndefinedError

from evaluate.annotations import Detection, Segment
from evaluate.mean_ap import mean_average_precision
from evaluate.metrics.bootstrap import Estimate
from evaluate.metrics.precision_recall import RECALLS, precision_recall
from evaluate.metrics.scored import ScoredDetections
from evaluate.rendering import render_template
from evaluate.reports import figures
from evaluate.reports.launches import (
    Launch,
    new_launch,
    read_launches,
    repeat_command,
    write_launches,
)
from evaluate.reports.page import Fact, Figure, Report, Section, Table, write_report
from evaluate.reports.scores import PICTURES, write_scores_report
from evaluate.reports.training import write_training_report
from train.engine.stopwatch import Stopwatch

EVIL = "</script><b>&amp;\"' onload=x"


class Page(HTMLParser):
    """What a browser would find: visible text, tags with attributes, cells of tables."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.tags = "", list[tuple[str, dict[str, str | None]]]()
        self.tables: list[list[list[str]]] = []
        self.inside = False  # a cell
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.inside = True

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.inside:
            self.tables[-1][-1][-1] += data

    def attributes(self, name: str) -> list[str]:
        return [
            value for _, attrs in self.tags for key, value in attrs.items() if key == name and value
        ]


def read(folder: Path) -> tuple[Page, dict[str, Any]]:
    """Return a report as a page and as JSON, which must fit together and need nothing else."""
    html = (folder / "report.html").read_text()
    page, content = Page(html), json.loads((folder / "report.json").read_text())
    needs_nothing_else(html, page)
    pictures = [tag for tag in page.tags if tag[0] == "img"]
    for _, picture in pictures:
        assert int(picture["width"] or 0) >= 600 and int(picture["height"] or 0) >= 150
        assert picture["alt"]
    for link in page.attributes("href"):
        assert link.startswith("data:") or (folder / unquote(link)).exists(), link
    tables = list(content["tables"].values())
    assert len(tables) == len(page.tables)
    for table, shown in zip(tables, page.tables, strict=True):
        assert shown[0][: len(table["columns"])] == table["columns"]
        for row, cells in zip(table["rows"], shown[1:], strict=True):
            assert all(same(value, cell) for value, cell in zip(row, cells, strict=False))
    assert not list(folder.glob("*.part"))
    return page, content


def same(value: str | float | None, cell: str) -> bool:
    """Say whether a cell shows a value, to the digits that it has."""
    if value is None or isinstance(value, str):
        return cell == (value or "")
    digits = len(cell.partition(".")[2])
    return abs(float(cell.replace(",", "")) - value) <= 0.5001 * 10**-digits


def needs_nothing_else(html: str, page: Page) -> None:
    assert not re.search(r"https?://|@import|url\(", html.replace("http-equiv", ""))
    assert not {"script", "iframe", "object", "embed"} & {tag for tag, _ in page.tags}
    assert all(source.startswith("data:image/png;base64,") for source in page.attributes("src"))


def test_a_page_escapes_what_it_is_given(tmp_path: Path) -> None:
    table = Table(
        "videos", ("name", EVIL), [(EVIL, 1)], title=EVIL, note=EVIL, links={EVIL: "a%3C"}
    )
    section = Section(EVIL, EVIL, tables=[table], texts={EVIL: EVIL})
    write_report(Report(EVIL, EVIL, EVIL, [Fact(EVIL, EVIL)], [section], [EVIL]), tmp_path)
    (tmp_path / "a%3C").touch()
    html = (tmp_path / "report.html").read_text()
    page = Page(html)
    assert "</script>" not in html and "<b>" not in html and page.text.count(EVIL) >= 10
    assert not page.attributes("onload") and {tag for tag, _ in page.tags}.isdisjoint(
        {"b", "script"}
    )
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["tables"]["videos"] == {"columns": ["name", EVIL], "rows": [[EVIL, 1]]}


def test_a_template_must_be_given_all_it_shows() -> None:
    with pytest.raises(UndefinedError, match="report"):
        render_template("report.html.j2")


def test_numbers_are_shown_as_they_are(tmp_path: Path) -> None:
    rows = [("a", 1234567, 0.12345, None), ("b", 0, 1.0, 2)]
    table = Table("numbers", ("name", "n", "x", "y"), rows, bars="x")
    write_report(Report("k", "t", "s", [Fact("f", 0.5)], [Section("s", tables=[table])]), tmp_path)
    page, content = read(tmp_path)
    assert page.tables[0][1][:4] == ["a", "1,234,567", "0.123", ""]
    assert content["tables"]["numbers"]["rows"] == [list(row) for row in rows]
    assert page.attributes("style") == ["width: 12.3%", "width: 100.0%"]


def test_a_missing_figure_leaves_the_last_page(tmp_path: Path) -> None:
    good = Report("kind", "title", "first", [], [])
    write_report(good, tmp_path)
    section = Section("s", figures=[Figure("gone.png", "nothing")])
    with pytest.raises(FileNotFoundError):
        write_report(replace(good, summary="second", sections=[section]), tmp_path)
    assert "first" in (tmp_path / "report.html").read_text()
    assert json.loads((tmp_path / "report.json").read_text())["summary"] == "first"


TRUTH = {
    "one": (Segment("jump", 0, 10), Segment("jump", 20, 30), Segment("run", 40, 50)),
    EVIL: (Segment("jump", 5, 15), Segment(EVIL, 30, 40)),
}
FOUND = {
    "one": [
        Detection("jump", 0, 9, 0.9),  # tIoU 0.9
        Detection("jump", 60, 70, 0.8),
        Detection("jump", 20, 26, 0.7),  # 0.6
        Detection("run", 43, 50, 0.5),  # 0.7
    ],
    EVIL: [Detection("jump", 5, 9, 0.6), Detection(EVIL, 0, 1, 0.9), Detection(EVIL, 30, 39, 0.1)],
}
TIOUS = (0.3, 0.5, 0.75)


def by_the_book(right: list[bool], truths: int) -> list[float]:
    """Interpolated precision at each recall: the best at this recall or a higher one."""
    points = [
        (sum(right[: n + 1]) / truths, sum(right[: n + 1]) / (n + 1)) for n in range(len(right))
    ]
    return [
        max((p for recall, p in points if recall >= level - 1e-9 and p), default=0.0)
        for level in RECALLS
    ]


def test_precision_over_recall_by_the_book() -> None:
    curves = precision_recall(TRUTH, FOUND, TIOUS)
    assert curves.labels == sorted(["jump", "run", EVIL])
    assert dict(zip(curves.labels, curves.truths, strict=True)) == {"jump": 3, "run": 1, EVIL: 1}
    right = {  # by hand: the best score first, at each tIoU
        "jump": ([1, 0, 1, 1], [1, 0, 1, 0], [1, 0, 0, 0]),
        "run": ([1], [1], [0]),
        EVIL: ([0, 1], [0, 1], [0, 1]),
    }
    for place, label in enumerate(curves.labels):
        for number in range(len(TIOUS)):
            expected = by_the_book(
                [bool(x) for x in right[label][number]], {"jump": 3}.get(label, 1)
            )
            assert curves.precision[number, place].tolist() == pytest.approx(expected)
    result = mean_average_precision(TRUTH, FOUND, TIOUS)
    areas = curves.precision.mean(axis=(1, 2))
    assert areas == pytest.approx(list(result.per_tiou.values()), abs=0.02)


def test_without_detections_precision_is_zero() -> None:
    assert not precision_recall(TRUTH, {}, TIOUS).precision.any()


def test_an_evaluation_tells_its_scores(tmp_path: Path) -> None:
    result = mean_average_precision(TRUTH, FOUND, TIOUS)
    skipped = {"one": "absent", "another": "damaged"}
    scored = ScoredDetections(TRUTH, FOUND, result, {"forward": result}, skipped)
    write_scores_report(tmp_path, EVIL, scored)
    page, content = read(tmp_path)
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in PICTURES)
    table = content["tables"]["average precision"]
    assert table["columns"] == ["class", "actions", "tIoU 0.3", "tIoU 0.5", "tIoU 0.75", "average"]
    for name, actions, *numbers, average in table["rows"][:-1]:
        assert numbers == list(result.per_class[name].values())
        assert average == pytest.approx(math.fsum(numbers) / 3)
        assert actions == sum(s.label == name for each in TRUTH.values() for s in each)
    assert table["rows"][-1] == ["all classes", 5, *result.per_tiou.values(), result.average]
    recall = {row[0]: row[1:] for row in content["tables"]["recall"]["rows"]}
    assert recall == {f"{k}x": [result.recall[tiou, k] for tiou in TIOUS] for k in (1, 5)}
    assert content["facts"] | {"videos": 2, "actions": 5, "detections": 7} == content["facts"]
    assert "2 videos could not be read" in page.text


def test_many_classes_are_drawn_within_bounds(tmp_path: Path) -> None:
    names = [f"class {n} " + "x" * (n % 50) for n in range(60)]
    truth = {"v": tuple(Segment(name, n, n + 1) for n, name in enumerate(names))}
    result = mean_average_precision(truth, {}, TIOUS)
    write_scores_report(tmp_path, "many", ScoredDetections(truth, {}, result))
    page, content = read(tmp_path)
    assert "The 24 of 60 classes" in page.text
    assert len(content["tables"]["average precision"]["rows"]) == 61


def test_the_legend_of_a_check_covers_no_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: drawn.append(figure))
    classes = {f"class {number}": 100 for number in range(30)}
    examples = {"training": classes, "a subset with a long name": classes}
    lengths = [float(n) for n in range(1, 300)]
    ranges = [(0.0, 4.0), (4.0, 8.0), (8.0, 10000.0)]
    figures.draw_dataset(examples, lengths, ranges, 128, [(9.0, 25.0)], tmp_path / "check.png")
    (figure,) = drawn
    figure.canvas.draw()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [*examples, "window, 128"]
    for axes in figure.axes:
        assert axes.get_legend() is None
        assert not legend.get_window_extent().overlaps(axes.get_tightbbox())


LAUNCH = Launch(
    command="accelerate launch train/e2e.py --config 'a b.yaml' --out runs/x --training.lr 1e-3",
    folder="/home/me/a b",
    began="2026-01-02 03:04:05+00:00",
    processes=2,
    devices=("GPU A", "GPU A"),
    versions={"torch": "9.9", "accelerate": "8.8"},
    commit="abc+",
    outcome="finished",
    seconds={"starting up": 1.5, "steps": 60.0, "waiting for data": 20.0, "validation": 18.5},
    about={"training videos": 7, "classes": 3, "weights": {"trunk": 10, "learning": 4}},
    activations={"training and validation": [5, 1, 2]},
)


def a_run(folder: Path, launches: list[Launch]) -> Path:
    """Write what a run leaves, by hand."""
    lines: list[dict[str, Any]] = []
    for epoch, (loss, score) in enumerate([(1.0, 0.2), (0.6, 0.5), (0.4, 0.4)], 1):
        common = {"epoch": epoch, "stand_ins": 0, "lr": 1e-3, "seconds_per_step": 0.5}
        rates = {"0.001": 1e-3, "0.0002": 2e-4}
        parts = {"loss": loss, "classification": loss / 2, "regression": loss / 2}
        lines.append({"step": 10 * epoch, **parts, **common, "learning_rates": rates})
        scores = {"average_mAP": score, "mAP@0.5": score, "recall@0.5@1": 0.7, "recall@0.5@5": 0.9}
        lines.append({"step": 10 * epoch, "validation": scores, "skipped_videos": 0})
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "skipped_videos.json").write_text(json.dumps({EVIL: f"{EVIL} is cut"}))
    (folder / "config.yaml").write_text(
        f"out: x\nname: {json.dumps(EVIL)}\n"
        "training: {stop_epoch: 3, lr: 0.001, backbone_lr: 0.0002}\n"
    )
    (folder / "last.pt").touch()
    write_launches(folder, launches)
    return folder


def test_a_run_tells_what_it_did(tmp_path: Path) -> None:
    out = a_run(tmp_path / "run", [LAUNCH])
    assert read_launches(out) == [replace(LAUNCH, devices=["GPU A", "GPU A"])]  # type: ignore[arg-type]
    write_training_report(out)
    page, content = read(out)
    assert "Trained for 3 of 3 epochs on 7 videos with 3 classes" in page.text
    assert "average mAP 0.500, came after epoch 2" in page.text
    assert content["facts"]["how it ended"] == "finished" and content["facts"]["last loss"] == 0.4
    tables = content["tables"]
    assert tables["validations"]["columns"] == ["epoch", "step", "average mAP", "mAP@0.5"]
    assert [row[2] for row in tables["validations"]["rows"]] == [0.2, 0.5, 0.4]
    for k, at in (("1x", 0.7), ("5x", 0.9)):
        recall = tables[f"validation recall@{k}"]
        assert recall["columns"] == ["epoch", "step", "tIoU 0.5"]
        assert [row[2:] for row in recall["rows"]] == [[at]] * 3
    time = {row[0]: row[2:] for row in tables["time"]["rows"]}
    assert time["steps"] == [60.0, 60.0] and time["validation"] == [18.5, 18.5]
    assert tables["activations"]["rows"] == [["training and validation", 5, 1, 2]]
    assert tables["skipped videos"]["rows"] == [[EVIL, f"{EVIL} is cut"]]
    assert ["trunk", 10] in tables["weights"]["rows"]
    assert "2 × GPU A" in page.text and "9.9" in page.text and "abc+" in page.text
    assert "cd '/home/me/a b'" in page.text and "--config 'a b.yaml'" in page.text
    assert (out / "config.yaml").read_text().strip() in page.text
    assert "last.pt" in page.attributes("href")


def test_all_launches_count(tmp_path: Path) -> None:
    killed = replace(LAUNCH, outcome="running", seconds={}, activations={})
    failed = replace(LAUNCH, outcome=f"failed: the loss became nan in {EVIL}")
    write_training_report(a_run(tmp_path, [LAUNCH, killed, failed]))
    page, content = read(tmp_path)
    assert {row[0]: row[2] for row in content["tables"]["time"]["rows"]}["steps"] == 120
    assert [row[3] for row in content["tables"]["launches"]["rows"]] == [
        "finished",
        "still running, or killed",
        failed.outcome,
    ]
    assert content["facts"]["how it ended"] == "failed"
    assert (
        f"The run {failed.outcome}" in content["warnings"]
        and "1 of them have no times" in page.text
    )


def test_evaluations_in_a_runs_folder_are_found(tmp_path: Path) -> None:
    out = a_run(tmp_path, [LAUNCH])
    place = out / "evaluation" / "last-test #1"
    place.mkdir(parents=True)
    result = mean_average_precision(TRUTH, FOUND, TIOUS)
    write_scores_report(place, "it", ScoredDetections(TRUTH, FOUND, result))
    write_training_report(out)
    html = (out / "report.html").read_text()
    content = json.loads((out / "report.json").read_text())
    assert content["tables"]["evaluations"]["rows"] == [["last-test #1", result.average, 2]]
    assert "evaluation/last-test%20%231/report.html" in Page(html).attributes("href")


def test_diagnoses_and_the_check_of_a_run_are_linked(tmp_path: Path) -> None:
    out = a_run(tmp_path, [LAUNCH])
    places = {"evaluation/last-test #1/diagnosis": "Diagnosis", "check": "Dataset check"}
    for place, kind in places.items():
        (out / place).mkdir(parents=True)
        write_report(Report(kind, EVIL, f"about {EVIL}", [], []), out / place)
    write_training_report(out)
    html = (out / "report.html").read_text()
    rows = json.loads((out / "report.json").read_text())["tables"]["other reports"]["rows"]
    assert sorted(rows) == [
        ["check", "dataset check", f"about {EVIL}"],
        ["evaluation/last-test #1/diagnosis", "diagnosis", f"about {EVIL}"],
    ]
    links = Page(html).attributes("href")
    assert {"check/report.html", "evaluation/last-test%20%231/diagnosis/report.html"} <= {*links}


def test_a_run_that_composed_others_has_no_curves(tmp_path: Path) -> None:
    out = a_run(tmp_path, [])
    (out / "metrics.jsonl").unlink()
    (out / "launches.json").write_text("cut off {")
    write_training_report(out)
    page, _ = read(out)
    assert "composed of others" in page.text and "img" not in {tag for tag, _ in page.tags}


@pytest.mark.parametrize(
    ("parent", "expected"),
    [
        (["/bin/bash", "-c", "python train/e2e.py --out 'a b'"], "python train/e2e.py --out 'a b'"),
        ([], "python train/e2e.py --out 'a b'"),
        (
            ["/x/python3.11", "/x/bin/accelerate", "launch", "train/e2e.py", "--out", "a b"],
            "accelerate launch train/e2e.py --out 'a b'",
        ),
        (
            ["/x/python3", "-m", "torch.distributed.run", "train/e2e.py", "--out", "a b"],
            "python3 -m torch.distributed.run train/e2e.py --out 'a b'",
        ),
        (["/x/python3", "train/ablate.py", "grid.yaml"], "python train/e2e.py --out 'a b'"),
    ],
)
def test_the_command_is_the_one_that_was_typed(parent: list[str], expected: str) -> None:
    assert repeat_command(["train/e2e.py", "--out", "a b"], parent) == expected


def test_the_installed_command_is_the_one_that_was_typed() -> None:
    parent = ["bash", "/x/bin/palindrome", "train", "--out", "a b"]
    told = repeat_command(["palindrome train", "--out", "a b"], parent)
    assert told == "palindrome train --out 'a b'"


def test_this_process_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train/e2e.py", "--out", "x;y"])
    launch = new_launch(2, ["GPU"])
    assert launch.command.endswith("train/e2e.py --out 'x;y'") and launch.processes == 2
    assert launch.versions["torch"] and launch.folder == str(Path.cwd())
    assert launch.commit is None or re.fullmatch(r"[0-9a-f]{40}\+?", launch.commit)


def test_every_moment_belongs_to_one_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("train.engine.stopwatch.time.monotonic", lambda: now[0])

    def pass_by(seconds: float) -> None:
        now[0] += seconds

    watch = Stopwatch("outside")
    pass_by(1)
    with watch.stage("steps"):

        def slow() -> Any:
            for number in range(3):
                pass_by(10)
                yield number

        for _ in watch.time_waiting(slow(), "waiting"):
            pass_by(2)
        with pytest.raises(ValueError), watch.stage("validation"):
            pass_by(100)
            with watch.stage("saving"):
                pass_by(1000)
            raise ValueError
        pass_by(3)
    pass_by(5)
    assert watch.seconds() == {
        "outside": 6,
        "steps": 9,
        "waiting": 30,
        "validation": 100,
        "saving": 1000,
    }


def test_a_mean_outside_its_interval_is_drawn(tmp_path: Path) -> None:
    """Rare classes drop out of resamples: all of them may score better than the whole."""
    averages = {"a": Estimate(0.09, 0.1, 0.2), "b": Estimate(0.3, 0.1, 0.2)}
    figures.draw_rows(averages, {}, None, tmp_path / "table.png")
    assert (tmp_path / "table.png").stat().st_size > 1000


@pytest.mark.parametrize("content", ["{}", "[1]", '{"kind": "mine"}', "no JSON"])
def test_a_report_of_another_program_is_left_out(content: str, tmp_path: Path) -> None:
    out = a_run(tmp_path, [LAUNCH])
    for place in (out / "mine", out / "evaluation/mine"):
        place.mkdir(parents=True)
        (place / "report.json").write_text(content)
        (place / "report.html").write_text("mine")
    write_training_report(out)
    assert "evaluation/mine" not in (out / "report.html").read_text()
