"""Write the demo dataset: real H.264 files and their annotations.

    python extract/demo.py --out data/demo
    python extract/demo.py --out data/study --preset study
    python extract/demo.py --out data/actions --preset clips

The folder gets videos/*.mp4, annotations.json (THUMOS/ActivityNet layout) and classes.txt; two
controls: exchanged.json (training and validation annotations moved to other videos) and
mirrored.json (training annotations of the reversed videos); and what people's own annotations may
look like: half.json, quarter.json (of so many training videos) and moved.json (boundaries a tenth
of the action's length off). With the preset `clips` it gets <subset>/<class>/*.mp4, each little
longer than its one action, that many of every class. The same arguments give the same bytes. A
folder that is already complete is not changed.
"""

import sys
from pathlib import Path

if __package__ is None:  # run as a file: its neighbours must not hide modules of their names
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import json
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from functools import partial
from multiprocessing import get_context
from typing import Any

import av
import numpy as np

from configs import cli
from configs.atomic import write_text
from configs.options import ScriptParser
from configs.progress import ProgressBar
from extract.scenes import ACTIONS, Scene, random_clip, random_scene, render_scene

FRAME_RATES = (15, 18, 20, 24)
SIZES = ((96, 128), (96, 112), (112, 96), (104, 136))  # height, width
SUBSETS = ("training", "validation", "test", "held_out")
ANNOTATIONS = "annotations.json"
STAMP = "demo.json"  # only a folder with this file is ours to delete
CHUNK = 128  # frames drawn at a time
# x264's lookahead reads memory next to frames whose width is not a multiple of 64: its
# decisions, and so the file's bytes, would differ from run to run.
REPEATABLE_OPTIONS = {"x264-params": "mbtree=0:rc-lookahead=0"}


@dataclass(frozen=True)
class DemoConfig:
    """Number of videos per subset, their lengths, and the seed.

    Args:
        shortest, longest: bounds of a video's duration in seconds.
        held_out: videos that no detector trains on, for fusions to be fitted to.
        frame_rates: one is drawn for each video.
    """

    training: int = 40
    validation: int = 6
    test: int = 24
    shortest: float = 20.0
    longest: float = 60.0
    seed: int = 0
    held_out: int = 0
    frame_rates: tuple[int, ...] = FRAME_RATES


CLIPS = "clips"
PRESETS = {
    "demo": DemoConfig(),
    # Few videos to train on, and enough to test on that a difference of half a mAP is significant.
    "study": DemoConfig(40, validation=32, test=480, shortest=16, longest=32, held_out=24),
    # Trimmed, to be recognised: clips of each action.
    CLIPS: DemoConfig(120, validation=10, test=40, shortest=1.5, longest=3.5),
}


def write_dataset(folder: Path, config: DemoConfig, processes: int = 2) -> None:
    """Write all videos and annotation files into `folder`.

    A complete dataset of the same settings is not changed; an unfinished or other demo dataset is
    made again.

    Raises:
        ValueError: the folder holds something else, which is not touched.
    """
    wanted = json.dumps(asdict(config))
    if not _is_complete(folder, wanted):
        _write_videos(folder, config, processes)
        write_text(folder / STAMP, wanted)
    database = json.loads((folder / ANNOTATIONS).read_text())["database"]
    for name, change in CHANGED_ANNOTATIONS.items():
        if not (folder / name).exists():  # a dataset of an earlier version lacks some
            _write_json(folder / name, {"version": "control", "database": change(database)})


def _write_videos(folder: Path, config: DemoConfig, processes: int) -> None:
    """Write all videos, their annotations and classes."""
    (folder / "videos").mkdir()
    jobs = [
        (folder / "videos", subset, index, config)
        for subset in SUBSETS
        for index in range(getattr(config, subset))
    ]
    database: dict[str, Any] = {}
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        done = pool.map(_write_video, *zip(*jobs, strict=True))
        for name, entry in ProgressBar(done, total=len(jobs), desc="demo videos", unit="video"):
            database[name] = entry
    write_text(folder / "classes.txt", "".join(f"{name}\n" for name in ACTIONS))
    _write_json(folder / ANNOTATIONS, {"version": "demo", "database": database})


def write_clips(folder: Path, config: DemoConfig, processes: int = 2) -> None:
    """Write trimmed clips into class folders, as many of every class as the config has videos.

    Raises:
        ValueError: as `write_dataset`.
    """
    wanted = json.dumps({CLIPS: asdict(config)})
    if _is_complete(folder, wanted):
        return
    jobs = [
        (folder, subset, index, config)
        for subset in SUBSETS
        for index in range(getattr(config, subset) * len(ACTIONS))
    ]
    for subset in {subset for _, subset, *_ in jobs}:
        for action in ACTIONS:
            (folder / subset / action).mkdir(parents=True)
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        done = pool.map(_write_clip, *zip(*jobs, strict=True))
        list(ProgressBar(done, total=len(jobs), desc="demo clips", unit="clip"))
    write_text(folder / STAMP, wanted)


def _is_complete(folder: Path, wanted: str) -> bool:
    """Return whether the dataset of a stamp is complete; otherwise make an empty folder for it.

    Raises:
        ValueError: the folder holds something else, which is not touched.
    """
    stamp = folder / STAMP
    if stamp.exists():
        if stamp.read_text() == wanted:
            return True
        shutil.rmtree(folder)
    elif folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty and no demo dataset; choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    stamp.write_text("unfinished")
    return False


