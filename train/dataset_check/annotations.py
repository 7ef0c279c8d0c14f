"""Checks of an experiment's annotations."""

import difflib
import re
from collections import Counter
from collections.abc import Iterator

from configs.messages import format_count
from evaluate.annotations import ALIKE_LABELS, Video
from evaluate.datasets.fields import Refused, group_spelled_alike, show_alike
from train.dataset_check.findings import Finding, FindingKind
from train.dataset_check.survey import AnnotationNote, Survey, subsets, unless_skipped

ALMOST = 0.85  # alike, of 1: a letter more, less or wrong in a word of some length
FEW = 10  # examples of a class; with fewer, what is learned is mostly chance
OUTSIDE = "outside the video"
REFUSED = "correct the file, or list the video under data.blocked; training would stop there"
TOLERATED = "handled as stated; correct the file if that is not what it means"
HARMLESS = {"segments clipped to the end of their video"}  # rounding

UNIT = FindingKind(
    "times in another unit",
    "error",
    "times are in seconds: divide frame numbers by the frame rate, milliseconds by 1000",
)
NO_SUBSET = FindingKind(
    "subset that no video is in", "error", "correct the setting or the annotations' subsets"
)
UNUSED = FindingKind(
    "subset that is not used", "info", "nothing; no setting under data names this subset"
)
SHARED = FindingKind(
    "one subset to train and to test on",
    "warning",
    "results say nothing about other videos; name another data.test_subset",
)
NO_ACTION = FindingKind("subset without an action", "error", "annotate it, or name another subset")
IDLE = FindingKind("training video without an action", "info", "nothing; training ignores it")
UNTRAINED = FindingKind(
    "class without a training example",
    "warning",
    "it can never be found: annotate examples, or remove it from the class list",
)
ONLY_TESTED = FindingKind(
    "class that is tested but never trained",
    "warning",
    "its average precision will be about 0 and lower the mean: move videos to the training subset",
)
ALIKE = FindingKind(
    "labels that hardly differ",
    "warning",
    "they are learned as classes of their own; if they mean the same, spell them alike",
)
READ = FindingKind(
    "read with tolerance", "info", "nothing; correct the file if that is not what it means"
)
FEW_EXAMPLES = FindingKind(
    "class with few training examples", "warning", f"aim at {FEW} or more; more is better"
)
MIRRORED = FindingKind(
    "flips exchange left and right",
    "warning",
    "set pixels.flip 0, or these classes are trained on each other's pictures",
)


def check_annotations(survey: Survey) -> Iterator[Finding]:
    """Yield what reading the annotations rejected or tolerated, and times not in seconds."""
    far: dict[str, list[float]] = {}
    for note in survey.notes:
        if isinstance(note.problem, Refused) and note.problem.end_s is not None:
            far.setdefault(note.video, []).append(note.problem.end_s)
    units = {}
    for name, ends in far.items():
        video = survey.annotations.videos[name]
        unit = _unit(video, ends, survey)
        if unit:
            units[name] = unit
            text = f"{name}: {len(ends)} actions end far after the video; the times look like "
            numbers = {"latest_end": max(ends), "actions": len(ends)}
            outside = [note for note in survey.notes if note.video == name and _is_outside(note)]
            of_file = all(note.of_file for note in outside)
            kind = unless_skipped(UNIT, survey) if of_file else UNIT
            yield Finding(kind, text + unit, name, numbers=numbers)
    for note in survey.notes:
        if note.video not in units or not _is_outside(note):
            yield _finding(note, survey)
    told = {note.problem for note in survey.notes}
    for what, count in survey.annotations.warnings.items():
        # Those with a place have been told; `check_classes` tells labels with their examples.
        if what not in told and not what.startswith(ALIKE_LABELS):
            yield Finding(READ, f"{what}: {count}", numbers={"count": count})


def _finding(note: AnnotationNote, survey: Survey) -> Finding:
    if isinstance(note.problem, str):
        harmless = note.problem in HARMLESS or note.problem.endswith("annotations dropped")
        kind = FindingKind(note.problem, "info" if harmless else "warning", TOLERATED)
        place = "" if note.entry is None else f", entry {note.entry}"
        return Finding(kind, f"video {note.video!r}{place}", note.video, note.entry)
    name = note.problem.kind if isinstance(note.problem, Refused) else "malformed annotation"
    kind = FindingKind(name, "error", REFUSED)
    kind = unless_skipped(kind, survey) if note.of_file else kind
    return Finding(kind, str(note.problem), note.video, note.entry)


