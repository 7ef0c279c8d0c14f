"""Detect in the same scenes at other frame rates: how far does the mAP fall?

    OMP_NUM_THREADS=1 python -m benchmarks.frame_rates CHECKPOINT … [--out runs/frame_rates]

The demo's test videos (15 to 24 frames a second) are made in two more ways: each frame written two
to four times, so that they have 48 to 60 frames a second with the same pictures, and rendered again
at 60. Every checkpoint is scored on the three, with the same settings; `make demo`
writes runs/demo/forward/last.pt. The table goes to OUT/results.md. Takes some 3 minutes on 2 cores.
"""

import argparse
import json
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from configs.atomic import write_text
from evaluate.mean_ap import MeanAP
from extract.demo import PRESETS, REPEATABLE_OPTIONS, DemoConfig, write_dataset
from train.detector.evaluation import evaluate_checkpoint

DEMO = Path("data/demo")
RATE = 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=Path("runs/frame_rates"))
    args = parser.parse_args()
    write_dataset(DEMO, PRESETS["demo"])
    repeat_frames(DEMO, args.out / "repeated")
    sizes = PRESETS["demo"]
    # As many rates as the demo has: the same random numbers, so the same scenes.
    fast = DemoConfig(1, 0, sizes.test, frame_rates=(RATE,) * len(sizes.frame_rates))
    write_dataset(args.out / "rendered", fast)
    text = "\n".join(score_rows(args.checkpoints, args.out))
    write_text(args.out / "results.md", text + "\n")
    print(text)


def score_rows(checkpoints: list[Path], out: Path) -> Iterator[str]:
    """Yield the lines of a table: a checkpoint's mAP on every kind of file."""
    kinds = {
        "as they are": DEMO,
        "frames repeated": out / "repeated",
        f"rendered at {RATE}": out / "rendered",
    }
    yield f"| checkpoint | {' | '.join(kinds)} |"
    yield "|---" * (len(kinds) + 1) + "|"
    for number, checkpoint in enumerate(checkpoints):
        scores = [
            f"{score_checkpoint(checkpoint, folder, out / f'{number}-{place}').average:.3f}"
            for place, folder in enumerate(kinds.values())
        ]
        yield f"| {checkpoint} | {' | '.join(scores)} |"


def score_checkpoint(checkpoint: Path, data: Path, out: Path) -> MeanAP:
    """Return the scores of a checkpoint on a dataset's test videos."""
    settings = [
        f"--data.annotations={data / 'annotations.json'}",
        f"--data.videos={data / 'videos'}",
        f"--data.classes={DEMO / 'classes.txt'}",
    ]
    found = evaluate_checkpoint(checkpoint, None, settings, "test", None, out)
    assert found is not None
    return found.score().result


def repeat_frames(source: Path, target: Path) -> None:
    """Write a dataset's test videos, each frame repeated, at about 60 frames a second."""
    if (target / "annotations.json").exists():
        return
    (target / "videos").mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = json.loads((source / "annotations.json").read_text())
    test = {name: x for name, x in content["database"].items() if x["subset"] == "test"}
    for name, video in test.items():
        times = RATE // video["fps"]
        repeat_video(source / f"videos/{name}.mp4", target / f"videos/{name}.mp4", times)
        video |= {"fps": video["fps"] * times, "frame": video["frame"] * times}
    write_text(target / "annotations.json", json.dumps(content | {"database": test}))


def repeat_video(source: Path, target: Path, times: int) -> None:
    """Re-encode a video, with every frame several times, in as many seconds."""
    with av.open(str(source)) as container, av.open(str(target), "w") as repeated:
        stream = container.streams.video[0]
        assert stream.average_rate is not None
        copy = repeated.add_stream("libx264", rate=Fraction(stream.average_rate) * times)
        copy.width, copy.height, copy.pix_fmt = stream.width, stream.height, "yuv420p"
        copy.options = {"crf": "18", "preset": "veryfast", "threads": "1", **REPEATABLE_OPTIONS}
        for frame in container.decode(stream):
            picture = frame.to_ndarray(format="rgb24")
            for _ in range(times):
                again = av.VideoFrame.from_ndarray(picture, format="rgb24")
                repeated.mux(copy.encode(again))
        repeated.mux(copy.encode())


if __name__ == "__main__":
    main()
