"""extract/check.py and training say the same of every file."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from configs.loader import load
from extract.video.files import VIDEO_SUFFIXES
from tests.encodings import ENCODINGS, write_numbered
from tests.test_check import BY_FRAMES, CLASSES, cut, remux
from tests.test_e2e import DEMO
from tests.test_probe import spoil_the_end
from train.config import Experiment
from train.data.truth import load_annotations
from train.data.videos import load_subsets
from train.dataset_check.check import run_checks
from train.dataset_check.survey import survey_dataset


def experiment(folder: Path, durations: dict[str, float], bad_videos: str) -> Experiment:
    """An experiment on all files of a folder, and on a healthy one that has an action."""
    good = folder / "healthy.mp4"
    if not good.exists():
        write_numbered(good, 100)
    names = sorted({path.stem for path in folder.iterdir()})
    action = [{"segment": [0.5, 2.5], "label": CLASSES[0]}]
    database = {
        name: {"subset": "training", "annotations": action if name == good.stem else []}
        | ({"duration": durations[name]} if name in durations else {})
        for name in names
    }
    (folder.parent / "annotations.json").write_text(json.dumps({"database": database}))
    settings = [
        f"--data.annotations={folder.parent / 'annotations.json'}",
        f"--data.videos={folder}",
        "--data.classes=null",
        *("--data.train_subset=training", "--data.validation_subset=null"),
        *("--data.test_subset=training", f"--data.bad_videos={bad_videos}"),
    ]
    return load(Experiment, DEMO, [*settings, *BY_FRAMES])


def check_agreement(folder: Path, durations: dict[str, float] | None = None) -> set[str]:
    """Assert that both refuse the same files for the same causes; return which."""
    config = experiment(folder, durations or {}, "skip")
    (items,) = load_subsets(config.data, load_annotations(config.data), ["training"])
    for bad_videos, severity in (("stop", "error"), ("skip", "warning")):
        config = experiment(folder, durations or {}, bad_videos)
        findings = run_checks(survey_dataset(config))
        names = {*items.skipped, *(item.name for item in items)}
        refused = {f.video: f.text for f in findings if f.kind.severity == "error" and f.video}
        if bad_videos == "stop":
            assert refused == items.skipped
        else:
            assert not refused
            warned = {f.video: f.text for f in findings if f.kind.severity == severity and f.video}
            assert items.skipped.items() <= warned.items()
        assert set(refused) <= names
    if items.skipped:
        with pytest.raises(ValueError, match=f"{len(items.skipped)} of") as stopped:
            stops = experiment(folder, durations or {}, "stop")
            load_subsets(stops.data, load_annotations(stops.data), ["training"])
        assert all(cause in str(stopped.value) for cause in items.skipped.values())
    return set(items.skipped)


@pytest.mark.slow
def test_every_kind_of_damage_is_the_same_to_both(tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    write_numbered(folder / "good.mp4", 300)
    content = (folder / "good.mp4").read_bytes()
    for suffix in (".mkv", ".ts", ".mov"):
        shutil.copy(folder / "good.mp4", folder / f"whole{suffix[1:]}.mp4")
        remux(folder / f"whole{suffix[1:]}.mp4", folder / f"whole{suffix[1:]}{suffix}")
        shutil.copy(folder / f"whole{suffix[1:]}{suffix}", folder / f"cut{suffix[1:]}{suffix}")
        cut(folder / f"cut{suffix[1:]}{suffix}", 0.6)
    write_numbered(folder / "cutavi.avi", 300, ENCODINGS["MPEG-4 in AVI"])
    cut(folder / "cutavi.avi", 0.7)
    shutil.copy(folder / "good.mp4", folder / "cutfast.mp4")
    remux(folder / "cutfast.mp4", folder / "cutfast.mp4", movflags="faststart")
    with av.open(str(folder / "cutfast.mp4")) as container:
        begins = sorted(p.pos for p in container.demux(video=0) if p.pos is not None)
    fast = (folder / "cutfast.mp4").read_bytes()
    (folder / "cutfast.mp4").write_bytes(fast[: begins[120]])
    shutil.copy(folder / "good.mp4", folder / "spoilt.mp4")
    spoil_the_end(folder / "spoilt.mp4")
    (folder / "half.mp4").write_bytes(content[: len(content) // 2])
    (folder / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    (folder / "empty.mkv").touch()
    (folder / "folder.mp4").mkdir()
    (folder / "loop.mp4").symlink_to("loop.mp4")
    shutil.copy(folder / "good.mp4", folder / "longer.mp4")
    refused = check_agreement(folder, {"longer": 60.0})
    bad = {"cutmkv", "cutmov", "cutavi", "cutfast", "spoilt", "half", "noise", "empty", "folder"}
    assert refused == bad | {"loop", "longer"}  # a transport stream announces no length


@pytest.mark.parametrize("part", [pytest.param("clips", marks=pytest.mark.slow), "cases/video"])
def test_real_clips_are_the_same_to_both(tmp_path: Path, shared: Path, part: str) -> None:
    if not (shared / part).is_dir():
        pytest.skip(f"{part} is not here")
    folder = tmp_path / "videos"
    folder.mkdir()
    for path in (shared / part).iterdir():
        if path.suffix in VIDEO_SUFFIXES:
            shutil.copy(path, folder)
    refused = check_agreement(folder)
    assert part != "clips" or refused == {"corrupted"}


def test_a_subset_that_is_not_there_is_told_with_the_setting_that_asks_for_it(
    tmp_path: Path,
) -> None:
    (tmp_path / "videos").mkdir()
    write_numbered(tmp_path / "videos/good.mp4", 300)
    config = experiment(tmp_path / "videos", {}, "stop")
    data = replace(config.data, validation_subset="Training")
    with pytest.raises(ValueError, match=r"^data\.validation_subset: no video is in .*'training'"):
        load_subsets(data, load_annotations(data), ["Training"])
    with pytest.raises(ValueError, match=r"^no video is in subset 'other'"):
        load_subsets(data, load_annotations(data), ["other"])
