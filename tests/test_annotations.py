"""Annotation and prediction files: what is read, what is tolerated, what is refused."""

import csv
import json
import math
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluate.annotations import (
    Annotations,
    Detection,
    Segment,
    read_annotations,
    select_videos,
)
from evaluate.files.predictions import read_predictions, write_predictions

RUN = {"segment": [1.0, 2.5], "label": "run"}


def entry(start: Any, end: Any, label: Any = "run") -> dict[str, Any]:
    return {"segment": [start, end], "label": label}


def video(*entries: Any, **members: Any) -> dict[str, Any]:
    return {"subset": "train", "annotations": list(entries), **members}


def write(folder: Path, database: Any, name: str = "truth.json") -> Path:
    path = folder / name
    path.write_text(json.dumps({"database": database}))
    return path


def read(folder: Path, record: Any, **options: Any) -> Annotations:
    return read_annotations(write(folder, {"a_video": record}), **options)


# ------------------------------------------------------------------ the real file


def test_the_real_thumos_file_loads_as_listed(shared: Path) -> None:
    folder = shared / "thumos14"
    tables = [folder / "val_video_info.csv", folder / "test_video_info.csv"]
    annotations = read_annotations(folder / "thumos_gt.json", info_csv=tables)

    listed = json.loads((folder / "thumos_gt.json").read_text())["database"]
    rows = {}
    for table in tables:
        with table.open() as file:
            rows.update({row["video"]: row for row in csv.DictReader(file)})
    outside = 0
    for name, record in listed.items():
        read_back = annotations.videos[name]
        fps, frames = float(rows[name]["fps"]), float(rows[name]["count"])
        times = [(x["label"], *map(float, x["segment"])) for x in record["annotations"]]
        assert list(read_back.segments) == times
        assert read_back.subset == record["subset"]
        assert (read_back.fps, read_back.frames) == (fps, frames)
        assert read_back.duration_s == frames / fps
        outside += sum(end > frames / fps for _, _, end in times)

    assert len(annotations.videos) == 410
    assert sum(len(each.segments) for each in annotations.videos.values()) == 6318
    assert annotations.warnings == {"segments kept though outside their video": outside}
    assert outside == 8
    labels = {x["label"] for record in listed.values() for x in record["annotations"]}
    assert annotations.classes == tuple(sorted(labels))
    assert len(annotations.classes) == 20
    assert len(select_videos(annotations, "train")) == 200
    assert [each.name for each in select_videos(annotations, "test")] == [
        name for name, record in listed.items() if record["subset"] == "test"
    ]


def test_every_cliff_diving_is_also_a_diving_in_the_real_file(shared: Path) -> None:
    annotations = read_annotations(shared / "thumos14" / "thumos_gt.json")
    counts = Counter(x.label for each in annotations.videos.values() for x in each.segments)
    assert counts["Diving"] == 887
    assert counts["CliffDiving"] == 360
    for each in annotations.videos.values():
        if any(x.label == "CliffDiving" for x in each.segments):
            assert any(x.label == "Diving" for x in each.segments)


# ------------------------------------------------------------------ what is read


def test_numbers_and_texts_mean_the_same(tmp_path: Path) -> None:
    as_text = video(entry("1.5", " 2.5"), duration="10", frame="300")
    as_number = video(entry(1.5, 2.5), duration=10.0, frame=300)
    assert read(tmp_path, as_text) == read(tmp_path, as_number)
    read_back = read(tmp_path, as_text).videos["a_video"]
    assert read_back.segments == (Segment("run", 1.5, 2.5),)
    assert (read_back.duration_s, read_back.frames, read_back.fps) == (10.0, 300, 30.0)