def _write_clip(folder: Path, subset: str, index: int, config: DemoConfig) -> None:
    # The last number keeps this stream apart from those of the long videos.
    rng = np.random.default_rng((config.seed, SUBSETS.index(subset), index, 1))
    action = ACTIONS[index % len(ACTIONS)]
    fps, (height, width) = int(rng.choice(config.frame_rates)), SIZES[rng.integers(len(SIZES))]
    count = int(rng.uniform(config.shortest, config.longest) * fps)
    scene = random_clip(rng, action, count / fps)
    _encode(folder / subset / action / f"{index:04d}.mp4", scene, (height, width), fps, count, rng)


def _write_video(
    folder: Path, subset: str, index: int, config: DemoConfig
) -> tuple[str, dict[str, Any]]:
    rng = np.random.default_rng((config.seed, SUBSETS.index(subset), index))
    fps, (height, width) = int(rng.choice(config.frame_rates)), SIZES[rng.integers(len(SIZES))]
    count = int(rng.uniform(config.shortest, config.longest) * fps)
    scene = random_scene(rng, count / fps)
    name = f"{subset}_{index:03d}"
    _encode(folder / f"{name}.mp4", scene, (height, width), fps, count, rng)
    annotations = [
        {"segment": [round(start, 3), round(end, 3)], "label": label}
        for label, start, end in scene.actions()
    ]
    return name, {
        "subset": subset,
        "duration": count / fps,
        "frame": count,
        "fps": fps,
        "annotations": annotations,
    }


def _encode(
    path: Path,
    scene: Scene,
    size: tuple[int, int],
    fps: int,
    count: int,
    rng: np.random.Generator,
) -> None:
    height, width = size
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps))
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.options = {"crf": "26", "preset": "veryfast", "threads": "1", **REPEATABLE_OPTIONS}
        for begin in range(0, count, CHUNK):
            times = np.arange(begin, min(begin + CHUNK, count)) / fps
            for picture in render_scene(scene, times, height, width, rng):
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                container.mux(stream.encode(frame))
        container.mux(stream.encode())


def exchange_annotations(database: dict[str, Any]) -> dict[str, Any]:
    """Return annotations in which training and validation videos have the next video's, scaled.

    Such a file shows how frequent and how long actions are, not when they are: a detector trained
    on it must fail on the true test annotations.
    """
    exchanged = dict(database)
    for subset in SUBSETS[:2]:
        names = [name for name in database if database[name]["subset"] == subset]
        for name, donor in zip(names, names[1:] + names[:1], strict=True):
            scale = database[name]["duration"] / database[donor]["duration"]
            moved = [
                {"segment": [round(scale * t, 3) for t in a["segment"]], "label": a["label"]}
                for a in database[donor]["annotations"]
            ]
            exchanged[name] = database[name] | {"annotations": moved}
    return exchanged


def mirror_annotations(database: dict[str, Any]) -> dict[str, Any]:
    """Return annotations in which training videos have those of their reversed videos.

    A reversed stream that is trained on such a file learns labels that were not mirrored.
    """
    from extract.sampling.reversal import reverse_seconds

    def mirror(start: float, end: float, entry: Mapping[str, Any]) -> tuple[float, float]:
        start, end = reverse_seconds(start, end, entry["frame"], entry["fps"])
        return max(0.0, start), end

    return _change_segments(database, mirror)


def thin_annotations(database: dict[str, Any], share: float) -> dict[str, Any]:
    """Return annotations with only the first `share` of the training videos."""
    names = [name for name, entry in database.items() if entry["subset"] == SUBSETS[0]]
    dropped = set(names[round(share * len(names)) :])
    return {name: entry for name, entry in database.items() if name not in dropped}


def move_boundaries(database: dict[str, Any], share: float) -> dict[str, Any]:
    """Return annotations in which each boundary of training videos is off by `share` of the action.

    Which way is drawn for each; boundaries stay inside their video.
    """
    rng = np.random.default_rng(0)

    def move(start: float, end: float, entry: Mapping[str, Any]) -> tuple[float, float]:
        shifts = share * (end - start) * rng.choice((-1.0, 1.0), 2)
        start, end = np.clip(np.array([start, end]) + shifts, 0.0, entry["duration"]).tolist()
        return start, end

    return _change_segments(database, move)


def _change_segments(
    database: dict[str, Any],
    change: Callable[[float, float, Mapping[str, Any]], tuple[float, float]],
) -> dict[str, Any]:
    """Return annotations with changed training videos.

    Args:
        change: a start, an end and their video's entry -> another start and end.
    """
    changed = dict(database)
    for name, entry in database.items():
        if entry["subset"] == SUBSETS[0]:
            actions = []
            for action in entry["annotations"]:
                start, end = action["segment"]
                moved = [round(t, 3) for t in change(start, end, entry)]
                actions.append(action | {"segment": moved})
            changed[name] = entry | {"annotations": actions}
    return changed


CHANGED_ANNOTATIONS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "exchanged.json": exchange_annotations,
    "mirrored.json": mirror_annotations,
    "half.json": partial(thin_annotations, share=0.5),
    "quarter.json": partial(thin_annotations, share=0.25),
    "moved.json": partial(move_boundaries, share=0.1),
}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=1) + "\n")


def main() -> None:
    parser = ScriptParser(__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--preset", choices=PRESETS, default="demo", help="sizes to begin with")
    for name, value in asdict(DemoConfig()).items():
        parser.add_argument(f"--{name}", type=type(value))
    parser.add_argument("--processes", type=int, default=2)
    args = vars(parser.parse()[0])
    out, processes = args.pop("out"), args.pop("processes")
    preset = args.pop("preset")
    write = write_clips if preset == CLIPS else write_dataset
    given = {name: value for name, value in args.items() if value is not None}
    write(out, replace(PRESETS[preset], **given), processes)
    print(f"demo dataset: {out}")


if __name__ == "__main__":
    cli.run(main)
