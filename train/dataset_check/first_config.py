"""A first config for own videos: what own.yaml says, with subsets and windows that fit the data."""

import csv
import io
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from configs.loader import find_config, parse
from configs.messages import format_count
from evaluate.annotations import Annotations
from evaluate.datasets.records import BY_CHANCE, TEST_SHARE, subset_in
from extract.video.files import files_by_name
from train.config import Experiment
from train.data.truth import load_annotations
from train.dataset_check.annotations import check_reversed_pairs
from train.dataset_check.lengths import suggest_windows
from train.dataset_check.survey import survey_dataset

TEMPLATE = "configs/e2e/own.yaml"


@dataclass(frozen=True)
class FirstConfig:
    """A config and why it is as it is.

    Args:
        content: nested settings.
        reasons: a sentence for each choice.
        labels: the text of a table of labels with subsets, if the given ones do not have them.
    """

    content: dict[str, Any]
    reasons: Sequence[str]
    labels: str | None


@dataclass(frozen=True)
class Subsets:
    """Which subset is for what, and why; `assigned` is set where labels have none: by video."""

    train: str
    validation: str | None
    test: str
    reason: str
    assigned: dict[str, str] | None = None


def propose_config(
    videos: Path, labels: Path, classes: Path | None, run: str, new_labels: Path, has_gpu: bool
) -> FirstConfig:
    """Return a config for a folder of videos and their labels.

    Args:
        run: the folder of the run.
        new_labels: where labels with subsets will be, if the given ones cannot be used as they are.

    Raises:
        ValueError: the labels cannot be read, or no video has a file.
    """
    content = yaml.safe_load(find_config(TEMPLATE).read_text(encoding="utf-8"))
    content["out"] = run
    data: dict[str, Any] = {"annotations": str(labels), "videos": str(videos)}
    if classes:
        data["classes"] = str(classes)
    content["data"] = data
    given = parse(Experiment, yaml.safe_dump(content), source=TEMPLATE)
    annotations = load_annotations(given.data)
    files = files_by_name(videos)
    present = [name for name in annotations.videos if name in files]
    if not present:
        raise ValueError(
            f"{videos} has no file of the {len(annotations.videos)} videos in {labels}, such as "
            f"{next(iter(annotations.videos))}: a file has the name of its video, and any ending"
        )
    reasons = [_describe_data(annotations, len(present))]
    subsets = choose_subsets(annotations, present)
    reasons.append(subsets.reason)
    data |= {
        "train_subset": subsets.train,
        "validation_subset": subsets.validation,
        "test_subset": subsets.test,
    }
    table = None
    with TemporaryDirectory() as folder:
        if subsets.assigned is not None:
            table = write_labels(annotations, subsets.assigned)
            data["annotations"] = f"{folder}/{new_labels.name}"
            Path(data["annotations"]).write_text(table, encoding="utf-8")
        survey = survey_dataset(parse(Experiment, yaml.safe_dump(content), source=TEMPLATE))
    if table is not None:
        data["annotations"] = str(new_labels)
    if suggestion := suggest_windows(survey):
        content["sampling"] |= {
            "window_size": suggestion.window_size,
            suggestion.setting: suggestion.pace,
        }
        reasons.append(f"windows: {suggestion.reason}")
    if any(check_reversed_pairs(survey)):
        content["pixels"] = {"flip": 0.0}
        reasons.append("pixels.flip 0: mirrored frames would exchange classes of left and right")
    if not has_gpu:
        content["training"]["precision"] = "fp32"
        reasons.append("training.precision fp32, for there is no GPU here; with one, fp16")
    return FirstConfig(content, reasons, table)


def choose_subsets(annotations: Annotations, present: Sequence[str]) -> Subsets:
    """Return which subsets to train, validate and test on, of videos that have files."""
    counts = Counter(annotations.videos[name].subset for name in present)
    named: dict[str, str] = {}
    for subset in counts:
        named.setdefault(subset_in(subset) or subset, subset)
    found = ", ".join(f"{subset} ({count})" for subset, count in counts.items())
    train, validation, test = (named.get(each) for each in ("training", "validation", "test"))
    if train and (validation or test):
        chosen = Subsets(train, validation, test or validation or "", "")
    elif validation and test:  # as in THUMOS-14, whose training subset has trimmed videos
        chosen = Subsets(validation, None, test, "")
    else:
        return _split(present, found)
    reason = f"subsets with files: {found}; trained on {chosen.train}, tested on {chosen.test}"
    if BY_CHANCE in annotations.warnings:
        reason += (
            "; the labels have none, so that names of videos decide: give them a column 'subset' "
            "to choose"
        )
    return Subsets(chosen.train, chosen.validation, chosen.test, reason)


def _split(present: Sequence[str], found: str) -> Subsets:
    """Return subsets of which one video in five, chosen by its name's hash, is for testing."""
    if len(present) < 2:
        raise ValueError(
            f"there is a file for one video only, {present[0]}; one more is needed to test on"
        )
    order = sorted(present, key=lambda name: zlib.crc32(name.encode()))
    held_out = set(order[: max(1, len(order) // TEST_SHARE)])
    assigned = {name: "test" if name in held_out else "training" for name in present}
    reason = (
        f"the videos with files are all in {found}: {len(held_out)} of {len(present)}, chosen by "
        "their names' hashes, are put into 'test'"
    )
    return Subsets("training", None, "test", reason, assigned)


def write_labels(annotations: Annotations, assigned: dict[str, str]) -> str:
    """Return labels as a table video, start, end, label, subset, in seconds."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("video", "start", "end", "label", "subset"))
    for name, subset in assigned.items():
        for label, start_s, end_s in annotations.videos[name].segments:
            table.writerow((name, f"{start_s:.6g}", f"{end_s:.6g}", label, subset))
        if not annotations.videos[name].segments:
            table.writerow((name, "", "", "", subset))
    return text.getvalue()


def _describe_data(annotations: Annotations, present: int) -> str:
    actions = sum(len(video.segments) for video in annotations.videos.values())
    missing = len(annotations.videos) - present
    lacking = f" ({missing} without a file)" if missing else ""
    return (
        f"{format_count(len(annotations.videos), 'video')}{lacking}, "
        f"{format_count(actions, 'action')} of "
        f"{format_count(len(annotations.classes), 'class', 'classes')}: "
        f"{', '.join(annotations.classes[:8])}" + (", …" if len(annotations.classes) > 8 else "")
    )