def _is_outside(note: AnnotationNote) -> bool:
    if isinstance(note.problem, str):
        return "video" in note.problem and note.entry is not None
    return isinstance(note.problem, Refused) and note.problem.kind == OUTSIDE


def _unit(video: Video, ends: list[float], survey: Survey) -> str | None:
    """Return the unit that the times of a video seem to be in, if not seconds.

    A single typing error is no other unit: most of the actions must end far after the video.
    """
    file = survey.files.get(video.name)
    duration_s = file.frames / file.index.fps if file else video.duration_s
    frames = file.frames if file else video.frames
    kept = sum(segment.end_s <= 2 * (duration_s or 0) for segment in video.segments)
    if duration_s is None or kept > len(ends):
        return None
    if frames and max(ends) <= 1.05 * frames:
        return f"frame numbers (of {frames})"
    return "milliseconds" if max(ends) <= 1050 * duration_s else None


def check_subsets(survey: Survey) -> Iterator[Finding]:
    """Yield subsets that are empty, without actions, unused, or used twice."""
    config, data = survey.config, survey.config.data
    there = Counter(video.subset for video in survey.annotations.videos.values())
    listed = ", ".join(map(repr, there)) or "none"
    for subset, setting in subsets(config.data).items():
        if subset not in there:
            text = f"{setting}: no video is in {subset!r}; the annotations have {listed}"
            yield Finding(NO_SUBSET, text)
        elif not any(video.segments for video in survey.videos(subset)):
            yield Finding(NO_ACTION, f"{setting}: no video of {subset!r} has an action")
    for subset, count in there.items():
        if subset not in subsets(config.data):
            numbers = {"videos": count}
            yield Finding(UNUSED, f"{subset!r} with {count} videos", numbers=numbers)
    if data.train_subset == data.test_subset:
        yield Finding(SHARED, f"data.train_subset and data.test_subset are {data.test_subset!r}")
    for video in survey.videos(data.train_subset):
        if not video.segments:
            yield Finding(IDLE, video.name, video.name)


def check_classes(survey: Survey) -> Iterator[Finding]:
    """Yield classes with too few examples to learn from."""
    data, names = survey.config.data, survey.annotations.classes
    trained, tested = (count_examples(survey, s) for s in (data.train_subset, data.test_subset))
    for alike in group_spelled_alike(names):
        shown = zip(show_alike(alike), alike, strict=True)
        examples = " and ".join(f"{text} ({trained[name]} training)" for text, name in shown)
        yield Finding(ALIKE, examples, numbers={name: trained[name] for name in alike})
    for name in names:
        numbers = {"training": trained[name], "test": tested[name]}
        slip = _describe_slip(name, trained, survey) if trained[name] < FEW else ""
        if not trained[name]:
            kind = ONLY_TESTED if tested[name] else UNTRAINED
            where = f", {format_count(tested[name], 'test example')}" if tested[name] else ""
            yield Finding(kind, f"{name}: no training example{where}{slip}", numbers=numbers)
        elif trained[name] < FEW:
            examples = format_count(trained[name], "example")
            yield Finding(FEW_EXAMPLES, f"{name}: {examples}{slip}", numbers=numbers)


def _describe_slip(name: str, trained: Counter[str], survey: Survey) -> str:
    """Return the end of a sentence on a rare class: the class that its name may be a slip for."""
    usual = [
        other
        for other, count in trained.items()
        # Names that differ in numbers alone are a series.
        if count > trained[name] and re.sub(r"\d", "", other) != re.sub(r"\d", "", name)
    ]
    near = difflib.get_close_matches(name, usual, n=1, cutoff=ALMOST)
    videos = [v.name for v in survey.used if any(s.label == name for s in v.segments)]
    if not near or not videos:
        return ""
    examples = format_count(trained[near[0]], "example")
    return f"; is it {near[0]!r} ({examples}), misspelt in {videos[0]}?"


def count_examples(survey: Survey, subset: str) -> Counter[str]:
    """Return how many actions of each class a subset has."""
    return Counter(s.label for video in survey.videos(subset) for s in video.segments)


def check_reversed_pairs(survey: Survey) -> Iterator[Finding]:
    """Yield classes that name a side, if training mirrors pictures."""
    flip = survey.config.pixels.flip
    for name in survey.annotations.classes if flip > 0 else ():
        if {"left", "right"} & set(_words(name)):
            text = f"{name}: {flip:.0%} of the training windows are mirrored (pixels.flip {flip})"
            yield Finding(MIRRORED, text, numbers={"flip": flip})


def _words(label: str) -> list[str]:
    """Return the words of a label, whether it is written likeThis, like_this or like this."""
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", label)]