def test_measures_come_from_the_table_unless_the_json_has_them(tmp_path: Path) -> None:
    table = tmp_path / "info.csv"
    table.write_text("video,fps,sample_fps,count\na_video,25.0,10,500.0\nanother,30,10,1\n")
    from_table = read(tmp_path, video(RUN), info_csv=[table]).videos["a_video"]
    assert (from_table.duration_s, from_table.frames, from_table.fps) == (20.0, 500, 25.0)
    mixed = read(tmp_path, video(RUN, duration=19.0), info_csv=[table]).videos["a_video"]
    assert (mixed.duration_s, mixed.frames, mixed.fps) == (19.0, 500, 25.0)
    unknown = read(tmp_path, video(RUN, duration=None)).videos["a_video"]
    assert (unknown.duration_s, unknown.frames, unknown.fps) == (None, None, None)


def test_an_unlabelled_video_has_no_segments(tmp_path: Path) -> None:
    annotations = read(tmp_path, {"subset": "testing", "duration": 3})
    assert annotations.videos["a_video"].segments == ()
    assert annotations.classes == ()


def test_class_file_gives_the_order_and_labels_are_checked_against_it(tmp_path: Path) -> None:
    names = tmp_path / "category_idx.txt"
    names.write_text("walk\nrun\n\njump high\n")
    assert read(tmp_path, video(RUN), classes=names).classes == ("walk", "run", "jump high")
    wrong = video(RUN, entry(3, 4, "jump hihg"))
    with pytest.raises(ValueError, match=r"'a_video', entry 1: .*'jump hihg'.*'jump high'"):
        read(tmp_path, wrong, classes=names)


@pytest.mark.parametrize(("text", "message"), [("", "names no class"), ("a\nb\na\n", "'a'.*twice")])
def test_a_bad_class_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    names = tmp_path / "category_idx.txt"
    names.write_text(text)
    with pytest.raises(ValueError, match=f"category_idx.txt: .*{message}"):
        read(tmp_path, video(RUN), classes=names)


def test_blocking_a_video_moves_no_class_index(tmp_path: Path) -> None:
    path = write(tmp_path, {"a": video(RUN), "b": video(entry(5, 1, "climb"))})
    annotations = read_annotations(path, blocked=["b", "not in the file"])
    assert list(annotations.videos) == ["a"]
    assert annotations.classes == ("climb", "run")


def test_all_problems_are_told_to_who_asks(tmp_path: Path) -> None:
    """And what is good is read as if the rest were not there."""
    names = tmp_path / "classes.txt"
    names.write_text("run\nwalk\n")
    again, outside = entry(1, 2), entry(9, 12)
    good = video(again, entry(3, 4, "walk"), outside, duration=10)
    bad = video(
        *(again, entry(5, 4), again, entry(3, 4, "wlak"), {"label": "run"}, entry(6, 6)),
        *(entry(3, 4, "walk"), entry(1, 90), outside, entry(1, 2, "Ambiguous"), entry(-1, 2)),
        duration=10,
    )
    database = {"a": bad, "b": {"annotations": []}, "c": good, "d": 3}
    told: list[tuple[str, int | None, str | None]] = []

    def notice(name: str, place: int | None, problem: str | ValueError) -> None:
        kind = getattr(problem, "kind", None) if isinstance(problem, ValueError) else problem
        told.append((name, place, kind))

    path = write(tmp_path, database)
    found = read_annotations(path, classes=names, notice=notice)
    assert told == [
        ("a", 1, "reversed segment"),
        ("a", 2, "exact duplicates dropped"),
        ("a", 3, "unknown label"),
        ("a", 4, None),
        ("a", 5, "segments of zero length dropped"),
        ("a", 7, "outside the video"),
        ("a", 8, "segments kept though outside their video"),
        ("a", 9, "'Ambiguous' annotations dropped"),
        ("a", 10, "outside the video"),
        ("b", None, None),
        ("c", 2, "segments kept though outside their video"),
        ("d", None, None),
    ]
    clean = read_annotations(write(tmp_path, {"a": good, "c": good}, "clean.json"), classes=names)
    assert found.videos == clean.videos
    with pytest.raises(ValueError, match="'a', entry 1: the segment ends at 4"):
        read_annotations(path, classes=names)


