"""Synthetic scenes and the demo dataset that is made of them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluate.annotations import read_annotations, select_videos
from extract.demo import (
    DemoConfig,
    exchange_annotations,
    move_boundaries,
    thin_annotations,
    write_clips,
    write_dataset,
)
from extract.scenes import ACTIONS, Scene, action_map, random_clip, random_scene, render_scene
from extract.video.reader import VideoReader

SMALL = DemoConfig(training=3, validation=2, test=1, shortest=4, longest=7)


def quiet_scene(seed: int) -> Scene:
    scene = random_scene(np.random.default_rng(seed), 20.0)
    return replace(scene, noise=0.0, texture=replace(scene.texture, tint=np.zeros((4, 3))))


def mirrored_in_time(scene: Scene) -> Scene:
    """The scene as the reversed film shows it, with every label exchanged for its partner."""
    actors = []
    for actor in scene.actors:
        motion = actor.motion
        if motion in ACTIONS:
            motion = ACTIONS[ACTIONS.index(motion) ^ 1]
        actors.append(
            replace(
                actor,
                motion=motion,
                start=scene.duration - actor.end,
                end=scene.duration - actor.start,
                lead=actor.tail,
                tail=actor.lead,
            )
        )
    return replace(scene, actors=tuple(actors))


@pytest.mark.parametrize("seed", range(6))
def test_classes_are_each_others_time_reversal(seed: int) -> None:
    scene = quiet_scene(seed)
    times = np.linspace(0, scene.duration, 81)
    rng = np.random.default_rng(0)
    forward = render_scene(scene, times, 48, 64, rng).astype(int)
    backward = render_scene(mirrored_in_time(scene), scene.duration - times, 48, 64, rng).astype(
        int
    )
    assert np.abs(forward - backward).max() <= 1
    assert forward.std() > 5


def test_actions_have_the_promised_lengths_and_overlap_sometimes() -> None:
    scenes = [random_scene(np.random.default_rng(seed), 60.0) for seed in range(40)]
    lengths = np.array([end - start for s in scenes for _, start, end in s.actions()])
    assert lengths.min() >= 0.5 and lengths.max() <= 8.0 and lengths.max() > 6
    labels = {label for s in scenes for label, _, _ in s.actions()}
    assert labels == set(ACTIONS)
    overlaps = sum(
        b[1] < a[2] for s in scenes for a, b in zip(s.actions(), s.actions()[1:], strict=False)
    )
    assert 0 < overlaps < len(lengths) / 2
    assert any(actor.pause for s in scenes for actor in s.actors)
    assert any(actor.motion not in ACTIONS for s in scenes for actor in s.actors)


def test_the_map_shows_actions_where_and_when_they_are() -> None:
    scene = random_scene(np.random.default_rng(3), 20.0)
    times = np.linspace(0, 20, 200)
    found = action_map(scene, times, 4)
    for index, label in enumerate(ACTIONS):
        acting = np.zeros(len(times), bool)
        for name, start, end in scene.actions():
            acting |= (name == label) & (times >= start) & (times <= end)
        assert np.array_equal(found[..., index].any((1, 2)), acting)


@pytest.mark.slow
def test_dataset_is_real_and_repeatable(tmp_path: Path) -> None:
    write_dataset(tmp_path / "one", SMALL, processes=1)
    write_dataset(tmp_path / "two", SMALL, processes=2)
    files = sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*.*"))
    assert len(files) == 6 + 8
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    annotations = read_annotations(
        tmp_path / "one/annotations.json", classes=tmp_path / "one/classes.txt"
    )
    assert annotations.classes == ACTIONS
    assert {len(select_videos(annotations, subset)) for subset in ("training",)} == {3}
    for name, video in annotations.videos.items():
        reader = VideoReader(tmp_path / f"one/videos/{name}.mp4")
        assert len(reader) == video.frames and reader.fps == pytest.approx(video.fps)
        assert 4 <= len(reader) / reader.fps <= 7

    write_dataset(tmp_path / "other", replace(SMALL, seed=1), processes=1)
    first = "videos/training_000.mp4"
    assert (tmp_path / "one" / first).read_bytes() != (tmp_path / "other" / first).read_bytes()


def test_a_complete_dataset_is_left_alone_and_foreign_files_are_safe(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    write_dataset(folder, SMALL, processes=1)
    marker = folder / "annotations.json"
    before = marker.stat().st_mtime_ns
    write_dataset(folder, SMALL, processes=1)
    assert marker.stat().st_mtime_ns == before
    (tmp_path / "precious.txt").write_text("mine")
    (tmp_path / "videos").mkdir()
    with pytest.raises(ValueError, match="no demo dataset"):
        write_dataset(tmp_path, SMALL, processes=1)
    assert (tmp_path / "precious.txt").read_text() == "mine" and (tmp_path / "videos").is_dir()


@pytest.mark.slow
def test_an_unfinished_dataset_is_made_anew(tmp_path: Path) -> None:
    write_dataset(tmp_path / "whole", SMALL, processes=1)
    folder = tmp_path / "broken"
    (folder / "videos").mkdir(parents=True)
    (folder / "demo.json").write_text("unfinished")
    (folder / "videos/training_000.mp4").write_bytes(b"half")
    write_dataset(folder, SMALL, processes=1)
    name = "videos/training_000.mp4"
    assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.slow
def test_exchange_moves_training_truth_and_leaves_the_test_alone(tmp_path: Path) -> None:
    write_dataset(tmp_path / "demo", SMALL, processes=1)
    true = json.loads((tmp_path / "demo/annotations.json").read_text())["database"]
    moved = exchange_annotations(true)
    assert moved["test_000"] == true["test_000"]
    for name in ("training_000", "training_001", "training_002"):
        assert moved[name]["annotations"] != true[name]["annotations"]
        assert moved[name]["duration"] == true[name]["duration"]
    for video in moved.values():
        for entry in video["annotations"]:
            assert 0 <= entry["segment"][0] < entry["segment"][1] <= video["duration"]


def truth_of(videos: dict[str, int]) -> dict[str, Any]:
    """Annotations of that many videos a subset, with an action in the middle and at the end."""
    return {
        f"{subset}_{number}": {
            "subset": subset,
            "duration": 10.0,
            "annotations": [
                {"segment": [2.0, 6.0], "label": ACTIONS[0]},
                {"segment": [9.5, 10.0], "label": ACTIONS[1]},
            ],
        }
        for subset, count in videos.items()
        for number in range(count)
    }


def test_few_labels_are_those_of_the_first_training_videos() -> None:
    true = truth_of({"training": 8, "validation": 3, "test": 2})
    few = thin_annotations(true, 0.25)
    gone = [name for name in true if name not in few]
    assert gone == [f"training_{number}" for number in range(2, 8)]
    assert all(few[name] == true[name] for name in few)


def test_moved_boundaries_are_a_tenth_of_the_length_away() -> None:
    true = truth_of({"training": 50, "validation": 1, "test": 1})
    moved = move_boundaries(true, 0.1)
    assert moved == move_boundaries(true, 0.1) != true
    assert all(moved[name] == true[name] for name in ("validation_0", "test_0"))
    seen = set()
    for number in range(50):
        (first, last) = moved[f"training_{number}"]["annotations"]
        assert first["label"] == ACTIONS[0]
        seen.add(tuple(first["segment"]))
        assert last["segment"][0] in (9.45, 9.55) and last["segment"][1] in (9.95, 10.0)
    assert seen == {(start, end) for start in (1.6, 2.4) for end in (5.6, 6.4)}


@pytest.mark.slow
def test_annotations_that_an_older_dataset_lacks_are_added(tmp_path: Path) -> None:
    write_dataset(tmp_path, SMALL, processes=1)
    whole = (tmp_path / "quarter.json").read_bytes()
    videos = (tmp_path / "annotations.json").stat().st_mtime_ns
    (tmp_path / "quarter.json").unlink()
    write_dataset(tmp_path, SMALL, processes=1)
    assert (tmp_path / "quarter.json").read_bytes() == whole
    assert (tmp_path / "annotations.json").stat().st_mtime_ns == videos


@pytest.mark.parametrize("action", ACTIONS)
def test_a_clip_is_little_longer_than_its_one_action(action: str) -> None:
    scenes = [random_clip(np.random.default_rng(seed), action, 2.0) for seed in range(30)]
    for scene in scenes:
        ((label, start, end),) = scene.actions()
        assert label == action and 0 <= start <= 0.3 and 1.7 <= end <= 2.0
    assert {len(scene.actors) for scene in scenes} == {1, 2}


@pytest.mark.slow
def test_clips_lie_in_class_folders_and_come_again_byte_for_byte(tmp_path: Path) -> None:
    sizes = DemoConfig(training=2, validation=0, test=1, shortest=0.5, longest=0.8)
    for folder in ("one", "two"):
        write_clips(tmp_path / folder, sizes, processes=1)
    files = sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*.mp4"))
    parts = [(file.parts[0], file.parts[1]) for file in files]
    wanted = [("test", a) for a in sorted(ACTIONS)]
    assert parts == wanted + [("training", a) for a in sorted(ACTIONS) for _ in range(2)]
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
        reader = VideoReader(tmp_path / "one" / file)
        assert 0.4 < len(reader) / reader.fps <= 0.8
    with pytest.raises(ValueError, match="no demo dataset"):
        write_clips(tmp_path, sizes, processes=1)
