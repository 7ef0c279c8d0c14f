"""Train a detector end to end, from video files.

    accelerate launch train/e2e.py --config configs/e2e/demo/forward.yaml [--resume]
    accelerate launch train/e2e.py --config FILE --training.lr 2e-4 --out runs/other

Any setting of the config can be overridden by its dotted name.
"""

import argparse
import json
import sys
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    InitProcessGroupKwargs,
    broadcast_object_list,
    set_seed,
)

from configs.files import write_text
from configs.load import dump, load
from evaluate.report import draw_curves
from train.config import Experiment
from train.detector import Detector
from train.disk import claim_folder, refuse_full_disk
from train.errors import EXPECTED, message
from train.items import load_annotations, load_subsets
from train.log import METRICS, read_metrics
from train.loop import TrainingRun
from train.validate import WAIT_FOR_OTHERS, skipped_warning


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--config", required=True, help="YAML file of the experiment")
    parser.add_argument("--resume", action="store_true", help="go on from last.pt, if there is one")
    args, overrides = parser.parse_known_args()
    try:
        train(load(Experiment, args.config, overrides), args.resume)
    except EXPECTED as error:
        sys.exit(message(error))


def train(config: Experiment, resume: bool) -> None:
    """Train as the config says; leaves checkpoints, metrics and a picture in `config.out`."""
    accelerator = Accelerator(
        mixed_precision=config.training.mixed_precision,
        # No buffer changes in training, so none needs to be sent around before each step.
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
            InitProcessGroupKwargs(timeout=WAIT_FOR_OTHERS),
        ],
    )
    if accelerator.gradient_accumulation_steps != 1:
        raise ValueError("accumulate with training.accumulate, not with accelerate's own setting")
    if config.training.precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError("training.precision fp16 needs a GPU; on this machine use bf16 or fp32")
    set_seed(config.training.seed)
    out = Path(config.out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"out: {out} is a file; choose a folder")
    # Decided by one process for all: folders of several machines may not show the same files.
    (begun,) = broadcast_object_list([(out / "last.pt").exists()])
    if begun and not resume:
        raise ValueError(f"{out} holds a run already; add --resume, or choose another --out")
    annotations = load_annotations(config.data)
    subset = config.data.validation_subset
    subsets = [config.data.train_subset, *([subset] if subset else [])]
    training, *others = load_subsets(config.data, annotations, subsets, accelerator)
    validation = others[0] if others else None
    if validation is not None and not any(item.truth for item in validation):
        raise ValueError(
            f"no video of subset '{subset}' has an action, so nothing can be validated; set "
            "data.validation_subset to another one or to null"
        )
    detector = Detector(config, annotations.classes)
    detector.load_pretrained()

    if accelerator.is_main_process:
        claim_folder(out)
        refuse_full_disk(out, detector, keeps_best=validation is not None)
    run = TrainingRun(detector, training, validation, accelerator, resume=begun)
    if accelerator.is_main_process:
        write_text(out / "config.yaml", dump(config))
        counts = ", ".join(f"{name} {n:,}" for name, n in detector.parameter_counts().items())
        windows = sum(bool(len(item.segments)) for item in training)
        print(f"{windows} training videos, {len(annotations.classes)} classes; weights: {counts}")
        for what, count in annotations.warnings.items():
            print(f"warning: annotations: {what}: {count}")
        both = [training, *others]
        skipped = {name: cause for items in both for name, cause in items.skipped.items()}
        if skipped:
            print(skipped_warning(skipped, len(skipped) + sum(map(len, both))))
        write_text(out / "skipped_videos.json", json.dumps(skipped, indent=1) + "\n")
    run.go()
    if accelerator.is_main_process:
        draw_curves(read_metrics(out / METRICS), out / "curves.png")
        print(f"done: {out / 'last.pt'}, {out / METRICS}, {out / 'curves.png'}")


if __name__ == "__main__":
    main()
