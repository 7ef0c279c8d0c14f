"""The videos of a subset: bad files listed at once or left out, in all processes alike."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from evaluate.annotations import Annotations, Video
from tests.encodings import ENCODINGS, irregular_time, write_numbered
from tests.test_e2e import DEMO, QUICK, TWO_PROCESSES, script
from train.config import DataConfig
from train.data import videos
from train.data.items import Subset, VideoItem
from train.data.truth import load_annotations
from train.data.videos import load_items, load_subsets


def write_annotations(folder: Path, names: list[str]) -> DataConfig:
    """Annotate one-second videos in `folder`/videos, which may exist or not."""
    entry = {"subset": "all", "annotations": [{"segment": [0.2, 0.6], "label": "wave"}]}
    content = {"database": {name: entry for name in names}}
    (folder / "annotations.json").write_text(json.dumps(content))
    (folder / "videos").mkdir(exist_ok=True)
    file, videos = str(folder / "annotations.json"), str(folder / "videos")
    return DataConfig(file, videos, "all", None, "all")


def spoil(folder: Path) -> dict[str, str]:
    """Write a bad file of every kind; return what is said about each."""
    write_numbered(folder / "whole.mp4", 25)
    content = (folder / "whole.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(content[: len(content) // 2])
    (folder / "empty.mp4").touch()
    (folder / "folder.mp4").mkdir()
    (folder / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    no_video = "its data are damaged or not a video"
    return {
        "absent": f"absent: no such file in {folder}",
        "cut": f"{folder}/cut.mp4: cannot be read as video: {no_video}",
        "empty": f"{folder}/empty.mp4: cannot be read as video: the file is empty",
        "folder": f"{folder}/folder.mp4: cannot be read as video: it is a folder",
        "noise": f"{folder}/noise.mp4: cannot be read as video: {no_video}",
    }


@pytest.mark.slow
def test_bad_videos_stop_with_one_list_or_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    causes = spoil(tmp_path / "videos")
    data = write_annotations(tmp_path, [*causes, "whole"])
    annotations = load_annotations(data)
    with pytest.raises(ValueError) as caught:
        load_items(data, annotations, "all")
    first, *listed = str(caught.value).split("\n  ")
    assert first == (
        "5 of 6 videos of 'all' cannot be used; mend them or list them under data.blocked, "
        "or skip them with --data.bad_videos skip:"
    )
    assert listed == list(causes.values())
    found = load_items(replace(data, bad_videos="skip"), annotations, "all")
    assert [item.name for item in found] == ["whole"] and found.skipped == causes
    assert found[0].frames == 25 and found[0].duration_s == pytest.approx(1)
    assert found[0].segments.tolist() == [[5, 15]]


def test_a_part_of_a_subset_may_have_bad_videos_alone(tmp_path: Path) -> None:
    """A share of it, in which nothing else happens to be."""
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos/empty.mp4").touch()
    data = replace(write_annotations(tmp_path, ["empty"]), bad_videos="skip")
    annotations = load_annotations(data)
    with pytest.raises(ValueError, match="1 of 1 videos of 'all' cannot be used"):
        load_subsets(data, annotations, ["all"])
    (found,) = load_subsets(data, annotations, ["all"], part=True)
    assert not found and [*found.skipped] == ["empty"]
    with pytest.raises(ValueError, match="1 of 1 videos of 'all' cannot be used"):
        load_subsets(replace(data, bad_videos="stop"), annotations, ["all"], part=True)


def test_a_video_of_two_subsets_counts_once(tmp_path: Path) -> None:
    """As where a run validates and tests with the same videos."""
    data = write_annotations(tmp_path, ["absent", "there"])
    write_numbered(tmp_path / "videos/there.mp4", 25)
    annotations = load_annotations(data)
    with pytest.raises(ValueError, match="1 of 2 videos of 'all' cannot be used"):
        load_subsets(data, annotations, ["all", "all"])


def test_frames_at_uneven_times_keep_them(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    write_numbered(tmp_path / "videos/uneven.mp4", 40, ENCODINGS["variable frame rate"])
    data = write_annotations(tmp_path, ["uneven"])
    (item,) = load_items(data, load_annotations(data), "all")
    numbers = np.array([0, 9, 10, 25, 39])
    seconds = np.array([irregular_time(n) / 1000 for n in numbers])
    assert item.to_seconds(numbers) == pytest.approx(seconds, abs=2e-3)
    assert item.to_timeline(seconds) == pytest.approx(numbers, abs=0.1)
    # Evenly spread, frame 9 would stand elsewhere.
    assert abs(9 / item.frames * item.duration_s - seconds[1]) > 0.05
    assert item.segments == pytest.approx(item.to_timeline(np.array([[0.2, 0.6]])))


def test_nothing_but_bad_videos_stops_in_any_case(tmp_path: Path) -> None:
    names = [f"absent_{number:02}" for number in range(25)]
    data = replace(write_annotations(tmp_path, names), bad_videos="skip")
    with pytest.raises(ValueError, match=r"25 of 25 videos of 'all'") as caught:
        load_items(data, load_annotations(data), "all")
    text = str(caught.value)
    assert all(f"absent_{n:02d}" in text for n in range(25))
    assert "skip" not in text  # it would not help


@pytest.mark.slow
def test_a_folder_of_videos_and_a_table_are_enough(tmp_path: Path) -> None:
    data = write_annotations(tmp_path, ["walk", "run"])
    for name in ("walk", "run"):
        write_numbered(tmp_path / f"videos/{name}.mp4", 25)
    table = tmp_path / "actions.csv"
    table.write_text("video,start,end,label,subset\nwalk,0.2,0.6,wave,all\nrun,0.2,0.6,wave,all\n")
    from_json = load_items(data, load_annotations(data), "all")
    data = replace(data, annotations=str(table))
    from_table = load_items(data, load_annotations(data), "all")
    for one, other in zip(from_json, from_table, strict=True):
        assert (one.path, one.truth, one.duration_s) == (other.path, other.truth, other.duration_s)
        np.testing.assert_array_equal(one.segments, other.segments)
    data = replace(data, annotations=str(tmp_path / "elsewhere"))
    with pytest.raises(ValueError, match=r"data\.annotations: there is no file or folder"):
        load_annotations(data)


def test_another_video_of_the_same_name_is_bad(tmp_path: Path) -> None:
    data = write_annotations(tmp_path, ["one", "two"])
    for name in ("one", "two"):
        write_numbered(tmp_path / f"videos/{name}.mp4", 25)
    annotations = load_annotations(data)
    videos: dict[str, Video] = annotations.videos | {
        "two": replace(annotations.videos["two"], duration_s=60.0)
    }
    annotations = replace(annotations, videos=videos)
    found = load_items(replace(data, bad_videos="skip"), annotations, "all")
    assert [item.name for item in found] == ["one"]
    assert "lasts 1.0 s, but 60.0 s" in found.skipped["two"]


def test_what_is_bad_for_one_process_is_left_out_by_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = replace(write_annotations(tmp_path, ["one", "two"]), bad_videos="skip")
    for name in ("one", "two"):
        write_numbered(tmp_path / f"videos/{name}.mp4", 25)
    annotations = load_annotations(data)
    other = {"two": "two.mp4: its decoder hangs"}
    monkeypatch.setattr(videos, "gather_objects", lambda mine: [*mine, other])
    process: Any = SimpleNamespace(is_main_process=False)

    def load(data: DataConfig, annotations: Annotations) -> Subset[VideoItem]:
        return load_items(data, annotations, "all", process)

    found = load(data, annotations)
    assert [item.name for item in found] == ["one"] and found.skipped == other
    with pytest.raises(ValueError, match=r"1 of 2 videos(?s:.)*two\.mp4: its decoder hangs"):
        load(replace(data, bad_videos="stop"), annotations)


@pytest.fixture
def spoilt(data: list[str], tmp_path: Path) -> list[str]:
    """The demo dataset with three files gone bad: one of each subset."""
    source = Path(data[1].split("=")[1])
    folder = tmp_path / "videos"
    folder.mkdir()
    for file in source.iterdir():
        (folder / file.name).symlink_to(file)
    for name in ("training_001.mp4", "validation_000.mp4", "test_000.mp4"):
        (folder / name).unlink()
        (folder / name).write_bytes(b"noise" * 1000)
    return [data[0], f"--data.videos={folder}", data[2]]


@pytest.mark.slow
def test_two_processes_end_when_they_meet_bad_videos(spoilt: list[str], tmp_path: Path) -> None:
    done = script(
        *("train/e2e.py", "--config", DEMO, *spoilt, *QUICK, "--out", tmp_path / "run"),
        launcher=TWO_PROCESSES,
        timeout=120,
    )
    assert done.returncode != 0
    assert "error: 2 of 6 videos of 'training' and 'validation' cannot be used" in done.stderr
    for name in ("training_001.mp4", "validation_000.mp4"):
        assert f"{name}: cannot be read as video" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_skipped_videos_are_counted_in_log_and_results(spoilt: list[str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    skip = ["--data.bad_videos=skip", "--training.epochs=2", "--training.stop_epoch=1"]
    done = script(
        *("train/e2e.py", "--config", DEMO, *spoilt, *QUICK, *skip, "--out", out),
        *("--training.global_batch=2", "--data.validation_subset=null"),
        launcher=TWO_PROCESSES,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("1 of 4 videos were skipped") == 1
    skipped = json.loads((out / "skipped_videos.json").read_text())
    assert list(skipped) == ["training_001"] and "training_001.mp4: cannot" in skipped.popitem()[1]

    done = script("evaluate/run.py", "--checkpoint", out / "last.pt", "--training.workers=0")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 of 3 videos were skipped" in done.stdout and "test_000.mp4: cannot" in done.stdout
    results = out / "evaluation/last-test"
    metrics = json.loads((results / "metrics.json").read_text())
    assert list(metrics["skipped_videos"]) == ["test_000"]
    assert set(json.loads((results / "predictions.json").read_text())["results"]) == {
        *("test_001", "test_002")
    }


@pytest.mark.slow
def test_short_actions_are_not_learned_but_scored(tmp_path: Path) -> None:
    """Actions of at most 1 % of their video, in training alone, as ActivityNet's published runs."""
    seconds = [(1.0, 1.09), (2.0, 2.11), (3.0, 3.05), (4.0, 9.0)]  # of 10
    entries = [{"segment": segment, "label": "wave"} for segment in seconds]
    content = {n: {"subset": n, "annotations": entries} for n in ("training", "validation")}
    (tmp_path / "annotations.json").write_text(json.dumps({"database": content}))
    for name in content:
        write_numbered(tmp_path / f"{name}.mp4", 250)
    data = DataConfig(str(tmp_path / "annotations.json"), str(tmp_path), min_share=0.01)
    for subset, kept in (("training", [1, 3]), ("validation", [0, 1, 2, 3])):
        (item,) = load_items(data, load_annotations(data), subset)
        (whole,) = load_items(replace(data, min_share=0.0), load_annotations(data), subset)
        assert np.array_equal(item.segments, whole.segments[kept])
        assert len(item.labels) == len(kept) and item.truth == whole.truth
        assert len(whole.segments) == len(item.truth) == 4
