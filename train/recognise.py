"""Train a network to recognise actions in trimmed clips, from scratch or from a checkpoint.

    accelerate launch train/recognise.py --config configs/recognition/demo.yaml [--resume]
    accelerate launch train/recognise.py --config FILE --data.annotations FOLDER \\
        --network.weights CHECKPOINT --training.lr 1e-3 --out runs/mine

Any setting of the config can be overridden by its dotted name.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from accelerate import DistributedType

from configs import cli
from configs.atomic import write_text
from configs.loader import dump, load
from train.data.videos import format_skipped
from train.engine.loop import START_UP, TrainingRun
from train.engine.run_folder import check_disk_space, claim_folder
from train.engine.session import is_resuming, make_accelerator, run_report
from train.engine.stopwatch import Stopwatch
from train.recognition.clip_lists import LabelledClips
from train.recognition.config import Recognition
from train.recognition.dataset import Examples, load_examples, read_clips
from train.recognition.recogniser import Recogniser
from train.recognition.training import RecognitionTask


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--config", required=True, help="YAML file of the experiment")
    parser.add_argument("--resume", action="store_true", help="go on from last.pt, if there is one")
    args, overrides = parser.parse_known_args()
    train(load(Recognition, args.config, overrides), args.resume)


def train(config: Recognition, resume: bool) -> None:
    """Train as the config says; leaves checkpoints, metrics and a report in `config.out`."""
    watch = Stopwatch(START_UP)
    accelerator = make_accelerator(config)
    if accelerator.distributed_type == DistributedType.FSDP:
        raise ValueError(
            "recognition networks are small enough for every GPU, and sharding them (FSDP) is not "
            "tested; launch with configs/accelerate/multi_gpu.yaml"
        )
    out = Path(config.out)
    begun = is_resuming(out, resume)
    clips = read_clips(config.data)
    subset = config.data.validation_subset
    subsets = [config.data.train_subset, *([subset] if subset else [])]
    training, *others = load_examples(config.data, clips, subsets, accelerator)
    validation = others[0].kept if others else None
    if validation is not None and not any(example.labels for example in validation):
        raise ValueError(
            f"no clip of subset '{subset}' has a label, so nothing can be validated; set "
            "data.validation_subset to another one or to null"
        )
    recogniser = Recogniser(config, clips.sets)
    taken = ""
    if config.network.weights and not begun:
        taken = recogniser.load_weights(config.network.weights)
    if accelerator.is_main_process:
        claim_folder(out, begun)
        check_disk_space(out, recogniser.network, keeps_best=validation is not None)
    task = RecognitionTask(recogniser, training.kept, validation, accelerator)
    run = TrainingRun(task, accelerator, begun, watch)
    with run_report(out, accelerator, watch, begun):
        if accelerator.is_main_process:
            write_run_record(out, recogniser, [training, *others], clips, taken)
        run.train()


def write_run_record(
    out: Path,
    recogniser: Recogniser,
    subsets: Sequence[Examples],
    clips: LabelledClips,
    taken: str,
) -> None:
    """Write what is decided of a run before it begins, and say it: training clips come first."""
    write_text(out / "config.yaml", dump(recogniser.config))
    count = sum(p.numel() for p in recogniser.network.parameters())
    sets = " and ".join(f"{len(s.classes)} {s.name or 'classes'}" for s in recogniser.sets)
    print(
        f"{sum(bool(e.labels) for e in subsets[0].kept)} training clips, {sets}; {count:,} weights"
    )
    if taken:
        print(taken)
    for what, number in clips.warnings.items():
        print(f"warning: annotations: {what}: {number}")
    skipped = {name: cause for part in subsets for name, cause in part.skipped.items()}
    if skipped:
        print(format_skipped(skipped, len(skipped) + sum(len(part.kept) for part in subsets)))
    write_text(out / "skipped_videos.json", json.dumps(skipped, indent=1) + "\n")


if __name__ == "__main__":
    cli.run(main, "--resume goes on from last.pt")