def test_select_matches_exactly_and_names_the_nearest(tmp_path: Path) -> None:
    path = write(tmp_path, {"a": video(RUN), "b": {**video(RUN), "subset": "validation"}})
    annotations = read_annotations(path)
    assert [each.name for each in select_videos(annotations, "validation")] == ["b"]
    with pytest.raises(ValueError, match=r"have train, validation; did you mean 'validation'\?"):
        select_videos(annotations, "Validation")


# ------------------------------------------------------------------ what is tolerated


def test_what_is_dropped_is_counted(tmp_path: Path) -> None:
    record = video(RUN, entry(4, 4), RUN, entry(1, 9, "Ambiguous"), entry(1.0, 2.5, "walk"))
    annotations = read(tmp_path, record)
    kept = (Segment("run", 1.0, 2.5), Segment("walk", 1.0, 2.5))
    assert annotations.videos["a_video"].segments == kept
    assert annotations.classes == ("run", "walk")
    assert annotations.warnings == {
        "'Ambiguous' annotations dropped": 1,
        "segments of zero length dropped": 1,
        "exact duplicates dropped": 1,
    }
    kept_all = read(tmp_path, record, ignore_labels=())
    assert kept_all.classes == ("Ambiguous", "run", "walk")


@pytest.mark.parametrize(
    ("duration", "start", "end", "read_end", "warning"),
    [
        (100.0, 90.0, 100.0, 100.0, None),
        (100.0, 90.0, 102.0, 100.0, "clipped"),
        (100.0, 90.0, 102.1, 102.1, "kept"),
        (10.0, 9.0, 11.0, 10.0, "clipped"),
        (10.0, 9.0, 11.1, 11.1, "kept"),
        (10.0, 10.2, 10.8, 10.8, "kept"),
        (0.3, 0.1, 1.2, 0.3, "clipped"),
        (10.0, 19.0, 20.0, 20.0, "kept"),
    ],
)
def test_segments_behind_the_end(
    tmp_path: Path, duration: float, start: float, end: float, read_end: float, warning: str | None
) -> None:
    annotations = read(tmp_path, video(entry(start, end), duration=duration))
    assert annotations.videos["a_video"].segments == (Segment("run", start, read_end),)
    assert list(annotations.warnings.values()) == ([1] if warning else [])
    assert warning is None or warning in next(iter(annotations.warnings))


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (entry("one", 2), "finite number, not 'one'"),
        (entry(math.nan, 2), "finite number, not nan"),
        (entry(1, math.inf), "finite number, not inf"),
        (entry("nan", 2), "finite number, not 'nan'"),
        (entry(None, 2), "finite number, not None"),
        (entry(True, 2), "finite number, not True"),
        (entry(5, 2), r"ends at 2.0 s, before its start 5.0 s"),
        (entry(-0.5, 2), "starts at -0.5 s"),
        (entry(100, 301), "far outside the video of 100.000 s.*seconds"),
        (entry(1, 2, 7), "'label' must be a text, not 7"),
        ({"segment": [1, 2]}, "'label' is missing"),
        ({"label": "run"}, "'segment' is missing"),
        ({"label": "run", "segment": [1]}, r"must be \[start, end\]"),
        ({"label": "run", "segment": "1 2"}, "'segment' must be a list"),
        ([1, 2, "run"], "expected an object"),
    ],
)
def test_a_malformed_entry_is_named(tmp_path: Path, bad: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"truth.json: video 'a_video', entry 1: .*{message}"):
        read(tmp_path, video(RUN, bad, duration=100.0))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ([RUN], "expected an object"),
        ({"annotations": [RUN]}, "'subset' is missing"),
        ({"subset": "train", "annotations": {"0": RUN}}, "expected a list"),
        (video(RUN, duration=0), "duration must be above 0"),
        (video(RUN, duration="long"), "duration must be a finite number"),
        (video(RUN, frame=10.5), "frame must be a whole number of frames, not 10.5"),
    ],
)
def test_a_malformed_video_is_named(tmp_path: Path, record: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"truth.json: video 'a_video'.*{message}"):
        read(tmp_path, record)


