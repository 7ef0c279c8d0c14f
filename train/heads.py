"""Train a head, or a fusion of two streams, on a cache of activations; missing ones are computed.

    accelerate launch train/heads.py --checkpoint runs/demo/forward/best.pt --cache URL \
        --out runs/heads [--resume] [--head.width 256 …]
    accelerate launch train/heads.py --checkpoint FORWARD.pt REVERSED.pt --cache URL \
        --config configs/fusion/average.yaml --out runs/fused
    accelerate launch train/heads.py --config FILE --cache URL       # on the pretrained backbone
    accelerate launch train/heads.py --checkpoint FORWARD.pth REVERSED.pth --config FILE \
        --fusion.method average --cache URL --out runs/fused         # detectors of OpenTAD

The backbone is the checkpoint's and stays as it is; the config is the checkpoint's, too, with
--config laid over it. Detectors of OpenTAD have no config: for them the file has to be complete.
With --backbone.trainable_from_block k the adapters from block k on are trained, too, from the
cached activations after block k − 1. The result is a complete detector.

With --training.teacher FUSED.pt the head of one stream goes on from the checkpoint's and learns,
beside the truth, what a trained detector predicts (configs/fusion/distilled.yaml).
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ is None:  # run as a file: its neighbours must not hide modules of their names
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from configs import cli
from configs.options import ScriptParser
from train.config import Experiment, with_cache

if TYPE_CHECKING:
    from train.detector.sources import CheckpointSource

AFTER_INTERRUPT = "--resume continues from last.pt"


def main() -> None:
    parser = ScriptParser(__doc__, Experiment)
    parser.add_argument(
        "--checkpoint", nargs="+", default=[], help="detector whose backbone to use; two to fuse"
    )
    parser.add_argument("--config", help="YAML file of settings, over the checkpoint's")
    parser.add_argument("--cache", help="store of activations; default: the config's cache.url")
    parser.add_argument("--resume", action="store_true", help="continue from last.pt, if any")
    args, overrides = parser.parse()
    if not (args.checkpoint or args.config):
        parser.error("give --checkpoint, --config or both")
    overrides = with_cache(overrides, args.cache)
    from train.detector.setup import freeze_by_default
    from train.detector.sources import merge_configs, read_sources

    sources = read_sources(args.checkpoint, args.config, overrides)
    config = merge_configs(args.config, sources, overrides)
    config = replace(config, backbone=freeze_by_default(config.backbone))
    train_heads(config, sources, args.config or "", args.resume)


def train_heads(
    config: Experiment, sources: Sequence[CheckpointSource], file: str, resume: bool
) -> None:
    """Train as the config says; write checkpoints, metrics and a report into `config.out`.

    Args:
        sources: whose streams to take; none takes the pretrained backbone of the config `file`.
    """
    from extract.backbone.frozen import hold_frozen
    from train.detector.cached_training import compose_detector, train_on_cache
    from train.detector.setup import activations_of, load_training_data
    from train.detector.sources import build_detector, load_teacher
    from train.engine.session import Session

    with Session(config, resume, config.cache.url) as session:
        accelerator, store = session.accelerator, session.store
        if store is None:
            raise ValueError("--cache: give the store that activations are stored in")
        imported = config.backbone.imported
        data = load_training_data(
            config.data, accelerator, store, config.sampling.fps, imported=imported
        )
        if imported and accelerator.is_main_process:
            print(
                f"features '{imported}' are imported: there are no pixels, so only the head can "
                "learn, now or later, and cached blocks, both directions and mirrored or cropped "
                "frames are not available"
            )
        taught_by, teacher = config.training.teacher, None
        if taught_by is not None:
            teacher = load_teacher(taught_by, config, data.classes).to(accelerator.device)
            hold_frozen(teacher, config.training.precision, config.pixels.size)
        detector = build_detector(config, data.classes, sources).to(accelerator.device)
        hold_frozen(detector, config.training.precision, config.pixels.size)
        session.claim(detector, keeps_best=data.validation is not None)
        origins = [path for path, _ in sources] or [file]
        for path in origins:
            if (session.out / "last.pt").resolve() == Path(path).resolve():
                raise ValueError(f"out: {path} is what this run starts from; choose another --out")
        activations = activations_of(detector.eval(), store, origins)
        if teacher is not None:
            activations += activations_of(teacher, store, [str(taught_by)])
        if any(p.requires_grad for p in detector.parameters()):
            train_on_cache(session, detector, activations, data, origins, teacher)
        else:
            compose_detector(session, detector, activations, data)


if __name__ == "__main__":
    cli.run(main, AFTER_INTERRUPT)
