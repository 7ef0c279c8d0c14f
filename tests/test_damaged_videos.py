"""Damaged variants of small videos: no hang, no bug, and no lost result of another file."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate import Accelerator

from evaluate.detect import detect
from evaluate.files.annotation_tools import ToolFiles
from evaluate.files.outputs import Outputs
from evaluate.files.predictions import read_predictions
from extract.parallel.guarded_frames import DecodingProcess
from extract.video.files import files_by_name
from extract.video.reader import VideoError, VideoReader
from tests.odd_videos import write_clip
from tests.test_detect import detector_of, save
from tests.test_detector import small_experiment
from train.config import DataConfig, Experiment
from train.data.truth import load_annotations
from train.data.videos import load_items
from train.dataset_check.check import run_checks
from train.dataset_check.survey import survey_dataset

COUNT = 300
FRAMES = 40
SOURCES = {
    "h264.mp4": "libx264", "h265.mp4": "libx265", "mpeg4.avi": "mpeg4", "h264.mkv": "libx264",
    "vp8.webm": "libvpx", "h264.ts": "libx264", "mpeg2.ts": "mpeg2video", "h264.flv": "libx264",
    "mpeg4.mov": "mpeg4", "anim.gif": "gif",
}  # fmt: skip


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """Return a file's content cut, with bytes flipped, or with another header."""
    data = bytearray(content)
    match int(rng.integers(6)):
        case 0:
            return content[: int(len(content) * rng.uniform(0.05, 0.99))]
        case 1:
            for place in rng.integers(0, len(data), int(rng.integers(1, 60))):
                data[place] ^= 1 << int(rng.integers(8))
        case 2:
            for place in rng.integers(0, min(1500, len(data)), int(rng.integers(1, 8))):
                data[place] = int(rng.integers(256))
        case 3:
            for place in rng.integers(max(0, len(data) - 1500), len(data), int(rng.integers(1, 8))):
                data[place] = int(rng.integers(256))
        case 4:
            begin = int(rng.integers(len(data)))
            end = min(len(data), begin + int(rng.integers(1, 2000)))
            data[begin:end] = rng.bytes(end - begin)
        case _:
            begin, length = int(rng.integers(len(data))), int(rng.integers(1, 2000))
            data[begin : begin + length] = b""
    return bytes(data)


def write_variants(folder: Path) -> None:
    """Write a whole video, and damaged ones of ten kinds."""
    folder.mkdir()
    sources = []
    for name, codec in SOURCES.items():
        path = write_clip(folder / name, FRAMES, codec=codec)
        sources.append((path.suffix, path.read_bytes()))
        path.unlink()
    for number in range(COUNT):
        suffix, content = sources[number % len(sources)]
        variant = damaged(content, np.random.default_rng(number))
        (folder / f"bad{number:03}{suffix}").write_bytes(variant)
    write_clip(folder / "whole.mp4", 100)


def dataset(folder: Path, config: Experiment) -> Experiment:
    """Return the experiment on all files of a folder, and write its annotations."""
    names = [path.stem for path in sorted(folder.iterdir())]
    lines = ["video,subset,label,start,end", *(f"{name},training,wave,0.2,0.8" for name in names)]
    file = folder.parent / "annotations.csv"
    file.write_text("\n".join(lines) + "\n")
    data = DataConfig(
        annotations=str(file), videos=str(folder), train_subset="training",
        validation_subset=None, test_subset="training", bad_videos="skip",
    )  # fmt: skip
    return replace(config, data=data)


@pytest.mark.slow
def test_damage_costs_its_own_video_alone(
    tmp_path: Path, accelerator: Accelerator, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "videos"
    write_variants(folder)
    config = dataset(folder, small_experiment(tmp_path))

    survey = survey_dataset(config, timeout_s=20)
    run_checks(survey)
    names = files_by_name(folder).keys()  # what begins like no video is none
    assert COUNT - 10 < len(names) <= COUNT + 1
    assert survey.files.keys() | survey.unreadable.keys() == names
    assert "whole" in survey.files and not survey.files.keys() & survey.unreadable.keys()
    for file in survey.files.values():
        assert np.all(np.diff(file.index.pts) > 0) and 0 < file.index.fps < 1e6

    items = load_items(config.data, load_annotations(config.data), "training")
    assert "whole" in [item.name for item in items] and len(items) + len(items.skipped) == COUNT + 1
    for item in items:
        reader = VideoReader(item.path)
        try:
            for chunk in reader.chunks(np.arange(len(reader))):
                assert chunk.shape[1:] == (*reader.index.upright_size, 3)
        except VideoError as error:
            assert str(item.path) in str(error)

    checkpoint = save(detector_of(config), tmp_path / "model.pt")
    out = tmp_path / "found.json"
    outputs = Outputs(out, None, None, None, tmp_path / "page.html", False, ToolFiles())
    settings: dict[str, Any] = {"annotation_file": None, "threshold": 0.0, "top": 5, "cpu": True}
    with DecodingProcess() as process:
        settings |= {"workers": 0, "process": process}
        detect([str(folder / "whole.mp4")], checkpoint, None, [], outputs, **settings)
        expected = read_predictions(out)["whole"]
        assert expected
        bad, _ = detect([str(folder)], checkpoint, None, [], outputs, **settings)
    found = read_predictions(out)
    assert found["whole"] == expected
    assert found.keys() | bad.keys() == names
    assert not found.keys() & bad.keys()
    assert all("\n" not in cause for cause in bad.values())
    assert "Traceback" not in "".join(capfd.readouterr())
