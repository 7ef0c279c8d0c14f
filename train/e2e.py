"""Train a detector end to end, from video files.

    accelerate launch train/e2e.py --config configs/e2e/demo/forward.yaml [--resume]
    accelerate launch train/e2e.py --config FILE --training.lr 2e-4 --out runs/other
    accelerate launch train/e2e.py --config FILE --cache URL         # validation stores features
    accelerate launch train/e2e.py --config FILE --init-from runs/heads/best.pt
    accelerate launch train/e2e.py --config BOTH --forward-from FILE.pt --reversed-from FILE.pt

Any setting of the config can be overridden by its dotted name.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ is None:  # run as a file: its neighbours must not hide modules of their names
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from collections.abc import Sequence
from typing import TYPE_CHECKING, get_args

from configs import cli
from configs.loader import load
from configs.options import ScriptParser
from extract.settings.sampling import Direction
from train.config import Experiment, with_cache

if TYPE_CHECKING:
    from train.detector.sources import CheckpointSource

AFTER_INTERRUPT = "--resume continues from last.pt"


def main() -> None:
    parser = ScriptParser(__doc__, Experiment)
    parser.add_argument("--config", required=True, help="YAML file of the experiment")
    parser.add_argument("--resume", action="store_true", help="continue from last.pt, if any")
    parser.add_argument("--cache", help="store for the features that validation computes")
    parser.add_argument("--init-from", help="checkpoint whose weights to start from")
    for direction in get_args(Direction):
        parser.add_argument(
            f"--{direction}-from", help=f"checkpoint of the {direction} stream, of two"
        )
    args, overrides = parser.parse()
    config = load(Experiment, args.config, with_cache(overrides, args.cache))
    from train.detector.setup import check_has_pixels
    from train.detector.sources import read_sources

    check_has_pixels(config.backbone)
    if config.training.teacher is not None:
        raise ValueError(
            "training.teacher: heads learn from a teacher on cached features; train end to end "
            "without it, then use train/heads.py"
        )
    named = {"forward": args.forward_from, "reversed": args.reversed_from}
    if any(named.values()):
        _check_directions(config.directions, named, args.init_from)
    paths = [path for path in map(named.get, config.directions) if path]
    sources = read_sources(paths, args.config, overrides)
    train_end_to_end(config, args.resume, args.init_from, sources)


def _check_directions(
    directions: Sequence[Direction], named: dict[str, str | None], source: str | None
) -> None:
    """Raise ValueError unless there are two streams of opposite directions, and one source each."""
    if source or not all(named.values()) or sorted(directions) != sorted(named):
        raise ValueError(
            "--forward-from and --reversed-from go together, without --init-from, in an experiment "
            "of both directions (fusion.method is not none)"
        )


def train_end_to_end(
    config: Experiment,
    resume: bool,
    source: str | None = None,
    streams: Sequence[CheckpointSource] = (),
) -> None:
    """Train as the config says; write checkpoints, metrics and a report into `config.out`.

    Args:
        source: checkpoint whose weights to start from; None for the pretrained backbone's.
        streams: checkpoint of each stream, instead.
    """
    from train.detector.setup import (
        activations_of,
        load_training_data,
        open_frame_cache,
        write_detector_record,
    )
    from train.detector.sources import build_detector, init_from_checkpoint
    from train.detector.training import DetectionTask
    from train.engine.loop import TrainingRun
    from train.engine.session import Session

    with Session(config, resume, config.cache.url) as session:
        accelerator, store = session.accelerator, session.store
        data = load_training_data(
            config.data, accelerator, store, config.sampling.fps, needs_files=True
        )
        detector = build_detector(config, data.classes, streams)
        if source:
            init_from_checkpoint(detector, source)
        session.claim(detector, keeps_best=data.validation is not None)
        activations = activations_of(detector, store, [session.out / "last.pt"]) if store else ()
        subsets = data.training, data.validation
        frames = open_frame_cache(
            config.data, config.sampling, config.pixels, *subsets, accelerator
        )
        task = DetectionTask(
            detector, *subsets, accelerator, activations=activations, frame_cache=frames
        )
        run = TrainingRun(task, accelerator, session.begun, session.watch)
        with session.report() as notes:
            notes.activations["training and validation"] = task.total
            if accelerator.is_main_process:
                notes.about = write_detector_record(session.out, detector, data)
                if task.memory:
                    print(task.memory)
                notes.about["epochs"] = run.epochs
            run.train()


if __name__ == "__main__":
    cli.run(main, AFTER_INTERRUPT)