@pytest.mark.parametrize("text", ['{"database": ', '{"videos": {}}', "[]", '{"database": []}', ""])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "truth.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"truth.json.*(not valid JSON|'database')"):
        read_annotations(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("video,fps\na,30\n", "column count is missing"),
        ("video,fps,count\na,30,90\nb,thirty,90\n", "line 3: fps must be a finite number"),
        ("video,fps,count\na,30\n", "line 2: count must be a finite number, not None"),
        ("video,fps,count\na,0,90\n", "line 2: fps must be above 0"),
        ("video,fps,count\na,30,90.5\n", "line 2: count must be a whole number"),
        ("", "column count, fps, video is missing"),
    ],
)
def test_a_bad_info_table_is_refused(tmp_path: Path, text: str, message: str) -> None:
    table = tmp_path / "info.csv"
    table.write_text(text)
    with pytest.raises(ValueError, match=f"info.csv: {message}"):
        read(tmp_path, video(RUN), info_csv=[table])


# ------------------------------------------------------------------ predictions

times = st.floats(-10, 1e6)
detections = st.builds(
    lambda label, start, length, score: Detection(label, start, start + length, score),
    st.text(max_size=5),
    times,
    st.floats(0, 1e4),
    st.floats(allow_nan=False, allow_infinity=False),
)


@given(st.dictionaries(st.text(max_size=5), st.lists(detections, max_size=4), max_size=4))
def test_predictions_survive_the_round_trip_exactly(
    tmp_path_factory: pytest.TempPathFactory, predictions: dict[str, list[Detection]]
) -> None:
    path = tmp_path_factory.mktemp("round_trip") / "predictions.json"
    write_predictions(path, predictions)
    assert read_predictions(path) == predictions


def test_numpy_numbers_are_written_without_rounding(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "predictions.json"
    score: Any = np.float32(0.1)
    write_predictions(path, {"a": [Detection("run", np.float64(1), np.float64(2), score)]})
    assert read_predictions(path)["a"] == [Detection("run", 1.0, 2.0, float(score))]
    assert set(json.loads(path.read_text())) == {"version", "results", "external_data"}


@pytest.mark.parametrize(
    "bad", [Detection("run", 0.0, 1.0, math.nan), Detection("run", 2.0, 1.0, 0.5)]
)
def test_a_bad_detection_leaves_the_older_file_alone(tmp_path: Path, bad: Detection) -> None:
    path = tmp_path / "predictions.json"
    good = {"a": [Detection("run", 0.0, 1.0, 0.5)]}
    write_predictions(path, good)
    with pytest.raises(ValueError, match="video 'b', entry 1"):
        write_predictions(path, {"b": [good["a"][0], bad]})
    assert read_predictions(path) == good
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("disk is gone")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="disk is gone"):
        write_predictions(tmp_path / "predictions.json", {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"segment": [0, 1], "label": "run"}, "score must be a finite number, not None"),
        ({"segment": [0, 1], "label": "run", "score": "high"}, "score must be a finite number"),
        ({"segment": [0, 1], "score": 1}, "'label' is missing"),
        ({"segment": [2, 1], "label": "run", "score": 1}, "before its start"),
        (0.5, "expected an object"),
    ],
)
def test_a_malformed_prediction_is_named(tmp_path: Path, bad: Any, message: str) -> None:
    path = tmp_path / "predictions.json"
    good = {"segment": ["0", "1"], "label": "run", "score": "0.5"}
    path.write_text(json.dumps({"results": {"a": [good]}}))
    assert read_predictions(path) == {"a": [Detection("run", 0.0, 1.0, 0.5)]}
    path.write_text(json.dumps({"results": {"a": [good, bad]}}))
    with pytest.raises(ValueError, match=f"predictions.json: video 'a', entry 1: .*{message}"):
        read_predictions(path)
