"""Setup of a recogniser's run: its clips, checks, its record."""

import json
from pathlib import Path
from typing import NamedTuple

from accelerate import Accelerator, DistributedType

from configs.atomic import write_text
from configs.loader import dump
from train.data.items import Subset, count_listed, format_skipped, skipped_of
from train.recognition.clip_lists import LabelledClips
from train.recognition.config import LabelledData
from train.recognition.dataset import Example, load_examples, read_clips
from train.recognition.recogniser import Recogniser


class TrainingClips(NamedTuple):
    """The list of clips, and those that a network is trained on and validated with, if any."""

    clips: LabelledClips
    training: Subset[Example]
    validation: Subset[Example] | None

    @property
    def subsets(self) -> list[Subset[Example]]:
        """Training and, if there is one, validation."""
        return [self.training] if self.validation is None else [self.training, self.validation]


def load_training_clips(data: LabelledData, accelerator: Accelerator) -> TrainingClips:
    """Read the list of clips and match both subsets with their files; see `load_examples`.

    Raises:
        ValueError: the list or files are missing or malformed, or there are clips to validate with,
            but no label of them.
    """
    clips = read_clips(data)
    name = data.validation_subset
    names = [data.train_subset, *([name] if name else [])]
    training, *others = load_examples(data, clips, names, accelerator)
    validation = others[0] if others else None
    if validation is not None and not any(example.labels for example in validation):
        raise ValueError(
            f"no clip of subset '{name}' has a label, so nothing can be validated; set "
            "data.validation_subset to another one or to null"
        )
    return TrainingClips(clips, training, validation)


def check_not_sharded(accelerator: Accelerator) -> None:
    """Raise ValueError if weights would be sharded over processes."""
    if accelerator.distributed_type == DistributedType.FSDP:
        raise ValueError(
            "recognition networks are small enough for every GPU, and sharding them (FSDP) is not "
            "tested; launch with configs/accelerate/multi_gpu.yaml"
        )


def write_recogniser_record(
    out: Path, recogniser: Recogniser, data: TrainingClips, taken: str
) -> None:
    """Write and print the facts that are fixed before a run begins.

    Args:
        taken: which pretrained weights were loaded, in words.
    """
    write_text(out / "config.yaml", dump(recogniser.config))
    count = sum(p.numel() for p in recogniser.network.parameters())
    sets = " and ".join(f"{len(s.classes)} {s.name or 'classes'}" for s in recogniser.sets)
    labelled = sum(bool(example.labels) for example in data.training)
    print(f"{labelled} training clips, {sets}; {count:,} weights")
    if taken:
        print(taken)
    for what, number in data.clips.warnings.items():
        print(f"warning: annotations: {what}: {number}")
    skipped = skipped_of(data.subsets)
    if skipped:
        print(format_skipped(skipped, count_listed(data.subsets), "clips"))
    write_text(out / "skipped_videos.json", json.dumps(skipped, indent=1) + "\n")
