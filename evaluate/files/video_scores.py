"""Scores of whole videos by another classifier, which give class-agnostic detections classes."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluate.annotations import Detection
from evaluate.datasets.fields import as_number, get_field, raise_problems, read_json, short_repr

VideoScores = Mapping[str, Sequence[tuple[str, float]]]
"""Per video the classes and their scores, best first."""


def read_video_scores(path: str | Path) -> VideoScores:
    """Read `{"results": {video: …}}`: a list of `{"label", "score"}`, or of a score per `class`.

    The latter is how the classifiers' scores for ActivityNet are passed around
    (`{"class": [names], "results": {video: [numbers]}}`).

    Raises:
        ValueError: the file is missing or malformed.
    """
    content = read_json(Path(path))
    results = get_field(content, "results", f"{path}")
    names = get_field(content, "class", f"{path}", kind=list) if "class" in content else None
    scores, problems = {}, []
    for video, entries in results.items():
        try:
            pairs = _pairs(entries, names, f"{path}: video {video!r}")
        except ValueError as error:
            problems.append(error)
            continue
        scores[video] = sorted(pairs, key=lambda pair: -pair[1])
    raise_problems(problems)
    return scores


def _pairs(entries: Any, names: list[Any] | None, where: str) -> list[tuple[str, float]]:
    """Return the classes of a video with their scores."""
    if not isinstance(entries, list):
        raise ValueError(f"{where}: expected a list, not {short_repr(entries)}.")
    if names is None:
        return [
            (get_field(e, "label", where, kind=str), as_number(e.get("score"), "score", where))
            for e in entries
        ]
    if len(entries) != len(names):
        raise ValueError(f"{where}: {len(entries)} scores, but {len(names)} names under 'class'.")
    return [
        (str(label), as_number(score, str(label), where))
        for label, score in zip(names, entries, strict=True)
    ]


def check_scored(scores: VideoScores, videos: Iterable[str]) -> None:
    """Raise ValueError if a video has no scores."""
    for video in videos:
        if video not in scores:
            raise ValueError(
                f"evaluation.video_scores has no video {video!r} among its {len(scores)}; names "
                "must be those of the annotations"
            )


def assign_classes(
    detections: Sequence[Detection], video: str, scores: VideoScores, classes: int
) -> list[Detection]:
    """Return every detection once for each of its video's best classes, best first.

    Scores are multiplied, as in ActionFormer's and AdaTAD's runs on ActivityNet.
    """
    found = [
        found._replace(label=label, score=found.score * score)
        for found in detections
        for label, score in scores[video][:classes]
    ]
    return sorted(found, key=lambda detection: -detection.score)
